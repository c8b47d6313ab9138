"""GGML's tensor types: the number of each in a GGUF file, the size of its blocks, and the family of kernels that multiplies it.

This is the only table of these sizes, for the GGUF reader and for the kernels. It imports nothing, so that a command that only looks at a
file starts at once.

Source: `enum ggml_type` in ggml.h and the block structs of ggml-common.h. The `gguf` package has the same table, but importing it takes
70 ms; a test compares the two. Q2_0 is missing in some versions of the package.
"""

from typing import NamedTuple


class Format(NamedTuple):
    """A tensor type: `block_size` weights are stored together in `block_bytes` bytes.

    `family` says how kernels multiply it (see quants/); it is "" for a type without kernels. Products with a matrix of a `scaled` type are
    multiplied by an F32 value, which is stored in a tensor of its own.
    """

    id: int
    name: str
    block_size: int
    block_bytes: int
    family: str = ""
    scaled: bool = False


GGML_TYPES = (
    Format(0, "F32", 1, 4, "float"),
    Format(1, "F16", 1, 2, "float"),
    Format(2, "Q4_0", 32, 18, "q8_0"),
    Format(3, "Q4_1", 32, 20, "q8_0"),
    Format(6, "Q5_0", 32, 22, "q8_0"),
    Format(7, "Q5_1", 32, 24, "q8_0"),
    Format(8, "Q8_0", 32, 34, "q8_0"),
    Format(9, "Q8_1", 32, 40),
    Format(10, "Q2_K", 256, 84, "q8k"),
    Format(11, "Q3_K", 256, 110, "q8k"),
    Format(12, "Q4_K", 256, 144, "q8k"),
    Format(13, "Q5_K", 256, 176, "q8k"),
    Format(14, "Q6_K", 256, 210, "q8k"),
    Format(15, "Q8_K", 256, 292),
    Format(16, "IQ2_XXS", 256, 66, "q8k"),
    Format(17, "IQ2_XS", 256, 74, "q8k"),
    Format(18, "IQ3_XXS", 256, 98, "q8k"),
    Format(19, "IQ1_S", 256, 50, "q8k"),
    Format(20, "IQ4_NL", 32, 18, "q8_0"),
    Format(21, "IQ3_S", 256, 110, "q8k"),
    Format(22, "IQ2_S", 256, 82, "q8k"),
    Format(23, "IQ4_XS", 256, 136, "q8k"),
    Format(24, "I8", 1, 1),
    Format(25, "I16", 1, 2),
    Format(26, "I32", 1, 4),
    Format(27, "I64", 1, 8),
    Format(28, "F64", 1, 8),
    Format(29, "IQ1_M", 256, 56, "q8k"),
    Format(30, "BF16", 1, 2, "bf16"),
    Format(34, "TQ1_0", 256, 54, "q8k"),
    Format(35, "TQ2_0", 256, 66, "q8k"),
    Format(39, "MXFP4", 32, 17, "q8_0"),
    Format(40, "NVFP4", 64, 36, "q8_0", scaled=True),
    Format(41, "Q1_0", 128, 18, "q8_0"),
    Format(42, "Q2_0", 64, 18, "q8_0"),
)

FORMATS = {kind.name: kind for kind in GGML_TYPES if kind.family}
"""The types that kernels multiply, by name. Each has a file in quants/."""


def sizes(name: str) -> tuple[int, int, str]:
    """Return the weights and the bytes of a block of the format `name`, and its family. Raises KeyError for a type without kernels."""
    kind = FORMATS[name]
    return kind.block_size, kind.block_bytes, kind.family
