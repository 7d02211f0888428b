"""A job's media: found below a root, in data: URLs and on hosts; read by worker processes within limits. No JAX."""
