"""What a token's likelihood is made of, against NumPy in float64."""

from pathlib import Path

import numpy as np
import pytest
from guarded import guarded
from kernel_calls import call

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.protocol import HIDDEN, LOGITS, score_with_numpy
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import isa
from qwencli.kernels.arguments import LIKELIHOOD, SCORE
from qwencli.network.load import load_model

ISAS = [i.name for i in isa.available()]


def score(isa_name: str, logits: np.ndarray, targets: list[int], side: str = "after") -> np.ndarray:
    """-log softmax(logits)[target] by the kernel."""
    out = guarded(LIKELIHOOD.zeros(len(logits)), side)
    call(
        isa_name,
        SCORE,
        n_chunks=len(logits),
        count=np.array([len(logits)]),
        logits=guarded(logits, side),
        n_vocab=logits.shape[1],
        targets=guarded(np.array(targets), side),
        out=out,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.log(out["sum"]) - out["difference"]


@pytest.mark.parametrize("n_vocab", [1, 15, 16, 100, 6016])
@pytest.mark.parametrize("isa_name", ISAS)
def test_scores(isa_name: str, n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    for scale, side in (1, "after"), (30, "before"), (1e4, "after"):
        logits = (scale * rng.standard_normal((3, n_vocab))).astype(np.float32)
        targets = rng.integers(0, n_vocab, 3).tolist()
        exact = logits.astype(np.float64)
        expected = (
            np.log(np.exp(exact - exact.max(-1, keepdims=True)).sum(-1))
            + exact.max(-1)
            - exact[range(3), targets]
        )
        np.testing.assert_allclose(score(isa_name, logits, targets, side), expected, rtol=3e-7, atol=3e-7)


@pytest.mark.parametrize("place", [0, 17, 99])
@pytest.mark.parametrize("isa_name", ISAS)
def test_what_is_not_finite_is_seen(isa_name: str, place: int) -> None:
    """NaN and infinity anywhere; minus infinity only says that this token can't come."""
    for value in np.nan, np.inf, -np.inf:
        logits = np.zeros((1, 100), np.float32)
        logits[0, place] = value
        assert np.isfinite(score(isa_name, logits, [50])).all() == (value == -np.inf)
        assert not np.isfinite(score(isa_name, logits, [place])).any()
    assert not np.isfinite(score(isa_name, np.full((1, 100), -np.inf, np.float32), [3])).any()


def test_the_backend_scores_as_its_logits_say(story: Path) -> None:
    backend, rng = CPUBackend(load_model(GGUFFile(story))), np.random.default_rng(0)
    demo = backend.model
    hidden = rng.standard_normal((5, demo.config.n_embd)).astype(np.float32)
    targets = rng.integers(0, demo.config.n_vocab, 5).tolist()
    np.testing.assert_allclose(
        backend.score(hidden, targets),
        score_with_numpy(backend.run([LOGITS], feed={HIDDEN: hidden})[LOGITS], targets),
        rtol=1e-6,
    )
    assert backend.run([LOGITS], feed={HIDDEN: hidden})[LOGITS].shape == (5, demo.config.n_vocab)
    for wrong in targets[:4], [*targets[:4], demo.config.n_vocab], [*targets[:4], -1]:
        with pytest.raises(InputError, match="tokens to score, expected one below"):
            backend.score(hidden, wrong)
