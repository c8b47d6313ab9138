"""Products with weights of every format, in place and through panels, on every instruction set of this CPU."""

import numpy as np
import pytest
from blocks import SAMPLE, SCALED, columns, filled_rows, random_rows
from gguf import GGMLQuantizationType, quants
from guarded import guarded
from kernel_calls import Quantized, call

from qwencli.backends.cpu.backend import kernels_of
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.gguf.types import GGML_TYPES
from qwencli.kernels import formats, isa
from qwencli.kernels.arguments import EMBED
from qwencli.kernels.tiles import Tiles

FORMATS = list(formats.FORMATS)
TYPES = {kind.name: kind for kind in GGML_TYPES.values()}
ISAS = [i.name for i in isa.available()]


@pytest.fixture(scope="module", autouse=True)
def compiled(request: pytest.FixtureRequest) -> None:
    """All kernels of the chosen tests at once: one by one each would wait for a process of its own."""
    tests = [item for item in request.session.items if getattr(item, "module", None) is request.module]
    params = [item.callspec.params for item in tests if hasattr(item, "callspec")]
    for isa_name in ISAS:
        tiles = Tiles(isa_name)
        names = {each["name"] for each in params if each["isa_name"] == isa_name and "name" in each}
        specs = [f"ops:prepare:copy:{kind}" for kind in ("q8k", "q8_0", "bf16")]
        for name in sorted(names):
            specs += [tiles.one(name, columns(name)), tiles.many(name)]
            specs += [f"ops:embed:{name.lower()}"] if isa_name == ISAS[0] or name in SAMPLE else []
        kernels_of(isa_name).load(specs)


def exact(name: str, w: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x W^T by what the NumPy backend makes of the weights, in float64, and the sum of the products' magnitudes, which bounds rounding."""
    weights = to_float32(w, TYPES[name]).astype(np.float64)
    return x @ weights.T, np.abs(x) @ np.abs(weights).T


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa_name", ISAS)
def test_products_are_right_and_have_the_same_bits(isa_name: str, name: str) -> None:
    """Sizes aren't multiples of anything; one token, several, many."""
    rng = np.random.default_rng(0)
    w = random_rows(name, 51, columns(name), rng)
    bias = rng.standard_normal(51).astype(np.float32)
    for n, side in (1, "after"), (2, "before"), (6, "before"), (9, "after"), (21, "after"):
        x = rng.standard_normal((n, columns(name))).astype(np.float32)
        residual = rng.standard_normal((n, 51)).astype(np.float32)
        activations = Quantized(isa_name, x, formats.FORMATS[name].family, side)
        one = activations.multiply(isa_name, name, "one", w, bias, residual)
        many = activations.multiply(isa_name, name, "many", w, bias, residual)
        assert np.array_equal(one, many)
        expected, magnitude = exact(name, w, activations.dequantized())
        assert (
            np.abs(one - (expected + bias + residual))
            <= 1e-6 * (magnitude + np.abs(bias) + np.abs(residual) + 1)
        ).all()


@pytest.mark.parametrize("name", ["Q4_K", "Q8_0", "NVFP4", "F16", "BF16"])
@pytest.mark.parametrize("isa_name", ISAS)
def test_any_number_of_rows(isa_name: str, name: str) -> None:
    """Whole vectors of rows and what is left of one, with and without a bias and a residual; nothing outside is read or written."""
    rng = np.random.default_rng(5)
    weights, x = random_rows(name, 33, columns(name), rng), rng.standard_normal((7, columns(name)))
    bias, residual = (rng.standard_normal(size).astype(np.float32) for size in (33, (7, 33)))
    activations = {
        side: Quantized(isa_name, x.astype(np.float32), formats.FORMATS[name].family, side)
        for side in ("before", "after")
    }
    products, magnitude = exact(name, weights, activations["after"].dequantized())
    for n_rows in range(1, 34):
        for side, of_side in activations.items():
            of_rows = guarded(bias[:n_rows], side), guarded(residual[:, :n_rows].copy(), side)
            for added in of_rows, (None, of_rows[1]), (of_rows[0], None), (None, None):
                one, many = (
                    of_side.multiply(isa_name, name, form, weights[:n_rows], *added)
                    for form in ("one", "many")
                )
                assert np.array_equal(one, many)
                total = products[:, :n_rows] + sum(each for each in added if each is not None)
                assert (np.abs(one - total) <= 1e-6 * (magnitude[:, :n_rows] + 4)).all()


@pytest.mark.parametrize("isa_name", ISAS)
def test_products_of_a_scaled_type_are_scaled_before_anything_is_added(isa_name: str) -> None:
    rng = np.random.default_rng(4)
    w, bias, scale = (
        random_rows("NVFP4", 51, 320, rng),
        rng.standard_normal(51).astype(np.float32),
        np.float32(0.3),
    )
    activations = Quantized(isa_name, rng.standard_normal((3, 320)).astype(np.float32), "q8_0", "after")
    plain = activations.multiply(isa_name, "NVFP4", "one", w)
    for form in "one", "many":
        assert np.array_equal(
            activations.multiply(isa_name, "NVFP4", form, w, bias, scale=float(scale)), plain * scale + bias
        )


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("isa_name", ISAS)
def test_extreme_blocks(isa_name: str, name: str) -> None:
    """Zero blocks, every bit set, the largest scale: no integer overflows or saturates."""
    n_cols = columns(name)
    largest = np.full((9, n_cols), 1.0, np.float32)
    largest[1::2] *= -1
    for byte, half in (0, 0.0), (255, 1.0), (255, 65504.0), (128, 2.0**-24), (0x7F, 1.0), (0x80, 1.0):
        w = filled_rows(name, 33, n_cols, byte, half)
        activations = Quantized(isa_name, largest, formats.FORMATS[name].family, "after")
        one = activations.multiply(isa_name, name, "one", w)
        assert np.array_equal(one, activations.multiply(isa_name, name, "many", w))
        expected, magnitude = exact(name, w, activations.dequantized())
        assert (np.abs(one - expected) <= 2e-6 * magnitude).all()


@pytest.mark.parametrize("kind", ["q8k", "q8_0"])
@pytest.mark.parametrize("isa_name", ISAS)
def test_quantized_activations(isa_name: str, kind: str) -> None:
    """Within half a step of the values that they represent, with the sums of their quants, for ordinary, zero, tiny and huge values."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((5, 512)).astype(np.float32)
    x[1], x[2], x[3] = 0, x[2] * 1e-30, x[3] * 1e4
    a = Quantized(isa_name, x, kind, "before")
    block = 256 if kind == "q8k" else 32
    largest = np.abs(x.reshape(5, -1, block)).max(-1, keepdims=True)
    half_step = (
        largest / 127 * (0.5 if kind == "q8k" else 0.57)
    )  # a half float's scale is off by up to 1 / 2048
    keep = slice(None) if kind == "q8k" else [0, 1, 3]  # half floats end at 6e-8
    assert (np.abs(a.dequantized() - x).reshape(5, -1, block) <= half_step * 1.001)[keep].all()
    q = a.q[:, :512].reshape(5, -1, block).astype(int)
    assert q.min() >= -127
    if kind == "q8k":
        sums = a.sums.reshape(5, -1, 24)
        assert np.array_equal(sums[..., :16], q.reshape(5, -1, 16, 16).sum(-1))
        assert np.array_equal(sums[..., 16:], q.reshape(5, -1, 8, 32).sum(-1))
    else:
        assert np.array_equal(
            a.sums.view(np.int16).reshape(5, -1, 2), np.stack([q.sum(-1), q[..., :16].sum(-1)], -1)
        )


@pytest.mark.parametrize(
    ("isa_name", "name"),
    [(isa_name, name) for isa_name in ISAS for name in FORMATS if isa_name == ISAS[0] or name in SAMPLE],
)
def test_embedding_rows_are_the_weights_bit_for_bit(isa_name: str, name: str) -> None:
    rng = np.random.default_rng(2)
    n_cols = columns(name)
    for side in "before", "after":
        w = guarded(random_rows(name, 7, n_cols, rng, scale=30), side)
        ids = guarded(np.array([6, 0, 3], np.int32), side)
        out = guarded(np.zeros((3, n_cols), np.float32), side)
        call(
            isa_name,
            EMBED,
            name.lower(),
            n_chunks=2,
            count=np.array([3]),
            unit=2,
            table=w,
            row_bytes=w.shape[1],
            n_cols=n_cols,
            ids=ids,
            out=out,
        )
        assert np.array_equal(out, to_float32(w, TYPES[name])[ids])


@pytest.mark.parametrize("isa_name", ISAS)
def test_activations_rounded_to_bf16(isa_name: str) -> None:
    """As the gguf package rounds weights, infinities and NaN included."""
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((3, 70)) * 10.0 ** rng.integers(-30, 30, (3, 70))).astype(np.float32)
    x[0, :6] = 0, -0.0, np.inf, -np.inf, np.nan, 3.3895e38
    a = Quantized(isa_name, x, "bf16", "after")
    expected = quants.quantize(x, GGMLQuantizationType.BF16).view(np.uint16)
    found = a.q.view(np.uint16)
    finite = ~np.isnan(x)
    assert np.array_equal(found[finite], expected[finite])
    assert np.isnan(a.dequantized()[~finite]).all()


def test_bf16_products_are_the_same_with_and_without_an_instruction_for_them() -> None:
    rng = np.random.default_rng(3)
    w = random_rows("BF16", 37, 100, rng)
    x = rng.standard_normal((5, 100)).astype(np.float32)
    found = [
        Quantized(name, x, "bf16", "after").multiply(name, "BF16", "many", w)
        for name in ISAS
        if name != "generic"
    ]
    for other in found[1:]:
        assert np.array_equal(found[0], other)
