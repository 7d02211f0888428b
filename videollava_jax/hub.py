"""A model's name or path to a directory."""
