"""Each sampler against its naive twin (tests/naive_sampling.py), on small and large vocabularies, in order or not, and at the edges."""

from collections.abc import Callable
from typing import Any

import naive_sampling as naive
import numpy as np
import pytest

from qwencli.sampling import filters
from qwencli.sampling.candidates import Candidates, all_of, drawn, largest, likeliest, log_probabilities
from qwencli.sampling.mirostat import mirostat_1, mirostat_2
from qwencli.sampling.penalties import logit_bias, penalties

RECENT = [3, 7, 7, 3, 150, 199, 7]
CASES: list[tuple[str, tuple[Any, ...]]] = [
    *(("top_k", (k,)) for k in (0, 1, 2, 17, 199, 200, 1000)),
    *(("top_p", (p, m)) for p in (0.0, 1e-6, 0.3, 0.9, 0.999, 1.0) for m in (0, 5)),
    *(("min_p", (p, m)) for p in (0.0, 1e-6, 0.05, 0.4, 1.0) for m in (0, 5)),
    *(("typical_p", (p, m)) for p in (0.0, 0.1, 0.5, 0.95, 1.0) for m in (0, 5)),
    *(("top_n_sigma", (n,)) for n in (-1.0, 0.0, 0.2, 1.0, 3.0, 100.0)),
    *(("xtc", (t, m)) for t in (0.0, 0.01, 0.05, 0.2, 0.6) for m in (0, 195)),
    *(("temperature", (t,)) for t in (0.0, 0.3, 1.0, 100.0)),
    *(
        ("dynamic_temperature", (t, s, e))
        for t, s in ((0.8, 0.3), (0.0, 0.5), (0.5, 2.0))
        for e in (0.0, 0.7, 1.0, 3.0)
    ),
]


def some_logits(seed: int, n: int = 200) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-8, 8, n).astype(np.float32)


def pairs(c: Candidates) -> naive.Pairs:
    return list(zip(c.ids.tolist(), c.logits.tolist()))


def check(found: Candidates, expected: naive.Pairs, rtol: float = 1e-5) -> None:
    assert sorted(found.ids.tolist()) == sorted(i for i, _ in expected)
    np.testing.assert_allclose(found.logits, [dict(expected)[i] for i in found.ids.tolist()], rtol=rtol)
    in_order = pairs(found)
    assert in_order == (naive.sort(in_order) if found.ordered else sorted(in_order))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(("name", "args"), CASES, ids=str)
def test_as_defined(name: str, args: tuple[Any, ...], ordered: bool) -> None:
    for seed in range(4):
        logits = some_logits(seed)
        c = likeliest(all_of(logits), 200) if ordered else all_of(logits)
        check(getattr(filters, name)(c, *args), getattr(naive, name)(pairs(c), *args))
        np.testing.assert_array_equal(logits, some_logits(seed))  # what it was given stays as it was


@pytest.mark.parametrize("p", [0.25, 0.5, 0.75])
def test_a_probability_that_is_reached_exactly(p: float) -> None:
    """It is enough for top-p; typical-p has to exceed it, as in llama.cpp."""
    c = all_of(np.zeros(4, np.float32))
    check(filters.top_p(c, p), naive.top_p(pairs(c), p))
    check(filters.typical_p(c, p), naive.typical_p(pairs(c), p))
    assert filters.typical_p(c, p).n == filters.top_p(c, p).n + 1


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    ("repeat", "frequency", "presence"),
    [(1.0, 0.0, 0.0), (1.3, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.4, 0.0), (1.0, 0.0, 2.0), (1.1, -0.3, -1.0)],
)
def test_penalties(repeat: float, frequency: float, presence: float, ordered: bool) -> None:
    c = (
        likeliest(all_of(some_logits(1)), 150) if ordered else all_of(some_logits(1))
    )  # of 150 some recent tokens are not among them
    counts = {token: RECENT.count(token) for token in RECENT}
    check(
        penalties(c, counts, repeat, frequency, presence),
        naive.penalties(pairs(c), RECENT, repeat, frequency, presence),
    )
    check(penalties(c, {}, repeat, frequency, presence), pairs(c))


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "bias",
    [
        [],
        [(3, 2.5)],
        [(3, 2.5), (3, -1.0), (199, 9.0)],
        [(0, -np.inf), (5, 1.0), (199, -np.inf)],
        [(3, -np.inf), (3, 5.0)],
    ],
    ids=str,
)
def test_logit_bias(bias: list[tuple[int, float]], ordered: bool) -> None:
    c = likeliest(all_of(some_logits(2)), 150) if ordered else all_of(some_logits(2))
    check(logit_bias(c, bias), naive.logit_bias(pairs(c), bias))


def test_among_equals_the_lowest_id_stays_first() -> None:
    c = likeliest(all_of(np.float32([3, 4, 5, 0])), 3)
    assert logit_bias(c, [(0, 2.0)]).ids.tolist() == [0, 2, 1]
    assert penalties(c, {2: 1}, 1.0, 0.0, 1.0).ids.tolist() == [1, 2, 0]


def test_forbidding_all_leaves_the_likeliest() -> None:
    logits = some_logits(3, 10)
    left = logit_bias(all_of(logits), [(i, -np.inf) for i in range(10)])
    assert left.ids.tolist() == [int(logits.argmax())]


@pytest.mark.parametrize("mu", [0.0, 1.0, 3.0, 8.0, 30.0, -5.0])
def test_mirostat_2(mu: float) -> None:
    for seed in range(4):
        c = all_of(some_logits(seed))
        check(mirostat_2(c, mu), naive.mirostat_2(pairs(c), mu))


# Large vocabularies, where the likeliest are found without sorting


LARGE = {
    "random": np.random.RandomState(5).standard_normal(40_000),
    "falling": np.linspace(9, -9, 40_000),
    "rising": np.linspace(-9, 9, 40_000),
    "ties": np.random.RandomState(6).randint(0, 9, 40_000),
    "all equal": np.zeros(40_000),
    "in one group": np.where(np.arange(40_000) % 512 == 7, 5.0, 0.0),
}


@pytest.mark.parametrize("values", LARGE.values(), ids=LARGE)
def test_the_largest_of_many(values: np.ndarray) -> None:
    values = values.astype(np.float32)
    order = np.lexsort((np.arange(len(values)), -values))
    for k in 1, 2, 40, 1000, 9000, 40_000, 50_000:
        np.testing.assert_array_equal(largest(values, k), order[:k])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("top_p", (0.3,)),
        ("top_p", (0.95,)),
        ("top_p", (0.2, 3000)),
        ("typical_p", (0.3,)),
        ("typical_p", (0.9,)),
        ("min_p", (0.3,)),
        ("top_n_sigma", (1.5,)),
        ("xtc", (2e-4,)),
    ],
    ids=str,
)
def test_filters_on_a_large_vocabulary(name: str, args: tuple[Any, ...]) -> None:
    c = all_of(LARGE["random"].astype(np.float32))
    found, expected = getattr(filters, name)(c, *args), getattr(naive, name)(pairs(c), *args)
    assert (
        abs(found.n - len(expected)) <= 1
    )  # sums of float32 weights and those of float64 may part at the border
    assert len(set(found.ids.tolist()) ^ {i for i, _ in expected}) <= 1


def test_log_probabilities() -> None:
    logits = some_logits(4)
    expected = {i: float(np.log(p)) for i, p in naive.softmax(pairs(all_of(logits))).items()}
    for n in 0, 1, 10, 500:
        logprob, top = log_probabilities(logits, 7, n)
        assert logprob == pytest.approx(expected[7], rel=1e-5)
        assert [i for i, _ in top] == sorted(expected, key=lambda i: -expected[i])[:n]
        assert dict(top) == pytest.approx({i: expected[i] for i, _ in top}, rel=1e-5, abs=1e-6)


# Edges


ALL: dict[str, Callable[[Candidates], Candidates]] = {
    "top_k": lambda c: filters.top_k(c, 3),
    "top_p": lambda c: filters.top_p(c, 0.5),
    "min_p": lambda c: filters.min_p(c, 0.5),
    "typ_p": lambda c: filters.typical_p(c, 0.5),
    "top_n_sigma": lambda c: filters.top_n_sigma(c, 0.5),
    "xtc": lambda c: filters.xtc(c, 0.1),
    "temperature": lambda c: filters.temperature(c, 0.5),
    "coldest": lambda c: filters.temperature(c, 5e-324),
    "dynamic": lambda c: filters.dynamic_temperature(c, 0.5, 0.5, 2.0),
    "mirostat 1": lambda c: mirostat_1(c, 5.0, 100),
    "mirostat 2": lambda c: mirostat_2(c, 5.0),
    "mirostat 1, large": lambda c: mirostat_1(c, 2000.0, 100),
    "mirostat 1, small": lambda c: mirostat_1(c, -2000.0, 100),
    "mirostat 2, large": lambda c: mirostat_2(c, 2000.0),
    "mirostat 2, small": lambda c: mirostat_2(c, -2000.0),
    "penalties": lambda c: penalties(c, {0: 2}, 100.0, 100.0, -100.0),
    "bias": lambda c: logit_bias(c, [(0, -1e4)]),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "logits",
    [
        [1.0],
        [3e38],
        [-3e38],
        [0.0, 0.0],
        [5.0] * 700,
        [3e38] * 6,
        [3e38, -3e38],
        [-3e38, 3e38, 0.0],
        [1e-40, 0.0, -1e-40],
        [1e30, 1.0, -1e30],
        [100.0] + [-100.0] * 600,
    ],
    ids=lambda logits: f"{len(logits)} of {logits[0]:g}",
)
@pytest.mark.parametrize("name", ALL)
def test_at_the_edges_something_is_left_and_can_be_drawn(name: str, logits: list[float]) -> None:
    for c in all_of(np.float32(logits)), likeliest(all_of(np.float32(logits)), len(logits)):
        left = ALL[name](c)
        assert 0 < left.n <= len(logits)
        assert not np.isnan(left.logits).any()
        for chance in 0.0, 0.5, 1 - 2.0**-53:
            token, probability = drawn(left, chance)
            assert token in left.ids
            assert 0 < probability <= 1


def test_what_is_drawn_has_its_share_of_the_chances() -> None:
    c = all_of(np.log(np.array([1, 2, 0, 3, 4, 0], np.float64) / 10 + 1e-300))
    edges = {0.0: 0, 0.0999: 0, 0.1001: 1, 0.2999: 1, 0.3001: 3, 0.5999: 3, 0.6001: 4, 1 - 2.0**-53: 4}
    for chance, token in edges.items():
        assert drawn(c, chance) == (token, pytest.approx({0: 0.1, 1: 0.2, 3: 0.3, 4: 0.4}[token]))
