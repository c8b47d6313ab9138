"""Random and extreme blocks of the formats that the engine reads."""

import os

import numpy as np
from gguf import quants

from qwencli.kernels.formats import FORMATS, sizes

HALVES = {
    "TQ1_0": [52],
    "TQ2_0": [64],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "Q1_0": [0],
    "Q2_0": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "IQ4_NL": [0],
    "IQ1_S": [0],
    "IQ1_M": [48],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ4_XS": [0],
}
"""Where the half floats are in a block."""
BYTES = {"MXFP4": [0], "NVFP4": [0, 1, 2, 3]}
"""Where a block has scales of one byte."""
SCALED = [*HALVES, *BYTES]
FLOATS = {"F32": np.float32, "F16": np.float16}
SAMPLE = (
    list(FORMATS)
    if os.environ.get("QWENCLI_TEST_ALL")
    else [
        "F16",
        "BF16",
        "Q8_0",
        "Q5_1",
        "Q1_0",
        "Q2_0",
        "IQ4_NL",
        "NVFP4",
        "Q4_K",
        "Q6_K",
        "Q3_K",
        "TQ1_0",
        "IQ4_XS",
        "IQ2_XXS",
        "IQ1_M",
    ]
)
"""Formats that differ in how they are emitted, for tests of machine code: to compile all of them takes minutes."""


def columns(name: str) -> int:
    """Of a small matrix: no multiple of more than a block."""
    block, _, kind = sizes(name)
    return 100 if kind in ("float", "bf16") else 3 * 256 if kind == "q8k" else 5 * block


def random_rows(
    name: str, n_rows: int, n_cols: int, rng: np.random.Generator, scale: float = 1.0
) -> np.ndarray:
    """uint8 [n_rows, bytes a row]: any quants, scales around 1e-3 times `scale`."""
    if name == "BF16":
        return (
            (rng.standard_normal((n_rows, n_cols)).astype(np.float32).view(np.uint32) >> 16)
            .astype(np.uint16)
            .view(np.uint8)
        )
    if name in FLOATS:
        return (scale * rng.standard_normal((n_rows, n_cols))).astype(FLOATS[name]).view(np.uint8)
    block, n_bytes, _ = sizes(name)
    blocks = rng.integers(0, 256, (n_rows, n_cols // block, n_bytes), dtype=np.uint8)
    if name != "NVFP4":  # whose scales are none so small; any byte is one
        set_scales(
            name,
            blocks,
            scale * rng.uniform(1e-4, 1e-3, (*blocks.shape[:2], len(HALVES.get(name) or BYTES[name]))),
        )
    return blocks.reshape(n_rows, -1)


def filled_rows(name: str, n_rows: int, n_cols: int, byte: int, half: float) -> np.ndarray:
    """Rows whose every byte is `byte`, with `half` as every scale."""
    block, n_bytes, _ = sizes(name)
    blocks = np.full((n_rows, n_cols // block, n_bytes), byte, np.uint8)
    set_scales(name, blocks, np.full((*blocks.shape[:2], len(HALVES.get(name) or BYTES[name])), half))
    return blocks.reshape(n_rows, -1)


def set_scales(name: str, blocks: np.ndarray, values: np.ndarray) -> None:
    if name == "IQ1_M":  # in the upper four bits of four u16
        words = blocks[..., HALVES[name][0] :].view(np.uint16)
        words[...] = (
            words & 0xFFF
            | values.astype(np.float16).view(np.uint16) << np.array([12, 8, 4, 0], np.uint16) & 0xF000
        )
        return
    for i, offset in enumerate(HALVES.get(name, [])):
        blocks[..., offset : offset + 2] = values[..., i : i + 1].astype(np.float16).view(np.uint8)
    for i, offset in enumerate(BYTES.get(name, [])):
        if name == "NVFP4":
            blocks[..., offset] = quants.NVFP4.fp32_to_ue4m3(2 * values[..., i])
        else:  # an exponent
            blocks[..., offset] = np.clip(np.log2(np.maximum(values[..., i], 2.0**-128)) + 128, 0, 255)
