#!/usr/bin/env python3
"""List the devices that a model or a graph can run on.

    python examples/devices.py

`qwencli devices` says more about each, and with --measure how fast it is.
"""

from __future__ import annotations

import click

from qwencli.machine.devices import list_devices
from qwencli.units import size


@click.command()
def main() -> None:
    """List the devices that a model or a graph can run on."""
    found = list_devices()
    print(f"devices: {found['n_devices']}")
    for device in found["devices"]:
        print(f"\n{device['name']}: {device['description']}")
        print(f"  backend       {device['backend']}, on {device['n_cpus']} CPUs ({device['cpus']})")
        print(f"  threads       {device['threads']}")
        print(f"  buffer types  {', '.join(device['buffer_types'])}")
        total, free = (size(n) if n is not None else "unknown" for n in (device["memory"], device["free"]))
        print(f"  memory        {total}, free: {free}")


if __name__ == "__main__":
    main()
