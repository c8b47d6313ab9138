"""GGML's tensor types by their numbers in a GGUF file.

Source: `enum ggml_type` in ggml.h and the block structs of ggml-common.h. The `gguf` package has the same table, but
importing it takes 70 ms; a test compares the two. Q2_0 is missing in some versions of the package.
"""

from typing import NamedTuple


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
    t.id: t
    for t in (
        GGMLType(0, "F32", 1, 4),
        GGMLType(1, "F16", 1, 2),
        GGMLType(2, "Q4_0", 32, 18),
        GGMLType(3, "Q4_1", 32, 20),
        GGMLType(6, "Q5_0", 32, 22),
        GGMLType(7, "Q5_1", 32, 24),
        GGMLType(8, "Q8_0", 32, 34),
        GGMLType(9, "Q8_1", 32, 40),
        GGMLType(10, "Q2_K", 256, 84),
        GGMLType(11, "Q3_K", 256, 110),
        GGMLType(12, "Q4_K", 256, 144),
        GGMLType(13, "Q5_K", 256, 176),
        GGMLType(14, "Q6_K", 256, 210),
        GGMLType(15, "Q8_K", 256, 292),
        GGMLType(16, "IQ2_XXS", 256, 66),
        GGMLType(17, "IQ2_XS", 256, 74),
        GGMLType(18, "IQ3_XXS", 256, 98),
        GGMLType(19, "IQ1_S", 256, 50),
        GGMLType(20, "IQ4_NL", 32, 18),
        GGMLType(21, "IQ3_S", 256, 110),
        GGMLType(22, "IQ2_S", 256, 82),
        GGMLType(23, "IQ4_XS", 256, 136),
        GGMLType(24, "I8", 1, 1),
        GGMLType(25, "I16", 1, 2),
        GGMLType(26, "I32", 1, 4),
        GGMLType(27, "I64", 1, 8),
        GGMLType(28, "F64", 1, 8),
        GGMLType(29, "IQ1_M", 256, 56),
        GGMLType(30, "BF16", 1, 2),
        GGMLType(34, "TQ1_0", 256, 54),
        GGMLType(35, "TQ2_0", 256, 66),
        GGMLType(39, "MXFP4", 32, 17),
        GGMLType(40, "NVFP4", 64, 36, scaled=True),
        GGMLType(41, "Q1_0", 128, 18),
        GGMLType(42, "Q2_0", 64, 18),
    )
}

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
