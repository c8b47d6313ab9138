"""`echo`, `logprobs` of a prompt and `suffix` in /v1/completions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from demo_with import demo_with
from serving import Serving, serving

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Batch, Segment
from qwencli.llm import LLM

PROMPT = "Once upon a time there was a little boy"
LLAMA_CPP = [-0.0816, -0.1888, -0.0017, -0.0001, -2.0301, -0.0184, -0.002, -1.4657, -1.3163, 0]
"""The logarithms of the probabilities of its tokens but the first, as llama-server has them for what precedes each."""
FIRST = 6009
"""The first unused token of the demo's vocabulary."""


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def complete(client: openai.OpenAI, **fields: Any) -> Any:
    given = {"model": "any", "prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    return client.completions.create(**{**given, **fields})


def logprobs_by_numpy(llm: LLM, tokens: list[int]) -> np.ndarray:
    """Of all tokens after each of the prompt's, in plain float32 from the same file: [n, n_vocab]."""
    backend, kv = NumpyBackend(llm.model, 1), KVSequence()
    backend.cache.reserve(kv, len(tokens))
    rows: Any = backend.sample(Batch([Segment(kv, tokens, len(tokens))]), [None] * len(tokens))
    logits = np.array(rows, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def test_an_echo_starts_with_the_prompt(client: openai.OpenAI) -> None:
    plain = complete(client).choices[0].text
    assert complete(client, echo=True).choices[0].text == PROMPT + plain
    parts = [part.choices[0].text for part in complete(client, echo=True, stream=True)]
    assert parts[0] == PROMPT
    assert "".join(parts) == PROMPT + plain


def test_nothing_but_the_prompt(client: openai.OpenAI) -> None:
    """How a text is scored."""
    choice = complete(client, echo=True, max_tokens=0, logprobs=1).choices[0]
    assert choice.text == PROMPT
    assert choice.finish_reason == "length"
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs)
    assert "".join(choice.logprobs.tokens) == PROMPT


def test_probabilities_of_a_prompt(client: openai.OpenAI, server: Serving) -> None:
    llm = server.service.llm
    ids = llm.tokenizer.encode(PROMPT)
    found = complete(client, echo=True, logprobs=3).choices[0].logprobs
    answer = complete(client, logprobs=3).choices[0].logprobs
    n = len(ids)
    texts = [llm.tokenizer.decode([token]) for token in ids]
    assert found.tokens == texts + answer.tokens
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    expected = logprobs_by_numpy(llm, ids)
    wanted = [expected[i, token] for i, token in enumerate(ids[1:])]
    np.testing.assert_allclose(found.token_logprobs[1:n], wanted, atol=0.25)  # quantized activations
    for i in range(1, n):
        likeliest = expected[i - 1].max()
        assert len(found.top_logprobs[i]) == 3
        values = [*found.top_logprobs[i].values()]
        assert values == sorted(values, reverse=True)
        assert abs(values[0] - likeliest) < 0.25
        assert values[0] >= found.token_logprobs[i]
    np.testing.assert_allclose(found.token_logprobs[n:], answer.token_logprobs, atol=1e-6)
    np.testing.assert_allclose(found.token_logprobs[1:n], LLAMA_CPP, atol=0.02)
    starts = np.cumsum([0, *map(len, found.tokens)])[:-1]
    assert found.text_offset == starts.tolist()


def test_they_are_those_that_the_model_would_write_the_prompt_with(
    client: openai.OpenAI, server: Serving
) -> None:
    answer = complete(client, logprobs=2, max_tokens=12).choices[0]
    ids = server.service.llm.tokenizer.encode(PROMPT) + server.service.llm.tokenizer.encode(answer.text)
    echo = complete(client, prompt=ids, echo=True, logprobs=2, max_tokens=0).choices[0].logprobs
    assert echo.tokens[-len(answer.logprobs.tokens) :] == answer.logprobs.tokens
    np.testing.assert_allclose(
        echo.token_logprobs[-len(answer.logprobs.tokens) :], answer.logprobs.token_logprobs, atol=1e-4
    )


def test_several_prompts_and_answers(client: openai.OpenAI) -> None:
    prompts = ["Once upon", "In a green forest"]
    choices = complete(client, prompt=prompts, n=2, echo=True, logprobs=0, best_of=2).choices
    assert [c.index for c in choices] == [0, 1, 2, 3]
    for choice, prompt in zip(choices, [prompts[0]] * 2 + [prompts[1]] * 2):
        assert choice.text.startswith(prompt)
        assert "".join(choice.logprobs.tokens) == choice.text
        assert choice.logprobs.token_logprobs[0] is None
    one = complete(client, prompt="a", echo=True, logprobs=1).choices[0]
    assert one.logprobs.token_logprobs[0] is None


def test_a_long_prompt_is_read_in_steps_and_its_pages_are_given_back(
    client: openai.OpenAI, server: Serving
) -> None:
    engine = server.service.llm.engine
    choice = complete(client, prompt="word " * 400, echo=True, logprobs=1, max_tokens=1).choices[0]
    assert len(choice.logprobs.tokens) > 400
    while engine.prefixes.make_room():
        pass
    assert engine.backend.cache._pages.n_taken == 0


@pytest.fixture(scope="module")
def with_gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with tokens for gaps: what it fills them with doesn't matter here."""
    names = {
        f"tokenizer__ggml__fim_{name}_token_id": FIRST + i for i, name in enumerate(("pre", "suf", "mid"))
    }
    return demo_with(tmp_path_factory.mktemp("gaps") / "demo.gguf", **names)


@pytest.mark.parametrize("suffix_first", [False, True])
def test_a_gap(with_gaps: Path, suffix_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(LLM(with_gaps, n_threads=2), suffix_first=suffix_first) as server:
        seen: list[list[int]] = []
        generate = server.service.generate
        monkeypatch.setattr(
            server.service,
            "generate",
            lambda request, *more: seen.append([*request.tokens]) or generate(request, *more),
        )
        body = {"prompt": "def add(", "suffix": "return a + b", "max_tokens": 3, "temperature": 0}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        encode = server.service.llm.tokenizer.encode
        before, after = [FIRST, *encode("def add(")], [FIRST + 1, *encode("return a + b")]
        sides = [*after, *before] if suffix_first else [*before, *after]
        assert seen == [[*sides, FIRST + 2]]
        same = httpx.post(
            f"{server.url}/completion", json={"prompt": seen[0], "n_predict": 3, "temperature": 0}, timeout=60
        )
        assert answer.json()["choices"][0]["text"] == same.json()["content"]
        long = httpx.post(f"{server.url}/v1/completions", json=body | {"suffix": "word " * 5000}, timeout=60)
        assert long.status_code == 400
        assert long.json()["error"]["code"] == "context_length_exceeded"


def test_a_model_without_tokens_for_gaps_says_so(server: Serving) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "suffix": "b"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("suffix: the model has no tokens for gaps")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True, "suffix": "b"}, "echo"),
        ({"echo": "yes"}, "echo"),
        ({"suffix": 7}, "suffix"),
        ({"best_of": 2}, "best_of"),
    ],
)
def test_what_cannot_be_done(server: Serving, fields: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", **fields})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
