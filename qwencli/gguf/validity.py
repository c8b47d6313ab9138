"""Are all weights of a file numbers? llama.cpp's `--check-tensors`: it looks at the floats, which in quantized blocks are their scales.

Where the floats of each block are: the structs of ggml-common.h. NVFP4's scales can't be wrong, and neither can integers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from .file import GGUFFile, TensorInfo

Bits = NDArray[np.bool_]
PLAIN = {
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF << 52),
}
"""Types whose blocks are floats: how to read one, and its exponent's bits, which are all set in NaN and infinity."""
HALVES = {
    **dict.fromkeys(
        ("Q1_0", "Q2_0", "Q4_0", "Q5_0", "Q8_0", "IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
        (0,),
    ),
    **dict.fromkeys(("IQ4_NL", "IQ4_XS"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""At which bytes of a block its half floats begin."""
PIECE = 2**24
"""Bytes that are looked at at once: Ctrl-C is heeded between them."""


def check_tensors(file: GGUFFile) -> None:
    """Raise FormatError if a tensor has NaN or infinity; all of the file is read."""
    for tensor in file.tensors.values():
        blocks = file.data(tensor).reshape(-1, tensor.type.block_bytes)
        step = max(1, PIECE // tensor.type.block_bytes)
        for start in range(0, len(blocks), step):
            wrong = _wrong(tensor, blocks[start : start + step])
            if wrong is not None and wrong.any():
                number = start + int(np.argmax(wrong))
                raise FormatError(
                    f"{file.path}: tensor '{tensor.name}' has NaN or infinity in block {number} of {tensor.type.name}:"
                    " the file is damaged, fetch it again"
                )


def _wrong(tensor: TensorInfo, blocks: NDArray[np.uint8]) -> Bits | None:
    """Which blocks, uint8 [n, bytes], have a float that is NaN or infinite; None for types that can't."""
    name = tensor.type.name
    if name in PLAIN:
        code, exponent = PLAIN[name]
        return _not_finite(blocks.view(code)[:, 0], exponent)
    if name in HALVES:
        exponent = PLAIN["F16"][1]
        wrong = np.zeros(len(blocks), np.bool_)
        for at in HALVES[name]:
            wrong |= _not_finite(blocks[:, at : at + 2].copy().view("<u2")[:, 0], exponent)
        return wrong
    if name == "Q8_K":
        return _not_finite(blocks[:, :4].copy().view("<u4")[:, 0], PLAIN["F32"][1])
    if name == "IQ1_M":
        # nibbles of the scale are the highest of four numbers; the last two have its exponent
        parts = blocks[:, 48:56].copy().view("<u2") >> 12
        return _not_finite(parts[:, 3] << 12 | parts[:, 2] << 8, PLAIN["F16"][1])
    if name == "MXFP4":
        return np.equal(blocks[:, 0], 0xFF)
    return None


def _not_finite(floats: NDArray[Any], exponent: int) -> Bits:
    mask = floats.dtype.type(exponent)
    wrong: Bits = (floats & mask) == mask
    return wrong
