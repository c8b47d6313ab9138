"""Which layers are alike, so that one of them can stand for all: runs of equal layers, and groups of layers that repeat."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, fields

from ..network.graph import Op, Tensor
from ..units import ranges

OF_ONE_LAYER = ("layer", "info", "scale")
"""Fields of ops in which equal layers differ: their numbers and their weights."""


@dataclass(frozen=True)
class Run:
    """Layers that are drawn as one, `times` in a row. `layers` are all of them; in a group that repeats, those of every repetition."""

    times: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Runs that repeat `times` times, one after the other."""

    times: int
    parts: tuple[Run | Group, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(number for part in self.parts for number in part.layers))


def fold(
    keys: Sequence[Hashable], layers: Sequence[tuple[int, ...]] | None = None
) -> tuple[Run | Group, ...]:
    """The layers in order, as few parts as a look from the first to the last finds. Layers with equal keys are alike.

    At each place the block that covers the most layers by repeating is taken, among several the shortest. `layers` are the numbers that
    each key stands for, by default its place.
    """
    layers = layers or [(i,) for i in range(len(keys))]
    found: list[Run | Group] = []
    start = 0
    while start < len(keys):
        length, times = longest_repetition(keys, start)
        stop = start + length * times
        union = [
            tuple(n for each in layers[first:stop:length] for n in each)
            for first in range(start, start + length)
        ]
        if length == 1:
            found.append(Run(times, tuple(sorted(union[0]))))
        else:
            found.append(Group(times, fold(keys[start : start + length], union)))
        start = stop
    return tuple(found)


def longest_repetition(keys: Sequence[Hashable], start: int) -> tuple[int, int]:
    """The length of the block that covers most by repeating from `start` on, and how often it is there; (1, 1) if none repeats."""
    best = 1, 1
    for length in range(1, (len(keys) - start) // 2 + 1):
        block, times = keys[start : start + length], 1
        while keys[start + times * length : start + (times + 1) * length] == block:
            times += 1
        if times > 1 and length * times > best[0] * best[1]:
            best = length, times
    return best


def key_of(
    nodes: Sequence[Tensor], number: int, before: Tensor, device_of: Callable[[Tensor], str]
) -> Hashable:
    """What has to be equal for two layers to be drawn as one: names but for the layer's number, ops, shapes, devices, and who reads what.

    Types of weights may differ: a Q4_K_M has some layers with a matrix of Q6_K. `before` is the state that the layer begins with.
    """
    places = {node.name: i for i, node in enumerate(nodes)}
    places[before.name] = -1
    return (
        device_of(before),
        *(
            (
                without_number(node.name, number),
                settings(node.op),
                node.shape,
                device_of(node),
                tuple(places.get(source.name, source.name) for source in node.src),
            )
            for node in nodes
        ),
    )


def settings(op: Op) -> Hashable:
    """An op's class and fields, but for those of one layer."""
    return type(op), *(repr(getattr(op, f.name)) for f in fields(op) if f.name not in OF_ONE_LAYER)


def without_number(name: str, number: int) -> str:
    """A tensor's name with `i` for the number of its layer."""
    return re.sub(rf"^blk\.{number}\.", "blk.i.", re.sub(rf"-{number}$", "-i", name))


def shortened(numbers: Sequence[int]) -> str:
    """Numbers as `0-3, 5, 7-8`; of many such parts the first two and the last."""
    parts = ranges(set(numbers)).split(",")
    return ", ".join(parts if len(parts) <= 4 else [*parts[:2], "...", parts[-1]])
