"""Tensors used alone: a graph that is built in Python, without a model file."""
