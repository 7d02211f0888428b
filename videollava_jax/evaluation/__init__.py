"""Scores of answers on published tasks: read, joined by id, marked as the authors' programs mark, reported. No JAX."""
