"""Heads rotated and stored, queries against the pages of the KV cache, partial results merged; each against NumPy in float64."""
import numpy as np
import pytest
from guarded import guarded
from kernel_calls import bits, call

from qwencli.backends.cpu import kernels_of
from qwencli.kernels import isa, layout

ISAS = [i.name for i in isa.available()]
PAGE, SPLIT = layout.PAGE, layout.SPLIT
EPS = 1e-6
HEADS = [(64, 4, 4), (64, 4, 2), (80, 3, 1), (64, 7, 1), (128, 16, 2), (256, 2, 1)]
"""head_dim, n_head, n_head_kv: 1, 2, 3, 7 and 8 queries a key-value head."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    specs = ["heads:rotate", "heads:store:f16:f16"]
    for head_dim, *_ in HEADS:
        specs += [f"attention:attend:{head_dim}:f16:f16", f"attention:merge:{head_dim}:f32"]
    for name in ISAS:
        kernels_of(name).load(specs)


def rotated(x: np.ndarray, weight: np.ndarray | None, angles: np.ndarray) -> np.ndarray:
    """x [n, n_head, head_dim], normalised with weight [head_dim] if there is one, pairs (i, i + n_rot / 2) turned by angles."""
    x = x.astype(np.float64)
    if weight is not None:
        x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + np.float32(EPS)) * weight
    half = angles.shape[1]
    turned = (x[..., :half] + 1j * x[..., half:2 * half]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., 2 * half:]], -1)


def table(angles: np.ndarray) -> np.ndarray:
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).astype(np.float32)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("head_dim", "n_rot"), [(64, 64), (80, 80), (128, 128), (256, 256), (128, 50), (16, 2)])
def test_heads_are_normalised_and_rotated_in_place(isa_name: str, head_dim: int, n_rot: int) -> None:
    rng = np.random.default_rng(head_dim + n_rot)
    x = rng.standard_normal((5, 3, head_dim)).astype(np.float32)
    weight = rng.standard_normal(head_dim).astype(np.float32)
    angles = rng.uniform(-300, 300, (5, n_rot // 2))
    for side in "before", "after":
        for w in weight, None:
            found = guarded(x, side)
            norm = [0 if w is None else guarded(w, side), bits(EPS)]
            turns = guarded(table(angles), side)
            call(isa_name, "heads:rotate", [np.array([5]), 2, found, 3, head_dim, *norm, turns, n_rot], n_chunks=3)
            np.testing.assert_allclose(found, rotated(x, w, angles), atol=3e-6)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_keys_are_stored_by_dimension_and_values_by_position(isa_name: str, head_dim: int) -> None:
    """In the page and slot of their token, behind the layers before; nothing else is touched."""
    rng = np.random.default_rng(head_dim)
    n, n_head, page_halves, layer = 3, 2, 2 * PAGE * head_dim * 2, 1
    k, v = rng.standard_normal((2, n, n_head, head_dim)).astype(np.float32)
    v[0, 0, :4] = 65504, 1e-7, -6e-8, 70000  # the largest half, subnormals, too large for a half
    angles = rng.uniform(-3, 3, (n, head_dim // 2))
    places = [(0, 62), (0, 63), (1, 0)]
    for side in "before", "after":
        pages = [guarded(np.full((layer + 1) * page_halves, 0x5555, np.uint16), side) for _ in range(2)]
        keys = guarded(k, side)
        args = [np.array([n]), 2, keys, n_head, head_dim, 0, 0, guarded(table(angles), side), head_dim, guarded(v, side),
                guarded(np.array([pages[p].ctypes.data for p, _ in places]), side), guarded(np.array([s for _, s in places]), side),
                2 * layer * page_halves]
        call(isa_name, "heads:store:f16:f16", args, n_chunks=2)
        np.testing.assert_allclose(keys, rotated(k, None, angles), atol=3e-6)
        expected = [np.full((layer + 1, n_head, 2, PAGE * head_dim), 0x5555, np.uint16) for _ in range(2)]
        with np.errstate(over="ignore"):
            for t, (page, slot) in enumerate(places):
                for head in range(n_head):
                    slab = expected[page][layer, head]
                    slab[0].reshape(head_dim, PAGE)[:, slot] = keys[t, head].astype(np.float16).view(np.uint16)
                    slab[1].reshape(PAGE, head_dim)[slot] = v[t, head].astype(np.float16).view(np.uint16)
        assert all(np.array_equal(page, e.reshape(-1)) for page, e in zip(pages, expected))


class Cache:
    """`length` positions of random keys and values [n_head_kv, length, head_dim], in pages against protected memory; free slots are NaN."""

    def __init__(self, rng: np.random.Generator, length: int, n_head_kv: int, head_dim: int, side: str) -> None:
        n_pages = -(-length // PAGE)
        k, v = np.full((2, n_pages * PAGE, n_head_kv, head_dim), np.nan, np.float16)
        k[:length], v[:length] = rng.standard_normal((2, length, n_head_kv, head_dim))
        self.k, self.v = (x[:length].astype(np.float64).swapaxes(0, 1) for x in (k, v))
        self.pages = []
        for i in range(n_pages):
            slabs = [part for head in range(n_head_kv) for part in (k[i * PAGE:][:PAGE, head].T, v[i * PAGE:][:PAGE, head])]
            self.pages.append(guarded(np.concatenate([slab.reshape(-1) for slab in slabs]), side))
        self.table = guarded(np.array([page.ctypes.data for page in self.pages]), side)


def expected_attention(q: np.ndarray, first: int, cache: Cache, scale: float) -> np.ndarray:
    """softmax(q K^T scale) V for q [n, n_head, head_dim] at the positions from `first` on."""
    out = np.empty(q.shape)
    shared = q.shape[1] // len(cache.k)
    for t, head in np.ndindex(q.shape[:2]):
        k, v = cache.k[head // shared][:first + t + 1], cache.v[head // shared][:first + t + 1]
        scores = k @ q[t, head].astype(np.float64) * scale
        weights = np.exp(scores - scores.max())
        out[t, head] = weights / weights.sum() @ v
    return out


def attend(isa_name: str, q: np.ndarray, first: int, cache: Cache, scale: float, form: str, side: str) -> np.ndarray:
    """What the kernels make of it: one token by splits and their merge, several in items of about 32 queries."""
    n, n_head, head_dim = q.shape
    n_head_kv = len(cache.k)
    shared, n_splits = n_head // n_head_kv, -(-(first + n) // SPLIT)
    items, records = [], [(0, 0)] * n
    if form == "one" and n == 1 and n_splits > 1:
        items = [(0, 1, first, i, i + 1, i, cache.table.ctypes.data, 0) for i in range(n_splits)]
        records = [(0, n_splits)]
    else:
        size = max(1, layout.QUERIES_AT_ONCE // shared)
        for start in range(0, n, size):
            count = min(size, n - start)
            items.append((start, count, first + start, 0, -(-(first + start + count) // SPLIT), -1, cache.table.ctypes.data, 0))
    out = guarded(np.full((n, n_head * head_dim), np.nan, np.float32), side)
    partials = guarded(np.full(n_splits * n_head * (head_dim + layout.LANES), np.nan, np.float32), side)
    tables = [guarded(np.array(x, np.int64), side) for x in (items, records)]
    pointers = guarded(np.array([tables[0].ctypes.data, tables[1].ctypes.data, partials.ctypes.data]), side)
    n_queries = max(item[1] for item in items) * shared
    call(isa_name, f"attention:attend:{head_dim}:f16:f16", [guarded(q, side), out, pointers, n_head, n_head_kv, bits(scale), 0],
         len(items) * n_head_kv, layout.attention_scratch(n_queries, head_dim, "f16", "f16"))
    call(isa_name, f"attention:merge:{head_dim}:f32", [np.array([n]), n, out, pointers, n_head, 0, 0, 0])
    return out.reshape(n, n_head, head_dim)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("head_dim", "n_head", "n_head_kv"), HEADS)
def test_prompts_and_single_tokens_attend_alike(isa_name: str, head_dim: int, n_head: int, n_head_kv: int) -> None:
    """Around the borders of pages and splits: right, and the same bits for a token alone as inside a chunk of a prompt of any size."""
    rng = np.random.default_rng(head_dim)
    n, scale = 21, head_dim ** -0.5
    for length, side in (1, "after"), (64, "before"), (65, "after"), (257, "after"), (276, "before"), (700, "after"):
        cache = Cache(rng, length, n_head_kv, head_dim, side)
        first = max(0, length - n)
        q = 3 * rng.standard_normal((length - first, n_head, head_dim)).astype(np.float32)
        expected = expected_attention(q, first, cache, scale)
        many = attend(isa_name, q, first, cache, scale, "many", side)
        np.testing.assert_allclose(many, expected, atol=2e-5)
        for i in range(len(q)):
            assert np.array_equal(attend(isa_name, q[i:i + 1], first + i, cache, scale, "one", side)[0], many[i])
        assert np.array_equal(attend(isa_name, q[-5:], length - len(q[-5:]), cache, scale, "one", side), many[-5:])


@pytest.mark.parametrize("isa_name", ISAS)
def test_attention_with_scores_far_apart(isa_name: str) -> None:
    """A running maximum that jumps, and scores of thousands: what is far below the largest counts nothing."""
    rng = np.random.default_rng(5)
    cache = Cache(rng, 300, 2, 64, "after")
    for factor in 0.0, 10.0, 3e4:
        q = (factor * rng.standard_normal((2, 4, 64))).astype(np.float32)
        for form in "one", "many":
            found = attend(isa_name, q, 298, cache, 0.125, form, "after")
            np.testing.assert_allclose(found, expected_attention(q, 298, cache, 0.125), atol=1e-4)


@pytest.mark.parametrize("isa_name", ISAS)
def test_a_token_does_not_see_what_comes_later_even_if_it_is_infinite(isa_name: str) -> None:
    """Values that overflow half precision at the last of four tokens: the three before it are as finite as alone."""
    rng = np.random.default_rng(0)
    cache = Cache(rng, 70, 2, 64, "after")
    cache.pages[1].reshape(2, 2, 64, 64)[:, 1, 5] = np.inf  # the values of position 69
    q = rng.standard_normal((4, 4, 64)).astype(np.float32)
    together = attend(isa_name, q, 66, cache, 0.125, "many", "after")
    alone = [attend(isa_name, q[i:i + 1], 66 + i, cache, 0.125, "one", "after")[0] for i in range(4)]
    assert np.array_equal(together[:3], alone[:3])
    assert np.isfinite(together[:3]).all()
    assert not np.isfinite(together[3]).any()
