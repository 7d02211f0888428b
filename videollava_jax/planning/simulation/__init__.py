"""The engine's schedule on a simulated clock: how well a job keeps chips busy that are not here. No JAX."""
