"""Jobs and training steps compiled for chips that are not here: what fits, and how fast it can be."""
