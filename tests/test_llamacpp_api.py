"""llama.cpp's API over real HTTP, with its own request shapes. What answers have to be is llama.cpp's word, in oracles/completions.json."""

import json
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from llamacpp_client import complete, events, greedy, post
from serving import Serving, serving

from qwencli.server import run
from qwencli.server.llamacpp.endpoints import LLAMACPP

ORACLE = json.loads((Path(__file__).parent / "oracles" / "completions.json").read_text())
ASKED = ORACLE["completions"]
EOS = 6002
"""<|im_end|> of the demo model."""
CAPITAL = ASKED[0]
assert "capital" in CAPITAL["prompt"]
NEAR = 0.02
"""How far logprobs may be from llama.cpp's: sums in another order, and quantized weights."""


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(apis=[LLAMACPP]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def expected(case: dict[str, Any]) -> tuple[list[int], bool]:
    """The tokens of llama.cpp's answer, and whether it ends after them."""
    tokens = [step[0][0] for step in case["top"]]
    return (tokens[: tokens.index(EOS)], True) if EOS in tokens else (tokens, False)


# What llama.cpp answers


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case["prompt"][:30])
def test_greedy_answers_are_those_of_llama_cpp(client: httpx.Client, case: dict[str, Any]) -> None:
    tokens, ends = expected(case)
    answer = greedy(client, case["prompt"], len(case["top"]), return_tokens=True, n_probs=3)
    assert answer["tokens"] == tokens
    assert answer["content"] == post(client, "/detokenize", tokens=tokens)["content"]
    assert case["content"].startswith(answer["content"])
    assert (answer["stop_type"], answer["stop"], answer["truncated"]) == (
        "eos" if ends else "limit",
        True,
        False,
    )
    assert (answer["tokens_evaluated"], answer["tokens_predicted"]) == (len(case["tokens"]), len(tokens))
    assert answer["prompt"] == case["prompt"]
    for found, step in zip(answer["completion_probabilities"], case["top"], strict=not ends):
        assert found["id"] == step[0][0] == found["top_logprobs"][0]["id"]
        assert found["logprob"] == found["top_logprobs"][0]["logprob"] == pytest.approx(step[0][1], abs=NEAR)
        for other, (_, logprob) in zip(
            found["top_logprobs"][:2], step
        ):  # the third is often too unlikely to be exact
            assert np.exp(other["logprob"]) == pytest.approx(np.exp(logprob), abs=NEAR)
        assert (
            bytes(found["bytes"]).decode()
            == found["token"]
            == post(client, "/detokenize", tokens=[found["id"]])["content"]
        )


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case["prompt"][:30])
def test_tokens_are_those_of_llama_cpp(client: httpx.Client, case: dict[str, Any]) -> None:
    assert post(client, "/tokenize", content=case["prompt"])["tokens"] == case["tokens"]
    assert post(client, "/detokenize", tokens=case["tokens"]) == {"content": case["prompt"]}
    named = post(client, "/tokenize", content=case["prompt"], with_pieces=True)["tokens"]
    assert [token["id"] for token in named] == case["tokens"]
    assert "".join(token["piece"] for token in named) == case["prompt"]
    plain = post(client, "/tokenize", content=case["prompt"], parse_special=False)["tokens"]
    assert (plain == case["tokens"]) == ("<|" not in case["prompt"])
    assert post(client, "/detokenize", tokens=plain) == {"content": case["prompt"]}


def test_pieces_that_are_no_text_are_bytes(client: httpx.Client) -> None:
    text = "\U0001fae0"
    pieces = [token["piece"] for token in post(client, "/tokenize", content=text, with_pieces=True)["tokens"]]
    assert len(pieces) > 1
    assert b"".join(bytes(piece) for piece in pieces) == text.encode()


def test_texts_and_tokens_mixed(client: httpx.Client) -> None:
    assert post(client, "/tokenize", content=[6001, "user", 198])["tokens"] == CAPITAL["tokens"][:3]
    assert post(client, "/tokenize") == {"tokens": []}
    assert post(client, "/detokenize") == {"content": ""}


def test_embeddings_are_those_of_llama_cpp(client: httpx.Client) -> None:
    for text, values in ORACLE["embeddings"].items():
        [one] = post(client, "/embedding", content=text)
        assert one["index"] == 0
        assert np.dot(one["embedding"][0], values) == pytest.approx(1, abs=1e-3)
        both = post(client, "/embeddings", input=[text, "another"])
        assert [each["index"] for each in both] == [0, 1]
        assert both[0]["embedding"] == one["embedding"] != both[1]["embedding"]


def test_embeddings_are_scaled_as_asked(client: httpx.Client) -> None:
    """common_embd_normalize in llama.cpp's common.cpp."""

    def embedding(norm: int) -> Any:
        return np.array(post(client, "/embedding", content="a text", embd_normalize=norm)[0]["embedding"][0])

    raw = embedding(-1)
    for norm in 1, 2, 3, 300:
        assert np.allclose(embedding(norm), raw / np.linalg.norm(raw, norm), rtol=1e-6)
    assert np.allclose(embedding(0), raw / np.abs(raw).max() * 32760, rtol=1e-6)


def test_a_template_makes_the_prompt(client: httpx.Client) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    assert post(client, "/apply-template", messages=messages) == {"prompt": CAPITAL["prompt"]}
    silent = post(
        client, "/apply-template", messages=messages, chat_template_kwargs={"enable_thinking": False}
    )
    assert silent == {"prompt": CAPITAL["prompt"] + "<think>\n\n</think>\n\n"}


# Its clients


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", *arguments], capture_output=True, timeout=60, check=True, text=True).stdout


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_the_readme_s_curl_command(server: Serving) -> None:
    answer = json.loads(
        curl(
            "--request",
            "POST",
            "--url",
            f"{server.url}/completion",
            "--header",
            "Content-Type: application/json",
            "--data",
            '{"prompt": "Building a website can be done in 10 simple steps:","n_predict": 128}',
        )
    )
    assert answer["content"]
    assert answer["tokens_predicted"] <= 128


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_a_chat_as_its_chat_sh_has_it(server: Serving) -> None:
    """The tokens of the instruction are counted for n_keep; each turn is streamed; what was said before is not computed again."""

    def ask(path: str, data: dict[str, Any], *options: str) -> str:
        return curl(
            "--silent",
            *options,
            "--request",
            "POST",
            "--url",
            server.url + path,
            "--header",
            "Content-Type: application/json",
            "--data-raw",
            json.dumps(data),
        )

    instruction = "A chat between a curious human and an artificial intelligence assistant."
    n_keep = len(json.loads(ask("/tokenize", {"content": instruction}))["tokens"])
    chat, cached = instruction, []
    for question in "Hello, Assistant.", "What is the capital of France?":
        chat += f"\n### Human: {question}\n### Assistant:"
        data = {
            "prompt": chat,
            "temperature": 0.2,
            "top_k": 40,
            "top_p": 0.9,
            "n_keep": n_keep,
            "n_predict": 32,
            "cache_prompt": True,
            "stop": ["\n### Human:"],
            "stream": True,
            "seed": 1,
        }
        lines = [
            json.loads(line[5:])
            for line in ask("/completion", data, "--no-buffer").splitlines()
            if line.startswith("data:")
        ]
        answer = "".join(line["content"] for line in lines)
        assert [line["stop"] for line in lines] == [False] * (len(lines) - 1) + [True]
        assert answer
        assert "\n### Human:" not in answer
        assert lines[-1]["generation_settings"]["n_keep"] == n_keep
        cached.append(lines[-1]["timings"]["cache_n"])
        chat += answer
    assert cached[1] >= n_keep > 0


def test_four_clients_at_once(server: Serving, client: httpx.Client) -> None:
    def ask(prompt: str) -> str:
        data = json.dumps({"prompt": prompt, "n_predict": 32, "temperature": 0}).encode()
        request = urllib.request.Request(
            f"{server.url}/completion", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(json.load(response)["content"])

    prompts = [case["prompt"] for case in ASKED[:4]]
    alone = [greedy(client, prompt, 32)["content"] for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, prompts)) == alone


def test_no_answer_waits_for_the_client_to_acknowledge_its_head() -> None:
    """asyncio switches Nagle's algorithm off for sockets whose protocol says TCP; 40 ms a request, else."""
    for listening in run.listen(["127.0.0.1"], 0):
        with listening:
            assert listening.proto == socket.IPPROTO_TCP


# Prompts


def test_each_form_of_a_prompt(client: httpx.Client) -> None:
    tokens, text = CAPITAL["tokens"], CAPITAL["prompt"]
    middle = post(client, "/detokenize", tokens=tokens[1:5])["content"]
    whole = greedy(client, text)["content"]
    for prompt in tokens, [tokens[0], middle, *tokens[5:]], {"prompt_string": text}, [text], [tokens]:
        assert greedy(client, prompt)["content"] == whole


def test_many_prompts_have_many_answers(client: httpx.Client) -> None:
    prompts = ["One day", "Once upon a time", ASKED[1]["tokens"], [6001, "user"]]
    alone = [greedy(client, prompt, 8) for prompt in prompts]
    answers = greedy(client, prompts, 8)
    assert [answer["index"] for answer in answers] == [0, 1, 2, 3]
    assert [answer["content"] for answer in answers] == [answer["content"] for answer in alone]
    assert [answer["prompt"] for answer in answers] == [answer["prompt"] for answer in alone]
    streamed = events(client, prompt=prompts, n_predict=8, temperature=0)
    for i, answer in enumerate(alone):
        mine = [event for event in streamed if event["index"] == i]
        assert "".join(event["content"] for event in mine) == answer["content"]
        assert [event["stop"] for event in mine] == [False] * (len(mine) - 1) + [True]


def test_many_answers_to_a_prompt_have_seeds_in_a_row(client: httpx.Client) -> None:
    answers = complete(client, "One day", n_cmpl=3, seed=7)
    alone = [complete(client, "One day", seed=7 + i) for i in range(3)]
    assert [answer["content"] for answer in answers] == [answer["content"] for answer in alone]
    assert len({answer["content"] for answer in answers}) == 3
    assert [answer["generation_settings"]["seed"] for answer in answers] == [7, 8, 9]


def test_an_empty_prompt_has_an_empty_answer(client: httpx.Client) -> None:
    empty: list[str | list[int]] = ["", []]
    for prompt in empty:
        answer = greedy(client, [prompt])
        assert (
            answer["content"],
            answer["stop_type"],
            answer["tokens_evaluated"],
            answer["tokens_predicted"],
        ) == ("", "none", 0, 0)
    assert [event["stop"] for event in events(client, prompt="")] == [True]


def test_no_tokens_of_an_answer_still_read_the_prompt(client: httpx.Client) -> None:
    prompt = "42 prompts that nobody else has are grey parrots"
    answer = greedy(client, prompt, 0, return_tokens=True)
    assert (answer["content"], answer["tokens"], answer["tokens_predicted"], answer["stop_type"]) == (
        "",
        [],
        0,
        "limit",
    )
    assert answer["timings"]["prompt_n"] == answer["tokens_evaluated"] > 4
    assert [event["stop"] for event in events(client, prompt=prompt, n_predict=0)] == [True]
    assert greedy(client, prompt)["timings"]["cache_n"] == answer["tokens_evaluated"] - 1


def test_an_answer_ends_where_the_context_is_full(client: httpx.Client) -> None:
    tokens = post(client, "/tokenize", content="word " * 1015)["tokens"][:1015]
    answer = greedy(client, tokens, -1, ignore_eos=True)
    assert (answer["stop_type"], answer["truncated"], answer["tokens_predicted"]) == (
        "limit",
        True,
        1024 - 1015,
    )
