"""What kernels are given, by name: the arguments of each kernel, and the records that arguments point to. Nothing here imports Numba.

All of them are rows of 8-byte words. A field is an int64, mostly an address or a number; `name:f32` and `name:f64` are floats in a word's
place. The order of the names is the order in memory and is said nowhere else: programs and tests pack by name, kernels read by name (see
reading.py). Addresses of what may be missing are 0 then.
"""

from __future__ import annotations

from collections import namedtuple
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = 8
FORMATS = {"i64": "<i8", "f32": "<f4", "f64": "<f8"}


class Record:
    """Named words that lie one after the other, `n_bytes` in all: those of the fields, unless there is to be room after them."""

    def __init__(self, name: str, fields: str, n_bytes: int = 0) -> None:
        pairs = [field.partition(":") for field in fields.split()]
        self.name, self.fields = name, fields
        self.kinds = {field: kind or "i64" for field, _, kind in pairs}
        """The type of each field, in order."""
        assert len(self.kinds) == len(pairs), f"{name} has two fields of one name"
        self.n_bytes = n_bytes or WORD * len(pairs)
        self._offsets = {field: WORD * i for i, field in enumerate(self.kinds)}
        self._in_order = itemgetter(*self.kinds)

    def offset(self, field: str) -> int:
        """Bytes from a record's address to the field."""
        return self._offsets[field]

    def values(self, **fields: float) -> tuple[float, ...]:
        """The fields in order, as a row of an array of `dtype`. Raises TypeError for one that is missing or unknown."""
        if fields.keys() != self.kinds.keys():
            missing = [field for field in self.kinds if field not in fields]
            unknown = [field for field in fields if field not in self.kinds]
            raise TypeError(f"{self.name}: missing {missing}, unknown {unknown}")
        values: tuple[float, ...] = self._in_order(fields)
        return values

    def pack(self, **fields: float) -> NDArray[Any]:
        """An array with one record. Raises TypeError for a field that is missing or unknown."""
        return np.array([self.values(**fields)], self.dtype)

    def zeros(self, n: int) -> NDArray[Any]:
        """An array of n records, whose columns are the fields."""
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
        """The class of named tuples that kernels read a record as."""
        return namedtuple(self.name.replace(":", "_"), list(self.kinds))


class Arguments(Record):
    """The arguments of a kernel, which is named as in a spec (see jit.py), without its variant.

    `writes` names the arguments that point to what it writes. What it reads needs no list: all that its arguments point to. Names in
    capitals, also among `reads`, stand for memory that no argument points to.
    """

    def __init__(self, kernel: str, fields: str, *, writes: str, reads: str = "") -> None:
        super().__init__(kernel, fields)
        self.reads, self.writes = reads.split(), writes.split()
        for name in (*self.reads, *self.writes):
            assert name in self.kinds or name.isupper(), f"{kernel} has no argument {name}"

    def spec(self, *variant: object) -> str:
        """The name of the kernel in a variant."""
        return ":".join((self.name, *map(str, variant)))


TOKENS = Record("tokens", "count unit")
"""How the arguments of kernels over tokens begin: the address of the number of tokens, which changes from step to step, and how many of
them make a chunk."""


def of_tokens(kernel: str, fields: str, *, writes: str, reads: str = "") -> Arguments:
    """The arguments of a kernel over tokens."""
    return Arguments(kernel, f"{TOKENS.fields} {fields}", writes=writes, reads=reads)


QUANTIZED = "quants scales sums"
"""Quantized activations: see layout.py. A token's rows lie one after the other in each of the three arrays."""

# -- rows over tokens: see ops.py ---------------------------------------------------------------------------------------

EMBED = of_tokens("ops:embed", "table row_bytes n_cols ids out", writes="out")
"""`ids` are i32."""
ADD = of_tokens("ops:add", "x y n_cols out", writes="out")
GATHER = of_tokens("ops:gather", "x ids n_cols out", writes="out")
"""`ids` are i32."""

COPY = of_tokens("ops:prepare:copy", f"x n_cols {QUANTIZED}", writes=QUANTIZED)
NORM = of_tokens("ops:prepare:norm", f"x weight n_cols out {QUANTIZED} eps:f32", writes=f"out {QUANTIZED}")
SWIGLU = of_tokens("ops:prepare:swiglu", f"gate up n_cols out {QUANTIZED}", writes=f"out {QUANTIZED}")
GATE = of_tokens(
    "ops:prepare:gate",
    f"x gate token_bytes group_cols group_bytes n_cols out {QUANTIZED}",
    writes=f"out {QUANTIZED}",
)
"""The gate is columns of groups: bytes from token to token, columns of a group, bytes from group to group."""
SHARE = of_tokens("ops:prepare:share", f"x gate other n_cols out {QUANTIZED}", writes=f"out {QUANTIZED}")
"""The gate is one number a token; `other` is added, or 0."""
GATED_NORM = of_tokens(
    "ops:prepare:gated_norm",
    f"gate x weight head_dim n_cols out {QUANTIZED} eps:f32",
    writes=f"out {QUANTIZED}",
)
"""x is normalised in heads of `head_dim` columns."""
PREPARE = {
    arguments.name.split(":")[2]: arguments for arguments in (COPY, NORM, SWIGLU, GATE, SHARE, GATED_NORM)
}
"""By their prologue."""

# -- products with weights: see matmul.py -------------------------------------------------------------------------------

PRODUCT = Arguments(
    "matmul",
    f"count chunk_rows w row_bytes n_rows n_cols x {QUANTIZED} y y_stride bias residual scale",
    writes="y",
)
"""The address of the number of tokens; rows a chunk; the weights and bytes of a row; x as float32, and quantized: a kernel reads one of the
two; y and bytes from token to token; what is added, or 0: `bias`, and `residual`, laid out as y, which may be y; for formats that are
SCALED the address of a float that products are multiplied by."""
PRODUCT_BYTES = -(-PRODUCT.n_bytes // 64) * 64
"""What a thread's scratch has before a panel, for the arguments of a product with an expert."""

# -- heads and attention: see heads.py, attention.py --------------------------------------------------------------------

HEADS = "n_head head_dim weight eps:f32 table n_rot"
"""The weight of the heads' norm or 0, and its eps; each token's n_rot / 2 cosines, then as many sines."""
ROTATE = of_tokens("heads:rotate", f"x {HEADS} out token_bytes head_bytes", writes="out")
"""Bytes of x from token to token and from head to head."""
STORE = of_tokens("heads:store", f"k {HEADS} v pages slots layer_offset", writes="k CACHE")
"""The address of each token's page, its slot in that (i64), and the layer's place in a page."""
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
"""What a step has at addresses that change: attention's items, its tokens' parts and partial results, which grow with the context, and
the records of recurrent states."""
ITEM = Record("item", "first_token n_tokens first_position first_split end_split slot pages")
"""An item of attention: tokens of a sequence and the splits that they read, the slot of a partial result, or -1 for a final one, and the
address of the sequence's page table, of addresses."""
PARTS = Record("parts", "first_slot n_slots")
"""A token's partial results: the first one's slot, and how many there are, 0 if `out` has the result already."""

# -- mixtures of experts: see experts.py --------------------------------------------------------------------------------

ROUTE = of_tokens("experts:route", "logits n_expert n_used normalised ids weights", writes="ids weights")
"""`normalised`: 1 if the weights' sum is to be 1; `ids` are i32, weights f32."""
GROUP = Arguments(
    "experts:group",
    "count one n_used n_expert ids places ends entries n_products chunks totals",
    writes="places ends entries",
)
"""`one` is the number of chunks, 1; `ids` and `places` are i32, `ends` an i64 for each expert, `chunks` and `totals` one for each product:
how many chunks an expert has, and how many there are in all."""
ENTRY = Record("entry", "expert place count")
"""An expert that has tokens: its number, its first place, how many it has."""
COPIED = Record("copied", "source target n_bytes")
"""An array whose rows are copied, and bytes of a row."""
SPREAD = of_tokens(
    "experts:spread",
    "n_used places "
    + " ".join(f"{array}_{field}" for array in ("x", *QUANTIZED.split()) for field in COPIED.kinds),
    writes=" ".join(f"{array}_target" for array in ("x", *QUANTIZED.split())),
)
"""`places` are i32."""
STEPS = "w_step scale_step x_step quants_step scales_step sums_step"
"""In bytes: from an expert to the next of weights and their scales, from a place to the next of activations, 0 where all places read the
same."""
ONE = Arguments("experts:one", f"one expert_chunks ids {STEPS} {PRODUCT.fields}", writes="y")
"""The kernel for one token, chunks an expert, ids (i32); the product's arguments are those for expert 0 and place 0."""
MANY = Arguments("experts:many", f"few many expert_chunks entries {STEPS} {PRODUCT.fields}", writes="y")
"""The kernels for an expert with few tokens and with many, chunks an expert; the rest as in ONE."""
COMBINE = of_tokens("experts:combine", "y places weights n_used n_cols out residual", writes="out")
"""`places` (i32) are 0 where they are the slots; `residual` is added, or 0."""

# -- gated delta nets: see delta.py -------------------------------------------------------------------------------------

CONV = Arguments(
    "delta:conv", "pointers n_head chunk_heads n_head_k x weight out eps:f32 layer_offset", writes="out"
)
"""Heads of all kinds, how many make a chunk, those of queries; the layer's place in a state."""
GATES = of_tokens(
    "delta:gates",
    "alpha beta token_bytes group_heads group_bytes n_head dt a decay strength",
    writes="decay strength",
)
"""`alpha` and `beta` are columns of groups: bytes from token to token, heads of a group, bytes from group to group."""
SCAN = Arguments(
    "delta:scan",
    "pointers n_head_k n_head_v tiled chunk_blocks qkv decay strength out layer_offset",
    writes="out",
)
"""`tiled`: 1 if value head h has the key head h % n_head_k, else it has h // (n_head_v / n_head_k); the place of the layer's matrices in a
state."""
STATE = Record("state", "first n before after border at_border")
"""A sequence's tokens in a step, for recurrent layers: the first, how many, the addresses of the state before them (0: zeros) and after
them; after how many of them the state is kept too (0: none), and the address of that."""

# -- the choice of a token: see sampling.py -----------------------------------------------------------------------------

CHOOSE = Arguments("sampling:choose", "count logits n_vocab draws out", writes="logits out")
"""`out` is an i64 for each row."""
SCORE = Arguments("sampling:score", "count logits n_vocab targets out", writes="out")
"""`targets` are i64, `out` is a Likelihood for each row."""
LIKELIHOOD = Record("likelihood", "sum:f64 difference:f64")
"""The sum of exp(logit - the largest), and the target's logit - the largest."""
DRAW = Record(
    "draw",
    "temp:f64 top_p:f64 min_p:f64 repeat:f64 frequency:f64 presence:f64 chance:f64 top_k n_recent recent counts",
)
"""How a row's token is chosen: settings, the random number; recent tokens, how many there are, the address of their numbers (i64, none
twice) and of how often each occurred (i64)."""

# -- the executor and measurements: see runtime.py, clock.py, peak.py -------------------------------------------------

ROW = Record("row", "kernel args count divisor first last")
"""A row of a program: addresses of its kernel, of the arguments, and of a count (chunks = count / divisor, rounded up); the first row of
its group; 1 for the last row of a group."""
CLAIM = Record("claim", "left undone", n_bytes=128)
"""A row's chunks that are left to claim and those that aren't done, each as step << 32 | how many; no two rows share a line."""
STATUS = Record("status", "step parked", n_bytes=128)
"""Of a thread: the step that it is in, or 0; 1 while it is parked."""
CLOCK = Arguments("clock:read", "one function first second", writes="")
"""The number of chunks, 1; the system's clock function and its two arguments, of which one is the address of the result."""
FILL = Arguments("peak:fill", "amount unit address", writes="address")
READ = Arguments("peak:read", "amount unit address ahead", writes="")
"""Bytes in all and a chunk; bytes to prefetch ahead."""
MULTIPLY = Arguments("peak:multiply", "amount unit address", writes="")
"""Turns in all and a chunk; the address of DATA_BYTES of factors."""
