"""The media of a job: found within a root, from URLs and hosts; read by worker processes within limits. No JAX."""
