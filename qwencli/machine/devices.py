"""What `qwencli devices` finds: each device, what it is made of, and with a measurement what it can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from ..backends.buffers import HUGE, MAPPED, MEMORY
from ..backends.devices import Device, known_devices, n_threads
from ..system.host import Host
from ..units import ranges
from .facts import instruction_set, measured


def list_devices(
    measure: bool = False, report: Callable[[str], None] | None = None, host: Host | None = None
) -> dict[str, Any]:
    """All devices, as `qwencli devices --json` prints them; what can't be found, or has no meaning for a device, is None.

    With `measure` the speed of each is measured, which takes about a second; `report` is told what is compiled for that.
    """
    host = host or Host()
    devices = [facts_of(device, host) for device in known_devices(host)]
    if measure:
        for facts, device in zip(devices, known_devices(host)):
            facts["limits"] = limits(device, report)
    return {"n_devices": len(devices), "devices": devices}


def facts_of(device: Device, host: Host) -> dict[str, Any]:
    """What is known of a device without measuring."""
    cpus = host.allowed() if device.cpus is None else device.cpus
    compiled = device.backend == "cpu"
    total, free = memory_of(device, host)
    return {
        "name": device.name,
        "description": host.cpu_name()
        if compiled
        else f"NumPy {version('numpy')}, the slow float32 reference",
        "backend": device.backend,
        "type": "CPU",
        "node": device.node,
        "cpus": ranges(cpus),
        "n_cpus": len(cpus),
        "cores": host.cores(cpus),
        "threads": n_threads(device, host),
        "isa": instruction_set()["chosen"] if compiled else None,
        "caches": caches_of(cpus, host),
        "buffer_types": [MAPPED, MEMORY, *([HUGE] if host.huge_pages() in ("always", "madvise") else [])],
        "memory": total,
        "free": free,
        "limits": None,
    }


def memory_of(device: Device, host: Host) -> tuple[int | None, int | None]:
    """Bytes of memory, and of memory that is free or can be freed at once: of a NUMA node, or else what the process may use in all."""
    limit, free = host.memory_limit(), host.free()
    if device.node is None:
        found = [n for n in (host.memory()[0], limit and limit[0]) if n is not None]
        return min(found, default=None), free
    totals = {node.number: node.n_bytes for node in host.nodes()}
    left = [n for n in (free, host.node_free(device.node)) if n is not None]
    return totals.get(device.node), min(left, default=None)


def caches_of(cpus: frozenset[int], host: Host) -> list[dict[str, Any]]:
    """The caches of some CPUs: how many there are of each name and size."""
    counts = Counter((cache.name, cache.n_bytes) for cache in host.caches(cpus))
    return [{"name": name, "bytes": n_bytes, "count": n} for (name, n_bytes), n in counts.items()]


def limits(device: Device, report: Callable[[str], None] | None) -> dict[str, float | None] | None:
    """Bytes per second from memory, operations per second on int8 and on float32; None if they can't be measured."""
    if device.backend == "cpu":
        found = measured(report, device.cpus)
        return None if found is None else {**found}
    from .peak import measure_numpy

    peak = measure_numpy()
    return {"bandwidth": peak.bandwidth, "products": None, "flops": peak.flops}
