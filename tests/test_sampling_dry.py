"""DRY: repetitions against a search by trying, its time, and the tokens that break repetitions."""

import random

import naive_sampling as naive
import numpy as np
import pytest

from qwencli.sampling import SamplingParams
from qwencli.sampling.breakers import find_breakers
from qwencli.sampling.candidates import all_of
from qwencli.sampling.dry import dry, repetitions
from qwencli.sampling.sampler import Sampler

BREAKERS = {1: [()], 2: [(0, 3), (0,)], 3: [(2,)]}


@pytest.mark.parametrize("breakers", [{}, BREAKERS], ids=["none", "some"])
@pytest.mark.parametrize("n_kinds", [1, 2, 3, 5, 9])
def test_repetitions_as_found_by_trying(n_kinds: int, breakers: dict[int, list[tuple[int, ...]]]) -> None:
    rnd = random.Random(n_kinds)
    some = 0
    for _ in range(300):
        passages = [[rnd.randrange(n_kinds) for _ in range(rnd.randint(1, 6))] for _ in range(3)]
        tokens = [token for _ in range(rnd.randint(0, 8)) for token in rnd.choice(passages)]
        for allowed_length in 1, 2, 4:
            found = repetitions(tokens, allowed_length, breakers)
            assert found == naive.repetitions(tokens, allowed_length, breakers)
            some += len(found)
    assert some > 0 or (n_kinds == 1 and not found)


def test_the_example_of_llama_cpp() -> None:
    """Its comment: after `a b c c b c y a b c` the tokens c, b and y would continue repetitions of 3, 1 and 2 tokens."""
    tokens = [ord(c) for c in "abccbcyabc"]
    assert {chr(token): length for token, length in repetitions(tokens, 1, {}).items()} == {
        "c": 3,
        "b": 1,
        "y": 2,
    }
    assert {chr(token): length for token, length in repetitions(tokens, 2, {}).items()} == {"c": 3, "y": 2}


def test_the_penalty_grows_with_the_length() -> None:
    logits, tokens = np.zeros(10, np.float32), [1, 2, 3, 4, 9, 5, 3, 4, 8, 4, 7, 1, 2, 3, 4]
    found = dry(all_of(logits), tokens, 0.5, 2.0, 1, {})
    assert found.logits.tolist() == [0, 0, 0, 0, 0, 0, 0, -0.5, -1.0, -4.0]  # after 4, 3 4 and 1 2 3 4
    assert dry(all_of(logits), tokens, 0.5, 2.0, 3, {}).logits.tolist() == [0] * 9 + [-1.0]
    assert (
        dry(all_of(logits), tokens, 0.5, 2.0, 1, {9: [()]}).logits[9] == 0
    )  # a breaker itself is not penalized
    assert (
        dry(all_of(logits), tokens, 0.5, 2.0, 1, {2: [()]}).logits[9] == -1.0
    )  # only 3 4 are after the breaker


@pytest.mark.parametrize("base", [1.0, 1.0000001, 1.75, 100.0])
def test_a_very_long_repetition_stays_finite(base: float) -> None:
    found = dry(all_of(np.zeros(3, np.float32)), [1] * 20_000, 100.0, base, 2, {})
    assert np.isfinite(found.logits).all()
    assert found.logits[1] < 0 == found.logits[0]


class Counted(int):
    """A token that counts how often it is compared."""

    n = 0

    def __eq__(self, other: object) -> bool:
        Counted.n += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    "tokens", [[1] * 2000, [1, 2] * 1000, [*range(1000)] * 2, [1] * 1000 + [2] + [1] * 999], ids=range(4)
)
def test_work_is_linear(tokens: list[int]) -> None:
    """A search by trying compares the first of these 2 million times."""
    Counted.n = 0
    assert repetitions(list(map(Counted, tokens)), 2, {})
    assert Counted.n <= 6 * len(tokens)


@pytest.mark.parametrize(("last_n", "expected"), [(-1, 3), (9, 3), (8, 0), (0, 0)])
def test_how_far_back_is_looked(last_n: int, expected: int) -> None:
    """The repetition that token 0 would continue, 1 2, begins nine tokens from the end."""
    tokens = [1, 2, 0, 4, 5, 6, 7, 1, 2]
    logits = np.float32([9.0, 0, 0, 8.9, 0, 0, 0, 0])
    params = SamplingParams(temp=0, dry_multiplier=1.0, dry_penalty_last_n=last_n)
    assert Sampler(params).choose(logits, tokens, 0) == expected


def encode(text: str) -> list[int]:
    return [100 + ord(c) for c in text]


def test_breakers_in_a_vocabulary() -> None:
    words = [b"x", b"ab", b"a", b"za", b"xabx", b"\xc3", b"b", "aé".encode(), "é".encode()]
    assert find_breakers(["ab"], words, encode) == {1: [()], 2: [(198,)], 3: [(198,)], 4: [()]}
    assert find_breakers(["a"], words, encode) == {1: [()], 2: [()], 3: [()], 4: [()], 7: [()]}
    assert find_breakers(["aéb"], words, encode) == {2: [(333, 198)], 3: [(333, 198)], 7: [(198,)]}
    assert find_breakers(["a", "ab"], words, encode)[2] == [(), (198,)]
    assert find_breakers([], words, encode) == {}
    assert find_breakers(["zaza"], [b"xza"], encode) == {0: [(222, 197)]}
    assert find_breakers(["aab"], [b"aa"], encode) == {0: [(197, 198), (198,)]}
    assert len(find_breakers(["a" * 40], [b"a"], encode)[0][0]) == 20
