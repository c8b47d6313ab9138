"""What llama.cpp's API tells of the server, and which of llama-server's endpoints it refuses."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from llamacpp_client import complete, events, greedy, post
from prometheus_client.parser import text_string_to_metric_families
from serving import serving

from qwencli.server.llamacpp.absent import ABSENT

PROPS = """
default_generation_settings total_slots model_alias model_ftype model_path modalities media_marker
endpoint_slots endpoint_props endpoint_metrics ui ui_settings chat_template chat_template_caps bos_token
eos_token build_info is_sleeping cors_proxy_enabled
"""
"""The fields of llama-server's /props."""
SETTINGS = """
seed temperature dynatemp_range dynatemp_exponent top_k top_p min_p top_n_sigma xtc_probability xtc_threshold
typical_p repeat_last_n repeat_penalty presence_penalty frequency_penalty dry_multiplier dry_base
dry_allowed_length dry_penalty_last_n mirostat mirostat_tau mirostat_eta adaptive_target adaptive_decay
max_tokens n_predict n_keep n_discard ignore_eos stream n_probs min_keep chat_format reasoning_format
reasoning_in_content generation_prompt samplers speculative.types timings_per_token post_sampling_probs
backend_sampling lora
"""
MORE = """
dry_sequence_breakers stop logit_bias grammar grammar_lazy grammar_triggers preserved_tokens
"""
"""The settings of an answer that /props leaves out."""


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    settings = {
        "metrics": True,
        "props": True,
        "aliases": ("a", "b"),
        "tags": ("x",),
        "name": "a",
        "ui_config": {"theme": 1},
    }
    with serving(n_slots=2, **settings) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_properties_have_all_fields_of_llama_server(client: httpx.Client) -> None:
    props = client.get("/props").json()
    assert props.keys() >= set(PROPS.split())
    params = props["default_generation_settings"]["params"]
    assert params.keys() >= set(SETTINGS.split())
    assert params["adaptive_target"] == -1.0
    assert props["model_path"].endswith(".gguf")
    assert "/" not in props["model_path"]
    assert props["model_ftype"] == "Q4_K_M"
    assert (props["endpoint_slots"], props["endpoint_props"], props["endpoint_metrics"]) == (True, True, True)
    assert props["ui_settings"] == {"theme": 1}
    # what llama-server says of this template
    assert props["chat_template_caps"]["supports_tools"] is True
    assert props["chat_template_caps"]["supports_typed_content"] is False
    assert post(client, "/props") == {"success": True}
    used = greedy(client, "Once", 1)["generation_settings"]
    assert used.keys() >= {*SETTINGS.split(), *MORE.split()}


def test_properties_say_what_is_off() -> None:
    with serving(slots=False, metrics=False) as server:
        props = httpx.get(server.url + "/props").json()
        assert (props["endpoint_slots"], props["endpoint_props"], props["endpoint_metrics"]) == (False,) * 3
        for method, path, option in (
            ("POST", "/props", "--props"),
            ("GET", "/metrics", "--metrics"),
            ("GET", "/slots", "--no-slots"),
        ):
            answer = httpx.request(method, server.url + path)
            assert answer.status_code == 501
            assert option in answer.json()["error"]["message"]


def test_the_model_has_its_names_and_figures(client: httpx.Client) -> None:
    for path in "/models", "/v1/models":
        found = client.get(path).json()
        (model,), (named,) = found["data"], found["models"]
        assert (model["id"], model["aliases"], model["tags"]) == ("a", ["a", "b"], ["x"])
        assert {
            "vocab_type",
            "n_vocab",
            "n_ctx",
            "n_ctx_train",
            "n_embd",
            "n_params",
            "size",
            "ftype",
        } <= model["meta"].keys()
        assert model["meta"]["ftype"] == "Q4_K_M"
        assert (named["name"], named["model"], named["capabilities"]) == ("a", "a", ["completion"])
        assert named["details"]["format"] == "gguf"
    assert client.get("/v1/models/b").json()["id"] == "a"
    assert client.get("/v1/models/c").status_code == 404


def figures(client: httpx.Client) -> dict[str, float]:
    text = client.get("/metrics").text
    names = [line.split()[0] for line in text.splitlines() if not line.startswith("#")]
    for name in names:
        assert f"# HELP {name} " in text
        assert f"# TYPE {name} " in text
    assert list(text_string_to_metric_families(text))
    return {
        name.removeprefix("llamacpp:"): float(line.split()[1])
        for line in text.splitlines()
        for name in line.split()[:1]
        if name in names
    }


def test_speeds_are_those_since_the_last_look(client: httpx.Client) -> None:
    complete(client, "Once upon a time", 8)
    answer = client.get("/metrics")
    assert abs(int(answer.headers["Process-Start-Time-Unix"]) - time.time()) < 3600
    complete(client, "Once upon a time in a town", 8)
    now = figures(client)
    assert now["predicted_tokens_seconds"] > 0 < now["prompt_tokens_seconds"]
    later = figures(client)
    assert later["predicted_tokens_seconds"] == later["prompt_tokens_seconds"] == 0
    assert later["tokens_predicted_total"] == now["tokens_predicted_total"]
    assert later["n_tokens_max"] >= 16


def test_headers_are_written_as_llama_server_writes_them(client: httpx.Client) -> None:
    names = {name for name, _ in client.get("/metrics").headers.raw}
    assert {b"Process-Start-Time-Unix", b"Content-Type", b"Content-Length", b"X-Request-Id"} <= names


def test_texts_that_are_embedded_count(client: httpx.Client) -> None:
    before = figures(client)
    texts = ["a king", "hello world, " * 20]
    n = sum(len(post(client, "/tokenize", content=text)["tokens"]) for text in texts)
    post(client, "/embedding", content=texts)
    after = figures(client)
    assert after["prompt_tokens_total"] - before["prompt_tokens_total"] == n
    assert after["n_decode_total"] - before["n_decode_total"] == 2
    assert after["prompt_seconds_total"] > before["prompt_seconds_total"]
    assert after["tokens_predicted_total"] == before["tokens_predicted_total"]


@pytest.mark.parametrize(("path", "method", "status", "reason"), ABSENT)
def test_what_is_absent_says_why(
    client: httpx.Client, path: str, method: str, status: int, reason: str
) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["message"]) == (status, reason)
    assert answer.json()["error"]["type"] == {403: "permission_error", 501: "not_supported_error"}[status]


def test_there_are_no_adapters(client: httpx.Client) -> None:
    assert client.get("/lora-adapters").json() == []
    assert client.post("/lora-adapters", json=[]).json() == {"success": True}
    assert client.post("/lora-adapters", json=[{"id": 0, "scale": 1}]).status_code == 400
    for wrong in {}, [{}], [{"id": "a", "scale": 1}], "x":
        assert client.post("/lora-adapters", json=wrong).status_code == 400
    assert greedy(client, "Once", 1, lora=[])["content"]


def test_probabilities_as_the_samplers_left_them(client: httpx.Client) -> None:
    """Names and rules: llama.cpp's server README, `post_sampling_probs`."""
    body: dict[str, Any] = {
        "n_probs": 4,
        "post_sampling_probs": True,
        "top_k": 3,
        "seed": 1,
        "temperature": 1.5,
    }
    answer = complete(client, "Once upon a time", 6, **body, top_p=1, min_p=0)
    assert answer["generation_settings"]["post_sampling_probs"] is True
    for token in answer["completion_probabilities"]:
        assert token.keys() == {"id", "token", "bytes", "prob", "top_probs"}
        shares = [other["prob"] for other in token["top_probs"]]
        assert shares == sorted(shares, reverse=True)
        assert math.isclose(sum(shares), 1, rel_tol=1e-6)
        assert 0 < token["prob"] <= 1
        assert token["prob"] in shares or any(math.isclose(token["prob"], share) for share in shares)
    likeliest = complete(client, "Once upon a time", 3, **body | {"temperature": 0})
    for token in likeliest["completion_probabilities"]:
        assert token["prob"] == 1
        assert [other["prob"] for other in token["top_probs"]] == [1]
    streamed = events(client, prompt="Once upon a time", n_predict=3, **body)
    assert "prob" in streamed[0]["completion_probabilities"][0]


def test_adaptive_p_is_asked_for_by_llama_cpps_names(client: httpx.Client) -> None:
    asked = {
        "samplers": ["top_k", "temperature", "adaptive_p"],
        "adaptive_target": 0.3,
        "adaptive_decay": 0.5,
        "seed": 3,
    }
    answer = complete(client, "Once upon a time", 12, **asked)
    used = answer["generation_settings"]
    assert (used["adaptive_target"], used["adaptive_decay"], used["samplers"]) == (
        0.3,
        0.5,
        asked["samplers"],
    )
    assert complete(client, "Once upon a time", 12, **asked)["content"] == answer["content"]
    assert (
        complete(client, "Once", 1, adaptive_target=7, adaptive_decay=3)["generation_settings"][
            "adaptive_decay"
        ]
        == 0.99
    )
