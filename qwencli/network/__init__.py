"""What a model computes: the graph of named tensors that an architecture makes of a file."""
