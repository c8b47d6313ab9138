"""Kernels over tokens: norms and gates with the quantization of their result, sums, gathered rows; each against NumPy in float64."""

from typing import Any

import numpy as np
import pytest
from guarded import guarded
from kernel_calls import call

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import ADD, GATHER, PREPARE

ISAS = [i.name for i in isa.available()]
EPS = 1e-5


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    prepare = [kernel.spec(kind) for kernel in PREPARE.values() for kind in ("f32", "q8k", "q8_0")]
    for name in ISAS:
        kernels_of(name).load([ADD.spec(), GATHER.spec(), *prepare])


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + np.float32(EPS)) * weight


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


def sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        sigmoids: np.ndarray = 1 / (1 + np.exp(-x.astype(np.float64)))
    return sigmoids


def prepare(
    isa_name: str, prologue: str, kind: str, side: str = "after", keep: bool = True, **given: Any
) -> tuple[np.ndarray, ...]:
    """The result as float32, and its quants, scales and sums, which are empty for the kind "f32". With "copy" the result is x itself. The
    kernel writes the floats only if it is to `keep` them.

    `given` are the prologue's own arguments.
    """
    kernel = PREPARE[prologue]
    given = {name: guarded(a, side) if isinstance(a, np.ndarray) else a for name, a in given.items()}
    x = given["x"] if "x" in kernel.kinds else given["gate"]
    n, n_cols = x.shape
    out = x if prologue == "copy" else guarded(np.full_like(x, np.nan), side)
    q, d, sums = (
        guarded(np.full(n * size, 0x55, np.uint8), side) for size in layout.activation_bytes(kind, n_cols)
    )
    of_all = {"count": np.array([n]), "unit": 2, "n_cols": n_cols, "out": out if keep else 0, "eps": EPS}
    of_all |= {"quants": q, "scales": d, "sums": sums}
    taken = {name: value for name, value in of_all.items() if name in kernel.kinds}
    scratch_bytes = 0 if keep else 4 * n_cols
    call(isa_name, kernel, kind, n_chunks=-(-n // 2), scratch_bytes=scratch_bytes, **taken, **given)
    return out, q, d, sums


def columns(
    gate: np.ndarray, token_bytes: int = 0, group_cols: int = 0, group_bytes: int = 0
) -> dict[str, Any]:
    """The arguments of a gate of columns, by default all of them."""
    return {
        "gate": gate,
        "token_bytes": token_bytes or gate[0].nbytes,
        "group_cols": group_cols or gate[0].size,
        "group_bytes": group_bytes,
    }


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("n_cols", [1, 15, 16, 100, 511])
def test_norms_and_gates(isa_name: str, n_cols: int) -> None:
    rng = np.random.default_rng(n_cols)
    x, up = 3 * rng.standard_normal((2, 5, n_cols)).astype(np.float32)
    weight = rng.standard_normal(n_cols).astype(np.float32)
    for side in "before", "after":
        norm, *_ = prepare(isa_name, "norm", "f32", side, x=x, weight=weight)
        np.testing.assert_allclose(norm, rms_norm(x, weight), rtol=2e-6)
        gated, *_ = prepare(isa_name, "swiglu", "f32", side, gate=x, up=up)
        np.testing.assert_allclose(gated, swiglu(x, up), rtol=2e-6)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("n_group", "size"), [(1, 1), (3, 16), (2, 37)])
def test_gates_of_columns_heads_and_tokens(isa_name: str, n_group: int, size: int) -> None:
    """Gates among other columns, side by side, one per token; norms of heads followed by gates."""
    rng = np.random.default_rng(size)
    n, n_cols = 5, n_group * size
    x, y, z = 3 * rng.standard_normal((3, n, n_cols)).astype(np.float32)
    weight = rng.standard_normal(size).astype(np.float32)
    wide = np.concatenate([y.reshape(n, n_group, size), np.full((n, n_group, 3), np.nan, np.float32)], -1)
    heads = rms_norm(y.reshape(n, n_group, size), weight).reshape(n, n_cols)
    for side in "before", "after":
        dense, *_ = prepare(isa_name, "gate", "f32", side, x=x, **columns(y))
        np.testing.assert_allclose(dense, x * sigmoid(y), rtol=1e-6)
        group = columns(wide, group_cols=size, group_bytes=4 * (size + 3))
        of_columns, *_ = prepare(isa_name, "gate", "f32", side, x=x, **group)
        assert np.array_equal(of_columns, dense)
        for other in z, None:
            added = 0 if other is None else other
            share, *_ = prepare(isa_name, "share", "f32", side, x=x, gate=y[:, 0].copy(), other=added)
            np.testing.assert_allclose(share, x * sigmoid(y[:, :1]) + added, rtol=2e-6, atol=1e-6)
        normed, *_ = prepare(isa_name, "gated_norm", "f32", side, gate=x, x=y, weight=weight, head_dim=size)
        np.testing.assert_allclose(normed, swiglu(x, heads), rtol=2e-6)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("scale", [1e-18, 1e-6, 1e15])
def test_norms_of_tiny_and_huge_rows(isa_name: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    x = (scale * rng.standard_normal((3, 70))).astype(np.float32)
    weight = rng.standard_normal(70).astype(np.float32)
    np.testing.assert_allclose(
        prepare(isa_name, "norm", "f32", x=x, weight=weight)[0], rms_norm(x, weight), rtol=2e-6
    )
    assert not prepare(isa_name, "norm", "f32", x=0 * x, weight=weight)[0].any()


@pytest.mark.parametrize("isa_name", ISAS)
def test_gates_of_the_whole_float_range(isa_name: str) -> None:
    """Every sign and exponent with several mantissas, and finely where exp bends. What a gate below -87 lets through is below 1e-35."""
    patterns = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32).view(np.float32)
    gate = np.concatenate([patterns[np.isfinite(patterns)], np.linspace(-90, 90, 20011, dtype=np.float32)])[
        None
    ]
    found, *_ = prepare(isa_name, "swiglu", "f32", gate=gate, up=np.ones_like(gate))
    np.testing.assert_allclose(found, swiglu(gate, np.ones_like(gate)), rtol=5e-7, atol=1e-35)
    found, *_ = prepare(isa_name, "gate", "f32", x=np.ones_like(gate), **columns(gate))
    np.testing.assert_allclose(found, sigmoid(gate), rtol=5e-7, atol=1e-35)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("prologue", ["norm", "swiglu", "gate"])
def test_what_is_not_finite_stays_so(isa_name: str, prologue: str) -> None:
    for bad in np.nan, np.inf:
        x = np.ones((3, 33), np.float32)
        x[1, 32] = bad
        ones = np.ones_like(x)
        args = {
            "norm": {"x": x, "weight": ones[0]},
            "swiglu": {"gate": x, "up": ones},
            "gate": {"x": x, **columns(ones)},
        }
        out, *_ = prepare(isa_name, prologue, "f32", **args[prologue])
        assert np.isfinite(out[[0, 2]]).all()
        assert not np.isfinite(out[1]).all()


def quantize(x: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Quants before rounding [..., block] and scales [..., 1] in float64: quantize_row_q8_K_ref and quantize_row_q8_0_ref of ggml."""
    blocks = x.astype(np.float64).reshape(
        len(x), -1, layout.Q8K_BLOCK if kind == "q8k" else layout.Q8_0_BLOCK
    )
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scale = largest / -127 if kind == "q8k" else np.abs(largest) / 127
    stored = scale if kind == "q8k" else scale.astype(np.float16).astype(np.float64)
    return np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale != 0), stored


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("kind", ["q8k", "q8_0"])
@pytest.mark.parametrize("prologue", PREPARE)
def test_results_are_quantized_on_the_way(isa_name: str, prologue: str, kind: str) -> None:
    """Quants, scales and sums belong to the floats that were written with them."""
    rng = np.random.default_rng(3)
    n_cols = 3 * 256 if kind == "q8k" else 5 * 32
    x, y = rng.standard_normal((2, 3, n_cols)).astype(np.float32)
    x[1, :256] = y[1, :256] = 0
    for side in "before", "after":
        args: dict[str, Any] = {
            "copy": {"x": x},
            "norm": {"x": x, "weight": y[0]},
            "swiglu": {"gate": x, "up": y},
            "gate": {"x": x, **columns(y)},
            "share": {"x": x, "gate": y[:, 0].copy(), "other": 0},
            "gated_norm": {"gate": x, "x": y, "weight": y[0], "head_dim": n_cols},
        }[prologue]
        out, q, d, sums = prepare(isa_name, prologue, kind, side, **args)
        _, *only_quantized = prepare(isa_name, prologue, kind, side, keep=False, **args)
        for alone, together in zip(only_quantized, (q, d, sums)):
            assert np.array_equal(alone, together)
        expected = {
            "norm": rms_norm(x, y[0]),
            "swiglu": swiglu(x, y),
            "copy": x,
            "gate": x * sigmoid(y),
            "share": x * sigmoid(y[:, :1]),
            "gated_norm": swiglu(x, rms_norm(y, y[0])),
        }[prologue]
        np.testing.assert_allclose(out, expected, rtol=2e-6)
        exact, scale = quantize(out, kind)
        quants = q.view(np.int8).reshape(len(x), -1)[:, :n_cols].reshape(exact.shape).astype(int)
        assert (np.abs(quants - exact) <= 0.5 + 1e-4).all()
        np.testing.assert_allclose(d.view(np.float32).reshape(scale.shape), scale, rtol=1e-6)
        if kind == "q8k":
            parts = sums.view(np.int16).reshape(*exact.shape[:2], 24)
            assert np.array_equal(parts[..., :16], quants.reshape(*exact.shape[:2], 16, 16).sum(-1))
            assert np.array_equal(parts[..., 16:], quants.reshape(*exact.shape[:2], 8, 32).sum(-1))
        else:
            both = np.stack([quants.sum(-1), quants[..., :16].sum(-1)], -1)
            assert np.array_equal(sums.view(np.int16).reshape(both.shape), both)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("n_cols", [1, 16, 37])
def test_sums_and_gathered_rows_are_exact(isa_name: str, n_cols: int) -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((2, 7, n_cols)).astype(np.float32)
    for side in "before", "after":
        out = guarded(np.full_like(x, np.nan), side)
        x_there, y_there = guarded(x, side), guarded(y, side)
        count = np.array([7])
        call(isa_name, ADD, n_chunks=3, count=count, unit=3, x=x_there, y=y_there, n_cols=n_cols, out=out)
        assert np.array_equal(out, x + y)
        ids = guarded(np.array([6, 0, 6, 3, 5], np.int32), side)
        rows = guarded(np.full((5, n_cols), np.nan, np.float32), side)
        count = np.array([5])
        call(isa_name, GATHER, n_chunks=3, count=count, unit=2, x=x_there, ids=ids, n_cols=n_cols, out=rows)
        assert np.array_equal(rows, x[ids])


@pytest.mark.parametrize("kind", ["q8k", "q8_0"])
@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_no_quantized_block_hides_what_is_not_finite(isa_name: str, kind: str, value: float) -> None:
    n_cols = layout.Q8K_BLOCK
    x = np.tile(np.random.RandomState(3).standard_normal(n_cols).astype(np.float32), (n_cols, 1))
    np.fill_diagonal(x, value)
    _, q, d, _ = prepare(isa_name, "copy", kind, x=x)
    scales = d.view(np.float32).reshape(n_cols, -1)
    with np.errstate(invalid="ignore"):
        quants = q.view(np.int8).reshape(n_cols, -1)[:, :n_cols]
        products = quants.reshape(*scales.shape, -1) * scales[..., None]
    block = np.arange(n_cols) // (n_cols // scales.shape[1])
    assert not np.isfinite(products[np.arange(n_cols), block]).any()
