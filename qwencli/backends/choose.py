"""Backends by name."""

from __future__ import annotations

from collections.abc import Callable

from ..network.model import Model
from .kv_cache import DEFAULT_TYPES, CacheTypes
from .protocol import Backend


def choose_backend(name: str, model: Model, report: Callable[[str], None] | None) -> str:
    """Return the name itself, or for "auto" the backend to use: "cpu" if it has kernels for all that the model needs, else "numpy".

    `report` is called if "auto" has to choose the slow one.
    """
    if name != "auto":
        return name
    from .cpu.lower import without_kernels

    missing = without_kernels(model)
    if missing and report:
        report(f"no compiled kernels for {', '.join(missing)}: running on the slow NumPy backend")
    return "numpy" if missing else "cpu"


def make_backend(
    name: str,
    model: Model,
    n_threads: int | None,
    report: Callable[[str], None] | None,
    progress: Callable[[int, int], None] | None = None,
    cache_types: CacheTypes = DEFAULT_TYPES,
) -> Backend:
    """Return the backend with this name, or for "auto" the one that `choose_backend` picks. Only its own modules are imported.

    Raises InputError for cache types or an instruction set that can't be used, ModelError for a model that the backend can't run.
    """
    if choose_backend(name, model, report) == "numpy":
        from .numpy.backend import NumpyBackend

        return NumpyBackend(model, n_threads, cache_types=cache_types)
    from .cpu.backend import CPUBackend

    return CPUBackend(model, n_threads, report, progress, cache_types=cache_types)
