"""OpenAI's API by the real client over real HTTP: chats, texts, embeddings, and what is told of their tokens."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf_builder
import httpx
import naive
import numpy as np
import openai
import pytest
from command_line import TEXT
from gguf_builder import HEAD_DIM, N_EMBD, N_HEAD, N_HEAD_KV, N_LAYER, TOKENS
from serving import Serving, endless, serving, until

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.protocol import HIDDEN, Batch, Segment
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.server.service.generation import Generation
from qwencli.text.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SAID, THOUGHT = "The capital of France is Paris.", "The user asks for the capital of France. It is Paris."
NO_THINKING = {"chat_template_kwargs": {"enable_thinking": False}}
STORY = "Once upon a time"


@pytest.fixture(scope="module")
def demo() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def story_server(story: Path) -> Iterator[Serving]:
    """A model whose answer is TEXT."""
    with serving(LLM(story)) as server:
        yield server


def client(server: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def chat(server: Serving, messages: Any = QUESTION, **fields: Any) -> Any:
    """Fields that the client doesn't know go into the body as they are."""
    known = {name: fields.pop(name) for name in list(fields) if name in KNOWN}
    return client(server).chat.completions.create(model="any", messages=messages, extra_body=fields, **known)


KNOWN = {
    "temperature",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "n",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "top_p",
    "prompt",
    "presence_penalty",
}


def text(server: Serving, prompt: Any = STORY, **fields: Any) -> Any:
    known = {name: fields.pop(name) for name in list(fields) if name in KNOWN}
    return client(server).completions.create(model="any", prompt=prompt, extra_body=fields, **known)


def joined(stream: Any, field: str = "content", index: int = 0) -> str:
    return "".join(
        getattr(c.delta, field, None) or "" for chunk in stream for c in chunk.choices if c.index == index
    )


# Models


def test_models(demo: Serving) -> None:
    models = client(demo).models.list().data
    assert [m.id for m in models] == [EMBEDDED.name]
    assert client(demo).models.retrieve(EMBEDDED.name) == models[0]
    assert models[0].meta["n_embd"] == 256  # type: ignore[attr-defined]
    assert models[0].meta["n_params"] == 7_442_432  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError) as caught:
        client(demo).models.retrieve("another/one")
    assert caught.value.code == "model_not_found"


# Chats


def test_a_chat(demo: Serving) -> None:
    before = int(time.time())
    answer = chat(demo, temperature=0)
    [choice] = answer.choices
    assert (choice.message.content, choice.message.reasoning_content, choice.message.tool_calls) == (
        SAID,
        THOUGHT,
        None,
    )
    assert (choice.index, choice.finish_reason, choice.message.role, choice.logprobs) == (
        0,
        "stop",
        "assistant",
        None,
    )
    assert (answer.object, answer.model) == ("chat.completion", EMBEDDED.name)
    assert before <= answer.created <= time.time()
    assert answer.id.startswith("chatcmpl-")
    assert answer.id != chat(demo, temperature=0, max_tokens=1).id


def test_a_stream_brings_the_same(demo: Serving) -> None:
    chunks = list(chat(demo, temperature=0, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert joined(chunks) == SAID
    assert joined(chunks, "reasoning_content") == THOUGHT
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {(c.id, c.object, c.model, c.created) for c in chunks} == {
        (chunks[0].id, "chat.completion.chunk", EMBEDDED.name, chunks[0].created)
    }
    assert all(chunk.usage is None for chunk in chunks)
    assert len(chunks) > 10, "it comes in pieces"


def test_events_are_as_openai_writes_them(story_server: Serving) -> None:
    body = {"messages": QUESTION, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{story_server.url}/v1/chat/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        raw = response.read().decode()
    events = raw.split("\n\n")
    assert all(event.startswith('data: {"') for event in events[:-2])
    assert events[-2:] == ["data: [DONE]", ""]


def test_usage_and_timings(demo: Serving) -> None:
    prompt = demo.options.template.encode(demo.service.llm.tokenizer, QUESTION)  # type: ignore[union-attr]
    chat(demo, temperature=0)
    answer = chat(demo, temperature=0)
    n = answer.usage.completion_tokens
    assert n == len(demo.service.llm.tokenizer.encode(f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"))
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.total_tokens == len(prompt) + n
    assert answer.usage.prompt_tokens_details.cached_tokens == len(prompt) - 1, (
        "all but the token whose logits are wanted"
    )
    timings = answer.timings
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (len(prompt) - 1, 1, n)
    assert timings["predicted_per_second"] == pytest.approx(1e3 * (n - 1) / timings["predicted_ms"])
    chunks = list(chat(demo, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], answer.usage)
    assert "timings" in chunks[-1].model_extra
    timed = list(chat(demo, temperature=0, stream=True, timings_per_token=True, max_tokens=8))
    assert [c.timings["predicted_n"] for c in timed[1:-1]] == sorted(
        c.timings["predicted_n"] for c in timed[1:-1]
    )


def test_without_thinking(demo: Serving) -> None:
    for fields in NO_THINKING, {"reasoning_budget": 0}, {"thinking_budget_tokens": 0}:
        message = chat(demo, temperature=0, **fields).choices[0].message
        assert (message.content, hasattr(message, "reasoning_content")) == (SAID, False)
    short = chat(demo, temperature=0, thinking_budget_tokens=3).choices[0].message
    assert THOUGHT.startswith(short.reasoning_content)
    assert len(demo.service.llm.tokenizer.encode(short.reasoning_content)) <= 3
    assert chat(demo, temperature=0, reasoning_budget=-1).choices[0].message.reasoning_content == THOUGHT


def test_messages_of_several_parts_and_roles(demo: Serving) -> None:
    parts = [{"type": "text", "text": part} for part in ("One.", "Two.")]
    first = chat(
        demo,
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One.\nTwo."}],
        max_tokens=1,
    )
    apart = chat(
        demo,
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        max_tokens=1,
    )
    assert (
        apart.usage.prompt_tokens
        == first.usage.prompt_tokens
        == apart.usage.prompt_tokens_details.cached_tokens + 1
    )


@pytest.mark.parametrize("stop", ["xy", ["zz", "xy", "wxyz"]])
def test_stop_strings(story_server: Serving, stop: Any) -> None:
    before = TEXT[: TEXT.index("xy")]
    choice = chat(story_server, temperature=0, stop=stop).choices[0]
    assert (choice.message.content, choice.finish_reason) == (before, "stop")
    chunks = list(chat(story_server, temperature=0, stop=stop, stream=True))
    assert (joined(chunks), chunks[-1].choices[0].finish_reason) == (before, "stop")


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 5}, {"max_completion_tokens": 5, "max_tokens": 9}, {"n_predict": 5}]
)
def test_limits(story_server: Serving, fields: Any) -> None:
    answer = chat(story_server, temperature=0, **fields)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (TEXT[:5], "length")
    assert answer.usage.completion_tokens == 5


def test_an_answer_ends_with_the_context(story_server: Serving) -> None:
    answer = chat(story_server, temperature=0, ignore_eos=True)
    assert (answer.choices[0].finish_reason, answer.usage.total_tokens) == ("length", gguf_builder.N_CTX)


def test_ids_of_the_tokens(story_server: Serving) -> None:
    answer = chat(story_server, temperature=0, max_tokens=3, return_tokens=True)
    assert answer.choices[0].tokens == [TOKENS.index(c) for c in "abc"]


def test_several_answers_are_those_of_the_seeds_that_follow(demo: Serving) -> None:
    fields: dict[str, Any] = {"temperature": 1.5, "max_tokens": 20, "top_k": 0, "min_p": 0, "top_p": 1}
    alone = [text(demo, seed=70 + i, **fields).choices[0].text for i in range(3)]
    assert len(set(alone)) == 3
    answer = text(demo, seed=70, n=3, **fields)
    assert [c.text for c in answer.choices] == alone
    assert [c.index for c in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 60
    chunks = list(text(demo, seed=70, n=3, stream=True, **fields))
    for i in range(3):
        assert "".join(c.text for chunk in chunks for c in chunk.choices if c.index == i) == alone[i]
    said = [chat(demo, seed=70 + i, **fields, **NO_THINKING).choices[0].message.content for i in range(3)]
    assert [c.message.content for c in chat(demo, seed=70, n=3, **fields, **NO_THINKING).choices] == said
    streamed = list(chat(demo, seed=70, n=3, stream=True, **fields, **NO_THINKING))
    assert [joined(streamed, index=i) for i in range(3)] == said
    assert sum(c.finish_reason is not None for chunk in streamed for c in chunk.choices) == 3


def test_answers_are_the_same_with_others_beside_them(demo: Serving) -> None:
    def ask(i: int) -> str:
        return str(text(demo, f"{STORY} {i}", seed=i, temperature=1.2, max_tokens=30).choices[0].text)

    alone = [ask(i) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def test_a_biased_token(story_server: Serving) -> None:
    a, q = TOKENS.index("a"), TOKENS.index("q")
    for bias in {str(q): 100}, [[q, 100]], [["q", 100]], {"q": 100}:
        assert (
            chat(story_server, temperature=0, max_tokens=1, logit_bias=bias).choices[0].message.content == "q"
        )
    for bias in [[a, False]], {"a": -1e4}:
        assert (
            chat(story_server, temperature=0, max_tokens=1, logit_bias=bias).choices[0].message.content != "a"
        )


def test_samplers_by_name_and_by_letter(demo: Serving) -> None:
    """With top_k=1 alone nothing is left to chance."""
    greedy = text(demo, temperature=0, max_tokens=8).choices[0].text
    for samplers in ["top_k", "temperature"], "kt":
        assert text(demo, temperature=5, top_k=1, samplers=samplers, max_tokens=8).choices[0].text == greedy
    assert (
        text(demo, temperature=5, top_k=1, samplers=["temperature"], max_tokens=8, seed=1).choices[0].text
        != greedy
    )


# Texts


def test_prompts_of_all_kinds(story_server: Serving) -> None:
    ids = {c: TOKENS.index(c) for c in "abc"}
    for prompt, expected in (
        ("ab", ["cd"]),
        ([ids["a"], ids["b"]], ["cd"]),
        (["a", "ab"], ["bc", "cd"]),
        ([[ids["a"]], [ids["b"]]], ["bc", "cd"]),
    ):
        answer = text(story_server, prompt, temperature=0, max_tokens=2)
        assert [c.text for c in answer.choices] == expected
        assert answer.object == "text_completion"
    twice = text(story_server, ["a", "ab"], temperature=0, max_tokens=2, n=2)
    assert [(c.index, c.text) for c in twice.choices] == [(0, "bc"), (1, "bc"), (2, "cd"), (3, "cd")]
    assert twice.usage.prompt_tokens == 3
    chunks = list(text(story_server, "a", temperature=0, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for chunk in chunks for c in chunk.choices) == TEXT[1:]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens == len("bcdefghijklmnopqrstuvwxyz") + 3


# Logprobs


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Serving, gguf_builder.Gguf]]:
    file = gguf_builder.tiny(seed=5)
    with serving(LLM(file.write(tmp_path_factory.mktemp("random") / "m.gguf"), backend="numpy")) as server:
        yield server, file


def log_softmax(file: gguf_builder.Gguf, tokens: list[int]) -> np.ndarray[Any, Any]:
    """By the formulas, float64 [n_tokens, n_vocab]."""
    config = {
        "num_hidden_layers": N_LAYER,
        "num_attention_heads": N_HEAD,
        "num_key_value_heads": N_HEAD_KV,
        "head_dim": HEAD_DIM,
        "hidden_size": N_EMBD,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
    }
    weights = {str(t.name): np.frombuffer(t.data, np.float32).reshape(t.dims[::-1]) for t in file.tensors}
    logits = naive.forward(config, weights, tokens)["result_output"]
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def letters_only() -> dict[str, float]:
    """A bias by which token texts are those of TOKENS."""
    return {
        str(i): 100.0
        for i, token in enumerate(TOKENS)
        if len(token) == 1 and token.isascii() and token.isalpha()
    }


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(random_model: tuple[Serving, gguf_builder.Gguf], stream: bool) -> None:
    server, file = random_model
    llm = server.service.llm
    prompt = llm.tokenizer.encode(
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", parse_special=True
    )
    answer = chat(
        server,
        [{"role": "user", "content": "hi"}],
        seed=3,
        temperature=2,
        max_tokens=6,
        logprobs=True,
        top_logprobs=3,
        logit_bias=letters_only(),
        stream=stream,
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    reports = [report for choice in choices if choice.logprobs for report in choice.logprobs.content]
    tokens = [TOKENS.index(report.token) for report in reports]
    assert "".join(r.token for r in reports) == "".join(
        (c.delta if stream else c.message).content or "" for c in choices
    )
    expected = log_softmax(file, prompt + tokens)[len(prompt) - 1 : -1]
    for report, row in zip(reports, expected, strict=True):
        assert report.logprob == pytest.approx(row[TOKENS.index(report.token)], abs=2e-5)
        assert bytes(report.bytes).decode() == report.token
        assert [top.logprob for top in report.top_logprobs] == pytest.approx(np.sort(row)[::-1][:3], abs=2e-5)
        best = np.argsort(-row, kind="stable")[:3]
        assert [top.id for top in report.top_logprobs] == best.tolist()


def test_logprobs_of_a_text(random_model: tuple[Serving, gguf_builder.Gguf]) -> None:
    server, file = random_model
    prompt = [TOKENS.index(c) for c in "abc"]
    fields: dict[str, Any] = {
        "seed": 3,
        "temperature": 2,
        "max_tokens": 6,
        "logit_bias": letters_only(),
        "logprobs": 2,
    }
    choice = text(server, prompt, **fields).choices[0]
    lists = choice.logprobs
    tokens = [TOKENS.index(token) for token in lists.tokens]
    expected = log_softmax(file, prompt + tokens)[len(prompt) - 1 : -1]
    assert lists.token_logprobs == pytest.approx(expected[np.arange(6), tokens], abs=2e-5)
    assert [max(top.values()) for top in lists.top_logprobs] == pytest.approx(expected.max(-1), abs=2e-5)
    assert [len(top) for top in lists.top_logprobs] == [2] * 6
    assert "".join(lists.tokens) == choice.text
    assert lists.text_offset == list(range(6))
    chunks = [
        c.choices[0].logprobs for c in text(server, prompt, stream=True, **fields) if c.choices[0].logprobs
    ]
    for name in "tokens", "text_offset":
        assert [item for part in chunks for item in getattr(part, name)] == getattr(lists, name)
    assert [item for part in chunks for item in part.token_logprobs] == pytest.approx(
        lists.token_logprobs, abs=2e-5
    )
    assert [set(item) for part in chunks for item in part.top_logprobs] == list(map(set, lists.top_logprobs))
    assert text(server, prompt, **fields | {"logprobs": 0}).choices[0].logprobs.top_logprobs == [{}] * 6


def test_tokens_that_are_parts_of_characters(story_server: Serving) -> None:
    lists = text(story_server, "xyz", temperature=0, logprobs=0).choices[0].logprobs
    assert lists.tokens[:3] == ["bytes:\\xc3", "bytes:\\xa9", " the"]
    assert lists.text_offset[:3] == [0, 0, 1]
    reports = chat(story_server, temperature=0, logprobs=True).choices[0].logprobs.content
    assert [r.bytes for r in reports[26:]] == [[0xC3], [0xA9], list(b" the")]


# Embeddings


def embedding_of(llm: LLM, tokens: list[int]) -> Any:
    """From a fresh run: the last token's row after the final norm, scaled to length 1."""
    kv = KVSequence()
    row = llm.engine.backend.run([HIDDEN], Batch([Segment(kv, tokens, 1)]))[HIDDEN][0].astype(np.float64)
    return row / np.linalg.norm(row)


def test_embeddings(demo: Serving) -> None:
    llm, texts = LLM(EMBEDDED), ["Hello world", "The little fox ran home."]
    ids = [llm.tokenizer.encode(t) for t in texts]
    expected = [embedding_of(llm, tokens) for tokens in ids]
    create = client(demo).embeddings.create
    for given in texts, ids:
        answer = create(model="any", input=given)  # the client asks for base64 by itself
        assert [e.index for e in answer.data] == [0, 1]
        for found, wanted in zip(answer.data, expected, strict=True):
            np.testing.assert_allclose(found.embedding, wanted, atol=1e-6)
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
    for single in texts[0], ids[0]:
        plain = create(model="any", input=single, encoding_format="float").data
        assert len(plain) == 1
        np.testing.assert_allclose(plain[0].embedding, expected[0], atol=1e-6)
    asked = {"input": texts[0], "encoding_format": "base64"}
    raw = httpx.post(f"{demo.url}/v1/embeddings", json=asked, timeout=60).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(raw), "<f4"), expected[0], atol=1e-6)
    short = create(model="any", input=texts[0], dimensions=16).data[0].embedding
    np.testing.assert_allclose(short, expected[0][:16] / np.linalg.norm(expected[0][:16]), atol=1e-6)

    whole = [1] * llm.engine.n_ctx
    assert create(model="any", input=whole).usage.prompt_tokens == len(whole)
    with pytest.raises(openai.BadRequestError):
        create(model="any", input=[*whole, 1])


# What goes wrong on the way


def test_a_model_that_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = gguf_builder.tiny()
    file.replace(gguf_builder.f32("output_norm.weight", np.full(N_EMBD, np.nan)))
    with serving(LLM(file.write(tmp_path / "m.gguf"))) as server:
        for n in 1, 3:
            with pytest.raises(openai.InternalServerError, match="not finite"):
                text(server, "a", n=n)
            stream = text(server, "a", n=n, stream=True)
            with pytest.raises(openai.APIError, match="not finite"):
                list(stream)
        wait_until_free(server)
    assert "never retrieved" not in capfd.readouterr().err


# A client that leaves


def free(server: Serving) -> bool:
    return all(slot.generation is None for slot in server.service.slots()) and server.service.n_waiting == 0


def wait_until_free(server: Serving) -> None:
    until(lambda: free(server))


@pytest.fixture(scope="module")
def patient() -> Iterator[Serving]:
    """A server whose answers take minutes."""
    with serving(endless()) as server:
        yield server


@pytest.fixture
def generations(patient: Serving, monkeypatch: pytest.MonkeyPatch) -> list[Generation]:
    """All that it generates."""
    found: list[Generation] = []
    generate = patient.service.generate
    monkeypatch.setattr(
        patient.service, "generate", lambda *asked: (found.append(generate(*asked)), found[-1])[1]
    )
    return found


def test_a_client_that_leaves_a_stream(patient: Serving, generations: list[Generation]) -> None:
    stream = text(patient, temperature=0, ignore_eos=True, stream=True, n=3)
    next(iter(stream))
    stream.close()
    wait_until_free(patient)
    assert [generation.sequence.stop_reason for generation in generations] == ["cancelled"] * 3


def test_a_client_that_does_not_wait(patient: Serving, generations: list[Generation]) -> None:
    body = {"prompt": STORY, "ignore_eos": True, "temperature": 0}
    seconds = 0.15
    while not generations:  # the client was gone before the server had read what it wants
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{patient.url}/v1/completions", json=body, timeout=httpx.Timeout(60, read=seconds))
        seconds *= 4
    wait_until_free(patient)
    assert [generation.sequence.stop_reason for generation in generations] == ["cancelled"]
    assert chat(patient, temperature=0).choices[0].message.content == SAID


def test_requests_that_wait_get_their_answers(demo: Serving) -> None:
    """More than there are slots, some of them left."""

    def ask(i: int) -> str:
        stream = text(demo, f"{STORY} {i % 3}", temperature=0, max_tokens=20, stream=True)
        if i % 4 == 3:
            stream.close()
            return ""
        return "".join(chunk.choices[0].text for chunk in stream)

    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, range(12)))
    expected = [text(demo, f"{STORY} {i}", temperature=0, max_tokens=20).choices[0].text for i in range(3)]
    assert found == [expected[i % 3] if i % 4 != 3 else "" for i in range(12)]
    wait_until_free(demo)


def test_a_full_queue() -> None:
    with serving(LLM(EMBEDDED, n_ctx=50_000), n_slots=1, n_queue=1) as server:
        with pytest.raises(openai.BadRequestError, match="3 answers, expected at most 2 at once"):
            text(server, "a", n=3)
        stream = text(server, "a", n=2, temperature=0, ignore_eos=True, stream=True)
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            text(server, "a", temperature=0)
        stream.close()
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        wait_until_free(server)
        assert len(text(server, n=2, max_tokens=3).choices) == 2


def test_the_event_loop_goes_on_while_a_long_prompt_is_read(
    demo: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile, the text of a whole request body is tokenized."""
    n_beats, n_meanwhile = 0, 0
    encode, done = Tokenizer.encode, threading.Event()

    def beat() -> None:
        nonlocal n_beats
        n_beats += 1
        if not done.is_set():
            demo.loop.call_later(0.005, beat)

    def counted(*args: Any, **options: Any) -> list[int]:
        nonlocal n_meanwhile
        before = n_beats
        found = encode(*args, **options)
        n_meanwhile += n_beats - before
        return found

    monkeypatch.setattr(Tokenizer, "encode", counted)
    demo.loop.call_soon_threadsafe(beat)
    answer = httpx.post(f"{demo.url}/tokenize", json={"content": "One day a fox. " * 100_000}, timeout=60)
    done.set()
    assert len(answer.json()["tokens"]) > 400_000
    assert n_meanwhile > 0


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_tells_how_its_prompt_is_read(n: int) -> None:
    """As llama-server: first what the cache had, then step by step, each time more."""
    with serving(LLM(EMBEDDED, n_threads=2, n_batch=64)) as server:
        messages = [{"role": "user", "content": "A prompt of its own, " * 30}]
        for cached in False, True:
            body = {"messages": messages, "stream": True, "return_progress": True, "max_tokens": 2, "n": n}
            with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
                chunks = [
                    json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")
                ]
            for i in range(n):
                told = [
                    c["prompt_progress"]
                    for c in chunks
                    if "prompt_progress" in c and c["choices"][0]["index"] == i
                ]
                assert told[0]["processed"] == told[0]["cache"]
                total, done = told[0]["total"], [each["processed"] for each in told]
                assert done == sorted(set(done))
                assert done[-1] == total
                if n == 1:
                    assert len(told) == (2 if cached else 1 + -(-total // 64))
                    assert told[0]["cache"] == (total - 1 if cached else 0)
                assert {(each["total"], each["cache"]) for each in told} == {(total, told[0]["cache"])}
        whole = httpx.post(
            f"{server.url}/v1/chat/completions",
            json={"messages": messages, "return_progress": True, "max_tokens": 2},
        )
        assert "prompt_progress" not in whole.json()


def test_an_answer_word_for_word(demo: Serving) -> None:
    told = chat(demo, verbose=True, temperature=0).model_extra["__verbose"]
    assert told["prompt"] == (
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert told["content"].removesuffix("<|im_end|>") == f"<think>\n{THOUGHT}\n</think>\n\n{SAID}"
    assert (told["stop_type"], told["stopping_word"]) == ("eos", "")
    assert demo.service.llm.tokenizer.decode(told["tokens"]) == told["content"]
    last = list(chat(demo, verbose=True, temperature=0, stream=True, stop=" is"))[-1].model_extra["__verbose"]
    assert (last["stop_type"], last["stopping_word"]) == ("word", " is")
    assert "__verbose" not in chat(demo, temperature=0, max_tokens=2).model_extra


def test_a_server_that_tells_all_word_for_word() -> None:
    with serving(verbose=True) as server:
        assert "__verbose" in chat(server, max_tokens=2).model_extra
        assert "__verbose" not in chat(server, max_tokens=2, verbose=False).model_extra
