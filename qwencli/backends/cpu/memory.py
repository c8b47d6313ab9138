"""Memory of the CPU backend: the values between a program's rows."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...kernels.arguments import QUANTIZED

I64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Args = dict[str, Any]
"""Some of a kernel's arguments, by name."""


def address_of(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def aligned_zeros(n_bytes: int, alignment: int = 128) -> Bytes:
    """Return zeroed memory, which the system commits when it is touched."""
    memory = np.zeros(n_bytes + alignment, np.uint8)
    start = -address_of(memory) % alignment
    return memory[start : start + n_bytes]


class View(NamedTuple):
    """Columns that come in groups: the offset of the first one, bytes from row to row, columns in a group, bytes from group to group."""

    offset: int
    token_bytes: int
    n_columns: int
    group_bytes: int


class Place(NamedTuple):
    """A View in memory: the address of the first column, and the rest of the view."""

    address: int
    token_bytes: int
    n_columns: int
    group_bytes: int

    @property
    def strides(self) -> tuple[int, int, int]:
        return self[1:]


@dataclass
class Value:
    """A tensor in memory: float32 [rows, width], with `per_token` rows for each of `dim`, and its quantized forms if a product needed them.

    With `columns` the tensor is a view of another tensor's columns. With `at_places` the rows of a token's slots lie at their places: i32,
    for each slot (see kernels/experts.py); otherwise rows are in order. `others` is more memory that the value needs. If only quantized
    forms are read, `has_floats` is false: `memory` is of no use, and the address is 0.
    """

    dim: str
    width: int
    memory: Bytes
    quantized: dict[str, tuple[Bytes, ...]] = field(default_factory=dict)
    per_token: int = 1
    columns: View | None = None
    at_places: Bytes | None = None
    others: list[Bytes] = field(default_factory=list)
    has_floats: bool = True

    @cached_property
    def address(self) -> int:
        return address_of(self.memory) if self.has_floats else 0

    @property
    def is_in_order(self) -> bool:
        """Whether the rows are contiguous, in the order of tokens and slots."""
        return self.columns is None and self.at_places is None

    @property
    def buffers(self) -> list[Bytes]:
        """All memory that has to stay as it is while the value is needed."""
        quantized = (buffer for form in self.quantized.values() for buffer in form)
        places = [] if self.at_places is None else [self.at_places]
        return [self.memory, *quantized, *places, *self.others]

    def place(self) -> Place:
        """Return where the numbers are in memory."""
        if self.columns is None:
            return Place(self.address, 4 * self.width, self.width, 0)
        return Place(self.address + self.columns.offset, *self.columns[1:])

    def floats(self, n: int) -> NDArray[np.float32]:
        """Return the rows of `n` tokens, float32 [n, per_token * width]."""
        return (
            self.memory[: 4 * n * self.per_token * self.width]
            .view(np.float32)
            .reshape(n, self.per_token * self.width)
        )

    def read(self, n: int, shape: Sequence[int]) -> Any:
        """Return a copy of `n` tokens' values, [n, *shape]."""
        return self.floats(n).reshape(n, *shape).copy()

    def write(self, rows: Any) -> None:
        """Fill in the values of some tokens, [n, ...]."""
        floats = self.floats(len(rows))
        floats[:] = rows.reshape(floats.shape)


class Buffers:
    """Buffers that are reused once nothing reads them any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[Bytes]] = defaultdict(list)
        self._all: dict[int, Bytes] = {}  # by address
        self._addresses: list[int] = []  # in order

    @property
    def n_bytes(self) -> int:
        """The bytes of all buffers."""
        return sum(map(len, self._all.values()))

    def take(self, n_bytes: int) -> Bytes:
        size = -(-max(n_bytes, 1) // 64) * 64
        if self._free[size]:
            return self._free[size].pop()
        buffer = aligned_zeros(size, 64)
        address = address_of(buffer)
        self._all[address] = buffer
        insort(self._addresses, address)
        return buffer

    @property
    def all(self) -> list[Bytes]:
        """All buffers that were ever taken."""
        return list(self._all.values())

    def give(self, buffer: Bytes) -> None:
        self._free[len(buffer)].append(buffer)

    def holding(self, args: Args) -> dict[str, int]:
        """Return the addresses of the buffers into which arguments point, by the arguments' names."""
        found = {}
        for name, value in args.items():
            i = bisect_right(self._addresses, value)
            if i and value < self._addresses[i - 1] + len(self._all[self._addresses[i - 1]]):
                found[name] = self._addresses[i - 1]
        return found


QUANTIZED_NAMES = QUANTIZED.split()


def quantized_at(buffers: Sequence[Bytes] | None) -> Args:
    """Return the addresses of quantized activations, 0 if there are none."""
    addresses = map(address_of, buffers) if buffers else (0, 0, 0)
    return dict(zip(QUANTIZED_NAMES, addresses))
