"""Sizes that both the kernels and those who prepare their memory need. Nothing here imports Numba."""

from __future__ import annotations

from .formats import FORMATS

LANES = 16

Q8K_BLOCK, Q8K_SUMS_BYTES = 256, 48
"""Q8_K activations (block_q8_K in ggml-common.h), in three arrays: i8 quants, an f32 scale and 24 i16 sums for each block of 256."""
SUMS_OF_16, SUMS_OF_32 = 0, 32
"""Offsets of the 16 sums of 16 quants and of the 8 sums of 32."""
Q8_0_BLOCK, Q8_0_SUMS_BYTES = 32, 4
"""Q8_0 activations, in three arrays: i8 quants, and for each block of 32 an f32 scale, rounded to half precision, and two i16: the sum of
the quants and that of the first 16."""

PANEL_ROWS = 32
"""Rows of a weight that are unpacked together when there are many tokens."""
BLOCK_Q8K, BLOCK_Q8_0 = 5760, 640
"""Bytes of the largest panel block of 16 rows, for 256 and for 32 weights."""

PAGE = 64
"""Positions of a KV page: for each layer and key-value head its keys, then its values, as the files in kv/ say."""
KV_BLOCK = 32
KV_TYPES = {
    name.lower(): (FORMATS[name].block_size, FORMATS[name].block_bytes)
    for name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
}
"""What keys and values can be kept as, by llama.cpp's names: values that are stored together, and their bytes."""
SPLIT = 256
"""Positions that one work item of attention reads when there is one token: fixed, so that the order of sums doesn't depend on threads."""


def activation_bytes(kind: str, n_cols: int) -> tuple[int, int, int]:
    """Bytes that a token's activations of a kind take: quants, scales, sums."""
    if kind == "q8k":
        return n_cols, n_cols // Q8K_BLOCK * 4, n_cols // Q8K_BLOCK * Q8K_SUMS_BYTES
    if kind == "q8_0":
        return n_cols, n_cols // Q8_0_BLOCK * 4, n_cols // Q8_0_BLOCK * Q8_0_SUMS_BYTES
    return 2 * n_cols if kind == "bf16" else 0, 0, 0


def panel_bytes(kind: str, n_cols: int) -> int:
    """Scratch that the panel of PANEL_ROWS rows takes."""
    if kind == "q8k":
        return n_cols // Q8K_BLOCK * BLOCK_Q8K * (PANEL_ROWS // LANES)
    if kind == "q8_0":
        return n_cols // Q8_0_BLOCK * BLOCK_Q8_0 * (PANEL_ROWS // LANES)
    return 0


class Word:
    """Where things are in the team's state, an array of int64; words that are written often have 128 bytes of their own."""

    EPOCH, ABORT, STOP = 0, 16, 32
    ROWS, N_ROWS, CLAIMS, YIELD, RESUME, FINISHED, SPINS, PATIENCE = range(48, 56)
    STATUS = 64
    """From here on an arguments.STATUS for each thread."""


QUERIES_AT_ONCE = 32
"""About how many queries an item of attention has when there are many tokens."""


def kv_bytes(kind: str, head_dim: int) -> int:
    """Bytes that a page has for the keys, or the values, of one head."""
    block, n_bytes = KV_TYPES[kind]
    return PAGE * (head_dim // block) * n_bytes


def query_bytes(k_type: str, head_dim: int) -> int:
    """Bytes of a query quantized for keys of a type: quants, scales, sums; 0 where it isn't."""
    n_blocks = head_dim // KV_BLOCK if KV_TYPES[k_type][0] > 1 else 0
    return -(-n_blocks * (KV_BLOCK + 8) // 64) * 64


def attention_scratch(n_queries: int, head_dim: int, k_type: str, v_type: str) -> int:
    """Bytes for the queries of an item: scores of a page, two partial results, a factor; query and weights where they are quantized."""
    n_blocks = head_dim // KV_BLOCK if KV_TYPES[v_type][0] > 1 else 0
    weights_bytes = -(-n_blocks * (2 * PAGE + 4) // 64) * 64
    return n_queries * (
        4 * (PAGE + 2 * (head_dim + LANES) + LANES) + query_bytes(k_type, head_dim) + weights_bytes
    )


MAX_TOP_K = 256
"""The largest top-k that is sampled in machine code."""
SAMPLING_SCRATCH = 16 * MAX_TOP_K
"""Bytes for the candidates' logits and ids."""


def state_width(d: int) -> int:
    """Columns of a block of a delta net's matrix [d, d]."""
    return 2 * LANES if d % (2 * LANES) == 0 else LANES
