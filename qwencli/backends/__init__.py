"""What runs a graph: the protocol, the KV cache, and a package for each backend."""
