"""A model that is unloaded while nobody uses it (llama.cpp's README of its server, "Sleeping on Idle")."""

import asyncio
import gc
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from serving import Serving, serving, until

from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.network.load import load_model
from qwencli.server.service.presence import Presence

PROMPT = {"prompt": "Once upon a time", "n_predict": 8, "temperature": 0}
CHAT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    """It sleeps after half a second."""
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=512), sleep_idle_seconds=0.5, metrics=True) as server:
        yield server


def sleeps(server: Serving) -> bool:
    answer = httpx.get(server.url + "/props", timeout=60).raise_for_status().json()
    return bool(answer["is_sleeping"])


def sleep(server: Serving) -> None:
    until(lambda: sleeps(server))


def complete(server: Serving) -> str:
    answer = httpx.post(server.url + "/completion", json=PROMPT, timeout=60).raise_for_status()
    return str(answer.json()["content"])


def test_it_sleeps_and_the_next_request_gets_the_same_answer(server: Serving) -> None:
    before = complete(server)
    assert not sleeps(server)
    sleep(server)
    assert complete(server) == before
    assert not sleeps(server)


@pytest.mark.parametrize(
    "path",
    [
        "/health",
        "/v1/health",
        "/props",
        "/metrics",
        "/models",
        "/v1/models",
        "/api/tags",
        "/api/ps",
        "/api/version",
    ],
)
def test_what_only_tells_of_the_server_does_not_wake_it(server: Serving, path: str) -> None:
    complete(server)
    awake = httpx.get(server.url + path, timeout=60).raise_for_status()
    end = time.monotonic() + 20
    while not sleeps(server):  # and it doesn't count as use
        httpx.get(server.url + path, timeout=60).raise_for_status()
        assert time.monotonic() < end
    asleep = httpx.get(server.url + path, timeout=60).raise_for_status()
    assert sleeps(server)
    if path in ("/health", "/v1/models", "/api/tags"):
        assert asleep.json() == awake.json()
    if path == "/metrics":  # speeds are those since the last look: at the second one nothing had run
        seen = httpx.get(server.url + path, timeout=60).raise_for_status()
        assert cached(asleep.text) == cached(awake.text) == cached(seen.text)
    if path == "/api/ps":
        assert (len(awake.json()["models"]), asleep.json()["models"]) == (1, [])


def cached(metrics: str) -> list[str]:
    """What they say of the cache, of which there is something."""
    found = [line for line in metrics.splitlines() if line.startswith("llamacpp:kv_cache")]
    assert len(found) == 3
    assert not any(line.endswith(" 0") for line in found)
    return found


def test_what_is_told_of_the_model_stays_the_same(server: Serving) -> None:
    complete(server)
    awake = httpx.get(server.url + "/props", timeout=60).json()
    sleep(server)
    asleep = httpx.get(server.url + "/props", timeout=60).json()
    for name in awake.keys() - {"is_sleeping", "buffers"}:
        assert asleep[name] == awake[name], name


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", PROMPT),
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
        ("/v1/embeddings", {"input": "a king"}),
        ("/embedding", {"content": "a king"}),
        ("/tokenize", {"content": "Hello"}),
        ("/apply-template", CHAT),
        ("/api/generate", {"model": "any", "prompt": "a", "stream": False, "options": {"num_predict": 1}}),
        ("/api/embed", {"model": "any", "input": "a"}),
    ],
)
def test_what_needs_the_model_wakes_it(server: Serving, path: str, body: dict[str, object]) -> None:
    sleep(server)
    answer = httpx.post(server.url + path, json=body, timeout=60)
    assert answer.status_code == 200
    assert not sleeps(server)


def test_paths_and_methods_that_lead_nowhere_do_not_wake_it(server: Serving) -> None:
    sleep(server)
    assert httpx.get(server.url + "/nothing", timeout=60).status_code == 404
    assert httpx.get(server.url + "/completion", timeout=60).status_code == 405
    assert httpx.get(server.url + "/", timeout=60).status_code == 200
    assert sleeps(server)


def test_many_requests_wake_it_once(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = complete(server)
    sleep(server)
    loaded = []
    again = LLM.again

    def counted(llm: LLM) -> LLM:
        loaded.append(threading.current_thread())
        return again(llm)

    monkeypatch.setattr(LLM, "again", counted)
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda _: complete(server), range(8))) == [expected] * 8
    assert len(loaded) == 1
    assert loaded[0] not in (threading.main_thread(), server.service._thread)


def test_the_event_loop_goes_on_while_it_loads(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep(server)
    begun, go_on = threading.Event(), threading.Event()
    again = LLM.again

    def slow(llm: LLM) -> LLM:
        begun.set()
        assert go_on.wait(60)
        return again(llm)

    monkeypatch.setattr(LLM, "again", slow)
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(complete, server)
        try:
            assert begun.wait(60)
            for path in "/health", "/props", "/v1/models":
                assert httpx.get(server.url + path, timeout=10).status_code == 200
        finally:
            go_on.set()
        assert answer.result()


def test_a_client_that_leaves_while_it_loads_ends_nothing(
    server: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep(server)
    go_on = threading.Event()
    again = LLM.again

    def slow(llm: LLM) -> LLM:
        assert go_on.wait(60)
        return again(llm)

    monkeypatch.setattr(LLM, "again", slow)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + "/completion", json=PROMPT, timeout=0.5)
    go_on.set()
    assert complete(server)


def test_a_long_answer_counts_as_use() -> None:
    with serving(LLM(EMBEDDED, n_threads=2, n_ctx=100_000), sleep_idle_seconds=0.2) as server:
        long = PROMPT | {"n_predict": 90_000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", server.url + "/completion", json=long, timeout=60) as answer:
            parts = answer.iter_text()
            end = time.monotonic() + 1
            while time.monotonic() < end:
                assert "data: " in next(parts)
                assert not sleeps(server)
        sleep(server)


def test_a_file_that_is_gone_is_an_error_of_the_request_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(EMBEDDED, path)
    with serving(LLM(path, n_threads=2, n_ctx=512), sleep_idle_seconds=0.2) as server:
        expected = complete(server)
        sleep(server)
        path.rename(tmp_path / "elsewhere.gguf")
        for _ in range(2):
            answer = httpx.post(server.url + "/completion", json=PROMPT, timeout=60)
            assert answer.status_code == 500
            assert str(tmp_path) not in answer.text
            assert sleeps(server)
        (tmp_path / "elsewhere.gguf").rename(path)
        assert complete(server) == expected


def test_a_file_that_is_gone_before_it_sleeps_keeps_it_awake(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(EMBEDDED, path)
    with serving(LLM(path, n_threads=2, n_ctx=512), sleep_idle_seconds=0.2) as server:
        path.unlink()
        time.sleep(1)
        assert not sleeps(server)
        assert complete(server)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("use_mmap", [True, False])
def test_the_memory_is_given_back(tmp_path: Path, use_mmap: bool) -> None:
    """Asleep, the process has no more of the file than opening it takes, nothing of the cache, and no more threads."""
    path = tmp_path / "weights-of-this-test.gguf"
    shutil.copy(EMBEDDED, path)
    file = GGUFFile(path)
    model = load_model(file)
    opened, n_tensors = resident(path), len(file.tensors)
    del file, model
    llm = LLM(path, n_threads=2, n_ctx=4096, use_mmap=use_mmap)
    with serving(llm, sleep_idle_seconds=0.5) as server:
        del llm
        complete(server)
        n_threads = threading.active_count()
        weights = weak(server)
        sleep(server)
        until(lambda: not any(ref() for ref in weights))
        assert threading.active_count() <= n_threads
        if use_mmap:
            # a row of each tensor is looked at, and the system maps 64 KiB around it
            assert resident(path) <= opened + 2**16 * n_tensors < path.stat().st_size
        complete(server)
        assert resident(path) > 0 or not use_mmap


def weak(server: Serving) -> list[object]:
    import weakref

    llm = server.service.llm
    return [weakref.ref(llm.engine.backend), weakref.ref(llm.file), weakref.ref(llm.engine)]


def resident(path: Path) -> int:
    """Bytes of a file that this process has in memory."""
    found, counts = 0, False
    for line in Path("/proc/self/smaps").read_text(errors="replace").splitlines():
        if "-" in line.partition(" ")[0]:
            counts = line.endswith(os.fspath(path))
        elif counts and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


def test_ollamas_client_unloads_it() -> None:
    import ollama

    with serving() as server:
        client = ollama.Client(server.url)
        assert client.generate("any", keep_alive=0).done_reason == "unload"
        until(lambda: sleeps(server))
        assert client.ps().models == []
        assert client.generate("any", "Hello", options={"num_predict": 1}).done
        assert not sleeps(server)


def test_without_the_option_it_never_sleeps() -> None:
    with serving() as server:
        time.sleep(1)
        assert not sleeps(server)


@pytest.fixture
def frozen() -> Iterator[int]:
    """How many objects garbage collections don't look at, as in a server that has warmed up."""
    gc.freeze()
    yield gc.get_freeze_count()
    gc.unfreeze()


def test_collections_look_at_no_model_that_is_loaded_again(frozen: int) -> None:
    async def run() -> None:
        presence = Presence(lambda: None, lambda: None)
        presence.unload_soon()
        async with presence.use():
            pass
        while not presence.asleep:
            await asyncio.sleep(0.001)
        assert gc.get_freeze_count() == 0  # or nothing of the model that was there would ever be collected
        async with presence.use():
            assert gc.get_freeze_count() > 0

    asyncio.run(run())


def test_collections_look_at_no_model_of_bodies(frozen: int) -> None:
    """These are built after the server has begun to listen."""
    with serving():
        until(lambda: gc.get_freeze_count() > frozen)
