"""Names of kernels.

A kernel is a Python function `kernel(args, chunk, scratch)` of three int64: the address of its arguments, the number of the chunk to do,
and the address of the thread's scratch memory. Its name is a spec "module:name:variant:...", and `build_name(variant, ...)` in that module
returns it. If the module has a function `build`, `build(name, variant, ...)` returns all of its kernels.
"""

from __future__ import annotations

import importlib
from typing import Any


class KernelError(RuntimeError):
    """A kernel can't be compiled or loaded: a bug of ours or of the compiler. The message is one line."""


def symbol(spec: str) -> str:
    """Return the name of a kernel's entry point: unique, so that one process can hold any number of kernels."""
    return "qwencli_" + "".join(c if c.isalnum() else "_" for c in spec)


def find(spec: str) -> Any:
    """Return the Python function that a spec names. Imports Numba. For an unknown name the import or the look-up raises."""
    name, *variant = spec.split(":")
    module = importlib.import_module(f".{name}", __package__)
    if hasattr(module, "build"):
        return module.build(*variant)
    kernel, *rest = variant
    return getattr(module, f"build_{kernel}")(*rest)
