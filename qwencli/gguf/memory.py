"""Tensors in memory, for a graph without a file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .file import GGUFFile, TensorInfo
from .metadata import Metadata
from .types import GGMLType

Bytes = NDArray[np.uint8]
ALIGNMENT = 64
"""Tensors begin at a cache line."""


class TensorsInMemory(GGUFFile):
    """What a backend takes for a file: tensors that are added one by one, without metadata. `name` stands for the path in errors."""

    def __init__(self, name: str) -> None:
        self.path = Path(name)
        self.version = 3
        self.size = 0
        self.metadata = Metadata(name, {})
        self.tensors: dict[str, TensorInfo] = {}
        self.buffers: list[memoryview] = []
        self.mapped = False

    def add(self, name: str, shape: tuple[int, ...], kind: GGMLType, data: Bytes) -> TensorInfo:
        """Add a tensor with a copy of its blocks, uint8 of any shape. Raises InputError if they don't fit its shape."""
        if not 1 <= len(shape) <= 3 or min(shape) < 1:
            raise InputError(f"tensor '{name}' is {list(shape)}, expected one to three dimensions above 0")
        if shape[-1] % kind.block_size:
            raise InputError(
                f"tensor '{name}' has rows of {shape[-1]} numbers, expected a multiple of {kind.name}'s block of {kind.block_size}"
            )
        n_bytes = kind.n_bytes(math.prod(shape))
        if data.size != n_bytes:
            raise InputError(
                f"tensor '{name}' {list(shape)} {kind.name} has {data.size} bytes, expected {n_bytes}"
            )
        memory = aligned(n_bytes)
        memory[:] = data.reshape(-1)
        info = TensorInfo(name, shape, kind, 0, n_bytes, len(self.buffers))
        self.buffers.append(memory.data.toreadonly())
        self.size += n_bytes
        self.tensors[name] = info
        return info


def aligned(n_bytes: int) -> Bytes:
    """Memory that begins at a cache line. What is in it is undefined."""
    memory = np.empty(n_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n_bytes]
