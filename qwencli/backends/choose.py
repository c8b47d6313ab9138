"""Backends by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ..errors import InputError
from ..network.model import Model
from .devices import Device
from .devices import n_threads as device_threads
from .kv_cache import DEFAULT_TYPES, CacheTypes
from .protocol import Backend, Share
from .threads import USUAL, Threads

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
    threads: Threads = USUAL,
) -> Backend:
    """Return the backend with this name, or for "auto" the one that `choose_backend` picks. Only its own modules are imported.

    Raises InputError for cache types, CPUs or an instruction set that can't be used, ModelError for a model that the backend can't run.
    """
    device = Device(name, choose_backend(name, model, report), threads.chosen_cpus())
    if report and device.backend == "numpy" and threads.changed:
        report(f"NumPy's own threads run this model, and know nothing of {', '.join(threads.changed)}")
    elif report:
        for line in threads.warnings(n_threads):
            report(line)
    return _make(device, model, n_threads, report, progress, cache_types, threads)


def make_devices(
    placement: Placement,
    model: Model,
    n_threads: int | None,
    report: Callable[[str], None] | None,
    progress: Callable[[int, int], None] | None = None,
    cache_types: CacheTypes = DEFAULT_TYPES,
    threads: Threads = USUAL,
) -> Backend:
    """Return the backend for a model that is divided as `placement` says: a scheduler, if more than one device has something to run.

    Each CPU device has a thread per physical core, but at most `n_threads`, or `threads.batch` for steps of several tokens. Raises what
    `make_backend` does, and InputError if `threads` too say which CPUs to use.
    """
    if threads.cpus is not None or threads.numa:
        raise InputError("devices and a list of CPUs or a NUMA strategy are given: name the CPUs as devices")
    if report:
        for line in threads.warnings(n_threads):
            report(line)
    used = set(placement.of.values())
    devices = placement.devices

    def make(number: int, share: Share | None = None) -> Backend:
        device = devices[number]
        most = device_threads(device)
        here, n = threads, n_threads
        if device.cpus:
            n = min(n_threads or most, most)
            here = replace(threads, batch=min(threads.batch, most)) if threads.batch else threads
        return _make(device, model, n, report, progress, cache_types, here, share)

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
    threads: Threads,
    share: Share | None = None,
) -> Backend:
    if device.backend == "numpy":
        from .numpy.backend import NumpyBackend

        return NumpyBackend(model, n_threads, cache_types=cache_types, share=share)
    from .cpu.backend import CPUBackend

    return CPUBackend(
        model,
        n_threads,
        report,
        progress,
        cache_types=cache_types,
        cpus=device.cpus,
        share=share,
        threads=threads,
    )
