"""Jobs on a Ray cluster: requests in blocks, engines as replicas."""
