"""Backends by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..network.model import Model
from .devices import Device
from .devices import n_threads as device_threads
from .kv_cache import DEFAULT_TYPES, CacheTypes
from .protocol import Backend, Share

if TYPE_CHECKING:
    from .scheduler.placement import Placement


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
    device = Device(name, choose_backend(name, model, report))
    return _make(device, model, n_threads, report, progress, cache_types)


def make_devices(
    placement: Placement,
    model: Model,
    n_threads: int | None,
    report: Callable[[str], None] | None,
    progress: Callable[[int, int], None] | None = None,
    cache_types: CacheTypes = DEFAULT_TYPES,
) -> Backend:
    """Return the backend for a model that is divided as `placement` says: a scheduler, if more than one device has something to run.

    Each CPU device has a thread per physical core, but at most `n_threads`. Raises what `make_backend` does.
    """
    used = set(placement.of.values())
    devices = placement.devices

    def make(number: int, share: Share | None = None) -> Backend:
        device = devices[number]
        most = device_threads(device)
        threads = min(n_threads or most, most) if device.cpus else n_threads
        return _make(device, model, threads, report, progress, cache_types, share)

    if len(used) == 1:
        return make(used.pop())
    from .scheduler.scheduler import Scheduler

    return Scheduler(model, placement, make)


def _make(
    device: Device,
    model: Model,
    n_threads: int | None,
    report: Callable[[str], None] | None,
    progress: Callable[[int, int], None] | None,
    cache_types: CacheTypes,
    share: Share | None = None,
) -> Backend:
    if device.backend == "numpy":
        from .numpy.backend import NumpyBackend

        return NumpyBackend(model, n_threads, cache_types=cache_types, share=share)
    from .cpu.backend import CPUBackend

    return CPUBackend(
        model, n_threads, report, progress, cache_types=cache_types, cpus=device.cpus, share=share
    )
