"""The arguments of each kernel, by name, and the records that arguments point to. Nothing here imports Numba.

Arguments and records are sequences of 8-byte words. A field is an int64, mostly an address or a count, unless it is declared `name:f32` or
`name:f64`: a float stored in such a word. The order of the names is the order in memory, and nothing else defines it: programs and tests
pack by name, kernels read by name (see reading.py). The address of something optional is 0 if it is missing.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 8
LINE = 128
"""Bytes that threads may write to without disturbing each other: two cache lines, which some CPUs fetch together."""
FORMATS = {"i64": "<i8", "f32": "<f4", "f64": "<f8"}


class Record:
    """A sequence of named words. A record takes `n_bytes`, by default just the bytes of its fields. After a "|" the next LINE begins."""

    def __init__(self, name: str, fields: str, n_bytes: int = 0) -> None:
        self.name, self.fields = name, fields
        self.kinds: dict[str, str] = {}
        """The type of each field: "i64", "f32" or "f64", in order."""
        self._offsets: dict[str, int] = {}
        end = 0
        for field in fields.split():
            if field == "|":
                end = -(-end // LINE) * LINE
                continue
            key, _, kind = field.partition(":")
            assert key not in self.kinds, f"{name} has two fields with the same name"
            self.kinds[key] = kind or "i64"
            self._offsets[key] = end
            end += WORD
        self.n_bytes = n_bytes or end
        self._in_order = itemgetter(*self.kinds)

    def offset(self, field: str) -> int:
        """The offset of the field in the record, in bytes."""
        return self._offsets[field]

    def values(self, **fields: float) -> tuple[float, ...]:
        """Return the fields in order, as a row for an array of `dtype`. Raises TypeError if a field is missing or unknown."""
        if fields.keys() != self.kinds.keys():
            missing = [field for field in self.kinds if field not in fields]
            unknown = [field for field in fields if field not in self.kinds]
            raise TypeError(f"{self.name}: missing {missing}, unknown {unknown}")
        values: tuple[float, ...] = self._in_order(fields)
        return values

    def pack(self, **fields: float) -> NDArray[Any]:
        """Return an array with one record. Raises TypeError if a field is missing or unknown."""
        return np.array([self.values(**fields)], self.dtype)

    def zeros(self, n: int) -> NDArray[Any]:
        """Return an array of n records, all zero."""
        return np.zeros(n, self.dtype)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(
            {
                "names": list(self.kinds),
                "formats": [FORMATS[kind] for kind in self.kinds.values()],
                "offsets": list(self._offsets.values()),
                "itemsize": self.n_bytes,
            }
        )

    @cached_property
    def tuple(self) -> Any:
        """The named tuple as which kernels read a record."""
        return namedtuple(self.name.replace(":", "_"), list(self.kinds))


class Arguments(Record):
    """The arguments of a kernel. The kernel is named as in its spec (see specs.py), without the variant.

    `writes` lists the arguments that point to memory the kernel writes. It may read all memory that its arguments point to, so that needs
    no list. Names in capitals, in `writes` and in `reads`, stand for memory that no argument points to.
    """

    def __init__(self, kernel: str, fields: str, *, writes: str, reads: str = "") -> None:
        super().__init__(kernel, fields)
        self.reads, self.writes = reads.split(), writes.split()
        for name in (*self.reads, *self.writes):
            assert name in self.kinds or name.isupper(), f"{kernel} has no argument {name}"

    def spec(self, *variant: object) -> str:
        """Return the spec of a variant of the kernel."""
        return ":".join((self.name, *map(str, variant)))


TOKENS = Record("tokens", "count unit")
"""The first arguments of every kernel over tokens: the address of the number of tokens, which changes from step to step, and the number of
tokens in a chunk."""


def of_tokens(kernel: str, fields: str, *, writes: str, reads: str = "") -> Arguments:
    """Return the arguments of a kernel over tokens: TOKENS, then `fields`."""
    return Arguments(kernel, f"{TOKENS.fields} {fields}", writes=writes, reads=reads)


QUANTIZED = "quants scales sums"
"""The three arrays of quantized activations (see layout.py). In each, the rows of the tokens follow each other."""

# -- rows over tokens: see ops.py ---------------------------------------------------------------------------------------

EMBED = of_tokens("ops:embed", "table row_bytes n_cols ids out", writes="out")
"""`ids` are i32."""
ADD = of_tokens("ops:add", "x y n_cols out", writes="out")
GATHER = of_tokens("ops:gather", "x ids n_cols out", writes="out")
"""`ids` are i32."""

# `out` has the results as float32, unless it is 0
COPY = of_tokens("ops:prepare:copy", f"x n_cols {QUANTIZED}", writes=QUANTIZED)
NORM = of_tokens("ops:prepare:norm", f"x weight n_cols out {QUANTIZED} eps:f32", writes=f"out {QUANTIZED}")
SWIGLU = of_tokens("ops:prepare:swiglu", f"gate up n_cols out {QUANTIZED}", writes=f"out {QUANTIZED}")
GATE = of_tokens(
    "ops:prepare:gate",
    f"x gate token_bytes group_cols group_bytes n_cols out {QUANTIZED}",
    writes=f"out {QUANTIZED}",
)
"""The gate's columns come in groups: `token_bytes` from token to token, `group_cols` columns in a group, `group_bytes` from group to
group."""
SHARE = of_tokens("ops:prepare:share", f"x gate other n_cols out {QUANTIZED}", writes=f"out {QUANTIZED}")
"""The gate is one number per token. `other`, unless it is 0, is added."""
GATED_NORM = of_tokens(
    "ops:prepare:gated_norm",
    f"gate x weight head_dim n_cols out {QUANTIZED} eps:f32",
    writes=f"out {QUANTIZED}",
)
"""Each head of `head_dim` columns of x is normalised by itself."""
PREPARE = {
    arguments.name.split(":")[2]: arguments for arguments in (COPY, NORM, SWIGLU, GATE, SHARE, GATED_NORM)
}
"""The arguments by prologue."""

# -- products with weights: see matmul.py -------------------------------------------------------------------------------

PRODUCT = Arguments(
    "matmul",
    f"count chunk_rows w row_bytes n_rows n_cols x {QUANTIZED} y y_stride bias residual scale ahead",
    writes="y",
)
"""`count` is the address of the number of tokens; `chunk_rows` is the number of rows in a chunk. `w` is the address of the weights,
`row_bytes` the bytes of a row. A kernel reads either `x`, as float32, or its quantized form. `y_stride` is in bytes, from token to token.
`bias` and `residual` are added unless they are 0; `residual` is laid out like y and may be y. For formats that are SCALED, `scale` is the
address of a float by which the products are multiplied. Weights are prefetched `ahead` bytes before they are multiplied in place."""
PRODUCT_BYTES = -(-PRODUCT.n_bytes // 64) * 64
"""Bytes that a thread's scratch has in front of the panel, for the arguments of a product with an expert."""

# -- heads and attention: see heads.py, attention.py --------------------------------------------------------------------

HEADS = "n_head head_dim weight eps:f32 table n_rot"
"""`weight` and `eps` belong to the norm of each head; `weight` is 0 if there is none. `table` has n_rot / 2 cosines and n_rot / 2 sines for
each token. `unit` counts heads of tokens, so that the heads of a single token can be divided too: there are count * n_head."""
ROTATE = of_tokens("heads:rotate", f"x {HEADS} out token_bytes head_bytes", writes="out")
"""`token_bytes` and `head_bytes`: from token to token and from head to head of x. Chunks are in the order of `out`: token by token."""
STORE = of_tokens("heads:store", f"k {HEADS} v pages slots layer_offset", writes="CACHE")
"""A chunk has a head of each of `unit` tokens; several heads if there are fewer tokens: see heads.py. For each token the address of its
page (`pages`) and its slot in the page (`slots`, i64). `layer_offset`: where the layer starts in a page."""
ATTEND = Arguments(
    "attention:attend",
    "q out pointers n_head n_head_kv scale:f32 layer_offset",
    reads="CACHE",
    writes="out PARTIALS",
)
MERGE = of_tokens(
    "attention:merge", f"out pointers n_head {QUANTIZED}", reads="PARTIALS", writes=f"out {QUANTIZED}"
)
POINTERS = Record("pointers", "items parts partials states")
"""The addresses that change from step to step: attention's items, each token's PARTS and the partial results, which grow with the context;
and the STATE records of recurrent layers."""
ITEM = Record("item", "first_token n_tokens first_position first_split end_split slot pages")
"""An item of attention: some tokens of a sequence and the splits that they read. `slot` is where the partial result goes, -1 if the result
is final. `pages` is the address of the sequence's page table, an array of addresses."""
PARTS = Record("parts", "first_slot n_slots")
"""The partial results of a token: the first slot and their number; 0 if `out` already has the final result."""

# -- mixtures of experts: see experts.py --------------------------------------------------------------------------------

ROUTE = of_tokens("experts:route", "logits n_expert n_used normalised ids weights", writes="ids weights")
"""`normalised`: 1 if a token's weights are scaled to sum to 1. `ids` are i32, `weights` f32."""
GROUP = Arguments(
    "experts:group",
    "count one n_used n_expert ids places ends entries n_products chunks totals",
    writes="places ends entries",
)
"""`one` is the number of chunks, 1. `ids` and `places` are i32; `ends` has an i64 for each expert. `chunks` and `totals` have an
i64 for each product: its chunks per expert, and its chunks in all."""
ENTRY = Record("entry", "expert place count")
"""An expert that has tokens in this step: its number, its first place and its number of tokens."""
COPIED = Record("copied", "source target n_bytes")
"""An array whose rows are copied, and the bytes of a row."""
SPREAD = of_tokens(
    "experts:spread",
    "n_used places "
    + " ".join(f"{array}_{field}" for array in ("x", *QUANTIZED.split()) for field in COPIED.kinds),
    writes=" ".join(f"{array}_target" for array in ("x", *QUANTIZED.split())),
)
"""`places` are i32."""
STEPS = "w_step scale_step x_step quants_step scales_step sums_step"
"""Strides in bytes: of weights and their scales from expert to expert; of activations from place to place, 0 if all places read the same
row."""
ONE = Arguments("experts:one", f"one expert_chunks ids {STEPS} {PRODUCT.fields}", writes="y")
"""`one` is the kernel for one token, `expert_chunks` the chunks per expert, `ids` are i32. PRODUCT's arguments are for expert 0, place
0."""
MANY = Arguments("experts:many", f"few many expert_chunks entries {STEPS} {PRODUCT.fields}", writes="y")
"""`few` and `many` are the kernels for an expert with few and with many tokens; the rest is as in ONE."""
COMBINE = of_tokens("experts:combine", "y places weights n_used n_cols out residual", writes="out")
"""`places` (i32) is 0 if places are the same as slots. `residual` is added unless it is 0."""

# -- gated delta nets: see delta.py -------------------------------------------------------------------------------------

CONV = Arguments(
    "delta:conv", "pointers n_head chunk_heads n_head_k x weight out eps:f32 layer_offset", writes="out"
)
"""`n_head` counts the heads of queries, keys and values, `n_head_k` those of queries. `layer_offset`: where the layer starts in a state."""
NORMALISE = of_tokens("delta:normalise", "x n_head n_head_k out eps:f32", writes="out")
"""Heads are counted as in CONV."""
GATES = of_tokens(
    "delta:gates",
    "alpha beta token_bytes group_heads group_bytes n_head dt a decay strength",
    writes="decay strength",
)
"""The columns of `alpha` and `beta` come in groups: `token_bytes` from token to token, `group_heads` heads in a group, `group_bytes` from
group to group."""
SCAN = Arguments(
    "delta:scan",
    "pointers n_head_k n_head_v tiled chunk_blocks qkv decay strength out layer_offset",
    writes="out",
)
"""Value head h uses key head h % n_head_k if `tiled` is 1, else h // (n_head_v / n_head_k). `layer_offset`: where the layer's matrices
start in a state."""
STATE = Record("state", "first n before after border at_border")
"""The tokens of a sequence in a step, for recurrent layers: the first one and their number `n`. `before` and `after` are the addresses of
the state before and after them; `before` is 0 for a state of zeros. If `border` isn't 0, the state after that many of them is also written,
to `at_border`."""

# -- the choice of a token: see sampling.py -----------------------------------------------------------------------------

CHOOSE = Arguments("sampling:choose", "count logits n_vocab draws out", writes="logits out")
"""`out` has an i64 for each row."""
SCORE = Arguments("sampling:score", "count logits n_vocab targets out", writes="out")
"""`targets` are i64; `out` has a LIKELIHOOD for each row."""
LIKELIHOOD = Record("likelihood", "sum:f64 difference:f64")
"""The sum of exp(logit - largest logit), and the target's logit - largest logit."""
DRAW = Record(
    "draw",
    "temp:f64 top_p:f64 min_p:f64 repeat:f64 frequency:f64 presence:f64 chance:f64 top_k n_recent recent counts",
)
"""How the token of a row is chosen: the settings, and `chance`, a random number. There are `n_recent` distinct recent tokens; `recent` is
the address of their ids (i64) and `counts` of how often each occurred (i64)."""

# -- the executor and measurements: see runtime.py, clock.py, peak.py -------------------------------------------------

ROW = Record("row", "kernel args count divisor first last data chunk_bytes following")
"""A row of a program: the addresses of its kernel, of the arguments and of a count. It has count / divisor chunks, rounded up. `first` is
the first row of its group; `last` is 1 for the last row of a group. Chunk n reads the `chunk_bytes` from data + n * chunk_bytes on; `data`
is 0 if that isn't known beforehand. `following` is the next row after the group with `data`, or 0."""
CLAIM = Record("claim", "undone", n_bytes=LINE)
"""The chunks of a row that aren't done yet, as step << 32 | count. No two rows share a cache line."""
TEAM = Record(
    "team",
    "epoch | abort | stop | rows n_rows claims shares share_bytes n_threads yield_ resume finished spins patience",
    n_bytes=4 * LINE,
)
"""The team's state: the number of the step; 1 to abort it; 1 to end the threads. The program's rows, how many there are, and a CLAIM for
each; the shares: for each of `n_threads` threads `share_bytes` with a word for each row, which has the chunks of its share that are left to
claim, as step << 32 | count; the system's function that lets other threads run; the first row that isn't done, and 1 when all are done;
turns that a waiting thread spins, and turns after which it is parked. A STATUS for each thread follows."""
STATUS = Record("status", "step parked thread", n_bytes=LINE)
"""The status of a thread: the step that it is working on, or 0; 1 while it is parked; and its number."""
CLOCK = Arguments("clock:read", "one function first second", writes="")
"""`one` is the number of chunks, 1. `function` is the system's clock function; one of its two arguments is the address of the result."""
FILL = Arguments("peak:fill", "amount unit address", writes="address")
READ = Arguments("peak:read", "amount unit address ahead", writes="")
"""`amount` is the number of bytes in all, `unit` in a chunk; `ahead` is how many bytes ahead memory is prefetched."""
MULTIPLY = Arguments("peak:multiply", "amount unit address", writes="")
"""`amount` is the number of turns in all, `unit` in a chunk; `address` is that of DATA_BYTES of factors."""
