"""Which memory holds what: what a backend tells of its buffers, so that it can be shown."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..gguf.file import GGUFFile, TensorInfo
from ..network.graph import Tensor, Weight

MAPPED, MEMORY, HUGE = "mapped file", "memory", "huge pages"
"""Types of buffers: pages of the model file, which all processes share; the process's own memory, in pages of the usual size; and its own
memory in huge pages, which the system gives to large buffers (the KV cache, activations, and weights with --no-mmap)."""
I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Buffer:
    """Memory that holds `what`: for a layer, or for all of them if `layer` is None; of a device, or of none.

    `places` is int64 [n, 2]: addresses and numbers of bytes, which don't overlap. Things without an address that is known, such as Python's
    objects, are `measured` instead: the bytes by which the process grew when they were made.
    """

    what: str
    device: str | None
    layer: int | None
    places: I64
    measured: int | None = None

    @property
    def n_bytes(self) -> int:
        return self.measured if self.measured is not None else int(self.places[:, 1].sum())


def buffer_of(
    what: str, device: str | None, arrays: Iterable[NDArray[Any]], layer: int | None = None
) -> Buffer:
    """The buffer that consists of some contiguous arrays."""
    places = [(int(array.ctypes.data), array.nbytes) for array in arrays]
    return Buffer(what, device, layer, np.array(places, np.int64).reshape(-1, 2))


def grown(what: str, device: str | None, sizes: Mapping[str, int]) -> list[Buffer]:
    """The buffer of what has no address, if its size was measured."""
    return [Buffer(what, device, None, np.zeros((0, 2), np.int64), sizes[what])] if what in sizes else []


def weights(file: GGUFFile, nodes: Iterable[Tensor], device: str) -> list[Buffer]:
    """The tensors of the file that nodes of a graph are, by layer. Each is there once, even if several nodes are parts of it."""
    tensors: dict[str, TensorInfo] = {}
    for node in nodes:
        if isinstance(node.op, Weight):
            tensors |= {info.name: info for info in (node.op.info, node.op.scale) if info}
    layers = by_layer((name, file.data(info)) for name, info in tensors.items())
    return [buffer_of("weights", device, arrays, layer) for layer, arrays in layers]


def by_layer(named: Iterable[tuple[str, NDArray[Any]]]) -> Iterator[tuple[int | None, list[NDArray[Any]]]]:
    """Arrays of tensors by the layer to which their names say that they belong, such as 3 for `blk.3.attn_q.weight`."""
    found = defaultdict(list)
    for name, array in named:
        layer = re.match(r"blk\.([0-9]{1,6})\.", name)
        found[int(layer[1]) if layer else -1].append(array)
    for number in sorted(found):
        yield (None if number < 0 else number), found[number]


def in_layers(
    what: str,
    device: str,
    layers: Sequence[int],
    arrays: Iterable[NDArray[Any]],
    unit_bytes: int,
    layer_bytes: int,
) -> list[Buffer]:
    """Arrays of units, such as pages, which have `layer_bytes` for each of the layers, one after the other. The last one has the rest."""
    starts = [np.arange(0, a.nbytes - unit_bytes + 1, unit_bytes) + int(a.ctypes.data) for a in arrays]
    if not starts or not layers:
        return []
    units = np.concatenate(starts).astype(np.int64)
    bounds = [*(layer_bytes * i for i in range(len(layers))), unit_bytes]
    return [
        Buffer(what, device, layer, np.stack([units + start, np.full_like(units, end - start)], axis=1))
        for layer, start, end in zip(layers, bounds, bounds[1:])
    ]
