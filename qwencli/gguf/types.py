"""GGML's tensor types by their numbers in a GGUF file, those that were removed or belong to forks, and mixes of them.

The sizes of blocks are in kernels/formats.py, the one table of them.
"""

from typing import NamedTuple

from ..kernels import formats


class GGMLType(NamedTuple):
    """A tensor type: `block_size` weights are stored together in `block_bytes` bytes.

    A matrix of a `scaled` type comes with a second tensor: one F32 value, by which products with the matrix are multiplied.
    """

    id: int
    name: str
    block_size: int
    block_bytes: int
    scaled: bool = False

    def n_bytes(self, n_weights: int) -> int:
        """The bytes of `n_weights` weights, which has to be a multiple of `block_size`."""
        return n_weights // self.block_size * self.block_bytes


GGML_TYPES = {
    kind.id: GGMLType(kind.id, kind.name, kind.block_size, kind.block_bytes, kind.scaled)
    for kind in formats.GGML_TYPES
}

WEIGHT_TYPES = {kind.name: GGML_TYPES[kind.id] for kind in formats.FORMATS.values()}
"""The types that matrices of a model have, by name."""

REMOVED_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}
"""Types that GGML no longer reads; files with such tensors must be converted again."""

FORK_TYPES = {
    "bitnet.cpp": {36: "I2_S"},
    "ROCmFPX": {
        100: "Q4_0_ROCMFP4",
        101: "Q4_0_ROCMFP4_FAST",
        102: "Q6_0_ROCMFPX",
        103: "Q8_0_ROCMFPX",
        104: "Q3_0_ROCMFPX",
        107: "Q2_0_ROCMFPX",
    },
    "PrismML's llama.cpp": {142: "PQ2_0", 143: "PTQ1_0"},
    "ik_llama.cpp": {
        97: "Q8_0_X4",
        98: "Q8_1_X4",
        99: "Q8_2_X4",
        133: "Q6_0",
        134: "IQ1_BN",
        135: "IQ2_BN",
        136: "Q8_K64",
        137: "IQ2_K",
        138: "IQ3_K",
        139: "IQ4_K",
        140: "IQ5_K",
        141: "IQ6_K",
        144: "IQ4_KS",
        145: "IQ2_KS",
        146: "IQ4_KSS",
        147: "Q8_K16",
        148: "Q8_K32",
        149: "Q8_KR8",
        150: "Q8_K128",
        151: "Q8_KV",
        152: "IQ5_KS",
        153: "IQ2_KT",
        154: "IQ3_KT",
        155: "IQ4_KT",
        156: "IQ3_KS",
        157: "IQ2_KL",
        158: "IQ1_KT",
        202: "Q4_0_R8",
        206: "Q5_0_R4",
        208: "Q8_0_R8",
        210: "Q2_K_R4",
        211: "Q3_K_R4",
        212: "Q4_K_R4",
        213: "Q5_K_R4",
        214: "Q6_K_R4",
        216: "IQ2_XXS_R4",
        217: "IQ2_XS_R4",
        218: "IQ3_XXS_R4",
        219: "IQ1_S_R4",
        220: "IQ4_NL_R4",
        221: "IQ3_S_R4",
        222: "IQ2_S_R4",
        223: "IQ4_XS_R8",
        229: "IQ1_M_R4",
        230: "BF16_R16",
        233: "Q6_0_R4",
        335: "IQ2_BN_R4",
        337: "IQ2_K_R4",
        338: "IQ3_K_R4",
        339: "IQ4_K_R4",
        340: "IQ5_K_R4",
        344: "IQ4_KS_R4",
        352: "IQ5_KS_R4",
        353: "MXFP4_R8",
        397: "Q8_K_R16",
        398: "Q8_KV_R8",
        399: "Q8_K_R8",
    },
}
"""Types that only a fork of llama.cpp reads, by the name of the fork; the numbers are from its ggml.h."""


def unknown_type(type_id: int) -> str:
    """What is known about a type that is not in GGML_TYPES, and what to do about it, for an error message."""
    for fork, names in FORK_TYPES.items():
        if type_id in names:
            return (
                f"{names[type_id]}, which only {fork} reads: use a file of the model in one of GGML's types"
            )
    if type_id in REMOVED_TYPES:
        return f"{REMOVED_TYPES[type_id]}, which GGML no longer reads: convert the model again"
    return f"GGML's types end at {max(GGML_TYPES)}: the file is damaged, made for a fork, or newer than this program"


FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4_MOE",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}
"""`general.file_type`: the mix of types that was chosen when the file was made (`enum llama_ftype` in llama.h)."""
