"""Constants of a graph: what NumPy arrays hold, as blocks of a tensor type."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import InputError
from ..gguf.memory import Bytes
from ..gguf.types import WEIGHT_TYPES, GGMLType

DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
"""The types that NumPy has too."""


class Blocks(NamedTuple):
    """A tensor's shape, its type, and its blocks, uint8 of any shape."""

    shape: tuple[int, ...]
    type: GGMLType
    data: Bytes


def blocks_of(name: str, values: ArrayLike | bytes, kind: str | None, shape: Sequence[int] | None) -> Blocks:
    """Return what the constant `name` holds. Raises InputError; see Graph.constant."""
    if kind is not None and kind.upper() not in WEIGHT_TYPES:
        raise InputError(
            f"constant '{name}': there is no type '{kind[:40]}', known are {', '.join(WEIGHT_TYPES)}"
        )
    array = (
        np.frombuffer(values, np.uint8) if isinstance(values, (bytes, bytearray)) else as_array(name, values)
    )
    if kind is None or (kind.upper() in DTYPES and array.dtype != np.uint8):
        return numbers(name, array, kind, shape)
    if array.dtype != np.uint8:
        raise InputError(
            f"constant '{name}' is {array.dtype}, expected uint8: the bytes of {kind.upper()} blocks"
        )
    return of_bytes(name, array, WEIGHT_TYPES[kind.upper()], shape)


def as_array(name: str, values: ArrayLike) -> NDArray[Any]:
    """Return real numbers as an array. Raises InputError for anything else."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise InputError(f"'{name}' is {array.dtype}, expected an array of numbers")
    return array


def numbers(name: str, array: NDArray[Any], kind: str | None, shape: Sequence[int] | None) -> Blocks:
    """Return numbers as F16 if they are float16, else as F32. Vectors are always F32, as kernels expect."""
    own = "F16" if array.dtype == np.float16 and array.ndim > 1 else "F32"
    chosen = (kind or own).upper()
    if shape is not None:
        array = reshaped(name, array, shape)
    data = np.ascontiguousarray(array, DTYPES[chosen])
    return Blocks(array.shape, WEIGHT_TYPES[chosen], data.reshape(-1).view(np.uint8))


def reshaped(name: str, array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    try:
        return array.reshape(tuple(shape))
    except (TypeError, ValueError):
        raise InputError(
            f"constant '{name}' is {list(array.shape)}, which has no place in {list(shape)}"
        ) from None


def of_bytes(name: str, array: Bytes, kind: GGMLType, shape: Sequence[int] | None) -> Blocks:
    if shape is not None:
        return Blocks(tuple(map(index, shape)), kind, array)
    row_bytes = array.shape[-1] if array.ndim else 0
    if row_bytes % kind.block_bytes:
        raise InputError(
            f"constant '{name}' has rows of {row_bytes} bytes, expected a multiple of the {kind.block_bytes} bytes of a block of"
            f" {kind.block_size} numbers in {kind.name}"
        )
    return Blocks((*array.shape[:-1], row_bytes // kind.block_bytes * kind.block_size), kind, array)


def scales_of(name: str, blocks: Blocks, scale: ArrayLike | None) -> Blocks | None:
    """Return the scale of the constant `name`, one number or one per expert; None for a type that isn't scaled. Raises InputError."""
    kind, shape = blocks.type, blocks.shape
    if kind.scaled != (scale is not None):
        problem = "needs a scale, by which products are multiplied" if kind.scaled else "has no scale"
        raise InputError(f"constant '{name}' is {kind.name}, which {problem}")
    if scale is None:
        return None
    n = shape[0] if len(shape) == 3 else 1
    values = as_array(f"{name}.scale", scale)
    if values.shape not in ((), (n,)):
        raise InputError(f"the scale of '{name}' {list(shape)} is {list(values.shape)}, expected [{n}]")
    return numbers(f"{name}.scale", np.broadcast_to(values, n), "F32", None)
