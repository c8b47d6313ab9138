"""Devices by name: what a graph, or a part of it, can run on.

`cpu` is all of this machine's CPUs that the process may use, `cpu:N` those of NUMA node N, `cpus:0-3+8-11` these very CPUs, and `numpy` the
slow float32 reference. A comma separates devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import combinations

from ..errors import InputError
from ..system.host import Host, read_cpus
from ..units import ranges
from .cpu.team import physical_cores

ALL, NODE, SOME, NUMPY = "cpu", "cpu:", "cpus:", "numpy"
"""The names of devices, or what they begin with."""


@dataclass(frozen=True)
class Device:
    """What runs a graph: the backend `backend`, "cpu" or "numpy", on the CPUs `cpus`, or on all that the process may use if that is None.

    `name` is what the user calls it. `node` is the NUMA node that has all of `cpus`; None if there are several such nodes, or all CPUs are
    used.
    """

    name: str
    backend: str
    cpus: frozenset[int] | None = None
    node: int | None = None


def parse_devices(text: str, host: Host | None = None) -> list[Device]:
    """The devices of a list such as "cpu:0,cpu:1". Raises InputError for a device that isn't there and for CPUs named twice."""
    host = host or Host()
    names = [name.strip() for name in text.split(",")]
    if not any(names):
        raise InputError(f"no device is named{_known(host)}")
    devices = [_parse(name, host) for name in names]
    for one, other in combinations(devices, 2):
        if one.name == other.name:
            raise InputError(f"the device {one.name} is named twice")
        if shared := _cpus(one, host) & _cpus(other, host):
            raise InputError(f"the devices {one.name} and {other.name} share {_counted(shared)}")
    return devices


def known_devices(host: Host | None = None) -> list[Device]:
    """All devices with a name of their own: `cpu`, each NUMA node if there are several, and `numpy`."""
    host = host or Host()
    nodes = numa_nodes(host)
    own = [Device(f"{NODE}{node}", "cpu", cpus, node) for node, cpus in nodes.items() if cpus]
    return [Device(ALL, "cpu"), *(own if len(nodes) > 1 else []), Device(NUMPY, "numpy")]


def numa_nodes(host: Host) -> dict[int, frozenset[int]]:
    """The CPUs that the process may use, by NUMA node. A system that knows nothing of nodes has one, 0. Some may have no such CPUs."""
    found = {}
    allowed = host.allowed()
    for node in host.nodes():
        try:
            found[node.number] = read_cpus(node.cpus) & allowed
        except ValueError:
            continue
    return found if any(found.values()) else {0: allowed}


def n_threads(device: Device, host: Host | None = None) -> int:
    """The number of threads to run on a device: one per physical core, as far as the cgroups' quota goes."""
    return physical_cores(host, device.cpus)


def _parse(name: str, host: Host) -> Device:
    """The device with this name. Raises InputError."""
    plain = name.lower()
    if plain in (ALL, NUMPY):
        return Device(plain, plain)
    if node := re.fullmatch(f"{NODE}([0-9]{{1,9}})", plain):
        return _node(int(node[1]), host)
    if plain.startswith(SOME):
        return _some(plain, host)
    raise InputError(f"unknown device {name[:40]!r}{_known(host)}")


def _node(number: int, host: Host) -> Device:
    nodes = numa_nodes(host)
    if number not in nodes:
        raise InputError(f"there is no NUMA node {number}{_known(host)}")
    if not nodes[number]:
        raise InputError(f"this process may not use any CPU of NUMA node {number}{_known(host)}")
    return Device(f"{NODE}{number}", "cpu", nodes[number], number)


def _some(name: str, host: Host) -> Device:
    try:
        cpus = read_cpus(name.removeprefix(SOME).replace("+", ","))
    except ValueError as error:
        raise InputError(f"device {name[:40]!r}: {error}{_known(host)}") from None
    if missing := cpus - host.allowed():
        raise InputError(f"device {name[:40]!r}: this process has no {_counted(missing)}{_known(host)}")
    node = next((node for node, its in numa_nodes(host).items() if cpus <= its), None)
    return Device(f"{SOME}{ranges(cpus).replace(',', '+')}", "cpu", cpus, node)


def _cpus(device: Device, host: Host) -> frozenset[int]:
    """The CPUs that a device has for itself. NumPy's threads go wherever there is room."""
    if device.backend == NUMPY:
        return frozenset()
    return host.allowed() if device.cpus is None else device.cpus


def _counted(cpus: frozenset[int]) -> str:
    return f"CPU{'s' if len(cpus) > 1 else ''} {ranges(cpus)[:40]}"


def _known(host: Host) -> str:
    """The end of an error: all that can be named."""
    nodes = [f"{NODE}{node}" for node, cpus in numa_nodes(host).items() if cpus]
    names = [ALL, *nodes, f"{SOME}LIST ({ranges(host.allowed()).replace(',', '+')})", NUMPY]
    return f"; known are {', '.join(names)}"
