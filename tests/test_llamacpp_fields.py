"""Fields of llama.cpp's requests and answers: what each does, over real HTTP."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import httpx
import jsonschema
import pytest
from engine_runs import held
from llamacpp_client import complete, events, greedy, post
from serving import Serving, serving, until

from qwencli.server.llamacpp import memory
from qwencli.server.llamacpp.endpoints import LLAMACPP

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(name="demo", apis=[LLAMACPP]) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_an_answer_has_llama_cpp_s_fields(client: httpx.Client) -> None:
    answer = greedy(client, PROMPT)
    assert answer.keys() == {
        "index",
        "content",
        "tokens",
        "id_slot",
        "stop",
        "model",
        "tokens_predicted",
        "tokens_evaluated",
        "generation_settings",
        "prompt",
        "has_new_line",
        "truncated",
        "stop_type",
        "stopping_word",
        "tokens_cached",
        "timings",
    }
    assert (answer["model"], answer["tokens"], answer["stopping_word"]) == ("demo", [], "")
    assert answer["tokens_cached"] == answer["tokens_evaluated"] + answer["tokens_predicted"] - 1
    times = answer["timings"]
    assert times["cache_n"] + times["prompt_n"] == answer["tokens_evaluated"]
    assert times["predicted_n"] == answer["tokens_predicted"] == 16
    assert times["prompt_per_second"] == pytest.approx(1000 / times["prompt_per_token_ms"])
    assert times["predicted_per_second"] == pytest.approx(1000 / times["predicted_per_token_ms"])
    assert answer["has_new_line"] == ("\n" in answer["content"])


def test_a_stream_has_the_same_answer_in_pieces(client: httpx.Client) -> None:
    whole = greedy(client, PROMPT, 24, return_tokens=True, n_probs=2)
    *pieces, last = events(client, prompt=PROMPT, n_predict=24, temperature=0, n_probs=2)
    assert "".join(piece["content"] for piece in pieces) == whole["content"]
    for name in "tokens", "completion_probabilities":
        assert [each for piece in pieces for each in piece[name]] == whole[name]
    for piece in pieces:
        assert piece["stop"] is False
        assert piece["tokens_evaluated"] == whole["tokens_evaluated"]
    assert [piece["tokens_predicted"] for piece in pieces][-1] == 24
    assert (last["content"], last["tokens"], last["stop"]) == ("", [], True)
    changing = {"content", "tokens", "timings", "id_slot", "generation_settings", "completion_probabilities"}
    assert {k: v for k, v in last.items() if k not in changing} == {
        k: v for k, v in whole.items() if k not in changing
    }


def test_a_stop_string_ends_an_answer(client: httpx.Client) -> None:
    free = greedy(client, PROMPT, 24, n_probs=1)
    words = free["content"].split()
    word = f" {words[5]}"
    answer = greedy(client, PROMPT, 24, stop=["not to be found", word], n_probs=1)
    assert (answer["stop_type"], answer["stopping_word"]) == ("word", word)
    assert answer["content"] == free["content"][: free["content"].index(word)]
    assert "".join(each["token"] for each in answer["completion_probabilities"]) == answer["content"]
    assert greedy(client, PROMPT, 24, stop=word)["content"] == answer["content"]
    assert greedy(client, PROMPT, 24, stop=[])["content"] == free["content"]
    assert (
        events(client, prompt=PROMPT, n_predict=24, temperature=0, stop=[word])[-1]["stopping_word"] == word
    )


def test_an_end_that_is_ignored(client: httpx.Client) -> None:
    prompt = "<|im_start|>user\nWhat is the opposite of hot?<|im_end|>\n<|im_start|>assistant\n"
    ended, ignored = greedy(client, prompt, 100), greedy(client, prompt, 100, ignore_eos=True)
    assert (ended["stop_type"], ignored["stop_type"]) == ("eos", "limit")
    assert ended["tokens_predicted"] < 100 == ignored["tokens_predicted"]
    assert ignored["content"].startswith(ended["content"])


def test_some_fields_alone(client: httpx.Client) -> None:
    fields = [
        "content",
        "generation_settings/n_predict",
        "timings/prompt_n",
        "no/such/field",
        "content/too/deep",
    ]
    answer = greedy(client, PROMPT, 5, response_fields=fields)
    assert answer.keys() == {"content", "generation_settings/n_predict", "timings/prompt_n"}
    assert answer["generation_settings/n_predict"] == 5
    assert greedy(client, PROMPT, 5, n_probs=1, response_fields=["completion_probabilities"]).keys() == {
        "completion_probabilities"
    }
    assert greedy(client, PROMPT, 5, n_probs=1, response_fields=["stop"]) == {"stop": True}
    assert events(client, prompt=PROMPT, n_predict=5, response_fields=["stop"])[-1] == {"stop": True}


def test_what_was_asked_is_told(client: httpx.Client) -> None:
    asked = {
        "temperature": 0.5,
        "dynatemp_range": 0.1,
        "dynatemp_exponent": 1.5,
        "top_k": 30,
        "top_p": 0.9,
        "min_p": 0.1,
        "top_n_sigma": 2.0,
        "xtc_probability": 0.1,
        "xtc_threshold": 0.2,
        "typical_p": 0.9,
        "repeat_last_n": 10,
        "repeat_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "dry_multiplier": 0.4,
        "dry_base": 1.5,
        "dry_allowed_length": 3,
        "dry_penalty_last_n": 20,
        "mirostat": 0,
        "mirostat_tau": 4.0,
        "mirostat_eta": 0.2,
        "n_keep": 3,
        "n_discard": 4,
        "ignore_eos": True,
        "min_keep": 1,
        "samplers": ["top_k", "temperature"],
        "timings_per_token": True,
        "stop": ["x", "y"],
        "seed": 42,
        "dry_sequence_breakers": [":"],
        "n_probs": 1,
        "n_predict": 3,
    }
    answer = post(client, "/completion", prompt=PROMPT, logit_bias=[[11, 0.5], [12, False]], **asked)
    settings = answer["generation_settings"]
    assert {name: settings[name] for name in asked} == asked
    assert settings["logit_bias"][:2] == [{"bias": 0.5, "token": 11}, {"bias": None, "token": 12}]
    ends = [post(client, "/tokenize", content=text)["tokens"][0] for text in ("<|endoftext|>", "<|im_end|>")]
    # as in llama-server, ignore_eos forbids the tokens that end an answer
    assert settings["logit_bias"][2:] == [{"bias": None, "token": token} for token in ends]
    assert settings["max_tokens"] == 3


def test_defaults_are_those_of_llama_cpp(client: httpx.Client) -> None:
    """tools/server/README.md."""
    params = client.get("/props").json()["default_generation_settings"]["params"]
    usual = {
        "n_predict": -1,
        "seed": 4294967295,
        "temperature": 0.8,
        "dynatemp_range": 0.0,
        "dynatemp_exponent": 1.0,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.05,
        "xtc_probability": 0.0,
        "xtc_threshold": 0.1,
        "typical_p": 1.0,
        "repeat_last_n": 64,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "dry_base": 1.75,
        "dry_allowed_length": 2,
        "dry_penalty_last_n": 64,
        "mirostat": 0,
        "mirostat_tau": 5.0,
        "mirostat_eta": 0.1,
        "max_tokens": -1,
        "n_keep": 0,
        "n_discard": 0,
        "ignore_eos": False,
        "n_probs": 0,
        "min_keep": 0,
        "timings_per_token": False,
        "post_sampling_probs": False,
        "lora": [],
    }
    assert {name: params[name] for name in usual} == usual


def test_values_that_llama_cpp_takes_for_the_nearest(client: httpx.Client) -> None:
    """Fields with soft limits in its server-schema.cpp, and a dry_base below 1; null is as good as nothing."""
    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "xtc_probability",
        "xtc_threshold",
        "mirostat",
        "dry_base",
    )
    asked, taken = (
        dict(zip(names, (-1, -5, 7, -2.5, 9, -1, -1, 0))),
        dict(zip(names, (0, 0, 1, 0, 1, 0, 0, 1.75))),
    )
    settings = complete(client, PROMPT, 1, **asked)["generation_settings"]
    assert {name: settings[name] for name in taken} == taken
    assert complete(client, PROMPT, 1, **dict.fromkeys(asked))["generation_settings"]["temperature"] == 0.8


def test_a_seed_repeats_an_answer(client: httpx.Client) -> None:
    first = complete(client, PROMPT, temperature=1.5, seed=1)
    assert complete(client, PROMPT, temperature=1.5, seed=1)["content"] == first["content"]
    for random in -1, 2**32 - 1:
        seeds = {complete(client, PROMPT, 1, seed=random)["generation_settings"]["seed"] for _ in range(3)}
        assert len(seeds) == 3
    again = complete(client, PROMPT, temperature=1.5)
    assert (
        complete(client, PROMPT, temperature=1.5, seed=again["generation_settings"]["seed"])["content"]
        == again["content"]
    )


def test_each_form_of_a_bias(client: httpx.Client) -> None:
    usual = greedy(client, PROMPT, 1, return_tokens=True)
    [token], text = usual["tokens"], usual["content"]
    [wanted] = post(client, "/tokenize", content=" princess"[:3])["tokens"][:1]
    for bias in (
        [[token, False]],
        [[token, -100]],
        [[text, False]],
        {str(token): -100},
        {text: -100},
        {text: False},
    ):
        assert greedy(client, PROMPT, 1, logit_bias=bias, return_tokens=True)["tokens"] != [token]
    for bias in [[wanted, 100.5]], {str(wanted): 100}:
        assert greedy(client, PROMPT, 1, logit_bias=bias, return_tokens=True)["tokens"] == [wanted]
    assert greedy(client, PROMPT, 1, logit_bias=[])["content"] == text


def test_samplers_by_names_letters_and_unknown_ones(client: httpx.Client) -> None:
    def taken(samplers: Any) -> Any:
        return complete(client, PROMPT, 1, samplers=samplers)["generation_settings"]["samplers"]

    assert taken(["top_k", "tfs_z", "typical_p", "temperature"]) == ["top_k", "typ_p", "temperature"]
    assert taken("kypt") == ["top_k", "typ_p", "top_p", "temperature"]
    assert taken([]) == []


def test_speed_with_each_token_and_progress_of_a_prompt(client: httpx.Client) -> None:
    prompt = "A prompt of its own, " * 40
    pieces = events(client, prompt=prompt, n_predict=3, timings_per_token=True, return_progress=True)
    told = [piece["prompt_progress"] for piece in pieces if "prompt_progress" in piece]
    n = pieces[-1]["tokens_evaluated"]
    assert all("timings" in piece for piece in pieces)
    assert {piece["timings"]["prompt_n"] for piece in pieces if "prompt_progress" not in piece} == {
        n - told[-1]["cache"]
    }
    assert told[-1]["processed"] == told[-1]["total"] == n
    assert [each["processed"] for each in told] == sorted(each["processed"] for each in told)
    assert all(each["cache"] <= each["processed"] for each in told)
    # as in llama-server, the first one comes before anything is read
    first = pieces[0]
    assert (first["prompt_progress"]["processed"], first["prompt_progress"]["time_ms"]) == (
        told[0]["cache"],
        0,
    )
    assert (first["timings"]["prompt_n"], first["timings"]["prompt_ms"], first["timings"]["predicted_n"]) == (
        0,
        0,
        0,
    )
    assert [
        each["prompt_progress"]["cache"]
        for each in events(client, prompt=prompt, n_predict=1, return_progress=True)
        if "prompt_progress" in each
    ][-1] == n - 1
    assert not any(
        "timings" in piece or "prompt_progress" in piece
        for piece in events(client, prompt=prompt, n_predict=3)[:-1]
    )


def test_a_limit_of_time_ends_an_answer_at_its_next_line(client: httpx.Client) -> None:
    asked = {
        "logit_bias": [["\n", 12]],
        "n_predict": 400,
        "ignore_eos": True,
        "temperature": 0,
        "return_tokens": True,
    }
    free, limited = (complete(client, PROMPT, t_max_predict_ms=limit, **asked) for limit in (0, 1))
    assert (free["stop_type"], free["tokens_predicted"], free["has_new_line"]) == ("limit", 400, True)
    assert (limited["stop_type"], limited["has_new_line"]) == ("limit", True)
    assert limited["tokens_predicted"] == len(limited["tokens"]) < 400
    assert limited["content"].endswith("\n")
    assert free["content"].startswith(limited["content"])


def test_a_grammar_and_a_schema_hold_an_answer(client: httpx.Client) -> None:
    for seed in range(4):
        assert complete(client, PROMPT, 8, grammar='root ::= "yes" | "no"', seed=seed)["content"] in (
            "yes",
            "no",
        )
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(4):
        answer = complete(client, PROMPT, 200, json_schema=schema, seed=seed)
        assert answer["stop_type"] == "eos"
        jsonschema.validate(json.loads(answer["content"]), schema)
    assert complete(client, PROMPT, 8, grammar='root ::= "yes"', json_schema=schema)["content"] == "yes"
    assert (
        complete(client, PROMPT, 8, grammar="", seed=1)["content"]
        == complete(client, PROMPT, 8, seed=1)["content"]
    )


def test_memory_is_looked_at_once_for_all_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    clock = SimpleNamespace(now=0.0)

    def look(llm: object) -> dict[str, Any]:
        looks.append(clock.now)
        return {"buffers": []}

    monkeypatch.setattr(memory, "memory_report", look)
    monkeypatch.setattr(memory, "time", SimpleNamespace(monotonic=lambda: clock.now))

    async def ask() -> None:
        found = memory.Memory(cast(Any, SimpleNamespace(llm=None)))
        for clock.now in 10.0, 10 + memory.SECONDS / 2, 10 + memory.SECONDS:
            assert await asyncio.gather(*(found.buffers() for _ in range(5))) == [[]] * 5

    asyncio.run(ask())
    assert looks == [10, 10 + memory.SECONDS]


def test_what_the_server_is(server: Serving, client: httpx.Client) -> None:
    for path in "/health", "/v1/health":
        assert client.get(path).json() == {"status": "ok"}
    complete(client, PROMPT, 1)
    props = client.get("/props").json()
    assert (props["total_slots"], props["model_alias"], props["default_generation_settings"]["n_ctx"]) == (
        4,
        "demo",
        1024,
    )
    assert (props["bos_token"], props["eos_token"]) == ("<|endoftext|>", "<|im_end|>")
    assert "<|im_start|>" in props["chat_template"]
    assert str(server.service.llm.file.path.parent) not in json.dumps(props)
    assert {"weights", "KV cache", "tokenizer", "Python and libraries"} <= {
        b["buffer"] for b in props["buffers"]
    }
    keys = {"buffer", "device", "layers", "type", "bytes", "resident", "cached"}
    assert all(buffer.keys() == keys for buffer in props["buffers"])
    (layers,) = (b for b in props["buffers"] if b["buffer"] == "weights" and b["layers"])
    model = server.service.llm.model
    assert (layers["layers"], layers["device"]) == (f"0-{model.config.n_layer - 1}", "cpu")
    of_layers = [t.n_bytes for t in model.file.tensors.values() if t.name.startswith("blk.")]
    assert layers["bytes"] == sum(of_layers)
    refused = client.post("/props", json={})
    assert (refused.status_code, refused.json()["error"]["type"]) == (501, "not_supported_error")


def test_slots_say_what_runs(server: Serving, client: httpx.Client) -> None:
    idle = client.get("/slots").json()
    assert idle == [{"id": i, "n_ctx": 1024, "speculative": False, "is_processing": False} for i in range(4)]
    assert client.get("/slots", params={"fail_on_no_slot": 1}).json() == idle

    tokens = post(client, "/tokenize", content=PROMPT)["tokens"]
    with ThreadPoolExecutor(1) as pool, held(server.service.llm.engine, n_tokens=1) as go:
        answer = pool.submit(complete, client, PROMPT, 9, seed=5, top_k=7, ignore_eos=True)
        until(
            lambda: any(
                "next_token" in slot and slot["next_token"][0]["n_decoded"]
                for slot in client.get("/slots").json()
            )
        )
        told = client.get("/slots")
        go.set()
        assert answer.result()["tokens_predicted"] == 9
    busy = told.json()[0]
    assert [slot["is_processing"] for slot in told.json()] == [True, False, False, False]
    assert (busy["params"]["seed"], busy["params"]["top_k"], busy["params"]["n_predict"]) == (5, 7, 9)
    assert (
        busy["n_prompt_tokens"]
        == len(tokens)
        == busy["n_prompt_tokens_processed"] + busy["n_prompt_tokens_cache"]
    )
    assert busy["next_token"] == [
        {"has_next_token": True, "has_new_line": False, "n_remain": 8, "n_decoded": 1}
    ]
    assert PROMPT not in told.text
