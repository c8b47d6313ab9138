"""Adaptive-p by its definition (llama.cpp, pull request 17927), computed here with plain Python numbers."""

import math

import numpy as np
import pytest

from qwencli.sampling import SamplingParams
from qwencli.sampling.adaptive import Average, adaptive_p
from qwencli.sampling.candidates import all_of, likeliest
from qwencli.sampling.chain import stages
from qwencli.sampling.sampler import Sampler, compiled_chain, uniform

N = 50
LOGITS = np.random.default_rng(1).normal(0, 2, N).astype(np.float32)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    sums = [math.exp(x - top) for x in logits]
    return [x / sum(sums) for x in sums]


def transformed(p: float, target: float) -> float:
    distance = abs((p - target) / 0.3)
    return 5.0 - 10.0 * distance * distance / (1.0 + distance)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("ordered", [False, True])
def test_logits_fall_with_the_distance_from_the_target(target: float, ordered: bool) -> None:
    before = likeliest(all_of(LOGITS), N) if ordered else all_of(LOGITS)
    found = adaptive_p(before, target)
    assert found.ids.tolist() == list(range(N))
    want = [transformed(p, target) for p in softmax(LOGITS.tolist())]
    assert found.logits == pytest.approx(want, rel=1e-5, abs=1e-5)


def test_a_whole_answer_follows_the_definition() -> None:
    target, decay, seed = 0.1, 0.8, 7
    params = SamplingParams(
        temp=0.9, top_k=20, samplers=("adaptive_p", "temperature", "top_k"), adaptive_target=target, adaptive_decay=decay, seed=seed
    )  # fmt: skip
    sampler, tokens = Sampler(params), [0]
    total, weight = target / (1 - decay), 1 / (1 - decay)
    rng = np.random.default_rng(2)
    for index in range(40):
        logits = rng.normal(0, 2, N).astype(np.float32)
        token = sampler.choose(logits, tokens, index)
        # the same by hand: temperature, the 20 likeliest, and then what adaptive-p makes of their probabilities
        kept = sorted(sorted(range(N), key=lambda i: -logits[i])[:20])
        probabilities = softmax([float(logits[i]) / 0.9 for i in kept])
        aim = min(max(2 * target - total / weight, 0.0), 1.0)
        chances = softmax([transformed(p, aim) for p in probabilities])
        point, sums = uniform(seed, index), np.cumsum(chances)
        assert token == kept[int(np.searchsorted(sums, point * sums[-1], side="right"))]
        total = probabilities[kept.index(token)] + decay * total
        weight = 1 + decay * weight
        tokens.append(token)


def test_the_first_target_is_the_wanted_one_and_later_ones_lean_against_what_was_chosen() -> None:
    average = Average.at(0.3, 0.9)
    assert average.target(0.3) == pytest.approx(0.3)
    assert average.with_chosen(1.0, 0.9).target(0.3) < 0.3 < average.with_chosen(0.0, 0.9).target(0.3)
    assert Average.at(0.9, 0.0).with_chosen(0.0, 0.0).target(0.9) == 1.0
    assert Average.at(0.1, 0.0).with_chosen(1.0, 0.0).target(0.1) == 0.0


def test_the_mean_probability_of_what_is_chosen_is_near_the_target() -> None:
    rng = np.random.default_rng(3)
    means = []
    for target in 0.1, 0.4, 0.7:
        params = SamplingParams(
            temp=1, samplers=("temperature", "adaptive_p"), adaptive_target=target, n_probs=1, seed=4
        )
        sampler, chosen = Sampler(params), []
        for index in range(300):
            sampler.choose(rng.normal(0, 3, N).astype(np.float32), [0], index)
            assert sampler.report
            chosen.append(math.exp(sampler.report.logprob))
        means.append(np.mean(chosen))
    assert means[0] < means[1] < means[2]
    assert means[1] == pytest.approx(0.4, abs=0.06)


def test_a_step_that_is_repeated_finds_things_as_they_were() -> None:
    params = SamplingParams(samplers=("adaptive_p",), adaptive_target=0.2, seed=1)
    once, twice = Sampler(params), Sampler(params)
    for index in range(10):
        a = once.choose(LOGITS, [0], index)
        twice.choose(LOGITS, [0], index)
        assert twice.choose(LOGITS, [0], index) == a


@pytest.mark.parametrize(
    "off",
    [
        SamplingParams(adaptive_target=0.5, seed=1),
        SamplingParams(samplers=("temperature", "adaptive_p"), seed=1),
        SamplingParams(samplers=("temperature", "adaptive_p"), adaptive_target=0.5, mirostat=2, seed=1),
    ],
)
def test_it_is_used_only_where_it_is_named_has_a_target_and_no_mirostat(off: SamplingParams) -> None:
    other = SamplingParams(
        samplers=[n for n in off.samplers if n != "adaptive_p"], mirostat=off.mirostat, seed=1
    )
    for index in range(5):
        assert Sampler(off).choose(LOGITS, [0], index) == Sampler(other).choose(LOGITS, [0], index)
    assert Sampler(off).left(LOGITS, [0], 0)[1] == Sampler(other).left(LOGITS, [0], 0)[1]


def test_machine_code_does_not_choose_in_its_place() -> None:
    params = SamplingParams(samplers=("top_k", "temperature", "adaptive_p"), adaptive_target=0.5)
    assert compiled_chain(params, stages(params)) is None


def test_what_the_samplers_have_left_is_reported() -> None:
    """llama.cpp: the probabilities of the tokens that are left, the likeliest first, none of them 0."""
    params = SamplingParams(temp=1, top_k=3, min_p=0, top_p=1, n_probs=10, post_sampling_probs=True, seed=5)
    sampler = Sampler(params)
    token = sampler.choose(LOGITS, [0], 0)
    best = sorted(range(N), key=lambda i: -LOGITS[i])[:3]
    report = sampler.report
    assert report
    assert [i for i, _ in report.left] == best
    assert [p for _, p in report.left] == pytest.approx(softmax([float(LOGITS[i]) for i in best]))
    assert report.probability == pytest.approx(dict(report.left)[token])
    assert Sampler(SamplingParams(n_probs=10)).choose(LOGITS, [0], 0) is not None
    far = np.array([0, -2000, -1], np.float32)
    sampler = Sampler(SamplingParams(temp=1, top_k=0, top_p=1, min_p=0, n_probs=3, post_sampling_probs=True))
    sampler.choose(far, [0], 0)
    assert sampler.report
    assert [i for i, _ in sampler.report.left] == [0, 2]
