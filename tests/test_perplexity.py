"""Perplexity against a naive twin of llama.cpp's algorithm, and against llama.cpp's own figures for the demo models."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import naive
import numpy as np
import pytest
import tiny_models

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.measure import perplexity as module
from qwencli.measure.perplexity import Estimate, perplexity
from qwencli.network.load import load_model
from qwencli.text.tokenizer import Tokenizer

RUNNING = json.loads(Path(__file__).with_name("oracles").joinpath("perplexity.json").read_text())
CONFIG = tiny_models.config(num_hidden_layers=2, max_position_embeddings=64)
WEIGHTS = tiny_models.weights(CONFIG, 11)
TEXT = np.random.RandomState(12).randint(0, CONFIG["vocab_size"], 150).tolist()
BOS = 7


def naive_perplexity(
    tokens: Sequence[int], n_ctx: int, bos: int | None = None, limit: int | None = None
) -> list[Estimate]:
    """llama.cpp's tools/perplexity: positions n_ctx/2 .. n_ctx-2 of each whole chunk, the error from the variance of all values so far."""
    nll: list[float] = []
    estimates = []
    for start in range(0, len(tokens) - n_ctx + 1, n_ctx)[:limit]:
        chunk = list(tokens[start : start + n_ctx])
        logits = naive.forward(CONFIG, WEIGHTS, chunk if bos is None else [bos, *chunk[1:]])["result_output"]
        for position in range(n_ctx // 2, n_ctx - 1):
            row = logits[position]
            nll.append(math.log(sum(math.exp(x) for x in row)) - row[chunk[position + 1]])
        mean = sum(nll) / len(nll)
        variance = sum(x * x for x in nll) / len(nll) - mean**2
        error = (
            math.exp(mean) * math.sqrt(variance / (len(nll) - 1)) if variance > 0 and len(nll) > 1 else None
        )
        estimates.append(Estimate(len(estimates) + 1, math.exp(mean), error))
    return estimates


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., NumpyBackend]:
    def backend(**changed: np.ndarray) -> NumpyBackend:
        tiny_models.write_gguf(tmp_path / "m.gguf", CONFIG, WEIGHTS | changed)
        return NumpyBackend(load_model(GGUFFile(tmp_path / "m.gguf")))

    return backend


def assert_same(found: Sequence[Estimate], expected: Sequence[Estimate]) -> None:
    assert [e.n_chunks for e in found] == [e.n_chunks for e in expected]
    np.testing.assert_allclose([e.ppl for e in found], [e.ppl for e in expected], rtol=1e-5)
    for a, b in zip(found, expected):
        assert a.stderr == (b.stderr if b.stderr is None else pytest.approx(b.stderr, rel=1e-4))


@pytest.mark.parametrize("bos", [None, BOS])
@pytest.mark.parametrize("n_ctx", [4, 16, 17, 75])
def test_against_the_naive_twin(tiny: Callable[..., NumpyBackend], n_ctx: int, bos: int | None) -> None:
    backend, expected = tiny(), naive_perplexity(TEXT, n_ctx, bos)
    assert len(expected) == 150 // n_ctx
    for n_batch in (1, 5, n_ctx - 1, n_ctx, n_ctx + 1, 3 * n_ctx, 1000):
        assert_same(list(perplexity(backend, TEXT, n_ctx, n_batch, bos)), expected)


def test_the_bos_token_makes_a_difference() -> None:
    assert abs(naive_perplexity(TEXT, 16, BOS)[-1].ppl / naive_perplexity(TEXT, 16)[-1].ppl - 1) > 0.001


@pytest.mark.parametrize("limit", [1, 3, 9, 100])
def test_a_limit_of_chunks(tiny: Callable[..., NumpyBackend], limit: int) -> None:
    found = list(perplexity(tiny(), TEXT, 16, 64, limit=limit))
    assert len(found) == min(limit, 9)
    assert_same(found, naive_perplexity(TEXT, 16, limit=limit))


def test_logits_are_computed_in_pieces(
    tiny: Callable[..., NumpyBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, shapes = tiny(), []
    score = backend.score

    def watched(hidden: np.ndarray, targets: Sequence[int]) -> np.ndarray:
        shapes.append(len(hidden))
        return score(hidden, targets)

    monkeypatch.setattr(backend, "score", watched)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 3 * CONFIG["vocab_size"])
    assert_same(list(perplexity(backend, TEXT, 17)), naive_perplexity(TEXT, 17))
    assert set(shapes) == {3, 2}  # 8 rows a chunk


def test_a_text_of_less_than_two_chunks(tiny: Callable[..., NumpyBackend]) -> None:
    with pytest.raises(
        InputError, match=r"the text has 150 tokens, but perplexity with a context of 76 needs at least 152"
    ):
        list(perplexity(tiny(), TEXT, 76))
    assert len(list(perplexity(tiny(), TEXT, 75))) == 2


def test_a_model_that_knows_nothing(tiny: Callable[..., NumpyBackend]) -> None:
    """All tokens are equally likely: the perplexity is the size of the vocabulary, and the error nothing but rounding."""
    backend = tiny(**{"output.weight": np.zeros_like(WEIGHTS["output.weight"])})
    for estimate in perplexity(backend, TEXT, 50):
        assert estimate.ppl == pytest.approx(CONFIG["vocab_size"])
        assert (estimate.stderr or 0.0) < 1e-5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite(tiny: Callable[..., NumpyBackend], bad: float) -> None:
    norm = WEIGHTS["output_norm.weight"].copy()
    norm[3] = bad
    with pytest.raises(QwenError, match=r"m\.gguf: chunk 1: the logits are not finite"):
        list(perplexity(tiny(**{"output_norm.weight": norm}), TEXT, 16))


# llama.cpp's figures


@pytest.mark.parametrize(
    ("model", "text", "tolerance"),
    [
        ("demo-f16.gguf", "wiki-excerpt.txt", 3e-4),
        ("demo-q8_0.gguf", "heldout.txt", 1.5e-3),
        ("demo-q4_k_m.gguf", "heldout.txt", 1.5e-3),
    ],
)
def test_the_demo_models_come_to_the_figures_of_llama_cpp(
    shared: Path, model: str, text: str, tolerance: float
) -> None:
    """It quantizes activations too where weights are quantized, which the NumPy backend does not: hence the wider tolerance there."""
    file = GGUFFile(shared / "models" / model)
    tokens = Tokenizer(file).encode((shared / "models" / text).read_text(encoding="utf-8"), add_special=True)
    found = list(perplexity(NumpyBackend(load_model(file)), tokens, 256, limit=4))
    assert [e.ppl for e in found] == pytest.approx(RUNNING[text][model][:4], rel=tolerance)


def test_the_stored_figures_end_at_the_published_ones(shared: Path) -> None:
    table = (shared / "models" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(demo-\w+\.gguf)` \| \w+ \| [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+)", table)
    published = {
        "heldout.txt": {name: float(figure) for name, figure, _ in rows},
        "wiki-excerpt.txt": {name: float(figure) for name, _, figure in rows},
    }
    for text, models in RUNNING.items():
        for model, running in models.items():
            assert running[-1] == pytest.approx(published[text][model], rel=1e-3), (text, model)
