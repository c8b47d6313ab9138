"""Names of kernels.

A kernel is a Python function `kernel(args, chunk, scratch)` of three int64: the address of its arguments, the number of the chunk to do,
and the address of the thread's scratch memory. It is named by a spec "module:name:variant:...", and what makes it is `build_name(variant,
...)` in that module; a module with a function `build` makes all of its kernels by `build(name, variant, ...)`.
"""

from __future__ import annotations

import importlib
from typing import Any


class KernelError(RuntimeError):
    """A kernel can't be compiled or loaded: a bug, ours or the compiler's. One line."""


def symbol(spec: str) -> str:
    """The name of a kernel's entry point: unique, so that any number of kernels can live in one process."""
    return "qwencli_" + "".join(c if c.isalnum() else "_" for c in spec)


def find(spec: str) -> Any:
    """The Python function that a spec names. Imports Numba. Raises whatever the import or what makes it raises for an unknown name."""
    name, *variant = spec.split(":")
    module = importlib.import_module(f".{name}", __package__)
    if hasattr(module, "build"):
        return module.build(*variant)
    kernel, *rest = variant
    return getattr(module, f"build_{kernel}")(*rest)
