"""What runs a graph that was built in Python: a backend for each device."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ..backends.choose import make_backend
from ..backends.kv_cache import CacheTypes
from ..backends.protocol import Backend
from ..errors import InputError
from ..network.model import Model
from ..system.host import Host

DEVICES = ("cpu", "numpy")
EXACT = CacheTypes("f32", "f32")
"""Attention's keys and values are not rounded."""


class Usage(NamedTuple):
    """What a graph runs on. `buffer_bytes` is the memory of the values between its inputs and results; None where that isn't planned
    ahead."""

    device: str
    description: str
    n_threads: int | None
    buffer_bytes: int | None


def backend_for(
    device: str, model: Model, n_threads: int | None, report: Callable[[str], None] | None
) -> Backend:
    """Return a device's backend for a graph. Raises InputError for an unknown device, or one that lacks something that the graph needs."""
    if device not in DEVICES:
        raise InputError(f"unknown device '{device[:40]}', known are {', '.join(DEVICES)}")
    if device == "cpu":
        from ..backends.cpu.lower import without_kernels

        if missing := without_kernels(model):
            raise InputError(f"the device cpu has no kernels for {', '.join(missing)}; numpy can run them")
    return make_backend(device, model, n_threads, report, cache_types=EXACT)


def usage_of(device: str, backend: Backend) -> Usage:
    """Return what a device's backend runs on."""
    from ..backends.cpu.backend import CPUBackend

    if isinstance(backend, CPUBackend):
        return Usage(device, f"{Host().cpu_name()}, {backend.isa}", backend.n_threads, backend.buffer_bytes)
    import numpy as np

    return Usage(device, f"NumPy {np.__version__}", None, None)
