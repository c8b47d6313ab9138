"""How the user wants a model divided among devices: llama.cpp's options, read and checked as far as that goes without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import InputError
from ...system.host import Host
from ..devices import Device, parse_devices

T = TypeVar("T")
MOST_PATTERN = 500
"""The longest pattern that is read."""
MOST_LAYERS = 10**6
"""More than any model has, few enough to be added and written."""


@dataclass(frozen=True)
class Override:
    """Tensors whose names `pattern` is found in go to `device`, and with them the nodes that read them. `text` is what the user wrote."""

    text: str
    pattern: re.Pattern[str]
    device: Device


@dataclass(frozen=True)
class Wishes:
    """`devices` get layers in this order: in proportion to `shares`, or as many as `n_layers` says, or all the same. `overrides` come
    first."""

    devices: tuple[Device, ...]
    shares: tuple[float, ...] | None = None
    n_layers: tuple[int, ...] | None = None
    overrides: tuple[Override, ...] = ()

    @property
    def text(self) -> str:
        """The devices, with their shares or layers, and the patterns, for tables."""
        numbers = self.n_layers or self.shares or ()
        each = [device.name for device in self.devices]
        if numbers:
            each = [f"{name} {number:g}" for name, number in zip(each, numbers)]
        return ", ".join([*each, *(f"{o.text}={o.device.name}" for o in self.overrides)])

    @property
    def all_devices(self) -> tuple[Device, ...]:
        """The devices, and after them those that only overrides name."""
        return tuple(dict.fromkeys([*self.devices, *(override.device for override in self.overrides)]))


def read_wishes(
    devices: str | None = None,
    tensor_split: str | Sequence[float] | None = None,
    layers_per_device: str | Sequence[int] | None = None,
    override_tensor: Sequence[str] = (),
    host: Host | None = None,
) -> Wishes:
    """Read the options of these names. `devices` is "cpu" if only others are given.

    Raises InputError for devices that aren't there, and for numbers and patterns that can't be read.
    """
    if tensor_split is not None and layers_per_device is not None:
        raise InputError(
            "both the shares of devices and their numbers of layers are given: leave one of them out"
        )
    pairs = [_pair(part) for text in override_tensor for part in text.split(",")]
    chosen = parse_devices("cpu" if devices is None else devices, host)
    known = {device.name for device in chosen}
    overrides = []
    for text, pattern, name in pairs:
        (device,) = parse_devices(name, host)
        if device.name not in known:
            parse_devices(",".join([*known, device.name]), host)  # raises InputError if two have a CPU
            known.add(device.name)
        overrides.append(Override(text, pattern, device))
    return Wishes(
        tuple(chosen),
        _shares(tensor_split, len(chosen)),
        _counts(layers_per_device, len(chosen)),
        tuple(overrides),
    )


def _pair(text: str) -> tuple[str, re.Pattern[str], str]:
    """The text, the pattern and the name of a device in PATTERN=DEVICE."""
    pattern, equals, name = text.rpartition("=")
    if not equals or not pattern or not name.strip():
        raise InputError(f"{text[:60]!r}: expected PATTERN=DEVICE, such as 'ffn_down=cpu:1'")
    if len(pattern) > MOST_PATTERN:
        raise InputError(f"a pattern has {len(pattern)} characters, expected at most {MOST_PATTERN}")
    try:
        return pattern, re.compile(pattern), name
    except re.error as error:
        raise InputError(f"{pattern[:60]!r} is not a regular expression: {error}") from None


def _shares(given: str | Sequence[float] | None, n_devices: int) -> tuple[float, ...] | None:
    if given is None:
        return None
    shares = tuple(_numbers(given, float, "3,1"))
    if len(shares) != n_devices:
        raise InputError(f"expected one share per device, {n_devices}, not {len(shares)}")
    if not all(share >= 0 for share in shares) or not 0 < sum(shares) < float("inf"):
        raise InputError("shares of devices are numbers from 0 up, and one of them is more than 0")
    return shares


def _counts(given: str | Sequence[int] | None, n_devices: int) -> tuple[int, ...] | None:
    if given is None:
        return None
    counts = tuple(_numbers(given, int, "14,14"))
    if len(counts) != n_devices:
        raise InputError(f"expected one number of layers per device, {n_devices}, not {len(counts)}")
    for count in counts:
        if not 0 <= count < MOST_LAYERS:
            raise InputError(f"a device can't have {str(count)[:20]} layers")
    return counts


def _numbers(given: str | Iterable[float], kind: Callable[[Any], T], example: str) -> list[T]:
    try:
        # llama.cpp takes both as separators
        return [kind(part) for part in (re.split("[,/]", given) if isinstance(given, str) else given)]
    except (ValueError, OverflowError):
        raise InputError(f"{str(given)[:40]!r}: expected numbers such as {example}") from None
