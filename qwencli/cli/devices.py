"""`qwencli devices`"""

from __future__ import annotations

import json
from typing import Any

import click

from ..units import size
from ._facts import about_limits, row
from ._options import example, json_option
from ._streams import printable, say, write_text


@click.command(epilog=example("qwencli devices", "qwencli devices --measure", "qwencli devices --json"))
@click.option(
    "--measure",
    is_flag=True,
    help="Measure how fast each device reads memory and multiplies. The first call compiles kernels.",
)
@json_option
def devices(measure: bool, as_json: bool) -> None:
    """List the devices that models can run on.

    These are all CPUs together, each NUMA node if there are several, and NumPy. `cpu:0` also names the CPUs of NUMA node 0, and
    `cpus:0-3+8-11` the CPUs with these numbers.
    """
    from ..machine.devices import list_devices

    facts = list_devices(measure, say)
    write_text(json.dumps(facts) + "\n" if as_json else as_text(facts))


def as_text(facts: dict[str, Any]) -> str:
    """The number of devices, then rows about each."""
    lines = [f"{facts['n_devices']} devices"]
    for device in facts["devices"]:
        lines += ["", printable(f"{device['name']}: {device['description']}"), *about(device)]
    return "\n".join(lines) + "\n"


def about(device: dict[str, Any]) -> list[str]:
    return [
        row("type", device["type"]),
        row("backend", device["backend"], device["isa"] and f"kernels for {device['isa']}"),
        row(
            "CPUs",
            device["cpus"],
            counted(device["cores"], "core"),
            counted(device["threads"], "thread"),
            None if device["node"] is None else f"NUMA node {device['node']}",
        ),
        *([row("caches", *map(cache, device["caches"]))] if device["caches"] else []),
        row("buffer types", *device["buffer_types"]),
        row(
            "memory",
            size(device["memory"]) if device["memory"] is not None else "unknown",
            size(device["free"]) + " free" if device["free"] is not None else None,
        ),
        *about_limits(device["limits"]),
    ]


def counted(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def cache(facts: dict[str, Any]) -> str:
    """Caches are sized in powers of 1024."""
    n, unit = facts["bytes"] // 1024, "KiB"
    if n >= 1024 and n % 1024 == 0:
        n, unit = n // 1024, "MiB"
    count = f"{facts['count']} x " if facts["count"] > 1 else ""
    return f"{facts['name']} {count}{n} {unit}"
