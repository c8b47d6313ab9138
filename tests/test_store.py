"""Keys and values on their way into the pages of the KV cache, against GGML's reference quantization and NumPy."""

from collections.abc import Sequence

import numpy as np
import pytest
from guarded import guarded
from heads import EPS, rotated, table
from kernel_calls import call
from kv_pages import in_type, key_slab, value_slab

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import ROTATE, STORE

ISAS = [i.name for i in isa.available()]
PAGE = layout.PAGE
TYPED = [
    *((head_dim, "f16", "f16") for head_dim in (64, 80, 128, 256)),
    (64, "bf16", "q4_0"),
    (64, "f32", "q8_0"),
    (64, "q8_0", "f32"),
    (64, "q4_0", "bf16"),
    (128, "q8_0", "q8_0"),
    (96, "q4_0", "q4_0"),
]
LAYER = 1
UNTOUCHED = 0x55
Places = Sequence[tuple[int, int]]
"""The page and the slot of each token."""


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    specs = [f"heads:store:{k_type}:{v_type}" for k_type, v_type in sorted({types[1:] for types in TYPED})]
    for name in ISAS:
        kernels_of(name).load(["heads:rotate", *specs])


def following(page: int, slot: int, n: int) -> Places:
    """The places of n tokens of a sequence whose pages are those from `page` on."""
    return [(page + (slot + i) // PAGE, (slot + i) % PAGE) for i in range(n)]


class Tokens:
    """Keys and values of tokens, float32 [n, n_head, head_dim], how keys are normalised and rotated, and what they become."""

    def __init__(
        self, isa_name: str, k: np.ndarray, v: np.ndarray, weight: np.ndarray | None, angles: np.ndarray
    ) -> None:
        self.isa, self.k, self.v = isa_name, k, v
        n, n_head, head_dim = k.shape
        self.heads = {
            "count": np.array([n]),
            "n_head": n_head,
            "head_dim": head_dim,
            "weight": 0 if weight is None else weight,
            "eps": EPS,
            "table": table(angles),
            "n_rot": 2 * angles.shape[1],
        }
        self.rotated = np.full_like(k, np.nan)
        place = {"x": k, "out": self.rotated, "token_bytes": k[0].nbytes, "head_bytes": k[0, 0].nbytes}
        call(isa_name, ROTATE, unit=n * n_head, **self.heads, **place)
        np.testing.assert_allclose(self.rotated, rotated(k, weight, angles), atol=3e-6, rtol=1e-6)

    def pages(self, places: Places, kinds: tuple[str, str], unit: int, side: str) -> list[np.ndarray]:
        """The pages after the tokens have been stored, `unit` heads in a chunk."""
        sizes = [layout.kv_bytes(kind, self.k.shape[-1]) for kind in kinds]
        n, n_head, _ = self.k.shape
        layer_bytes = sum(sizes) * n_head
        n_pages = max(page for page, _ in places) + 1
        pages = [
            guarded(np.full((LAYER + 1) * layer_bytes, UNTOUCHED, np.uint8), side) for _ in range(n_pages)
        ]
        k = guarded(self.k, side)
        call(
            self.isa,
            STORE,
            *kinds,
            n_chunks=-(-n * n_head // unit),
            scratch_bytes=layout.store_scratch(self.k.shape[-1]),
            unit=unit,
            k=k,
            v=guarded(self.v, side),
            pages=guarded(np.array([pages[page].ctypes.data for page, _ in places]), side),
            slots=guarded(np.array([slot for _, slot in places]), side),
            layer_offset=LAYER * layer_bytes,
            **{name: guarded(a, side) if isinstance(a, np.ndarray) else a for name, a in self.heads.items()},
        )
        assert np.array_equal(k, self.k, equal_nan=True)
        return pages

    def expected(self, places: Places, kinds: tuple[str, str]) -> list[np.ndarray]:
        """What the pages must be. Other layers and other slots are untouched."""
        stored = [in_type(x, kind)[0] for x, kind in zip((self.rotated, self.v), kinds)]
        pages = []
        for page in range(max(page for page, _ in places) + 1):
            slabs = []
            for head in range(self.k.shape[1]):
                for data, kind, slab in zip(stored, kinds, (key_slab, value_slab)):
                    of_page = np.full((PAGE, data.shape[-1]), UNTOUCHED, np.uint8)
                    for t, (of_token, slot) in enumerate(places):
                        if of_token == page:
                            of_page[slot] = data[t, head]
                    slabs.append(slab(of_page, kind))
            layer = np.concatenate(slabs)
            pages.append(np.concatenate([np.full(LAYER * len(layer), UNTOUCHED, np.uint8), layer]))
        return pages


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("head_dim", "k_type", "v_type"), TYPED)
def test_keys_and_values_are_stored_as_their_types_say(
    isa_name: str, head_dim: int, k_type: str, v_type: str
) -> None:
    """In the page and slot of their token, after the layers before, with GGML's reference quantization; nothing else is touched. Sixteen
    tokens with the same values one after the other, which may be stored together, have the same bytes."""
    rng = np.random.default_rng(head_dim)
    k, v = rng.standard_normal((2, 4, 2, head_dim)).astype(np.float32)
    v[0, 0, :4] = 65504, 1e-7, -6e-8, 70000  # the largest half, subnormals, too large for a half
    v[0, 1], v[1, 0], v[1, 1, :32], v[2, 0, :32] = 0, 1e-30, np.arange(-16, 16), np.arange(-127, 129, 8)
    v[1, 1, 3] = 16  # two of one magnitude: the sign of the first one counts
    v[2, 1, :32] = np.arange(32) - 15.5  # ties of rounding
    v[3, 0, :32], v[3, 1, 5] = np.arange(32) * 0.5, 1e30
    kinds = (k_type, v_type)
    for places in [(0, 62), (0, 63), (1, 0), (1, 7)], following(0, 48, 16):
        repeats = len(places) // 4
        keys, values = (np.repeat(x, repeats, 0) for x in (k, v))
        turned = Tokens(isa_name, keys, values, None, rng.uniform(-3, 3, (len(places), head_dim // 2)))
        swapped = Tokens(isa_name, values, keys, None, np.zeros((len(places), 0)))
        for side in "before", "after":
            for tokens in turned, swapped:
                found = tokens.pages(places, kinds, 3, side)
                for page, expected in zip(found, tokens.expected(places, kinds)):
                    assert np.array_equal(page, expected)


STEPS: dict[str, Places] = {
    "a token": [(0, 37)],
    "a few tokens": following(0, 62, 4),
    "a page": following(0, 0, 64),
    "a prompt that starts anywhere": following(0, 5, 150),
    "short of sixteen": following(0, 16, 15),
    "several sequences": [
        *following(0, 30, 3),
        *following(1, 48, 40),
        (3, 16),
        *following(4, 0, 31),
        *following(5, 15, 18),
    ],
    "sixteen slots with gaps": [*following(0, 16, 8), *following(0, 25, 8)],
    "sixteen slots in two pages": [*following(0, 0, 8), *following(1, 8, 8)],
}


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(
    ("head_dim", "n_rot", "k_type", "v_type"),
    [
        (64, 64, "f16", "f16"),
        (80, 80, "f16", "f16"),
        (128, 128, "q8_0", "q8_0"),
        (96, 96, "q4_0", "q4_0"),
        (256, 64, "f16", "f16"),
        (64, 16, "q4_0", "bf16"),
        (64, 50, "f32", "q8_0"),
    ],
)
def test_a_step_stores_the_same_in_any_cut(
    isa_name: str, head_dim: int, n_rot: int, k_type: str, v_type: str, step: str
) -> None:
    places, kinds = STEPS[step], (k_type, v_type)
    n, n_head = len(places), 3
    rng = np.random.default_rng(head_dim)
    k, v = rng.standard_normal((2, n, n_head, head_dim)).astype(np.float32)
    weight = rng.standard_normal(head_dim).astype(np.float32)
    tokens = Tokens(isa_name, k, v, weight, rng.uniform(-300, 300, (n, n_rot // 2)))
    expected = tokens.expected(places, kinds)
    for unit in sorted({1, min(7, n), 24, 32, n, n + 1, 2 * n, n * n_head}):
        found = tokens.pages(places, kinds, unit, "after" if unit % 2 else "before")
        for page, of_page in zip(found, expected):
            assert np.array_equal(page, of_page), unit
