"""Compiled kernels, installed as `qwencli.kernels`. They know addresses and shapes, and import nothing else of qwencli."""

if __name__ != "qwencli.kernels":
    raise ImportError("kernels is part of the package qwencli: import qwencli.kernels")
