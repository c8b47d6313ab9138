"""What a model computes: the graph of named tensors that an architecture builds from a file."""
