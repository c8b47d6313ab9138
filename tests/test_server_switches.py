"""What a server's options turn on and off, and what it counts. Statuses and kinds of error are llama-server's."""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serving import Serving, serving

GENERATING = [
    ("/completion", {"prompt": "a", "n_predict": 1}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
    ("/api/generate", {"model": "any", "prompt": "a", "stream": False}),
    ("/api/chat", {"model": "any", "messages": [{"role": "user", "content": "a"}]}),
    ("/completion", {"prompt": "a", "n_predict": 1, "stream": True}),
]


@pytest.fixture(scope="module")
def off() -> Iterator[Serving]:
    with serving(metrics=False, slots=False) as server:
        yield server


@pytest.mark.parametrize(
    ("method", "path", "option"), [("GET", "/metrics", "--metrics"), ("POST", "/props", "--props")]
)
def test_endpoints_that_are_off_say_how_they_are_turned_on(
    off: Serving, method: str, path: str, option: str
) -> None:
    answer = httpx.request(method, off.url + path, timeout=60)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (501, 501, "not_supported_error")
    assert option in error["message"]


def test_props_tells_which_are_on(off: Serving) -> None:
    props = httpx.get(off.url + "/props", timeout=60).json()
    assert [props[f"endpoint_{name}"] for name in ("slots", "metrics", "props")] == [False, False, False]
    with serving(props=True) as on:
        props = httpx.get(on.url + "/props", timeout=60).json()
        assert [props[f"endpoint_{name}"] for name in ("slots", "metrics", "props")] == [True, True, True]
        assert httpx.post(on.url + "/props", json={}, timeout=60).json() == {"success": True}
        assert httpx.get(on.url + "/slots", timeout=60).status_code == 200
        assert httpx.get(on.url + "/metrics", timeout=60).status_code == 200


@pytest.mark.parametrize("only", ["embeddings", "rerank"])
def test_a_server_for_embeddings_or_ranks_generates_nothing(only: str) -> None:
    with serving(only=only) as server:
        for path, body in GENERATING:
            answer = httpx.post(server.url + path, json=body, timeout=60)
            assert answer.status_code == 501, path
            assert "start it without --" + only.rstrip("s") in answer.text
        for path, body in ("/v1/embeddings", {"input": "a"}), ("/tokenize", {"content": "a"}):
            assert httpx.post(server.url + path, json=body, timeout=60).status_code == 200


def figures(server: Serving) -> dict[str, float]:
    text = httpx.get(server.url + "/metrics", timeout=60).raise_for_status().text
    return {name: float(value) for name, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.M)}


def test_texts_that_are_embedded_are_counted() -> None:
    with serving() as server:
        before = figures(server)
        answer = httpx.post(server.url + "/v1/embeddings", json={"input": ["a king", "a queen"]}, timeout=60)
        after = figures(server)

        def more(name: str) -> float:
            return after[name] - before[name]

        n = answer.json()["usage"]["prompt_tokens"]
        assert (more("embedding_texts_total"), more("embedding_tokens_total")) == (2, n)
        assert more("prompt_tokens_total") == n
        assert more("prompt_seconds_total") > 0
        httpx.post(server.url + "/embedding", json={"content": "a king"}, timeout=60)
        assert figures(server)["embedding_texts_total"] == 3


# The cache, and slots


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(n_slots=2) as server:
        yield server


def complete(server: Serving, prompt: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, **body}
    answer = httpx.post(server.url + "/completion", json=body, timeout=60).raise_for_status().json()
    assert isinstance(answer, dict)
    return answer


def test_without_the_cache_nothing_is_taken_and_nothing_kept(server: Serving) -> None:
    prompt = "A story of two mice who lived in a small house by the sea."
    for _ in range(2):
        first = complete(server, prompt, cache_prompt=False)
        assert first["timings"]["cache_n"] == 0
        assert first["timings"]["prompt_n"] == first["tokens_evaluated"]
    kept = complete(server, prompt)
    assert kept["timings"]["cache_n"] == 0  # those before it left nothing
    n = kept["tokens_evaluated"]
    assert complete(server, prompt)["timings"]["cache_n"] == n - 1
    assert complete(server, prompt, cache_prompt=False)["timings"]["cache_n"] == 0
    again = complete(server, prompt)
    assert again["timings"]["cache_n"] == n - 1  # it took nothing away either
    assert again["content"] == first["content"] == kept["content"]


def test_the_server_may_have_it_off_for_all(server: Serving) -> None:
    with serving(cache_prompt=False) as off:
        for expected in 0, 0:
            assert complete(off, "Once upon a time")["timings"]["cache_n"] == expected
        assert figures(off)["kv_cache_sequences"] == 0
        complete(off, "Once upon a time", cache_prompt=True)
        assert complete(off, "Once upon a time", cache_prompt=True)["timings"]["cache_n"] > 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_in_openais_api(server: Serving, path: str) -> None:
    text = "Once there was a king who had a horse."
    body = {"max_tokens": 2, "prompt": text, "messages": [{"role": "user", "content": text}]}
    for expected in 0, 0:
        answer = httpx.post(server.url + path, json=body | {"cache_prompt": False}, timeout=60).json()
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == expected


@pytest.mark.parametrize(("id_slot", "slot"), [(0, 0), (1, 1), (2, 0), (5, 1), (2**31 - 1, 1)])
def test_a_request_runs_in_its_slot(server: Serving, id_slot: int, slot: int) -> None:
    """Numbers beyond the last slot begin again at the first, as in llama-server."""
    assert complete(server, "Hello", id_slot=id_slot)["id_slot"] == slot


def test_it_waits_for_its_slot_and_holds_up_no_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    from serving import endless, until

    with serving(endless(), n_slots=2) as server:
        long = {"prompt": "a", "n_predict": 90_000, "ignore_eos": True, "stream": True, "id_slot": 1}
        with ThreadPoolExecutor(1) as threads:
            with httpx.stream("POST", server.url + "/completion", json=long, timeout=60) as answer:
                parts = answer.iter_text()
                next(parts)
                waits = threads.submit(complete, server, "Hello", id_slot=1)
                until(lambda: server.service.n_waiting == 1)
                for _ in range(3):
                    assert complete(server, "Hello")["id_slot"] == 0
                assert complete(server, "Hello", id_slot=0)["id_slot"] == 0
                assert not waits.done()
                assert server.service.n_waiting == 1
            assert waits.result(60)["id_slot"] == 1


def test_who_takes_any_slot_leaves_those_that_others_wait_for() -> None:
    from qwencli.hub.places import EMBEDDED
    from qwencli.llm import LLM
    from qwencli.request.request import Request
    from qwencli.server.service.service import Service

    service = Service(LLM(EMBEDDED, n_threads=1, n_ctx=64), n_slots=3)
    llm = service.llm
    requests = [Request([1], llm.sampling(), slot=slot) for slot in (None, 0, 1, 0, None)]
    for request in requests:
        service.generate(request)
    order = []
    while found := service._next():
        generation, slot = found
        service._waiting.remove(generation)
        service._slots[slot] = generation
        order.append((generation.wanted, slot))
    assert order == [(None, 2), (0, 0), (1, 1)]
    assert [generation.wanted for generation in service._waiting] == [0, None]
