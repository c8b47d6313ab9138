"""Choosing a sequence's tokens: seeds, limits, temperature zero, and where the settings come from."""

import math
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from qwencli.errors import ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.sampling import SamplingParams
from qwencli.sampling.sampler import NOT_FINITE, Sampler, choose, uniform


def some_logits(seed: int, n: int = 200) -> np.ndarray:
    return np.random.RandomState(seed).uniform(-8, 8, n).astype(np.float32)


# Random numbers


REFERENCE = {
    1234567: [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ],
    0: [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F],
}
"""The first outputs of SplitMix64's C reference (https://prng.di.unimi.it/splitmix64.c) for two seeds, as others' tests have them too."""


@pytest.mark.parametrize("seed", REFERENCE)
def test_uniform_is_splitmix64(seed: int) -> None:
    # doubles as java.util.SplittableRandom makes them: the upper 53 bits
    assert [uniform(seed, i) for i in range(len(REFERENCE[seed]))] == [
        (value >> 11) * 2.0**-53 for value in REFERENCE[seed]
    ]
    assert all(0 <= uniform(seed, i) < 1 for i in range(999))


def test_uniform_takes_the_largest_seed() -> None:
    assert uniform(2**64 - 1, 10**6) != uniform(2**64 - 2, 10**6)


# The chain


def test_temperature_zero_takes_the_likeliest_whatever_the_filters() -> None:
    for seed in range(5):
        logits = some_logits(seed)
        best = int(np.argmax(logits))
        params = SamplingParams(temp=0, top_k=3, top_p=0.1, min_p=0.9)
        assert Sampler(params).choose(logits, [], 0) == best
        second = int(np.argsort(-logits)[1])
        assert Sampler(SamplingParams(temp=0, presence_penalty=50.0)).choose(logits, [best], 0) == second


def test_among_equals_the_lowest_id_wins() -> None:
    logits = np.float32([1, 5, 5, 0, 5])
    assert Sampler(SamplingParams(temp=0)).choose(logits, [], 0) == 1
    assert {Sampler(SamplingParams(top_k=1, seed=s)).choose(logits, [], 0) for s in range(20)} == {1}
    assert {Sampler(SamplingParams(top_k=2, top_p=1, seed=s)).choose(logits, [], 0) for s in range(40)} == {
        1,
        2,
    }


@pytest.mark.parametrize("last_n", [0, 2, 64])
def test_only_recent_tokens_are_penalized(last_n: int) -> None:
    logits, tokens = np.float32([5.0, 4.9, 4.8, 4.7]), [0, 1, 2]
    expected = {0: 0, 2: 0, 64: 3}[last_n]
    assert (
        Sampler(SamplingParams(temp=0, presence_penalty=9.0, penalty_last_n=last_n)).choose(logits, tokens, 0)
        == expected
    )


@pytest.mark.parametrize("temp", [0.0, 0.8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(bad: float, temp: float) -> None:
    logits = some_logits(0)
    logits[7] = bad
    assert Sampler(SamplingParams(temp=temp)).choose(logits, [1, 2, 3], 0) == NOT_FINITE


@pytest.mark.parametrize("temp", [1e-30, 100.0])
def test_extreme_temperatures(temp: float) -> None:
    logits = some_logits(0)
    drawn = {
        Sampler(SamplingParams(temp=temp, top_k=3, top_p=1.0, min_p=0.0, seed=s)).choose(logits, [], 0)
        for s in range(50)
    }
    assert drawn == set(np.argsort(-logits)[: 1 if temp < 1 else 3].tolist())


@pytest.mark.parametrize(
    "changed", [{"temp": 0.0}, {"temp": 1.0, "top_k": 5}, {"temp": 5.0, "top_k": 9, "min_p": 0.0}]
)
def test_forbidding_tokens_leaves_machine_code_the_choice(changed: dict[str, float]) -> None:
    """It chooses as from logits without these tokens."""
    for seed in range(100):
        logits = some_logits(seed)
        forbidden = np.argsort(-logits)[: seed % 4].tolist()
        left = np.delete(np.arange(200), forbidden)
        sampler = Sampler(
            SamplingParams(seed=seed, logit_bias=[(t, -math.inf) for t in forbidden], **changed)
        )
        found = sampler.draw([1, 2, 3], 0)
        assert found
        expected = Sampler(SamplingParams(seed=seed, **changed)).choose(logits[left], [1, 2, 3], 0)
        assert choose(logits, found) == left[expected] == sampler.choose(logits, [1, 2, 3], 0)


def test_other_biases_and_penalties_are_not_for_machine_code() -> None:
    for changed in {"logit_bias": [(1, -math.inf), (2, -9.0)]}, {"presence_penalty": 1.0}:
        params = replace(SamplingParams(logit_bias=[(1, -math.inf)]), **changed)
        assert Sampler(params).draw([], 0) is None


# Seeds


def draw(seed: int | None, n: int = 30) -> list[int]:
    chooser = Sampler(SamplingParams(temp=2.0, top_p=1.0, min_p=0.0, seed=seed))
    return [chooser.choose(some_logits(i), [], i) for i in range(n)]


def test_a_seed_repeats_a_run_and_others_differ() -> None:
    assert draw(7) == draw(7)
    assert len({tuple(draw(seed)) for seed in (0, 1, 7, 2**64 - 1, None, None)}) == 6


# Where the values come from


def metadata_file(path: Path, **values: float | str) -> GGUFFile:
    """A file with these recommendations, under llama.cpp's names and in its types."""
    w = gguf.GGUFWriter(path, "qwen3")
    for key, value in values.items():
        add = (
            w.add_string
            if isinstance(value, str)
            else w.add_int32
            if isinstance(value, int)
            else w.add_float32
        )
        add(f"general.sampling.{key}", value)  # type: ignore[operator]
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return GGUFFile(path)


def test_the_file_goes_over_the_defaults_and_flags_over_the_file(tmp_path: Path) -> None:
    file = metadata_file(
        tmp_path / "m.gguf", temp=0.5, top_k=20, top_p=0.75, min_p=0.25, penalty_repeat=1.5, penalty_last_n=32
    )
    from_file = SamplingParams(
        temp=0.5, top_k=20, top_p=0.75, min_p=0.25, repeat_penalty=1.5, penalty_last_n=32
    )
    assert SamplingParams.from_metadata(file.metadata) == from_file
    chosen = SamplingParams.from_metadata(
        file.metadata, temp=0.0, top_k=0, seed=5, presence_penalty=0.5, min_p=None
    )
    assert chosen == replace(from_file, temp=0.0, top_k=0, seed=5, presence_penalty=0.5)


def test_a_file_without_recommendations_leaves_the_defaults(tmp_path: Path) -> None:
    assert SamplingParams.from_metadata(metadata_file(tmp_path / "m.gguf").metadata) == SamplingParams()


def test_top_k_below_zero_in_a_file_is_all(tmp_path: Path) -> None:
    """llama.cpp's header: top_k, <= 0 to use vocab size."""
    assert SamplingParams.from_metadata(metadata_file(tmp_path / "m.gguf", top_k=-1).metadata).top_k == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", -1.0),
        ("temp", "hot"),
        ("top_p", 1.5),
        ("min_p", math.nan),
        ("penalty_repeat", 0.0),
        ("top_k", 2.5),
    ],
)
def test_recommendations_that_cannot_be_followed(tmp_path: Path, key: str, value: float | str) -> None:
    file = metadata_file(tmp_path / "m.gguf", **{key: value})
    with pytest.raises(ModelError, match=rf"m\.gguf: metadata key 'general\.sampling\.{key}' is .*expected"):
        SamplingParams.from_metadata(file.metadata)
