"""Models divided among CPU devices, also where the process may use only one CPU: then they share it."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from qwencli.backends.choose import make_devices
from qwencli.backends.devices import Device
from qwencli.backends.scheduler.placement import place
from qwencli.backends.scheduler.scheduler import Scheduler
from qwencli.backends.scheduler.wishes import Override, Wishes
from qwencli.network.model import Model

ALLOWED = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
ONE, TWO = (
    Device(name, "cpu", frozenset({cpu})) for name, cpu in (("one", ALLOWED[0]), ("two", ALLOWED[-1]))
)
NUMPY = Device("numpy", "numpy")
BY_NAME = {device.name: device for device in (ONE, TWO, NUMPY)}


def wishes(
    devices: Sequence[Device] = (ONE, TWO), overrides: Mapping[str, str] | None = None, **more: Any
) -> Wishes:
    """`overrides` are patterns and names of devices."""
    pairs = (overrides or {}).items()
    return Wishes(
        tuple(devices),
        overrides=tuple(Override(text, re.compile(text), BY_NAME[name]) for text, name in pairs),
        **more,
    )


def divided(model: Model, *args: Any, n_threads: int | None = None, **more: Any) -> Scheduler:
    """A scheduler for a model, divided as `wishes` say."""
    backend = make_devices(place(model, wishes(*args, **more)), model, n_threads, None)
    assert isinstance(backend, Scheduler)
    return backend
