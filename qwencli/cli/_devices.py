"""The options that divide a model among devices, gathered in one object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ._llama.command import llama_option

if TYPE_CHECKING:
    from ..backends.scheduler.wishes import Wishes


@dataclass(frozen=True)
class DeviceOptions:
    """What was asked for; None or nothing where it wasn't."""

    device: str | None = None
    tensor_split: str | None = None
    layers_per_device: str | None = None
    override_tensor: tuple[str, ...] = ()

    def wishes(self) -> Wishes | None:
        """The devices and how the model is divided among them, None if nothing was asked for. Raises InputError."""
        if self == DeviceOptions():
            return None
        from ..backends.scheduler.wishes import read_wishes

        asked = asdict(self)
        return read_wishes(asked.pop("device"), **asked)


def device_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passed on to the command as DeviceOptions, `devices`."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        devices = DeviceOptions(**{name: kwargs.pop(name) for name in DeviceOptions.__dataclass_fields__})
        return command(devices=devices, **kwargs)

    for option in (
        llama_option(
            "-ot",
            metavar="REGEX=DEVICE",
            multiple=True,
            help="Put tensors whose names the pattern is found in on a device, with the nodes that read them.",
        ),
        click.option(
            "--layers-per-device",
            metavar="N,N",
            help="How many layers each device has. Default: as -ts says.",
        ),
        llama_option(
            "-ts",
            metavar="X,Y",
            help="The devices' shares of the layers, such as 3,1. Default: all the same.",
        ),
        llama_option(
            "-dev",
            metavar="LIST",
            help="Devices that divide the layers, in order: cpu, cpu:N (a NUMA node), cpus:0-3 (these CPUs), numpy."
            " `qwencli devices` lists them.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper
