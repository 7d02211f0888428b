"""The model: layers, attention, towers, decoder, caches, and how all of it is sharded."""
