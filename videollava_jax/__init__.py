"""Video-LLaVA in JAX and Flax."""
