"""Which tensor types the matrices of a model get: the mixes of llama-quantize for Qwen models.

Source: llama_tensor_get_type_impl, tensor_type_fallback and tensor_requires_imatrix in llama.cpp's llama-quant.cpp. Mixes of types that
need an importance matrix are those that it makes with one, the others those that it makes without.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from qwencli.gguf.types import GGML_TYPES, GGMLType

TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


class Place(NamedTuple):
    """Where a matrix is: in layer i of `n_layer`, the `nth` of its kind, since a layer can have two.

    `n_gqa` is the number of query heads per key-value head, `n_expert` the number of experts.
    """

    i: int
    n_layer: int
    n_gqa: int
    n_expert: int
    nth: int

    @property
    def has_more_bits(self) -> bool:
        """Whether this is in the first or the last eighth of the layers, or in every third in between."""
        i, n = self.i, self.n_layer
        return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


Rule = Callable[[Place], "str | None"]
"""Returns a type that replaces the mix's usual one, or None."""


class Mix(NamedTuple):
    """The type of most matrices, that of the output matrix, that of a separate embedding, and exceptions by name."""

    usual: str
    output: str = "Q6_K"
    embedding: str | None = None
    rules: Mapping[str, Rule] = {}


def always(kind: str) -> Rule:
    return lambda p: kind


def first_eighth(kind: str) -> Rule:
    return lambda p: kind if p.i < p.n_layer // 8 else None


def more_bits(kind: str) -> Rule:
    return lambda p: kind if p.has_more_bits else None


def if_shared(kind: str, otherwise: str | None = None) -> Rule:
    """The type for key-value heads that four or more query heads share, and the type for others."""
    return lambda p: kind if p.n_gqa >= 4 else otherwise


def fewest_bits(kind: str, more: str, output: str | None = None) -> Mix:
    """A mix of IQ2 or IQ1 types; `more` is the type of the embedding and the important layers."""
    rules: dict[str, Rule] = {
        "attn_v": lambda p: "Q4_K" if p.n_gqa >= 4 or p.n_expert >= 4 else more,
        "ffn_down": lambda p: more if p.nth < p.n_layer // 8 else None,
    }
    return Mix(kind, "Q5_K", more, rules | ({"attn_output": always(output)} if output else {}))


IQ4 = {"attn_v": if_shared("Q5_K"), "ffn_down": first_eighth("Q5_K")}
MORE = {"attn_v": more_bits("Q6_K"), "ffn_down": more_bits("Q6_K")}
ALL_Q5 = {name: always("Q5_K") for name in ("attn_v", "ffn_down", "attn_output")}


def middle(p: Place) -> str | None:
    return "IQ3_XXS" if p.n_layer // 8 <= p.i < 7 * p.n_layer // 8 else None


MIXES = {
    "F32": Mix("F32", "F32"),
    "F16": Mix("F16", "F16"),
    "BF16": Mix("BF16", "BF16"),
    "Q8_0": Mix("Q8_0", "Q8_0"),
    "Q4_0": Mix("Q4_0"),
    "Q4_1": Mix("Q4_1"),
    "Q5_0": Mix("Q5_0"),
    "Q5_1": Mix("Q5_1"),
    "Q6_K": Mix("Q6_K"),
    "Q5_K_S": Mix("Q5_K"),
    "Q5_K_M": Mix("Q5_K", rules=MORE),
    "Q4_K_M": Mix("Q4_K", rules=MORE),
    "Q4_K_S": Mix(
        "Q4_K", rules={"attn_v": lambda p: "Q5_K" if p.i < 4 else None, "ffn_down": first_eighth("Q5_K")}
    ),
    "Q3_K_S": Mix("Q3_K"),
    "Q3_K_L": Mix("Q3_K", rules=ALL_Q5),
    "Q3_K_M": Mix(
        "Q3_K",
        rules={
            "attn_v": lambda p: "Q5_K" if p.i < 2 else "Q4_K",
            "attn_output": always("Q4_K"),
            "ffn_down": lambda p: "Q5_K" if p.i < p.n_layer // 16 else "Q4_K",
        },
    ),
    "Q2_K": Mix(
        "Q2_K",
        rules={
            "attn_v": if_shared("Q4_K", "Q3_K"),
            "ffn_down": always("Q3_K"),
            "attn_output": always("Q3_K"),
        },
    ),
    "Q2_K_S": Mix("Q2_K", rules={"attn_v": if_shared("Q4_K"), "ffn_down": first_eighth("Q4_K")}),
    "IQ4_NL": Mix("IQ4_NL", rules=IQ4),
    "IQ4_XS": Mix("IQ4_XS", rules=IQ4),
    "IQ3_S": Mix("IQ3_S", rules={"attn_v": if_shared("Q4_K")}),
    "IQ3_M": Mix(
        "IQ3_S",
        rules={
            "attn_v": always("Q4_K"),
            "attn_output": always("Q4_K"),
            "ffn_down": lambda p: (
                "Q4_K" if p.i < p.n_layer // 8 or (p.n_expert == 8 and p.has_more_bits) else None
            ),
        },
    ),
    "IQ3_XS": Mix(
        "IQ3_S",
        rules={
            "attn_v": if_shared("Q4_K"),
            "attn_q": always("IQ3_XXS"),
            "attn_k": always("IQ3_XXS"),
            "ffn_gate": middle,
            "ffn_up": middle,
        },
    ),
    "IQ3_XXS": Mix(
        "IQ3_XXS",
        "Q5_K",
        "IQ3_S",
        {
            "attn_v": if_shared("Q4_K"),
            "attn_q": always("IQ2_S"),
            "attn_k": always("IQ2_S"),
            "attn_output": always("IQ3_S"),
        },
    ),
    "IQ2_M": fewest_bits("IQ2_S", "IQ3_S", "IQ3_S"),
    "IQ2_S": fewest_bits("IQ2_XS", "IQ3_S", "IQ3_S"),
    "IQ2_XS": fewest_bits("IQ2_XS", "Q2_K"),
    "IQ2_XXS": fewest_bits("IQ2_XXS", "Q2_K"),
    "IQ1_M": fewest_bits("IQ1_M", "Q2_K", "IQ2_XXS"),
    "IQ1_S": fewest_bits("IQ1_S", "Q2_K", "IQ2_XXS"),
    "TQ1_0": Mix("TQ1_0", embedding="Q4_K"),
    "TQ2_0": Mix("TQ2_0", embedding="Q4_K"),
    "Q2_0": Mix("Q2_0", embedding="Q4_K"),
    "Q1_0": Mix("Q1_0"),
    "MXFP4": Mix("MXFP4"),
    "NVFP4": Mix("NVFP4", embedding="Q6_K"),
}
"""By llama-quantize's names. The last two aren't mixes of llama-quantize; they have all matrices of the layers in that type."""
UNMIXED = {"F32", "F16", "BF16", "MXFP4", "NVFP4"}
FALLBACKS = {
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
}
"""The type that llama-quantize falls back to if a row isn't a whole number of blocks."""


EIGHT_Q5 = {
    "Q2_K",
    "IQ3_XS",
    "IQ3_XXS",
    "Q3_K_S",
    "Q3_K_M",
    "IQ4_NL",
    "Q4_K_S",
    "Q4_K_M",
    "IQ3_S",
    "IQ3_M",
    "IQ4_XS",
}
FEWEST = {"IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"}


def with_eight_experts(mix: str, name: str) -> str | None:
    """The type of attention in models with eight experts, as in Mixtral: there its matrices are small compared with the experts'."""
    if name in ("attn_k", "attn_v"):
        return "Q4_K" if mix in FEWEST else "Q8_0"
    if name == "attn_output":
        return "Q5_K" if mix in FEWEST | EIGHT_Q5 else MIXES[mix].usual
    return None


def type_of_layer(mix: str, name: str, place: Place, n_in: int) -> GGMLType:
    """The type of the matrix, or the matrices, called `name` (such as attn_v) in a layer, with rows of `n_in` weights."""
    usual, _, _, rules = MIXES[mix]
    kind = "attn_v" if name == "attn_qkv" else name.removesuffix("_exps").removesuffix("_shexp")
    other = with_eight_experts(mix, kind) if place.n_expert == 8 and mix not in UNMIXED else None
    return fitting_type(other or (rules[kind](place) if kind in rules else None) or usual, n_in)


def type_of_output(mix: str, n_in: int) -> GGMLType:
    """The type of the output matrix, or of an embedding that is also the output matrix."""
    usual, output, _, _ = MIXES[mix]
    return fitting_type("Q8_0" if n_in % TYPES[usual].block_size else output, n_in)


def type_of_embedding(mix: str, n_in: int) -> GGMLType:
    """The type of an embedding if there is a separate output matrix."""
    return fitting_type(MIXES[mix].embedding or MIXES[mix].usual, n_in)


def fitting_type(name: str, n_in: int) -> GGMLType:
    """Return the type itself, or the type that llama-quantize falls back to if rows of `n_in` weights can't be divided into its blocks."""
    for kind in (TYPES[name], TYPES[FALLBACKS.get(name, "F16")]):
        if n_in % kind.block_size == 0:
            return kind
    return TYPES["F16"]
