"""Reads compiled XLA programs: parses their text, counts their memory traffic, finds copies of their arguments."""
