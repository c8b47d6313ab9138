"""The NumPy backend: plain float32, the oracle of the compiled kernels."""
