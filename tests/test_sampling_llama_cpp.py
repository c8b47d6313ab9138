"""What our samplers leave against what llama.cpp's leave, in its order and in others (scripts/llama_samplers.py made the figures)."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vocabulary

from qwencli.gguf.file import GGUFFile
from qwencli.sampling import Breakers, SamplingParams
from qwencli.sampling.breakers import find_breakers
from qwencli.sampling.candidates import Candidates
from qwencli.sampling.mirostat import adapted
from qwencli.sampling.sampler import Sampler
from qwencli.text.tokenizer import Tokenizer

ORACLE = json.loads(Path(__file__).with_name("oracles").joinpath("sampling.json").read_text())


@pytest.fixture(scope="module")
def breakers_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SamplingParams], Breakers]:
    path = tmp_path_factory.mktemp("vocabulary") / "tiny.gguf"
    tiny_vocabulary.write_gguf(path)
    tokenizer = Tokenizer(GGUFFile(path))
    words = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    return lambda params: find_breakers(params.dry_sequence_breakers, words, tokenizer.encode)


def probabilities(c: Candidates) -> dict[int, float]:
    weights = [math.exp(x - float(c.logits.max())) for x in c.logits]
    return {
        token: weight / math.fsum(weights) for token, weight in zip(c.ids.tolist(), weights) if weight > 0
    }


@pytest.mark.parametrize("case", ORACLE["chains"], ids=[str(i) for i in range(len(ORACLE["chains"]))])
def test_what_is_left_and_how_likely_it_is(
    case: dict[str, Any], breakers_of: Callable[[SamplingParams], Breakers]
) -> None:
    params = SamplingParams(**case["params"])
    left, stages = Sampler(params, breakers_of(params)).left(np.float32(case["logits"]), case["tokens"], 0)
    assert probabilities(left) == pytest.approx(dict(case["left"]), rel=2e-5, abs=1e-9)
    assert left.n == (stages[-1][1] if stages else len(case["logits"]))


@pytest.mark.parametrize("case", ORACLE["mirostat"], ids=[str(i) for i in range(len(ORACLE["mirostat"]))])
def test_mirostat_step_by_step(case: dict[str, Any]) -> None:
    params = SamplingParams(**case["params"])
    sampler = Sampler(params)
    for i, step in enumerate(case["steps"]):
        expected = dict(step["left"])
        left, _ = sampler.left(np.float32(step["logits"]), [], i)
        assert probabilities(left) == pytest.approx(expected, rel=2e-5)
        sampler._mu = adapted(
            sampler._mu, expected[step["token"]], params.mirostat_tau, params.mirostat_eta
        )  # as if it had chosen that
