"""Whole draws: sampled tokens against the probabilities of naive twins, what is reported, and who does it: machine code or NumPy."""

from collections import Counter
from pathlib import Path
from typing import Any

import naive_sampling as naive
import numpy as np
import pytest
import tiny_models
from engine_runs import finish
from kernel_calls import call

from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.cpu.inputs import Inputs
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Backend, Batch, Segment
from qwencli.engine.engine import Engine, Sequence
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import CHOOSE
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams
from qwencli.sampling.mirostat import adapted
from qwencli.sampling.sampler import NOT_FINITE, Draw, Sampler

LOGITS_OF_12 = np.float32([2.0, 1.5, 1.0, 1.0, 0.5, 0.0, 0.0, -0.5, -1.0, -1.0, -2.0, -4.0])
PAIRS: naive.Pairs = list(enumerate(LOGITS_OF_12.tolist()))
QUANTILES = {
    1: 10.83,
    2: 13.82,
    3: 16.27,
    4: 18.47,
    5: 20.52,
    6: 22.46,
    7: 24.32,
    8: 26.12,
    9: 27.88,
    10: 29.59,
    11: 31.26,
}
"""The chi-square distribution's 0.999 quantiles by degrees of freedom: one fair sampler in a thousand exceeds them."""
N = 20_000


def compiled_tokens(sampler: Sampler, tokens: list[int], n: int = N) -> list[int]:
    draws = [sampler.draw(tokens, i) for i in range(n)]
    assert all(draws), "these settings are not in machine code"
    inputs = Inputs(n, 2)
    keep = inputs.set_draws([draw for draw in draws if draw])
    name = isa.available()[0].name
    kernels_of(name).load([CHOOSE.spec()])
    logits = np.tile(LOGITS_OF_12, (n, 1))
    call(
        name,
        CHOOSE,
        n_chunks=n,
        scratch_bytes=layout.SAMPLING_SCRATCH,
        count=np.array([n]),
        logits=logits,
        n_vocab=12,
        draws=inputs.draws,
        out=inputs.chosen,
    )
    del keep
    return [int(token) for token in inputs.chosen]


def numpy_tokens(sampler: Sampler, tokens: list[int], n: int = N) -> list[int]:
    return [sampler.choose(LOGITS_OF_12, tokens, i) for i in range(n)]


def chi_square(drawn: list[int], pairs: naive.Pairs) -> None:
    expected, found = naive.softmax(pairs), Counter(drawn)
    assert found.keys() <= expected.keys()
    value = sum((found[i] - N * p) ** 2 / (N * p) for i, p in expected.items())
    assert value < QUANTILES[len(expected) - 1]


COMPILED: dict[str, tuple[dict[str, Any], naive.Pairs]] = {
    "defaults": ({}, naive.temperature(naive.min_p(naive.top_p(PAIRS, 0.95), 0.05), 0.8)),
    "hot": ({"temp": 1.7, "top_p": 1.0, "min_p": 0.0}, naive.temperature(PAIRS, 1.7)),
    "penalties": (
        {"repeat_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1, "top_k": 9},
        naive.temperature(
            naive.min_p(
                naive.top_p(naive.top_k(naive.penalties(PAIRS, [0, 0, 3, 9], 1.2, 0.3, 0.1), 9), 0.95), 0.05
            ),
            0.8,
        ),
    ),
}
IN_NUMPY: dict[str, tuple[dict[str, Any], naive.Pairs]] = {
    "nothing but the draw": ({"samplers": ""}, PAIRS),
    "order changed": (
        {"samplers": "temperature;top_p", "temp": 2.0, "top_p": 0.7},
        naive.top_p(naive.temperature(PAIRS, 2.0), 0.7),
    ),
    "typical": ({"typical_p": 0.6, "top_p": 1.0, "min_p": 0.0, "temp": 1.0}, naive.typical_p(PAIRS, 0.6)),
    "always xtc": (
        {"xtc_probability": 1.0, "top_p": 1.0, "min_p": 0.0},
        naive.temperature(naive.xtc(PAIRS, 0.1), 0.8),
    ),
    "bias": (
        {"logit_bias": [[11, 6.0], [0, -np.inf]], "top_k": 0, "temp": 1.0, "top_p": 1.0, "min_p": 0.0},
        naive.logit_bias(PAIRS, [(11, 6.0), (0, -np.inf)]),
    ),
    "dynamic": (
        {"dynatemp_range": 0.5, "top_p": 1.0, "min_p": 0.0},
        naive.dynamic_temperature(PAIRS, 0.8, 0.5, 1.0),
    ),
}


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("how", [compiled_tokens, numpy_tokens])
def test_frequencies_agree_with_the_probabilities(how: Any, name: str) -> None:
    params, expected = COMPILED[name]
    chi_square(how(Sampler(SamplingParams(seed=5, **params)), [0, 0, 3, 9]), expected)


@pytest.mark.parametrize("name", IN_NUMPY)
def test_frequencies_of_other_samplers(name: str) -> None:
    params, expected = IN_NUMPY[name]
    chi_square(numpy_tokens(Sampler(SamplingParams(seed=6, **params)), []), expected)


def test_xtc_comes_as_often_as_it_should_whatever_is_drawn() -> None:
    """In 0.3 of all cases the likeliest tokens are gone, and tokens are drawn independently of that."""
    sampler = Sampler(
        SamplingParams(seed=7, xtc_probability=0.3, xtc_threshold=0.1, temp=1.0, top_p=1.0, min_p=0.0)
    )
    found = Counter(numpy_tokens(sampler, []))
    with_all, without = naive.softmax(PAIRS), naive.softmax(naive.xtc(PAIRS, 0.1))
    expected = {i: N * (0.7 * p + 0.3 * without.get(i, 0.0)) for i, p in with_all.items()}
    assert sum((found[i] - e) ** 2 / e for i, e in expected.items()) < QUANTILES[11]


# Who does it


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temp": 0.0},
        {"temp": 0.0, "top_k": 0},
        {"top_k": 256},
        {"samplers": "top_k;temperature"},
        {"samplers": "top_k"},
        {"frequency_penalty": 1.0},
        {"repeat_penalty": 1.1, "penalty_last_n": -1},
        {"dry_penalty_last_n": 5},
        {"xtc_threshold": 0.3},
        {"samplers": "temperature", "temp": 0.0},
        {"samplers": "top_p;dry;top_k;temp", "top_p": 1.0},
    ],
    ids=str,
)
def test_what_machine_code_can_do(params: dict[str, Any]) -> None:
    sampler = Sampler(SamplingParams(seed=1, **params))
    assert isinstance(sampler.draw([1, 2], 0), Draw)
    assert compiled_tokens(sampler, [1, 2], 300) == numpy_tokens(sampler, [1, 2], 300)


@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 0},
        {"top_k": 257},
        {"typical_p": 0.9},
        {"top_n_sigma": 1.0},
        {"xtc_probability": 0.1},
        {"dry_multiplier": 0.5},
        {"dynatemp_range": 0.1},
        {"mirostat": 1},
        {"mirostat": 2},
        {"logit_bias": [[1, 1.0]]},
        {"n_probs": 1},
        {"explain": True},
        {"min_keep": 2},
        {"samplers": "temperature;top_k"},
        {"samplers": "top_k;top_k"},
        {"samplers": "temperature"},
        {"samplers": "top_k;penalties;temp", "presence_penalty": 1.0},
    ],
    ids=str,
)
def test_what_is_left_to_numpy(params: dict[str, Any]) -> None:
    assert Sampler(SamplingParams(**params)).draw([1, 2], 0) is None


# Reports


def test_what_is_reported() -> None:
    params = SamplingParams(
        seed=3,
        n_probs=3,
        explain=True,
        top_k=6,
        presence_penalty=2.0,
        samplers="top_k;penalties;min_p;temperature",
    )
    sampler = Sampler(params)
    token = sampler.choose(LOGITS_OF_12, [0, 1], 0)
    report = sampler.report
    assert report is not None
    left = naive.min_p(naive.penalties(naive.top_k(PAIRS, 6), [0, 1], 1.0, 0.0, 2.0), 0.05)
    logprobs = {i: np.log(p) for i, p in naive.softmax(PAIRS).items()}
    assert report.token == token
    assert report.logprob == pytest.approx(logprobs[token])
    assert [i for i, _ in report.top] == [0, 1, 2]
    assert [x for _, x in report.top] == pytest.approx([logprobs[i] for i in (0, 1, 2)])
    assert report.stages == [("top_k", 6), ("penalties", 6), ("min_p", len(left)), ("temperature", len(left))]
    assert report.probability == pytest.approx(naive.softmax(naive.temperature(left, 0.8))[token])


def test_what_is_off_is_not_reported() -> None:
    sampler = Sampler(
        SamplingParams(
            explain=True,
            penalty_last_n=0,
            presence_penalty=1.0,
            top_k=0,
            top_p=1.0,
            dry_multiplier=1.0,
            dry_penalty_last_n=0,
        )
    )
    assert sampler.left(LOGITS_OF_12, [1], 0)[1] == [("min_p", 8), ("temperature", 8)]


def test_reports_change_nothing_and_come_only_when_asked_for() -> None:
    plain, explained = Sampler(SamplingParams(seed=3)), Sampler(SamplingParams(seed=3, explain=True))
    assert numpy_tokens(plain, [], 300) == numpy_tokens(explained, [], 300)
    assert plain.report is None
    assert explained.report
    assert explained.report.top == []


def test_a_greedy_choice_is_certain() -> None:
    sampler = Sampler(SamplingParams(temp=0, explain=True, dynatemp_range=0.0))
    assert sampler.choose(LOGITS_OF_12, [], 0) == 0
    assert sampler.report
    assert sampler.report.probability == 1.0
    assert sampler.report.stages[-1] == ("temperature", 1)


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_adapts_and_a_step_done_again_finds_things_as_they_were(version: int) -> None:
    sampler = Sampler(
        SamplingParams(seed=2, mirostat=version, mirostat_tau=2.0, mirostat_eta=1.0, explain=True, temp=1.0)
    )
    mu = 4.0
    for i in range(20):
        for _ in range(2):
            sampler.choose(LOGITS_OF_12, [], i)
            assert sampler.report
            assert sampler._mu == mu
        mu = adapted(mu, sampler.report.probability, 2.0, 1.0)
        assert mu == pytest.approx(sampler._mu + np.log2(sampler.report.probability) + 2.0)


# In an engine


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = tiny_models.config()
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_models.write_gguf(path, config, tiny_models.weights(config, 3))
    return load_model(GGUFFile(path))


@pytest.fixture(scope="module", params=["cpu", "numpy"])
def backend(request: pytest.FixtureRequest, model: Model) -> Backend:
    return CPUBackend(model, 2) if request.param == "cpu" else NumpyBackend(model)


SETTINGS = [
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_k=0, typical_p=0.8),
    SamplingParams(temp=0),
    SamplingParams(seed=3, mirostat=2),
    SamplingParams(seed=4, top_k=300),
    SamplingParams(seed=5, n_probs=2, dry_multiplier=0.5, xtc_probability=0.5),
]


def test_what_one_sequence_samples_changes_no_other(backend: Backend) -> None:
    prompt = [5, 1, 70, 33]
    alone = []
    for params in SETTINGS:
        seq = Sequence(prompt.copy(), params, 12)
        finish(Engine(backend, 64), seq)
        alone.append(seq.generated)
    together = [Sequence(prompt.copy(), params, 12) for params in SETTINGS]
    finish(Engine(backend, 64), *together)
    assert [seq.generated for seq in together] == alone
    assert len({tuple(tokens) for tokens in alone}) > 3


def test_logits_that_are_asked_for_are_those_of_the_step(backend: Backend) -> None:
    def batch() -> Batch:
        return Batch([Segment(KVSequence(), [5, 1, 70, 33], 1), Segment(KVSequence(), [9, 9], 1)])

    draw = Sampler(SamplingParams(temp=0)).draw([], 0)
    expected = backend.run([LOGITS], batch())[LOGITS]
    first, second = backend.sample(batch(), [None, draw])
    np.testing.assert_array_equal(first, expected[0])
    assert second == int(expected[1].argmax())
    backend.sample(batch(), [draw, draw])
    np.testing.assert_array_equal(first, expected[0])  # a copy


def test_logits_that_are_not_finite_are_told_of_a_damaged_model(tmp_path: Path) -> None:
    config = tiny_models.config()
    weights = tiny_models.weights(config, 3)
    weights["output_norm.weight"][:] = np.nan
    tiny_models.write_gguf(tmp_path / "bad.gguf", config, weights)
    model = load_model(GGUFFile(tmp_path / "bad.gguf"))
    batch = Batch([Segment(KVSequence(), [5, 1], 1)])
    assert CPUBackend(model, 1).sample(batch, [None]) == [NOT_FINITE]
    for backend in CPUBackend(model, 1), NumpyBackend(model):
        seq = Sequence([5, 1], SamplingParams(top_k=0))
        finish(Engine(backend, 64), seq)
        assert seq.stop_reason == "error"
        assert "are not finite" in str(seq.error)


def test_a_bias_for_a_token_outside_the_vocabulary(backend: Backend) -> None:
    with pytest.raises(InputError, match="logit_bias has a token outside the vocabulary of"):
        Engine(backend, 64).submit(Sequence([1], SamplingParams(logit_bias=((10**6, 1.0),))))


def test_machine_code_refuses_more_candidates_than_it_has_room_for(model: Model) -> None:
    draw = Sampler(SamplingParams()).draw([], 0)
    assert draw
    with pytest.raises(InputError, match="top_k is 257"):
        CPUBackend(model, 1).sample(Batch([Segment(KVSequence(), [1], 1)]), [draw._replace(top_k=257)])
