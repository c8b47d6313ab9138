"""The CPU backend: a graph lowered to a program of compiled kernels, run by a team of threads."""
