"""Dequantize every tensor type to float32: with the `gguf` package, and types that it doesn't know by their definition."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
from numpy.typing import NDArray

from ...gguf.types import GGMLType
from ..protocol import F32

Blocks = NDArray[np.uint8]


def to_float32(data: Blocks, kind: GGMLType) -> F32:
    """[..., bytes of a row] -> float32 [..., weights of a row]. Raises NotImplementedError or ValueError for a type without weights."""
    if kind.name not in DEQUANTIZE:
        weights: F32 = gguf.dequantize(data, gguf.GGMLQuantizationType(kind.id))
        return weights
    blocks = data.reshape(*data.shape[:-1], -1, kind.block_bytes)
    return DEQUANTIZE[kind.name](blocks).reshape(*data.shape[:-1], -1)


def dequantize_q1_0(blocks: Blocks) -> F32:
    """block_q1_0: half d, 16 bytes of bits; a weight is d where its bit is set, else -d (dequantize_row_q1_0 in ggml-quants.c)."""
    bits = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little")
    return np.where(bits, scales(blocks), -scales(blocks))


def dequantize_q2_0(blocks: Blocks) -> F32:
    """block_q2_0: half d, 16 bytes of four quants each, the first in the low bits; a weight is (q - 1) * d (dequantize_row_q2_0)."""
    quants = blocks[..., 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
    return (quants.reshape(*blocks.shape[:-1], -1).astype(np.float32) - 1) * scales(blocks)


def scales(blocks: Blocks) -> F32:
    """Return the half float at the start of each block, as float32 [..., 1]."""
    return np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)


DEQUANTIZE: dict[str, Callable[[Blocks], F32]] = {"Q1_0": dequantize_q1_0, "Q2_0": dequantize_q2_0}
"""The types that the `gguf` package lacks."""
