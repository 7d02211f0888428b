"""Samples to rows: read, tokenised, packed, loaded."""
