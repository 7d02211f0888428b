"""Text and media to token ids and pixels: tokenizer, templates, prompts, the processor. No JAX."""
