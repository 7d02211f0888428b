"""A run: its recipe, loop, checkpoints, processes and logs."""
