"""Gated delta nets: convolution, gates and recurrence, each against NumPy in float64, piece by piece and against protected pages."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from guarded import guarded
from kernel_calls import call, packed
from random_models import write_random_model
from shapes import PRESETS

from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import CONV, GATES, NORMALISE, POINTERS, SCAN, STATE
from qwencli.network.load import load_model
from qwencli.network.model import Model

ISAS = [i.name for i in isa.available()]
EPS = 1e-6
F32, F64 = np.float32, np.float64


class Shape(NamedTuple):
    """Heads of keys and of values, their size, taps of the convolution, and how value heads find their key heads."""

    n_head_k: int
    n_head_v: int
    d: int
    d_conv: int
    tiled: bool

    @property
    def n_head(self) -> int:
        return 2 * self.n_head_k + self.n_head_v

    @property
    def n_blocks(self) -> int:
        return self.n_head_v * (self.d // layout.state_width(self.d))

    def key_head(self, h: int) -> int:
        return h % self.n_head_k if self.tiled else h // (self.n_head_v // self.n_head_k)


SHAPES = [
    Shape(2, 4, 64, 4, True),
    Shape(2, 4, 64, 4, False),
    Shape(1, 3, 48, 2, True),
    Shape(2, 2, 16, 7, False),
    Shape(1, 1, 128, 4, True),
]
PIECES = [(1,), (2,), (3, 1), (9,), (4, 1, 6)]


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    """All kernels of this file at once: one by one each would wait for a process of its own."""
    specs = {
        spec
        for s in SHAPES
        for spec in (f"delta:conv:{s.d}:{s.d_conv}", f"delta:normalise:{s.d}", f"delta:scan:{s.d}")
    }
    for name in ISAS:
        kernels_of(name).load(["delta:gates", *sorted(specs)])


class Pieces:
    """A step's pieces of that many tokens each, with states of `n_bytes` before and after, in random order in memory."""

    def __init__(
        self,
        lengths: Sequence[int],
        before: Sequence[np.ndarray | None],
        n_bytes: int,
        side: str,
        borders: Sequence[int] = (),
    ) -> None:
        self.after = [guarded(np.full(n_bytes, 0x55, np.uint8), side) for _ in lengths]
        self.at_border = [guarded(np.full(n_bytes, 0x55, np.uint8), side) for _ in lengths]
        self.before = [None if state is None else guarded(state, side) for state in before]
        records = [
            packed(
                STATE,
                first=sum(lengths[:i]),
                n=n,
                before=0 if self.before[i] is None else self.before[i],
                after=self.after[i],
                border=borders[i] if borders else 0,
                at_border=self.at_border[i] if borders and borders[i] else 0,
            )
            for i, n in enumerate(lengths)
        ]
        self.records = guarded(np.concatenate(records), side)
        self.pointers = guarded(packed(POINTERS, items=1, parts=1, partials=1, states=self.records), side)


def conv(
    isa_name: str,
    s: Shape,
    x: np.ndarray,
    weight: np.ndarray,
    pieces: Pieces,
    offset: int,
    side: str,
    a_chunk: int = 3,
) -> np.ndarray:
    out = guarded(np.full(x.shape, np.nan, F32), side)
    n_chunks = len(pieces.records) * -(-s.n_head // a_chunk)
    call(
        isa_name,
        CONV,
        s.d,
        s.d_conv,
        n_chunks=n_chunks,
        pointers=pieces.pointers,
        n_head=s.n_head,
        chunk_heads=a_chunk,
        n_head_k=s.n_head_k,
        x=guarded(x, side),
        weight=guarded(weight, side),
        out=out,
        eps=EPS,
        layer_offset=offset,
    )
    return out


def naive_conv(s: Shape, x: np.ndarray, weight: np.ndarray, before: np.ndarray) -> np.ndarray:
    """x [n, channels], before [d_conv - 1, channels] -> [n, heads, d], in float64."""
    values = np.concatenate([before, x]).astype(F64)
    y = sum(values[i : i + len(x)] * weight[:, i].astype(F64) for i in range(s.d_conv))
    y = (y / (1 + np.exp(-y))).reshape(len(x), s.n_head, s.d)
    norm = np.sqrt(np.square(y).sum(-1, keepdims=True) + EPS)
    y[:, : 2 * s.n_head_k] /= norm[:, : 2 * s.n_head_k]
    y[:, : s.n_head_k] *= s.d**-0.5
    return y


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("s", SHAPES)
@pytest.mark.parametrize("lengths", PIECES)
def test_convolutions_of_pieces(isa_name: str, s: Shape, lengths: Sequence[int]) -> None:
    rng = np.random.default_rng(sum(lengths))
    n_channels, offset = s.n_head * s.d, 64
    x = rng.standard_normal((sum(lengths), n_channels)).astype(F32)
    weight = rng.standard_normal((n_channels, s.d_conv)).astype(F32)
    for side, with_state in itertools.product(("before", "after"), (False, True)):
        rows = rng.standard_normal((len(lengths), s.d_conv - 1, n_channels)).astype(F32) * with_state
        states = [
            np.concatenate([np.zeros(16, F32), r.ravel()]).view(np.uint8) if with_state else None
            for r in rows
        ]
        borders = [n // 2 for n in lengths]
        pieces = Pieces(lengths, states, offset + rows[0].nbytes, side, borders)
        out = conv(isa_name, s, x, weight, pieces, offset, side)
        first = 0
        for i, n in enumerate(lengths):
            mine = x[first : first + n]
            expected = naive_conv(s, mine, weight, rows[i])
            np.testing.assert_allclose(
                out[first : first + n].reshape(expected.shape), expected, rtol=1e-5, atol=2e-6
            )
            history = np.concatenate([rows[i], mine])
            kept = [(pieces.after[i], n)] + [(pieces.at_border[i], borders[i])] * (borders[i] > 0)
            for state, done in kept:
                assert np.array_equal(
                    state[offset:].view(F32).reshape(rows[i].shape), history[done : done + s.d_conv - 1]
                )
                assert (state[:offset] == 0x55).all()
            first += n


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("s", SHAPES)
def test_heads_that_are_scaled_after_the_convolution(isa_name: str, s: Shape) -> None:
    """As in the convolution: queries and keys, but not values."""
    n = 5
    x = np.random.default_rng(s.d).standard_normal((n, s.n_head, s.d)).astype(F32)
    x[1] = 0
    expected = x / np.sqrt(np.square(x.astype(F64)).sum(-1, keepdims=True) + EPS)
    expected[:, : s.n_head_k] /= np.sqrt(s.d)
    expected[:, 2 * s.n_head_k :] = x[:, 2 * s.n_head_k :]
    for side in "before", "after":
        out, given = guarded(np.full(x.shape, np.nan, F32), side), guarded(x, side)
        heads = {"n_head": s.n_head, "n_head_k": s.n_head_k, "eps": EPS}
        call(isa_name, NORMALISE, s.d, n_chunks=3, count=np.array([n]), unit=2, x=given, out=out, **heads)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-37)


def gates(alpha: Any, beta: Any, n_columns: int, n_group: int, group_bytes: int = 0) -> dict[str, Any]:
    """The arguments of gates that are columns of arrays with `n_columns`, by default all of them."""
    strides = {"token_bytes": 4 * n_columns, "group_heads": n_group, "group_bytes": group_bytes}
    return {"alpha": alpha, "beta": beta, **strides}


def run_gates(isa_name: str, x: np.ndarray, a: np.ndarray, decay: np.ndarray, strength: np.ndarray) -> None:
    """Of one token whose alphas and betas are x."""
    n = len(x)
    weights = {"n_head": n, "dt": np.zeros(n, F32), "a": a}
    results = {"decay": decay, "strength": strength}
    call(isa_name, GATES, count=np.array([1]), unit=1, **gates(x, x, n, n), **weights, **results)


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(("n_head", "n_group"), [(1, 1), (16, 16), (48, 48), (32, 2), (6, 3)])
def test_gates(isa_name: str, n_head: int, n_group: int) -> None:
    """Of two matrices' products, or from columns of one."""
    rng = np.random.default_rng(n_head)
    n, groups = 5, n_head // n_group
    dt, a = rng.standard_normal(n_head).astype(F32), -rng.uniform(0.01, 16, n_head).astype(F32)
    for side in "before", "after":
        if groups == 1:
            alpha, beta = (guarded(4 * rng.standard_normal((n, n_head)).astype(F32), side) for _ in range(2))
            columns = gates(alpha, beta, n_head, n_group)
        else:
            both = guarded(4 * rng.standard_normal((n, groups, 2, n_group)).astype(F32), side)
            beta, alpha = both[:, :, 0].reshape(n, n_head), both[:, :, 1].reshape(n, n_head)
            columns = gates(both.ctypes.data + 4 * n_group, both, 2 * n_head, n_group, 8 * n_group)
        decay, strength = (guarded(np.full((n, n_head), np.nan, F32), side) for _ in range(2))
        weights = {"n_head": n_head, "dt": guarded(dt, side), "a": guarded(a, side)}
        results = {"decay": decay, "strength": strength}
        call(isa_name, GATES, n_chunks=3, count=np.array([n]), unit=2, **columns, **weights, **results)
        np.testing.assert_allclose(
            decay, np.exp(a.astype(F64) * np.logaddexp(0, alpha.astype(F64) + dt)), rtol=2e-5, atol=1e-37
        )
        np.testing.assert_allclose(strength, 1 / (1 + np.exp(-beta.astype(F64))), rtol=5e-7)


@pytest.mark.parametrize("isa_name", ISAS)
def test_gates_of_the_whole_float_range(isa_name: str) -> None:
    """softplus is seen through decay = exp(-softplus(x)) = 1 / (1 + exp(x)) where that is neither 0 nor 1, and in exp(-2**-k ...)."""
    patterns = np.arange(0, 2**32, 65521, dtype=np.uint64).astype(np.uint32).view(F32)
    x = np.concatenate([patterns[np.isfinite(patterns)], np.linspace(-90, 90, 20011, dtype=F32)])
    n = len(x)
    for exponent in range(0, 105, 15):
        a = np.full(n, -(2.0**exponent), F32)  # makes small softplus visible: exp(a * softplus(x))
        decay, strength = np.empty(n, F32), np.empty(n, F32)
        run_gates(isa_name, x, a, decay, strength)
        softplus = np.logaddexp(0, x.astype(F64))
        with np.errstate(over="ignore", under="ignore"):
            expected, argument = np.exp(a * softplus), a * softplus
            sigmoid = 1 / (1 + np.exp(-x.astype(F64)))
        seen = argument > -10  # an error of softplus is as many times larger in its exponential
        np.testing.assert_allclose(decay[seen], expected[seen], rtol=5e-6)
        assert (decay[~seen] <= np.exp(-9.9)).all()
        np.testing.assert_allclose(strength, sigmoid, rtol=5e-7, atol=1e-35)
    for bad in np.nan, np.inf, -np.inf:
        decay, strength = np.empty(1, F32), np.empty(1, F32)
        x = np.array([bad], F32)
        run_gates(isa_name, x, np.array([-1], F32), decay, strength)
        with np.errstate(over="ignore", invalid="ignore"):
            assert np.array_equal(decay, np.exp(-np.logaddexp(0, x)), equal_nan=True)
            assert np.array_equal(strength, 1 / (1 + np.exp(-x)), equal_nan=True)


def in_blocks(matrices: np.ndarray) -> np.ndarray:
    """[heads, d, d] -> as kernels keep them: for each head blocks of columns, in each the rows."""
    n_head, d, _ = matrices.shape
    return np.ascontiguousarray(matrices.reshape(n_head, d, -1, layout.state_width(d)).swapaxes(1, 2)).astype(
        F32
    )


def from_blocks(state: np.ndarray, s: Shape) -> np.ndarray:
    width = layout.state_width(s.d)
    return (
        state.view(F32)
        .reshape(s.n_head_v, s.d // width, s.d, width)
        .swapaxes(1, 2)
        .reshape(s.n_head_v, s.d, s.d)
    )


def random_step(s: Shape, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys (of length 1) and values [n, heads, d], decay and strength [n, n_head_v]."""
    qkv = rng.standard_normal((n, s.n_head, s.d)).astype(F32)
    qkv[:, : 2 * s.n_head_k] /= np.linalg.norm(qkv[:, : 2 * s.n_head_k], axis=-1, keepdims=True)
    return (
        qkv,
        rng.uniform(0.3, 1, (n, s.n_head_v)).astype(F32),
        rng.uniform(0, 1, (n, s.n_head_v)).astype(F32),
    )


def scan(
    isa_name: str,
    s: Shape,
    step: Sequence[np.ndarray],
    pieces: Pieces,
    offset: int,
    side: str,
    a_chunk: int = 3,
) -> np.ndarray:
    qkv, decay, strength = (guarded(x, side) for x in step)
    out = guarded(np.full((len(qkv), s.n_head_v, s.d), np.nan, F32), side)
    call(
        isa_name,
        SCAN,
        s.d,
        n_chunks=len(pieces.records) * -(-s.n_blocks // a_chunk),
        pointers=pieces.pointers,
        n_head_k=s.n_head_k,
        n_head_v=s.n_head_v,
        tiled=s.tiled,
        chunk_blocks=a_chunk,
        qkv=qkv,
        decay=decay,
        strength=strength,
        out=out,
        layer_offset=offset,
    )
    return out


def naive_scan(
    s: Shape, qkv: np.ndarray, decay: np.ndarray, strength: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Results, [n, n_head_v, d], and the states after each token, [n, n_head_v, d, d], in float64."""
    out, states = np.empty((len(qkv), s.n_head_v, s.d)), np.empty((len(qkv), s.n_head_v, s.d, s.d))
    for h in range(s.n_head_v):
        m = state[h].astype(F64)
        for t, heads in enumerate(qkv.astype(F64)):
            q, k, v = heads[s.key_head(h)], heads[s.n_head_k + s.key_head(h)], heads[2 * s.n_head_k + h]
            m = decay[t, h] * m
            m = m + np.outer(k, strength[t, h] * (v - k @ m))
            out[t, h], states[t, h] = q @ m, m
    return out, states


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("s", SHAPES)
@pytest.mark.parametrize("lengths", PIECES)
def test_recurrence_of_pieces(isa_name: str, s: Shape, lengths: Sequence[int]) -> None:
    rng = np.random.default_rng(sum(lengths))
    step, offset = random_step(s, sum(lengths), rng), 128
    n_bytes = offset + 4 * s.n_head_v * s.d**2
    for side, with_state in itertools.product(("before", "after"), (False, True)):
        matrices = rng.standard_normal((len(lengths), s.n_head_v, s.d, s.d)) * with_state
        states = [
            np.concatenate([np.zeros(offset, np.uint8), in_blocks(m).view(np.uint8).ravel()])
            if with_state
            else None
            for m in matrices
        ]
        borders = [n // 2 for n in lengths]
        pieces = Pieces(lengths, states, n_bytes, side, borders)
        out = scan(isa_name, s, step, pieces, offset, side)
        first = 0
        for i, n in enumerate(lengths):
            expected, after = naive_scan(s, *(x[first : first + n] for x in step), matrices[i].astype(F32))
            np.testing.assert_allclose(out[first : first + n], expected, atol=2e-5)
            kept = [(pieces.after[i], n)] + [(pieces.at_border[i], borders[i])] * (borders[i] > 0)
            for state, done in kept:
                np.testing.assert_allclose(from_blocks(state[offset:], s), after[done - 1], atol=2e-5)
                assert (state[:offset] == 0x55).all()
            first += n


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("s", SHAPES[:3])
def test_the_same_bits_however_a_sequence_is_cut(isa_name: str, s: Shape) -> None:
    """In one piece, token by token and in pieces, with others or alone; the state at a border is that of a step that ends there."""
    rng = np.random.default_rng(5)
    n, n_channels = 13, s.n_head * s.d
    x, weight = (
        rng.standard_normal((n, n_channels)).astype(F32),
        rng.standard_normal((n_channels, s.d_conv)).astype(F32),
    )
    _, decay, strength = random_step(s, n, rng)
    matrices_at = 4 * (s.d_conv - 1) * n_channels
    n_bytes = matrices_at + 4 * s.n_head_v * s.d**2

    def run(cuts: Sequence[int], a_chunk: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """Results, the states after each cut, and those at each piece's border, one token before its end."""
        results: list[np.ndarray] = []
        states: list[np.ndarray | None] = [None]
        at_borders: list[np.ndarray] = []
        for first, end in itertools.pairwise([0, *cuts]):
            length = end - first
            other = rng.standard_normal((2, n_channels)).astype(F32)
            step = np.concatenate([x[first:end], other])
            gates = [np.concatenate([g[first:end], g[:2]]) for g in (decay, strength)]
            pieces = Pieces([length, 2], [states[-1], None], n_bytes, "after", [length - 1, 0])
            qkv = conv(isa_name, s, step, weight, pieces, 0, "after", a_chunk)
            out = scan(
                isa_name, s, [qkv.reshape(-1, s.n_head, s.d), *gates], pieces, matrices_at, "after", a_chunk
            )
            results.append(out[:length])
            states.append(pieces.after[0].copy())
            at_borders.append(pieces.at_border[0].copy())
        return np.concatenate(results), [state for state in states if state is not None], at_borders

    whole, _, _ = run([n], 100)
    single, states, _ = run(range(1, n + 1), 1)
    assert np.array_equal(whole, single)
    for cuts in [2, 5, n], [3, 4, 8, n], [n]:
        some, after_cuts, at_borders = run(cuts, 5)
        assert np.array_equal(whole, some)
        assert all(np.array_equal(state, states[cut - 1]) for cut, state in zip(cuts, after_cuts))
        lengths = np.diff([0, *cuts])
        assert all(
            np.array_equal(state, states[cut - 2])
            for cut, state, n in zip(cuts, at_borders, lengths)
            if n > 1
        )


@pytest.fixture(scope="module", params=["tiny-qwen35", "tiny-qwen3next"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("delta") / f"{request.param}.gguf"
    write_random_model(path, PRESETS[request.param], "F16")
    return load_model(GGUFFile(path))


def run(backend: CPUBackend | NumpyBackend, tokens: Sequence[int], cuts: Sequence[int]) -> list[np.ndarray]:
    """Layers' parts and outputs and the logits of all tokens, in steps that end at `cuts`, with another sequence from the second on."""
    parts = "l_out-", "attn_output-", "final_output-", "attn_gated-"
    names = [*(name for name in backend.model.graph.nodes if name.startswith(parts)), LOGITS]
    seq, other = KVSequence(), KVSequence()
    found = []
    for first, end in itertools.pairwise([0, *cuts]):
        pieces = [Segment(other, tokens[:2], 2)] * (first > 0) + [
            Segment(seq, tokens[first:end], end - first)
        ]
        found.append([values[-(end - first) :] for values in backend.run(names, Batch(pieces)).values()])
    return [np.concatenate(parts) for parts in zip(*found)]


def test_models_against_numpy_and_the_same_bits(model: Model) -> None:
    """F16 weights, which both backends multiply as floats: what differs is the order of sums, and halves in the KV cache."""
    tokens = np.random.default_rng(0).integers(0, model.config.n_vocab, 70).tolist()
    whole = run(CPUBackend(model, 1), tokens, [70])
    for found, expected in zip(whole, run(NumpyBackend(model), tokens, [70])):
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
    for n_threads, cuts in (2, [*range(1, 71)]), (3, [3, 4, 40, 68, 70]):
        assert all(
            np.array_equal(x, y) for x, y in zip(whole, run(CPUBackend(model, n_threads), tokens, cuts))
        )
