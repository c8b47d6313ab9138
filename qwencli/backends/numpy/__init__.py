"""The NumPy backend: plain float32, the oracle for the compiled kernels."""
