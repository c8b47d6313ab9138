"""Heads rotated, queries against the pages of the KV cache, partial results merged; each against NumPy in float64."""

import numpy as np
import pytest
from guarded import guarded
from heads import EPS, rotated, table
from kernel_calls import call, packed
from kv_pages import BLOCKS, in_type, key_slab, value_slab

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import ATTEND, ITEM, MERGE, PARTS, POINTERS, ROTATE

ISAS = [i.name for i in isa.available()]
PAGE, SPLIT = layout.PAGE, layout.SPLIT
HEADS = [(64, 4, 4), (64, 4, 2), (80, 3, 1), (64, 7, 1), (128, 16, 2), (256, 2, 1)]
"""head_dim, n_head, n_head_kv: 1, 2, 3, 7 and 8 queries a key-value head."""
F16 = ("f16", "f16")
TYPED = [
    (64, 4, 2, "bf16", "q4_0"),
    (64, 4, 2, "f32", "q8_0"),
    (64, 4, 2, "q8_0", "f32"),
    (64, 4, 2, "q4_0", "bf16"),
    (128, 16, 2, "q8_0", "q8_0"),
    (96, 7, 1, "q4_0", "q4_0"),
]
"""The same with other types of keys and values, each at least once in full and in small tiles, and with an odd number of blocks."""
CASES = [*((*heads, *F16) for heads in HEADS), *TYPED]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    specs = ["heads:rotate"]
    for head_dim, _, _, k_type, v_type in CASES:
        specs += [f"attention:attend:{head_dim}:{k_type}:{v_type}", f"attention:merge:{head_dim}:f32"]
    for name in ISAS:
        kernels_of(name).load(specs)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(
    ("head_dim", "n_rot"), [(64, 64), (80, 80), (128, 128), (256, 256), (128, 50), (16, 2)]
)
def test_heads_are_normalised_and_rotated(isa_name: str, head_dim: int, n_rot: int) -> None:
    rng = np.random.default_rng(head_dim + n_rot)
    x = rng.standard_normal((5, 3, head_dim)).astype(np.float32)
    weight = rng.standard_normal(head_dim).astype(np.float32)
    angles = rng.uniform(-300, 300, (5, n_rot // 2))
    for side in "before", "after":
        for w in weight, None:
            found = guarded(x, side)
            args = {
                "count": np.array([5]),
                "unit": 2,
                "n_head": 3,
                "head_dim": head_dim,
                "weight": 0 if w is None else guarded(w, side),
                "eps": EPS,
                "table": guarded(table(angles), side),
                "n_rot": n_rot,
            }
            in_place = {"x": found, "out": found, "token_bytes": 12 * head_dim, "head_bytes": 4 * head_dim}
            call(isa_name, ROTATE, n_chunks=8, **args, **in_place)
            np.testing.assert_allclose(found, rotated(x, w, angles), atol=3e-6)
            # heads among others' columns, to where they follow each other
            wide = guarded(np.concatenate([x, 0 * x], -1), side)
            found = guarded(np.full_like(x, np.nan), side)
            columns = {"x": wide, "out": found, "token_bytes": 24 * head_dim, "head_bytes": 8 * head_dim}
            call(isa_name, ROTATE, n_chunks=8, **args, **columns)
            np.testing.assert_allclose(found, rotated(x, w, angles), atol=3e-6)


class Cache:
    """`length` positions of random keys and values [n_head_kv, length, head_dim], in pages against protected memory.

    In free slots every float is NaN.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        length: int,
        n_head_kv: int,
        head_dim: int,
        side: str,
        types: tuple[str, str] = F16,
    ) -> None:
        self.types, n_pages = types, -(-length // PAGE)
        data, values = [], []
        for kind in types:
            x = rng.standard_normal((n_pages * PAGE, n_head_kv, head_dim)).astype(np.float32)
            of_kind, exact = in_type(x, kind)
            of_kind[length:] = 0xFF
            data.append(of_kind)
            values.append(exact[:length].swapaxes(0, 1))
        self.k, self.v = values
        self.pages = []
        for i in range(n_pages):
            slabs = [
                slab(of_kind[i * PAGE :][:PAGE, head], kind)
                for head in range(n_head_kv)
                for of_kind, slab, kind in zip(data, (key_slab, value_slab), types)
            ]
            self.pages.append(guarded(np.concatenate(slabs), side))
        self.table = guarded(np.array([page.ctypes.data for page in self.pages]), side)

    def seen(self, q: np.ndarray) -> np.ndarray:
        """The queries that the keys are multiplied with: blocks with Q8_0."""
        return in_type(q, "q8_0")[1] if self.types[0] in BLOCKS else q.astype(np.float64)

    @property
    def tolerance(self) -> float:
        """Weights of blocks are rounded to 15 bits: each of 64 in a page is off by 2**-16 of the largest one at most."""
        return 5e-4 if self.types[1] in BLOCKS else 2e-5


def expected_attention(q: np.ndarray, first: int, cache: Cache, scale: float) -> np.ndarray:
    """softmax(q K^T scale) V for q [n, n_head, head_dim] at the positions from `first` on."""
    out, q = np.empty(q.shape), cache.seen(q)
    shared = q.shape[1] // len(cache.k)
    for t, head in np.ndindex(q.shape[:2]):
        k, v = cache.k[head // shared][: first + t + 1], cache.v[head // shared][: first + t + 1]
        scores = k @ q[t, head] * scale
        weights = np.exp(scores - scores.max())
        out[t, head] = weights / weights.sum() @ v
    return out


def attend(
    isa_name: str, q: np.ndarray, first: int, cache: Cache, scale: float, form: str, side: str
) -> np.ndarray:
    """What the kernels make of it: one token by splits and their merge, several in items of about 32 queries."""
    n, n_head, head_dim = q.shape
    n_head_kv = len(cache.k)
    shared, n_splits = n_head // n_head_kv, -(-(first + n) // SPLIT)
    parts = PARTS.zeros(n)
    pieces = []
    if form == "one" and n == 1 and n_splits > 1:
        parts["n_slots"] = n_splits
        pieces = [(0, 1, i, i + 1, i) for i in range(n_splits)]
    else:
        size = max(1, layout.QUERIES_AT_ONCE // shared)
        for start in range(0, n, size):
            count = min(size, n - start)
            pieces.append((start, count, 0, -(-(first + start + count) // SPLIT), -1))
    items = np.concatenate(
        [
            packed(
                ITEM,
                first_token=start,
                n_tokens=count,
                first_position=first + start,
                first_split=first_split,
                end_split=end_split,
                slot=slot,
                pages=cache.table,
            )
            for start, count, first_split, end_split, slot in pieces
        ]
    )
    out = guarded(np.full((n, n_head * head_dim), np.nan, np.float32), side)
    partials = guarded(np.full(n_splits * n_head * (head_dim + layout.LANES), np.nan, np.float32), side)
    items, parts = guarded(items, side), guarded(parts, side)
    pointers = packed(POINTERS, items=items, parts=parts, partials=partials, states=0)
    shared_args = {"out": out, "pointers": guarded(pointers, side), "n_head": n_head}
    call(
        isa_name,
        ATTEND,
        head_dim,
        *cache.types,
        n_chunks=len(items) * n_head_kv,
        scratch_bytes=layout.attention_scratch(int(items["n_tokens"].max()) * shared, head_dim, *cache.types),
        q=guarded(q, side),
        n_head_kv=n_head_kv,
        scale=scale,
        layer_offset=0,
        **shared_args,
    )
    quantized = {"quants": 0, "scales": 0, "sums": 0}
    call(isa_name, MERGE, head_dim, "f32", count=np.array([n]), unit=n, **shared_args, **quantized)
    return out.reshape(n, n_head, head_dim)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("head_dim", "n_head", "n_head_kv", "k_type", "v_type"), CASES)
def test_prompts_and_single_tokens_attend_alike(
    isa_name: str, head_dim: int, n_head: int, n_head_kv: int, k_type: str, v_type: str
) -> None:
    """Around the borders of pages and splits: right, and the same bits for a token alone as inside a chunk of a prompt of any size."""
    rng = np.random.default_rng(head_dim)
    n, scale = 21, head_dim**-0.5
    for length, side in (
        (1, "after"),
        (64, "before"),
        (65, "after"),
        (257, "after"),
        (276, "before"),
        (700, "after"),
    ):
        cache = Cache(rng, length, n_head_kv, head_dim, side, (k_type, v_type))
        first = max(0, length - n)
        q = 3 * rng.standard_normal((length - first, n_head, head_dim)).astype(np.float32)
        expected = expected_attention(q, first, cache, scale)
        many = attend(isa_name, q, first, cache, scale, "many", side)
        np.testing.assert_allclose(many, expected, atol=cache.tolerance)
        for i in range(len(q)):
            assert np.array_equal(
                attend(isa_name, q[i : i + 1], first + i, cache, scale, "one", side)[0], many[i]
            )
        assert np.array_equal(
            attend(isa_name, q[-5:], length - len(q[-5:]), cache, scale, "one", side), many[-5:]
        )


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("types", [F16, ("q8_0", "f32"), ("f32", "q8_0")])
def test_attention_with_scores_far_apart(isa_name: str, types: tuple[str, str]) -> None:
    """A running maximum that jumps, and scores of thousands: what is far below the largest counts nothing."""
    rng = np.random.default_rng(5)
    cache = Cache(rng, 300, 2, 64, "after", types)
    for factor in 0.0, 10.0, 3e4:
        q = (factor * rng.standard_normal((2, 4, 64))).astype(np.float32)
        for form in "one", "many":
            found = attend(isa_name, q, 298, cache, 0.125, form, "after")
            np.testing.assert_allclose(
                found, expected_attention(q, 298, cache, 0.125), atol=5e-4 if types[1] in BLOCKS else 1e-4
            )


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("types", [F16, ("f32", "q8_0"), ("bf16", "q4_0")])
def test_a_token_does_not_see_what_comes_later_even_if_it_is_infinite(
    isa_name: str, types: tuple[str, str]
) -> None:
    """Values, or their scales, that overflow half precision at the last of four tokens: the three before it are as finite as alone."""
    rng = np.random.default_rng(0)
    cache = Cache(rng, 70, 2, 64, "after", types)
    k_bytes = layout.kv_bytes(types[0], 64)
    values = cache.pages[1].reshape(2, -1)[:, k_bytes:].view(np.float16)  # of position 69
    if types == F16:
        values.reshape(2, 64, 64)[:, 5] = np.inf
    else:
        values[:, -2 * PAGE :].reshape(2, 2, PAGE)[..., 5] = np.inf
    q = rng.standard_normal((4, 4, 64)).astype(np.float32)
    together = attend(isa_name, q, 66, cache, 0.125, "many", "after")
    alone = [attend(isa_name, q[i : i + 1], 66 + i, cache, 0.125, "one", "after")[0] for i in range(4)]
    assert np.array_equal(together[:3], alone[:3])
    assert np.isfinite(together[:3]).all()
    assert not np.isfinite(together[3]).any()
