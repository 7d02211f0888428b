"""Compiles jobs and training steps for chips that are not here, to find what fits and how fast it can be."""
