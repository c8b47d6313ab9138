"""A head's keys and values of whole pages, as the files in kernels/kv say that they lie, quantized by the `gguf` package."""

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize

from qwencli.kernels.layout import PAGE

BLOCKS = ("q8_0", "q4_0")


def in_type(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """x, float32 [..., head_dim], as bytes of a type, uint8 [..., bytes], and the values that these represent, float64."""
    if kind == "f16":
        with np.errstate(over="ignore"):
            halves = x.astype(np.float16)
        return halves.view(np.uint8), halves.astype(np.float64)
    with np.errstate(all="ignore"):
        data = quantize(np.ascontiguousarray(x, np.float32), GGMLQuantizationType[kind.upper()])
        values = dequantize(data, GGMLQuantizationType[kind.upper()])
    return data.view(np.uint8), values.astype(np.float64)


def key_slab(data: np.ndarray, kind: str) -> np.ndarray:
    """The bytes [PAGE, ...] of a page's keys, as they lie."""
    if kind not in BLOCKS:
        n_bytes = 4 if kind == "f32" else 2
        return data.reshape(PAGE, -1, n_bytes).swapaxes(0, 1).reshape(-1)
    scales, quants = split(data, kind)
    words = quants.reshape(PAGE, scales.shape[1], -1, 4)
    return np.concatenate([words.transpose(1, 2, 0, 3).reshape(-1), scales.swapaxes(0, 1).reshape(-1)])


def value_slab(data: np.ndarray, kind: str) -> np.ndarray:
    """The bytes [PAGE, ...] of a page's values, as they lie."""
    if kind not in BLOCKS:
        return data.reshape(-1)
    scales, quants = split(data, kind)
    pairs = quants.reshape(PAGE // 2, 2, scales.shape[1], -1)
    return np.concatenate([pairs.transpose(2, 0, 3, 1).reshape(-1), scales.swapaxes(0, 1).reshape(-1)])


def split(data: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The scales [PAGE, n_blocks, 2 bytes] and quants [PAGE, n_blocks, bytes] of GGML's blocks."""
    blocks = data.reshape(PAGE, -1, {"q8_0": 34, "q4_0": 18}[kind])
    return blocks[..., :2], blocks[..., 2:]
