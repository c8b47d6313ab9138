"""This machine: the most that it can do, the kernels compiled for it, and what would make it faster."""
