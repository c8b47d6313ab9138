"""Random blocks of every tensor type: random bits, with scales that give weights a mean of 0 and a standard deviation of WEIGHT_STD."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwencli.gguf.types import GGMLType

WEIGHT_STD = 0.0239  # the root mean square of floats with random sign and mantissa and a fixed exponent: magnitudes 1/64 .. 1/32
Blocks = NDArray[np.uint8]


class RandomBlock(NamedTuple):
    """How to turn random bits into a valid block.

    `halves` maps the offsets of the block's float16 fields to their means, in units of the first, d. `std` is the standard deviation of
    the weights for d = 1 (for n equally likely steps it is sqrt((n*n - 1) / 12)). `signed`: d takes both signs, because the mean of the
    steps isn't 0.
    """

    halves: dict[int, float]
    std: float
    signed: bool = False


RANDOM_BLOCKS = {  # layouts: ggml-common.h
    "Q1_0": RandomBlock({0: 1}, 1),  # d or -d
    "Q2_0": RandomBlock({0: 1}, 1.23, signed=True),  # d * (q - 1)
    "Q4_0": RandomBlock({0: 1}, 4.61, signed=True),  # d * (q - 8)
    "Q4_1": RandomBlock(
        {0: 1, 2: -7.5}, 4.8
    ),  # d * q + m; more than 4.61, because d and m vary independently
    "Q5_0": RandomBlock({0: 1}, 9.23, signed=True),  # d * (q - 16)
    "Q5_1": RandomBlock({0: 1, 2: -15.5}, 9.63),  # d * q + m
    "Q8_0": RandomBlock({0: 1}, 73.9),  # d * q
    "Q2_K": RandomBlock(
        {80: 1, 82: 1.5}, 14.1
    ),  # d * scale * q - dmin * min; scale and min are 0 .. 15, q is 0 .. 3
    "Q3_K": RandomBlock({108: 1}, 18.5 * 2.35, signed=True),  # d * (scale - 32) * (q - 4), scale is 0 .. 63
    "Q4_K": RandomBlock({0: 1, 2: 7.5}, 258),  # as Q2_K; scale and min are 0 .. 63, q is 0 .. 15
    "Q5_K": RandomBlock({0: 1, 2: 15.5}, 527),  # the same with q 0 .. 31
    "Q6_K": RandomBlock({208: 1}, 73.9 * 18.5, signed=True),  # d * scale * (q - 32), scale is -128 .. 127
    "TQ1_0": RandomBlock({52: 1}, 0.82, signed=True),  # d * (trit - 1)
    "TQ2_0": RandomBlock(
        {64: 1}, 1.23, signed=True
    ),  # d * (q - 1), also with q = 3, which no quantizer writes
    "IQ4_NL": RandomBlock({0: 1}, 67.7, signed=True),  # d * value of a table of 16
    "IQ4_XS": RandomBlock({0: 1}, 67.7 * 18.5, signed=True),  # d * (scale - 32) * value
    "IQ3_XXS": RandomBlock({0: 1}, 143),  # from here on d * scale * entry of a grid, with signs
    "IQ3_S": RandomBlock({0: 1}, 141),
    "IQ2_XXS": RandomBlock({0: 1}, 53.7),
    "IQ2_XS": RandomBlock({0: 1}, 56.2),
    "IQ2_S": RandomBlock({0: 1}, 56.8),
    "IQ1_S": RandomBlock({0: 1}, 7.25),
}
FLOAT_BITS = {"F32": ("<u4", 23, 127), "F16": ("<u2", 10, 15), "BF16": ("<u2", 7, 127)}
"""For each float type, an unsigned integer of the same size, the bits of the mantissa, and the bias of the exponent."""


def scale_iq1_m(rng: np.random.Generator, blocks: Blocks) -> None:
    """As for IQ1_S; the nibbles of the half float d are in the high halves of every other byte from 49 on."""
    half = (WEIGHT_STD / 7.25 * rng.uniform(0.8, 1.2, len(blocks))).astype("<f2").view("<u2")
    for i in range(4):
        blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | (half >> 4 * i & 15).astype(np.uint8) << 4


def scale_mxfp4(rng: np.random.Generator, blocks: Blocks) -> None:
    """Weights are 2**(e - 127) times 0, 0.5, 1, 1.5, 2, 3, 4 or 6 with a sign, whose root mean square is sqrt(8.5625).

    e is 120, and rarely 121.
    """
    share = (WEIGHT_STD**2 / 8.5625 * 4**7 - 1) / 3
    blocks[:, 0] = 120 + (rng.random(len(blocks)) < share)


def scale_nvfp4(rng: np.random.Generator, blocks: Blocks) -> None:
    """The same values times n / 512, where n is the scale byte of every 16 weights: subnormal, so below 8, and here 3, 4 or 5."""
    blocks[:, :4] = rng.choice((3, 4, 5), (len(blocks), 4), p=(0.25, 0.35, 0.4))


SCALES: dict[str, Callable[[np.random.Generator, Blocks], None]] = {
    "IQ1_M": scale_iq1_m,
    "MXFP4": scale_mxfp4,
    "NVFP4": scale_nvfp4,
}
"""Types whose scales aren't float16 fields."""


def random_blocks(rng: np.random.Generator, kind: GGMLType, n_blocks: int) -> Blocks:
    """Blocks of weights with mean 0 and standard deviation WEIGHT_STD: uint8 of shape (n_blocks, kind.block_bytes)."""
    n_bytes = n_blocks * kind.block_bytes
    bits = rng.bit_generator.random_raw(-(-n_bytes // 8)).astype("<u8", copy=False).view(np.uint8)[:n_bytes]
    if kind.name in FLOAT_BITS:
        dtype, n_mantissa, bias = FLOAT_BITS[kind.name]
        values = bits.view(dtype)
        values &= np.array(1 << 8 * values.itemsize - 1 | (1 << n_mantissa) - 1, dtype)
        values |= np.array(bias - 6 << n_mantissa, dtype)
        return bits.reshape(n_blocks, kind.block_bytes)
    blocks = bits.reshape(n_blocks, kind.block_bytes)
    if kind.name in SCALES:
        SCALES[kind.name](rng, blocks)
        return blocks
    layout = RANDOM_BLOCKS[kind.name]
    if kind.name == "Q8_0":
        blocks |= 1  # odd steps are symmetric about 0 and never -128, which no quantizer writes
    for offset, mean in layout.halves.items():
        half = mean * WEIGHT_STD / layout.std * rng.uniform(0.8, 1.2, n_blocks)
        if layout.signed:
            half *= rng.choice((-1, 1), n_blocks)
        blocks[:, offset : offset + 2] = half.astype("<f2").view(np.uint8).reshape(n_blocks, 2)
    return blocks
