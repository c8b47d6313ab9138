"""Slots saved to files, restored and erased, over real HTTP: figures are those that llama-server's documentation promises."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from demo_with import demo_with
from llamacpp_client import greedy
from serving import Serving, serving

from qwencli.llm import LLM
from qwencli.server.llamacpp.endpoints import LLAMACPP

FRANCE, GERMANY = "What is the capital of France?", "What is the capital of Germany?"


@contextmanager
def asked(llm: LLM | None = None, n_slots: int = 1, **settings: Any) -> Iterator[httpx.Client]:
    """A client of a server of its own."""
    with (
        serving(llm, n_slots, apis=[LLAMACPP], **settings) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(n_slots=1, apis=[LLAMACPP], slot_save_path=tmp_path) as running:
        yield running


@pytest.fixture
def client(server: Serving) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def act(client: httpx.Client, action: str, name: str | None = "a.bin", slot: Any = 0) -> httpx.Response:
    return client.post(f"/slots/{slot}?action={action}", json={} if name is None else {"filename": name})


def done(client: httpx.Client, action: str, name: str | None = "a.bin") -> Any:
    answer = act(client, action, name)
    assert answer.status_code == 200, answer.text
    return answer.json()


def forget_all(server: Serving) -> None:
    while server.service.llm.engine.prefixes.make_room():
        pass


def test_what_is_saved_needs_no_computing_after_it_is_restored(
    server: Serving, client: httpx.Client, tmp_path: Path
) -> None:
    first = greedy(client, FRANCE, 16)
    n_prompt = first["timings"]["prompt_n"]
    saved = done(client, "save")
    # the last token was drawn and not read
    assert saved == {
        "id_slot": 0,
        "filename": "a.bin",
        "n_saved": n_prompt + first["tokens_predicted"] - 1,
        "n_written": (tmp_path / "a.bin").stat().st_size,
        "timings": saved["timings"],
    }
    assert saved["timings"]["save_ms"] > 0
    forget_all(server)
    restored = done(client, "restore")
    assert (restored["n_restored"], restored["n_read"]) == (saved["n_saved"], saved["n_written"])
    again = greedy(client, FRANCE, 16)
    assert (again["timings"]["prompt_n"], again["content"]) == (1, first["content"])
    other = greedy(client, GERMANY, 4)
    assert 0 < other["timings"]["prompt_n"] < n_prompt


def test_a_slot_may_be_saved_in_another_process_and_before_its_first_request(tmp_path: Path) -> None:
    with asked(slot_save_path=tmp_path) as client:
        assert done(client, "save", "empty")["n_saved"] == 0
        first = greedy(client, FRANCE, 8)
        done(client, "save")
    with asked(n_slots=2, slot_save_path=tmp_path) as client:
        assert act(client, "restore", slot=1).json()["id_slot"] == 1
        assert done(client, "restore", "empty")["n_restored"] == 0
        assert greedy(client, FRANCE, 8)["timings"]["prompt_n"] == 1
        assert greedy(client, FRANCE, 8)["content"] == first["content"]


def test_an_erased_slot_leaves_nothing(client: httpx.Client) -> None:
    n_prompt = greedy(client, FRANCE, 8)["timings"]["prompt_n"]
    assert done(client, "erase", None) == {"id_slot": 0, "n_erased": n_prompt + 7}
    assert greedy(client, FRANCE, 8)["timings"]["prompt_n"] == n_prompt
    assert done(client, "erase", None)["n_erased"] == n_prompt + 7
    assert done(client, "erase", None)["n_erased"] == 0


def test_only_what_the_slot_had_is_saved_when_others_went_on_from_it(client: httpx.Client) -> None:
    """The sequence that goes on takes the other's place in the cache."""
    first = greedy(client, FRANCE, 4)
    n = first["timings"]["prompt_n"] + 3
    greedy(client, FRANCE + first["content"] + " And then they all went home", 4)
    assert done(client, "save")["n_saved"] > n
    assert done(client, "erase", None)["n_erased"] > n


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "..\\a",
        "a..b",
        "a\x00",
        "a\n",
        "a ",
        " a",
        "a.",
        "C:a",
        "a*",
        "a" * 256,
        "\u2215etc",
        "\uff0e\uff0e",
        "\ufeffa",
        "\u0085",
        "é" * 200,
    ],
)
def test_names_that_lead_elsewhere(client: httpx.Client, tmp_path: Path, name: str) -> None:
    for action in "save", "restore":
        answer = act(client, action, name)
        assert answer.status_code == 400
        assert str(tmp_path) not in answer.text
    assert list(tmp_path.iterdir()) == []


def test_names_may_be_of_any_script(client: httpx.Client, tmp_path: Path) -> None:
    for name in "slot 1.bin", "日本", "-rf", "é" * 100:
        assert done(client, "save", name)["filename"] == name
        assert (tmp_path / name).is_file()


def refused(client: httpx.Client, status: int, *args: Any, **kwargs: Any) -> str:
    answer = act(client, *args, **kwargs)
    assert answer.status_code == status, answer.text
    return str(answer.json()["error"]["message"])


@pytest.mark.parametrize("slot", [1, -1, "x", "1e3", "٣", 10**30])
def test_slots_that_are_not_there(client: httpx.Client, slot: Any) -> None:
    assert "Invalid slot ID" in refused(client, 400, "save", slot=slot)


def test_actions_that_are_not_there(client: httpx.Client) -> None:
    assert "Invalid action" in refused(client, 400, "eat")
    assert "Invalid action" in client.post("/slots/0", json={}).json()["error"]["message"]
    assert "filename" in refused(client, 400, "save", None)


def test_files_that_are_damaged_or_of_another_model_change_nothing(
    client: httpx.Client, server: Serving, tmp_path: Path
) -> None:
    greedy(client, FRANCE, 8)
    n = done(client, "save")["n_saved"]
    data = (tmp_path / "a.bin").read_bytes()
    wrong = {
        "cut": data[:-100],
        "longer": data + b"x",
        "other": b"GGUF" + data[4:],
        "empty": b"",
        "changed": data[:-4000] + bytes([data[-4000] ^ 1]) + data[-3999:],
        "header": data[:24] + bytes([data[24] ^ 1]) + data[25:],
        "tokens": data.replace(b'"n_tokens": ', b'"n_tokens":9', 1),
        "huge": data[:20] + struct.pack("<I", 2**32 - 1) + data[24:],
    }
    for name, content in wrong.items():
        (tmp_path / name).write_bytes(content)
        message = refused(client, 400, "restore", name)
        assert str(tmp_path) not in message
        assert "\n" not in message
    (tmp_path / "folder").mkdir()
    for name in "missing", "folder":
        assert str(tmp_path) not in refused(client, 400, "restore", name)
    assert str(tmp_path) not in refused(client, 400, "save", "folder")
    assert done(client, "save", "again")["n_saved"] == n
    assert greedy(client, FRANCE, 8)["timings"]["prompt_n"] == 1

    other = LLM(demo_with(tmp_path / "other.gguf", general__name="another"), n_threads=2)
    with asked(other, slot_save_path=tmp_path) as client:
        assert "another model" in refused(client, 400, "restore")
        assert greedy(client, FRANCE, 8)["timings"]["cache_n"] == 0
    q8 = LLM(server.service.llm.file.path, n_threads=2, cache_type_k="q8_0")
    with asked(q8, slot_save_path=tmp_path) as client:
        assert "cache types" in refused(client, 400, "restore")


def test_a_slot_that_is_busy_is_waited_for(client: httpx.Client, server: Serving) -> None:
    body = {"prompt": "Once", "n_predict": 200, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/completion", json=body) as response:
        parts = response.iter_raw()  # closed as soon as it is forgotten
        next(parts)
        n = done(httpx.Client(base_url=server.url, timeout=60), "save")["n_saved"]
    assert (
        n
        == client.post("/completion", json={"prompt": "Once", "n_predict": 1}).json()["tokens_evaluated"]
        + 200
        - 1
    )


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with asked(slot_save_path=tmp_path / "gone") as client:
        answer = act(client, "save")
    assert answer.status_code >= 400
    assert str(tmp_path) not in answer.text


def test_without_a_folder_nothing_is_saved() -> None:
    with (
        serving(n_slots=1, apis=[LLAMACPP]) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for action in "save", "restore", "erase":
            assert "--slot-save-path" in refused(client, 501, action)


def test_slots_can_be_hidden() -> None:
    with serving(n_slots=1, apis=[LLAMACPP], slots=False) as server:
        assert httpx.get(server.url + "/slots").status_code == 501
