"""An answer that goes on where the context is full. What is dropped is llama-server's (server-context.cpp, `pre_decode`), with the
difference that at least an eighth is; the tokens to expect are the naive twin's for what is left, as a new sequence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import naive
import numpy as np
import pytest
import tiny_models
from engine_runs import finish
from random_models import PRESETS, write_random_model
from serving import Serving, serving

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.engine.engine import Engine, Sequence
from qwencli.engine.shift import Shift
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams

CONFIG = tiny_models.config(num_hidden_layers=2)
WEIGHTS = tiny_models.weights(CONFIG, 20)
PROMPT = np.random.RandomState(205).randint(0, CONFIG["vocab_size"], 5).tolist()
GREEDY = SamplingParams(temp=0)
N_CTX = 24


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    tiny_models.write_gguf(tmp_path / "m.gguf", CONFIG, WEIGHTS)
    return Engine(NumpyBackend(load_model(GGUFFile(tmp_path / "m.gguf"))), N_CTX, n_kept=1000)


def shifted(context: list[int], n_keep: int, n_discard: int) -> list[int]:
    """llama.cpp's rule. The last token is not in its cache yet, so it doesn't count as one that is left."""
    n_keep = min(N_CTX - 4, n_keep)
    n_left = len(context) - 1 - n_keep
    n_dropped = min(max(n_discard or n_left // 2, 0), max(0, n_left - 1))
    return context[:n_keep] + context[n_keep + n_dropped :]


def expected(prompt: list[int], n: int, n_keep: int, n_discard: int) -> list[int]:
    context, answer = list(prompt), []
    for _ in range(n):
        if len(context) >= N_CTX:
            context = shifted(context, n_keep, n_discard)
        answer += naive.greedy(CONFIG, WEIGHTS, context, 1)
        context.append(answer[-1])
    return answer


@pytest.mark.parametrize(("n_keep", "n_discard"), [(0, 0), (3, 0), (5, 7), (10, 100), (1000, 0), (20, 3)])
@pytest.mark.parametrize("use_cache", [True, False])
def test_it_goes_on_as_a_new_sequence_of_what_is_left(
    engine: Engine, n_keep: int, n_discard: int, use_cache: bool
) -> None:
    seq = Sequence(PROMPT.copy(), GREEDY, 40, shift=Shift(n_keep, n_discard), use_cache=use_cache)
    finish(engine, seq)
    assert seq.generated == expected(PROMPT, 40, n_keep, n_discard)
    assert seq.stop_reason == "length"
    assert seq.n_dropped > 0
    assert (seq.n_prompt, seq.n_prompt_done, seq.n_cached) == (5, 5, 0)
    assert bool(engine.prefixes.kept) == use_cache
    while engine.prefixes.make_room():
        pass
    assert engine.backend.cache._pages.n_taken == 0


def test_others_in_the_same_step_are_not_affected(engine: Engine) -> None:
    alone = Sequence([7, 8, 9], GREEDY, 15)
    finish(engine, alone)
    shifting = Sequence(PROMPT.copy(), GREEDY, 40, shift=Shift(3))
    other = Sequence([7, 8, 9], GREEDY, 15)
    finish(engine, shifting, other)
    assert other.generated == alone.generated
    assert shifting.generated == expected(PROMPT, 40, 3, 0)


def test_small_steps_read_the_rest_in_parts(engine: Engine) -> None:
    engine.n_batch = 4
    seq = Sequence(PROMPT.copy(), GREEDY, 40, shift=Shift(3))
    finish(engine, seq)
    assert seq.generated == expected(PROMPT, 40, 3, 0)


def test_what_is_dropped_is_at_least_an_eighth(engine: Engine) -> None:
    assert Shift(0, 1).dropped(1000, 1000) == 999 // 8
    assert Shift(0, 0).dropped(1000, 1000) == 999 // 2
    assert Shift(10, 500).dropped(1000, 1000) == 500
    assert Shift(10, 5000).dropped(1000, 1000) == 988
    assert Shift(5000, 0).dropped(1000, 1000) == 1


def test_without_it_the_answer_ends(engine: Engine) -> None:
    seq = Sequence(PROMPT.copy(), GREEDY, 60)
    finish(engine, seq)
    assert (seq.stop_reason, len(seq.tokens), seq.n_dropped) == ("context", N_CTX, 0)


def test_a_prompt_that_fills_the_context_is_never_cut(engine: Engine) -> None:
    seq = Sequence(PROMPT * 4 + PROMPT[:4], GREEDY, 5, shift=Shift())
    finish(engine, seq)
    assert (seq.stop_reason, seq.generated) == ("context", [])


@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen35"])
def test_recurrent_models_too(tmp_path: Path, preset: str) -> None:
    """Each token is the one that a new engine chooses for what is left."""
    path = tmp_path / "m.gguf"
    write_random_model(path, PRESETS[preset], "Q8_0")
    tokens = list(range(10, 20))
    llm = LLM(path, n_threads=1, n_ctx=96, n_batch=32)
    seq = Sequence(tokens.copy(), GREEDY, 200, shift=Shift(70))
    finish(llm.engine, seq)
    fresh = LLM(path, n_threads=1, n_ctx=96, n_batch=32)
    context = tokens
    for place, token in enumerate(seq.generated):
        if len(context) >= 96:
            context = context[:70] + context[70 + 25 // 2 :]
        if place % 20 == 0 or place > 180:
            one = Sequence(context.copy(), GREEDY, 1, use_cache=False)
            finish(fresh.engine, one)
            assert one.generated == [token], place
        context = [*context, token]
    assert seq.n_dropped > 100


# The server


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=128), context_shift=True, n_keep=2) as server:
        yield server


def post(server: Serving, path: str, **body: Any) -> httpx.Response:
    return httpx.post(server.url + path, json={"temperature": 0, **body}, timeout=60)


def test_an_answer_longer_than_the_context(server: Serving) -> None:
    answer = post(server, "/completion", prompt="Once upon a time", n_predict=300, ignore_eos=True).json()
    assert (answer["timings"]["predicted_n"], answer["tokens_predicted"]) == (300, 300)
    assert (answer["stop_type"], answer["truncated"]) == ("limit", True)
    assert answer["tokens_cached"] < 128
    again = post(server, "/completion", prompt="Once upon a time", n_predict=300, ignore_eos=True).json()
    assert again["content"] == answer["content"]
    short = post(server, "/completion", prompt="Once upon a time", n_predict=30, ignore_eos=True).json()
    assert short["truncated"] is False
    assert answer["content"].startswith(short["content"])


def test_a_request_says_what_stays(server: Serving) -> None:
    body = {"prompt": "Once upon a time", "n_predict": 300, "ignore_eos": True}
    answers = {
        n_keep: post(server, "/completion", n_keep=n_keep, **body).json()["content"] for n_keep in (0, 2, -1)
    }
    assert len(set(answers.values())) == 3
    assert answers[2] == post(server, "/completion", **body).json()["content"]  # the server's own


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Once upon a time"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Tell me a story."}]}),
    ],
)
def test_in_openais_api(server: Serving, path: str, body: dict[str, Any]) -> None:
    answer = post(server, path, max_tokens=200, ignore_eos=True, **body).json()
    assert answer["usage"]["completion_tokens"] == 200
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_prompt_longer_than_the_context_is_refused_all_the_same(server: Serving) -> None:
    for path in "/completion", "/v1/completions":
        answer = post(server, path, prompt="word " * 500, max_tokens=1)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "exceed_context_size_error"


def test_no_answer_may_hold_endless_probabilities(server: Serving) -> None:
    assert post(server, "/completion", prompt="a", n_probs=1).status_code == 400
    assert post(server, "/v1/completions", prompt="a", logprobs=1).status_code == 400
    assert post(server, "/completion", prompt="a", n_probs=1, n_predict=200).status_code == 200


def test_without_it_the_answer_ends_at_the_limit() -> None:
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=128)) as server:
        answer = post(server, "/completion", prompt="Once upon a time", n_predict=300, ignore_eos=True).json()
        n_prompt, n = answer["tokens_evaluated"], answer["tokens_predicted"]
        assert (n_prompt + n, answer["stop_type"], answer["truncated"]) == (128, "limit", True)
