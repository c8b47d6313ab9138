"""Tokens drawn in machine code against their twin in NumPy, which tests/test_sampling.py holds against the definitions."""

import numpy as np
import pytest
from guarded import guarded
from kernel_calls import call, packed

from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import isa, layout
from qwencli.kernels.arguments import CHOOSE, DRAW
from qwencli.sampling.candidates import all_of, weights
from qwencli.sampling.filters import min_p, temperature, top_k, top_p
from qwencli.sampling.penalties import penalties
from qwencli.sampling.sampler import NOT_FINITE, OUT_OF_REACH, Draw, choose

ISAS = [i.name for i in isa.available()]
PLAIN = Draw(
    temp=0.8,
    top_k=40,
    top_p=0.95,
    min_p=0.05,
    repeat_penalty=1.0,
    frequency_penalty=0.0,
    presence_penalty=0.0,
    recent={},
    chance=0.0,
)
GREEDY = PLAIN._replace(temp=0.0)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    for name in ISAS:
        kernels_of(name).load([CHOOSE.spec()])


def drawn(isa_name: str, logits: np.ndarray, draws: list[Draw], side: str = "after") -> list[int]:
    """Rows of logits through the kernel, as Inputs.set_draws lays the draws out."""
    records, keep = [], []
    for d in draws:
        recent, counts = (
            guarded(np.array(values or [0], np.int64), side) for values in ([*d.recent], [*d.recent.values()])
        )
        keep += [recent, counts]
        records.append(
            packed(
                DRAW,
                temp=d.temp,
                top_p=d.top_p,
                min_p=d.min_p,
                repeat=d.repeat_penalty,
                frequency=d.frequency_penalty,
                presence=d.presence_penalty,
                chance=d.chance,
                top_k=d.top_k if d.temp > 0 else 1,
                n_recent=len(d.recent),
                recent=recent,
                counts=counts,
            )
        )
    chosen = guarded(np.full(len(draws), -2), side)
    call(
        isa_name,
        CHOOSE,
        n_chunks=len(draws),
        scratch_bytes=layout.SAMPLING_SCRATCH,
        count=np.array([len(draws)]),
        logits=guarded(logits.astype(np.float32), side),
        n_vocab=logits.shape[1],
        draws=guarded(np.concatenate(records), side),
        out=chosen,
    )
    return list(chosen)


def chances_inside(logits: np.ndarray, d: Draw) -> list[float]:
    """A random number well inside the interval of each token that can be drawn, so that rounding doesn't decide."""
    left = penalties(all_of(logits), d.recent, d.repeat_penalty, d.frequency_penalty, d.presence_penalty)
    left = temperature(min_p(top_p(top_k(left, d.top_k), d.top_p), d.min_p), d.temp)
    shares = weights(left.logits) / weights(left.logits).sum()
    ends = np.cumsum(shares)
    return [float(end - w / 2) for w, end in zip(shares, ends) if w > 1e-5]


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("n_vocab", [1, 63, 64, 65, 1000, 4096])
def test_every_token_that_can_be_drawn(isa_name: str, n_vocab: int) -> None:
    rng = np.random.default_rng(n_vocab)
    for change in (
        {},
        {"top_p": 1.0, "min_p": 0.0},
        {"top_p": 0.0},
        {"min_p": 1.0},
        {"top_k": 1},
        {"top_k": 256, "top_p": 1.0, "min_p": 0.0},
        {"temp": 3.0, "top_k": 256},
        {"temp": 0.1},
        {"repeat_penalty": 1.5, "presence_penalty": 0.7, "recent": {0: 1, n_vocab - 1: 9}},
        {"repeat_penalty": 0.5, "recent": {n_vocab // 2: 2}},
        {"presence_penalty": -3.0, "recent": {n_vocab // 3: 1}, "temp": 0.5},
        {"presence_penalty": OUT_OF_REACH, "recent": {0: 1, n_vocab // 3: 1, n_vocab - 1: 1}},
        {
            "frequency_penalty": 0.3,
            "presence_penalty": 0.1,
            "repeat_penalty": 1.1,
            "recent": {n_vocab // 3: 2, n_vocab - 1: 5},
        },
    ):
        d = PLAIN._replace(**change)
        logits = (3 * rng.standard_normal(n_vocab)).astype(np.float32)
        draws = [d._replace(chance=chance) for chance in chances_inside(logits, d)]
        found = drawn(isa_name, np.tile(logits, (len(draws), 1)), draws, "before" if n_vocab % 2 else "after")
        assert found == [choose(logits, each) for each in draws]
        assert len(set(found)) == len(found)


@pytest.mark.parametrize("isa_name", ISAS)
def test_among_equals_the_first_comes_first(isa_name: str) -> None:
    rng = np.random.default_rng(1)
    logits = rng.integers(0, 3, (20, 200)).astype(np.float32)
    assert drawn(isa_name, logits, [GREEDY] * 20) == logits.argmax(1).tolist()
    for k in 1, 7, 64, 100:
        d = PLAIN._replace(top_k=k, top_p=1.0, min_p=0.0)
        draws = [d._replace(chance=(i + 0.5) / k) for i in range(k)]
        flat = np.full((k, 200), -2.5, np.float32)
        assert (
            drawn(isa_name, flat, draws)
            == list(range(k))
            == [choose(row, each) for row, each in zip(flat, draws)]
        )


@pytest.mark.parametrize("isa_name", ISAS)
def test_each_row_has_its_own_draw(isa_name: str) -> None:
    rng = np.random.default_rng(2)
    logits = (2 * rng.standard_normal((12, 300))).astype(np.float32)
    draws = []
    for i, row in enumerate(logits):
        d = PLAIN._replace(
            temp=(0, 0.5, 2)[i % 3],
            top_k=10 + i,
            recent=dict.fromkeys(range(i), 1),
            repeat_penalty=1 + i / 10,
        )
        draws.append(d._replace(chance=chances_inside(row, d)[-1]) if d.temp else d)
    assert drawn(isa_name, logits, draws) == [choose(row, d) for row, d in zip(logits, draws)]


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("temp", [1e-3, 1e-30, 1e-40, 1e-60, 5e-324, 100.0])
def test_extreme_temperatures(isa_name: str, temp: float) -> None:
    rng = np.random.default_rng(3)
    logits = rng.permutation(np.linspace(-20, 20, 500)).astype(np.float32)
    draws = [PLAIN._replace(temp=temp, chance=chance) for chance in (0.0, 0.5, 0.999)]
    assert drawn(isa_name, np.tile(logits, (3, 1)), draws) == [choose(logits, d) for d in draws]


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize("scale", [1e-30, 1e4, 3e38])
def test_logits_of_any_size(isa_name: str, scale: float) -> None:
    rng = np.random.default_rng(4)
    logits = (scale * rng.uniform(-1, 1, (5, 130))).astype(np.float32)
    for d in (
        GREEDY,
        PLAIN._replace(chance=0.5 / 40, top_p=1.0),
        PLAIN._replace(top_k=3, chance=0.9, top_p=1.0),
    ):
        assert drawn(isa_name, logits, [d] * 5) == [choose(row, d) for row in logits]


@pytest.mark.parametrize("isa_name", ISAS)
@pytest.mark.parametrize(
    "d",
    [GREEDY, PLAIN, PLAIN._replace(top_k=256, recent={5: 1}, repeat_penalty=1.2)],
    ids=["greedy", "plain", "more"],
)
def test_what_is_not_finite_is_told_wherever_it_is(isa_name: str, d: Draw) -> None:
    rng = np.random.default_rng(5)
    logits = np.tile(rng.standard_normal(197).astype(np.float32), (197, 1))
    for bad in np.nan, np.inf, -np.inf:
        np.fill_diagonal(logits, bad)
        assert drawn(isa_name, logits, [d] * 197) == [NOT_FINITE] * 197
