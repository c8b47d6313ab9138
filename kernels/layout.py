"""Sizes that the kernels share with the code that prepares their memory. Nothing here imports Numba."""

from __future__ import annotations

from .formats import FORMATS

LANES = 16

Q8K_BLOCK, Q8K_SUMS_BYTES = 256, 48
"""Q8_K activations (block_q8_K in ggml-common.h) are three arrays: i8 quants, and for each block of 256 an f32 scale and 24 i16 sums."""
SUMS_OF_16, SUMS_OF_32 = 0, 32
"""Where the 16 sums of 16 quants and the 8 sums of 32 quants start, in bytes."""
Q8_0_BLOCK, Q8_0_SUMS_BYTES = 32, 4
"""Q8_0 activations are three arrays: i8 quants, and for each block of 32 an f32 scale, rounded to half precision, and two i16: the sum of
all quants and the sum of the first 16."""

ODD_LINES = 64
"""A token's row of quants takes `n_cols | ODD_LINES` bytes: an odd number of cache lines. If it took a multiple of 4,096, as many matrices
have columns, the rows of all tokens would compete for the same sets of the L1 cache."""

PANEL_ROWS = 32
"""Rows of a weight matrix that are unpacked together when there are many tokens."""
BLOCK_Q8K, BLOCK_Q8_0 = 5184, 640
"""The most bytes that 16 rows of 256, or of 32, weights take in a panel."""

PAGE = 64
"""Positions of a KV page. A page holds for each layer and key-value head its keys, then its values, in the layouts of the files in kv/."""
KV_BLOCK = 32
KV_TYPES = {
    name.lower(): (FORMATS[name].block_size, FORMATS[name].block_bytes)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
}
"""The types of the KV cache, by llama.cpp's names: how many values are stored together, and in how many bytes."""
SPLIT = 256
"""Positions that attention sums up as one unit. It is fixed, so that the order of sums doesn't depend on the number of threads."""


def activation_bytes(kind: str, n_cols: int) -> tuple[int, int, int]:
    """Return the bytes that a token's quantized activations take: of quants, scales and sums."""
    if kind == "q8k":
        return n_cols | ODD_LINES, n_cols // Q8K_BLOCK * 4, n_cols // Q8K_BLOCK * Q8K_SUMS_BYTES
    if kind == "q8_0":
        return n_cols | ODD_LINES, n_cols // Q8_0_BLOCK * 4, n_cols // Q8_0_BLOCK * Q8_0_SUMS_BYTES
    return 2 * n_cols if kind == "bf16" else 0, 0, 0


def panel_bytes(kind: str, n_cols: int) -> int:
    """Return the bytes of scratch that a panel of PANEL_ROWS rows takes."""
    if kind == "q8k":
        return n_cols // Q8K_BLOCK * BLOCK_Q8K * (PANEL_ROWS // LANES)
    if kind == "q8_0":
        return n_cols // Q8_0_BLOCK * BLOCK_Q8_0 * (PANEL_ROWS // LANES)
    return 0


QUERIES_AT_ONCE = 32
"""About how many queries an item of attention has if there are many tokens."""


def kv_bytes(kind: str, head_dim: int) -> int:
    """Return the bytes that the keys (or the values) of one head take in a page."""
    block, n_bytes = KV_TYPES[kind]
    return PAGE * (head_dim // block) * n_bytes


def query_bytes(k_type: str, head_dim: int) -> int:
    """Return the bytes of a query that is quantized for keys of a type (quants, scales, sums); 0 if it isn't quantized."""
    n_blocks = head_dim // KV_BLOCK if KV_TYPES[k_type][0] > 1 else 0
    return -(-n_blocks * (KV_BLOCK + 8) // 64) * 64


def attention_scratch(n_queries: int, head_dim: int, k_type: str, v_type: str) -> int:
    """Return the bytes of scratch for an item's queries. Each has the scores of a page, two partial results and a factor; and the quantized
    query and weights if the types of keys and values need them."""
    n_blocks = head_dim // KV_BLOCK if KV_TYPES[v_type][0] > 1 else 0
    weights_bytes = -(-n_blocks * (2 * PAGE + 4) // 64) * 64
    return n_queries * (
        4 * (PAGE + 2 * (head_dim + LANES) + LANES) + query_bytes(k_type, head_dim) + weights_bytes
    )


def store_scratch(head_dim: int) -> int:
    """Return the bytes of scratch for the keys of LANES tokens, on their way into the cache."""
    return 4 * LANES * head_dim


MAX_TOP_K = 256
"""The largest top-k that kernels sample."""
SAMPLING_SCRATCH = 16 * MAX_TOP_K
"""Bytes of scratch for the candidates' logits and ids."""


def state_width(d: int) -> int:
    """Return the number of columns in a block of a delta net's matrix [d, d]."""
    return 2 * LANES if d % (2 * LANES) == 0 else LANES
