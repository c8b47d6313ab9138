"""Mixtures of experts: kernels against NumPy in float64, the CPU backend against the NumPy backend, the same bits in any company."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import columns, random_rows
from guarded import guarded
from kernel_calls import Quantized, call
from random_models import write_random_model
from shapes import PRESETS
from test_same_bits import RUNS, assert_same, states, tokens_of, wanted

from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.types import GGML_TYPES
from qwencli.kernels import formats, isa, layout
from qwencli.kernels.arguments import COMBINE, ENTRY, GROUP, MANY, ONE, PRODUCT_BYTES, ROUTE, SPREAD
from qwencli.kernels.tiles import AHEAD, Tiles
from qwencli.network.load import load_model
from qwencli.network.model import Model

ISAS = [i.name for i in isa.available()]
TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
FORMATS = ["Q4_K", "Q8_0", "NVFP4", "F16", "BF16"]
"""One of each family of products, and one with additional scales."""
ROUTES = [(1, 1), (6, 2), (37, 5), (64, 8), (3, 3)]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    specs = [kernel.spec() for kernel in (ROUTE, GROUP, SPREAD, ONE, MANY, COMBINE)]
    for name in ISAS:
        tiles = Tiles(name)
        products = [spec for kind in FORMATS for spec in (tiles.one(kind, columns(kind)), tiles.many(kind))]
        kernels_of(name).load(
            specs + products + [f"ops:prepare:copy:{kind}" for kind in ("q8k", "q8_0", "bf16")]
        )


def route(
    isa_name: str, logits: np.ndarray, n_used: int, normalised: bool, side: str = "after"
) -> tuple[np.ndarray, np.ndarray]:
    n, n_expert = logits.shape
    ids = guarded(np.full((n, n_used), -1, np.int32), side)
    weights = guarded(np.full((n, n_used), np.nan, np.float32), side)
    call(
        isa_name,
        ROUTE,
        n_chunks=-(-n // 2),
        count=np.array([n]),
        unit=2,
        logits=guarded(logits, side),
        n_expert=n_expert,
        n_used=n_used,
        normalised=normalised,
        ids=ids,
        weights=weights,
    )
    return ids, weights


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("n_expert", "n_used"), ROUTES)
def test_the_likeliest_are_chosen(isa_name: str, n_expert: int, n_used: int) -> None:
    """Of equals those of lower numbers, the likeliest first; with weights that are their likelihoods among all, or among each other."""
    rng = np.random.default_rng(n_expert)
    logits = (4 * rng.standard_normal((7, n_expert))).astype(np.float32)
    logits[1:3] = np.round(logits[1:3] / 4)  # many equals
    logits[3] = 0
    logits[4, n_expert // 2 + 1 :] = -np.inf
    logits[5] *= 1e30
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :n_used]
    exact = np.exp(logits - logits.max(-1, keepdims=True).astype(np.float64))
    exact /= exact.sum(-1, keepdims=True)
    expected = np.take_along_axis(exact, chosen, -1)
    for side in "before", "after":
        ids, weights = route(isa_name, logits, n_used, False, side)
        assert np.array_equal(ids, chosen)
        np.testing.assert_allclose(weights, expected, rtol=2e-6, atol=1e-37)
        ids, weights = route(isa_name, logits, n_used, True, side)
        assert np.array_equal(ids, chosen)
        np.testing.assert_allclose(weights, expected / expected.sum(-1, keepdims=True), rtol=2e-6, atol=1e-37)


@pytest.mark.parametrize("isa_name", ISAS)
def test_a_tiny_sum_of_weights_does_not_make_them_huge(isa_name: str) -> None:
    """As llama.cpp has it: the sum that weights are divided by is at least the smallest normal half float."""
    _, weights = route(isa_name, np.zeros((1, 40000), np.float32), 1, True)
    np.testing.assert_allclose(weights, 2**14 / 40000, rtol=1e-5)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("n_expert", "n_used"), ROUTES)
def test_what_is_not_finite_chooses_experts_that_exist_and_stays_visible(
    isa_name: str, n_expert: int, n_used: int
) -> None:
    rng = np.random.default_rng(0)
    for bad in np.nan, -np.nan, np.inf:
        logits = rng.standard_normal((n_expert + 2, n_expert)).astype(np.float32)
        np.fill_diagonal(logits, bad)
        logits[n_expert] = bad
        ids, weights = route(isa_name, logits, n_used, True)
        assert ((ids >= 0) & (ids < n_expert)).all()
        assert all(len(set(row)) == n_used for row in ids.tolist())
        assert np.isnan(weights[: n_expert + 1]).any(-1).all()
        assert np.isfinite(weights[n_expert + 1]).all()


def group(
    isa_name: str, ids: np.ndarray, n_expert: int, chunks: np.ndarray, side: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places like `ids`, entries, and the chunks of each product."""
    n, n_used = ids.shape
    places = guarded(np.full((n, n_used), -1, np.int32), side)
    ends, totals = (
        guarded(np.full(n, 99, np.uint64), side) for n in (n_expert, len(chunks))
    )  # int64 may be addresses to the emulator
    entries = guarded(np.full((n_expert, len(ENTRY.kinds)), 99, np.uint64), side)
    call(
        isa_name,
        GROUP,
        count=np.array([n]),
        one=1,
        n_used=n_used,
        n_expert=n_expert,
        ids=guarded(ids, side),
        places=places,
        ends=ends,
        entries=entries,
        n_products=len(chunks),
        chunks=guarded(chunks, side),
        totals=totals,
    )
    return places, entries, totals


def grouped(ids: np.ndarray) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Places and entries as kernels/experts.py defines them."""
    places = np.empty(ids.size, np.int64)
    places[np.argsort(ids.ravel(), kind="stable")] = np.arange(ids.size)
    experts, counts = np.unique(ids, return_counts=True)
    return places.reshape(ids.shape), list(
        zip(experts.tolist(), (np.cumsum(counts) - counts).tolist(), counts.tolist())
    )


def some_ids(rng: np.random.Generator, n: int, n_expert: int, n_used: int) -> np.ndarray:
    return np.array([rng.permutation(n_expert)[:n_used] for _ in range(n)], np.int32).reshape(n, n_used)


@pytest.mark.parametrize("isa_name", ISAS)
def test_tokens_are_put_together_by_expert(isa_name: str) -> None:
    rng = np.random.default_rng(1)
    chunks = np.array([3, 1, 7], np.int64)
    for ids, n_expert in (
        (some_ids(rng, 9, 20, 3), 20),
        (some_ids(rng, 50, 6, 6), 6),
        (np.full((11, 1), 4, np.int32), 5),
        (np.zeros((0, 2), np.int32), 4),
        (np.zeros((3, 1), np.int32), 1),
    ):
        expected, active = grouped(ids)
        for side in "before", "after":
            places, entries, totals = group(isa_name, ids, n_expert, chunks, side)
            assert np.array_equal(places, expected)
            found = entries.view(ENTRY.dtype)[: len(active), 0]
            assert found[["expert", "place", "count"]].tolist() == active
            assert totals.tolist() == (len(active) * chunks).tolist()


@pytest.mark.parametrize("isa_name", ISAS)
def test_rows_are_spread_and_summed(isa_name: str) -> None:
    """Rows of any length come to the places of their token; weighted rows are summed in the order of the slots, then the residual."""
    rng = np.random.default_rng(2)
    ids = some_ids(rng, 9, 7, 4)
    weights = rng.standard_normal((9, 4)).astype(np.float32)
    places, _ = grouped(ids)
    for side, width in ("before", 37), ("after", 64), ("after", 1):
        x = [rng.integers(0, 256, (9, 4 * size)).astype(np.uint8) for size in (width, 12)]
        out = [guarded(np.zeros((36, array.shape[1]), np.uint8), side) for array in x]
        at = guarded(places.astype(np.int32), side)
        copied = dict.fromkeys(SPREAD.kinds, 0)
        copied |= {"quants_source": guarded(x[0], side), "quants_target": out[0], "quants_n_bytes": 4 * width}
        copied |= {"sums_source": guarded(x[1], side), "sums_target": out[1], "sums_n_bytes": 48}
        copied |= {"count": np.array([9]), "unit": 2, "n_used": 4, "places": at}
        call(isa_name, SPREAD, n_chunks=5, **copied)
        for source, target in zip(x, out):
            assert np.array_equal(target[places], np.repeat(source[:, None], 4, 1))
        y, residual = (
            rng.standard_normal((36, width)).astype(np.float32),
            rng.standard_normal((9, width)).astype(np.float32),
        )
        total = np.zeros((9, width), np.float32)
        for slot in range(4):
            total += y[places[:, slot]] * weights[:, slot, None]
        for added in None, residual:
            found = guarded(np.full((9, width), np.nan, np.float32), side)
            call(
                isa_name,
                COMBINE,
                n_chunks=5,
                count=np.array([9]),
                unit=2,
                y=guarded(y, side),
                places=at,
                weights=guarded(weights, side),
                n_used=4,
                n_cols=width,
                out=found,
                residual=0 if added is None else guarded(added, side),
            )
            assert np.array_equal(found, total if added is None else total + added)
    one = guarded(np.zeros((1, 37), np.float32), "after")  # for one token places are slots
    rows = rng.standard_normal((4, 37)).astype(np.float32)
    call(
        isa_name,
        COMBINE,
        count=np.array([1]),
        unit=1,
        y=guarded(rows, "after"),
        places=0,
        weights=guarded(weights[:1], "after"),
        n_used=4,
        n_cols=37,
        out=one,
        residual=0,
    )
    np.testing.assert_allclose(one[0], weights[0].astype(np.float64) @ rows, rtol=1e-5, atol=1e-5)


class Products:
    """Products with experts of a format, called as a program does."""

    def __init__(self, isa_name: str, name: str, n_expert: int, n_rows: int, side: str) -> None:
        rng = np.random.default_rng(3)
        self.isa, self.name, self.side, self.n_expert, self.n_rows = isa_name, name, side, n_expert, n_rows
        self.kind, self.n_cols = formats.FORMATS[name].family, columns(name)
        self.w = guarded(
            random_rows(name, n_expert * n_rows, self.n_cols, rng).reshape(n_expert, n_rows, -1), side
        )
        self.scales = guarded(rng.uniform(0.5, 2, n_expert).astype(np.float32), side)
        tiles = Tiles(isa_name)
        specs = tiles.one(name, self.n_cols), tiles.many(name)
        self._one, self._many = (kernels_of(isa_name).load([spec])[spec] for spec in specs)

    def exact(self, x: Quantized, rows: list[int], experts: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each of some rows of x its product with an expert in float64, and the sum of magnitudes, which bounds rounding."""
        dequantized = x.dequantized()[rows]
        weights = to_float32(self.w, TYPES[self.name]).astype(np.float64)[experts]
        if self.name == "NVFP4":
            weights *= self.scales[experts][:, None, None]
        return np.einsum("pc,prc->pr", dequantized, weights), np.einsum(
            "pc,prc->pr", np.abs(dequantized), np.abs(weights)
        )

    def run(
        self,
        form: str,
        x: Quantized,
        which: np.ndarray,
        n_entries: int,
        n_places: int,
        chunk_rows: int,
        spread: bool = True,
    ) -> np.ndarray:
        """The rows of the places, float32 [n_places, n_rows]; `which` are ids or entries, `spread` says that x has a row for each."""
        n_chunks = -(-self.n_rows // chunk_rows)
        arrays = {"x": x.x, **x.quantized}
        steps = {
            f"{name}_step": array.shape[1] * array.itemsize if spread else 0 for name, array in arrays.items()
        }
        y = guarded(np.full((n_places, self.n_rows), np.nan, np.float32), self.side)
        chosen: dict[str, Any] = (
            {"one": self._one, "ids": which}
            if form == "one"
            else {"few": self._one, "many": self._many, "entries": which}
        )
        call(
            self.isa,
            ONE if form == "one" else MANY,
            n_chunks=n_entries * n_chunks,
            scratch_bytes=PRODUCT_BYTES + layout.panel_bytes(self.kind, self.n_cols),
            **chosen,
            expert_chunks=n_chunks,
            w_step=self.w[0].nbytes,
            scale_step=4,
            **steps,
            count=np.array([1]),
            chunk_rows=chunk_rows,
            w=self.w,
            row_bytes=self.w.shape[2],
            n_rows=self.n_rows,
            n_cols=self.n_cols,
            **arrays,
            y=y,
            y_stride=4 * self.n_rows,
            bias=0,
            residual=0,
            scale=self.scales,
            ahead=AHEAD,
        )
        return y


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa_name", ISAS)
def test_products_with_experts(isa_name: str, name: str) -> None:
    """Experts with no token, a few and many; each token alone gives the same bits."""
    rng = np.random.default_rng(4)
    for side in "before", "after":
        products = Products(isa_name, name, 5, 51, side)
        ids = np.array([[4, 0], [4, 2], [4, 0], [4, 2], [2, 4], [4, 2], [2, 4], [4, 2], [2, 4]], np.int32)
        places, active = grouped(ids)
        entries = ENTRY.zeros(len(active))
        entries["expert"], entries["place"], entries["count"] = zip(*active)
        entries = guarded(entries, side)
        x = Quantized(
            isa_name, rng.standard_normal((ids.size, products.n_cols)).astype(np.float32), products.kind, side
        )
        many = products.run("many", x, entries, len(active), ids.size, 32)
        expected, magnitude = products.exact(x, places.ravel().tolist(), ids.ravel().tolist())
        assert (np.abs(many[places.ravel()] - expected) <= 1e-6 * (magnitude + 1)).all()
        for t in 0, 4:
            alone = Quantized(
                isa_name, x.x[places[t]], products.kind, side
            )  # each slot its own, and then all slots that of the first
            assert np.array_equal(
                products.run("one", alone, guarded(ids[t], side), 2, 2, 16), many[places[t]]
            )
            first = Quantized(isa_name, x.x[places[t, :1]], products.kind, side)
            shared = products.run("one", first, guarded(ids[t], side), 2, 2, 48, spread=False)
            assert np.array_equal(shared[0], many[places[t, 0]])
            expected, magnitude = products.exact(x, [places[t, 0]] * 2, ids[t].tolist())
            assert (np.abs(shared - expected) <= 1e-6 * (magnitude + 1)).all()


# -- whole models -------------------------------------------------------------------------------------------------------------

SHAPES = {"F16": "tiny-qwen2moe", "Q4_K_M": "tiny-qwen3moe"}
"""Weights not normalised and a network that all tokens share; normalised ones."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("experts")
    for mix, preset in SHAPES.items():
        write_random_model(folder / mix, PRESETS[preset], mix)
    return {mix: load_model(GGUFFile(folder / mix)) for mix in SHAPES}


def test_a_mixture_of_experts_is_close_to_numpys(models: dict[str, Model]) -> None:
    """With half floats, where rounding chooses no other experts."""
    model = models["F16"]
    tokens = tokens_of(model, 0, 70)
    names = wanted(model)
    expected = NumpyBackend(model).run(names, Batch([Segment(KVSequence(), tokens, 70)]))
    for chunk in 512, 1:
        found, _ = states(CPUBackend(model, 2), tokens, chunk)
        for name in names:
            assert np.abs(found[name] - expected[name]).max() < 2e-3 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("mix", SHAPES)
def test_a_mixture_of_experts_has_the_same_bits(models: dict[str, Model], mix: str) -> None:
    """Whatever the threads, the chunks of the prompt and the other sequences of a step."""
    tokens = tokens_of(models[mix], 0, 100)
    expected, _ = states(CPUBackend(models[mix], 1), tokens, 512)
    for n_threads, chunk, crowd in RUNS:
        found, _ = states(CPUBackend(models[mix], n_threads), tokens, chunk, crowd)
        assert_same(found, expected)


def test_one_expert_for_each_token(tmp_path: Path) -> None:
    """Then a token's rows at their places aren't taken for rows that all of its experts share."""
    path = tmp_path / "one.gguf"
    write_random_model(path, replace(PRESETS["tiny-qwen2moe"], n_expert_used=1), "F16")
    model = load_model(GGUFFile(path))
    tokens = tokens_of(model, 0, 9)
    expected = NumpyBackend(model).run([LOGITS], Batch([Segment(KVSequence(), tokens, 9)]))[LOGITS]
    for chunk in 9, 1:
        found, _ = states(CPUBackend(model, 2), tokens, chunk)
        assert np.abs(found[LOGITS] - expected).max() < 2e-3 * np.abs(expected).max()
