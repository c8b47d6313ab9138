"""What runs a graph that was built in Python: a backend for a device, or a scheduler for several."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..backends.choose import make_devices
from ..backends.devices import Device, parse_devices
from ..backends.kv_cache import CacheTypes
from ..backends.protocol import Backend
from ..backends.scheduler.placement import Placement, lacks
from ..errors import InputError
from ..network.graph import Attention, Conv, DeltaNet, Graph, Input, KVStore, Tensor, Weight
from ..network.model import Model
from ..system.host import Host

Devices = str | Mapping[str, str]
"""The name of a device; or for some nodes, by name, the names of devices. The others run where the first node that they read runs, or else
on the first of these devices."""
EXACT = CacheTypes("f32", "f32")
"""Attention's keys and values are not rounded."""


class Usage(NamedTuple):
    """What a graph runs on. `buffer_bytes` is the memory of the values between its inputs and results, `n_threads` the number of threads;
    None where they aren't known ahead."""

    device: str
    description: str
    n_threads: int | None
    buffer_bytes: int | None


def backend_for(
    devices: Devices, model: Model, n_threads: int | None, report: Callable[[str], None] | None
) -> Backend:
    """Return the backend for a graph. Raises InputError for an unknown device or node, or a device without kernels for its nodes."""
    placement = placement_of(model.graph, devices)
    for number, device in enumerate(placement.devices):
        nodes = [node for node in model.graph.nodes.values() if placement.of[node.name] == number]
        if missing := lacks(
            model, [node for node in nodes if not isinstance(node.op, (Input, Weight))], device
        ):
            what = ", ".join(dict.fromkeys(missing))
            raise InputError(f"the device {device.name} has no kernels for {what}; numpy can run them")
    return make_devices(placement, model, n_threads, report, cache_types=EXACT)


def placement_of(graph: Graph, devices: Devices) -> Placement:
    """Give each node a device. Raises InputError."""
    if isinstance(devices, str):
        return Placement((one_device(devices),), dict.fromkeys(graph.nodes, 0))
    wanted = {name: one_device(device) for name, device in devices.items()}
    known = tuple(dict.fromkeys(wanted.values()))
    if not known:
        raise InputError("no device is named")
    parse_devices(",".join(device.name for device in known))  # which says if they share CPUs
    whole = {
        source.name: node
        for node in graph.nodes.values()
        for source in node.src
        if isinstance(node.op, (Attention, DeltaNet)) and isinstance(source.op, (KVStore, Conv))
    }
    for name in wanted:
        node = graph.nodes.get(name)
        if node is None or isinstance(node.op, (Input, Weight)) or name in whole:
            raise InputError(
                f"'{name}' can't be given a device: expected the name of a node that is computed"
            )
    of: dict[str, int] = {}
    for node in graph.nodes.values():
        if not isinstance(node.op, (Input, Weight)):
            device = wanted.get(whole.get(node.name, node).name)
            is_second = any(source.name in whole for source in node.src)
            of[node.name] = known.index(device) if device and not is_second else followed(node, of, whole)
    for node in graph.nodes.values():
        for source in node.src:
            of.setdefault(source.name, of[node.name])  # a leaf is where it is read first
    return Placement(known, dict.fromkeys(graph.nodes, 0) | of)


def followed(node: Tensor, of: Mapping[str, int], whole: Mapping[str, Tensor]) -> int:
    """Return the device of the node that this one follows: the one that it can't be cut from, or the first that it reads."""
    placed = [source.name for source in node.src if source.name in of]
    first = next((name for name in placed if name in whole), placed[0] if placed else None)
    return 0 if first is None else of[first]


def one_device(name: str) -> Device:
    """Return the device with this name. Raises InputError."""
    device, *others = parse_devices(name)
    if others:
        raise InputError(
            f"'{name[:40]}' are several devices: give one for each of some nodes, by the nodes' names"
        )
    return device


def usage_of(devices: Devices, backend: Backend) -> Usage:
    """Return what a backend runs on."""
    from ..backends.cpu.backend import CPUBackend
    from ..backends.scheduler.scheduler import Scheduler

    name = devices if isinstance(devices, str) else ",".join(dict.fromkeys(devices.values()))
    if isinstance(backend, Scheduler):
        parts = [usage_of(name, part) for part in backend.devices.values()]
        counts = [(part.n_threads or 0, part.buffer_bytes or 0) for part in parts]
        n_threads, buffer_bytes = (sum(each) for each in zip(*counts))
        description = "; ".join(dict.fromkeys(part.description for part in parts))
        return Usage(name, description, n_threads, buffer_bytes)
    if isinstance(backend, CPUBackend):
        return Usage(name, f"{Host().cpu_name()}, {backend.isa}", backend.n_threads, backend.buffer_bytes)
    import numpy as np

    return Usage(name, f"NumPy {np.__version__}", None, None)


def splits_of(backend: Backend, n_rows: int) -> list[str]:
    """Return a line for each split; none if there is one device."""
    from ..backends.scheduler.scheduler import Scheduler

    return backend.describe(n_rows, n_rows) if isinstance(backend, Scheduler) else []
