"""Chats in files: readable, whole, and read with suspicion."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.transcript import MAX_BYTES, Transcript, load, save
from qwencli.errors import FormatError, InputError, QwenError
from qwencli.sampling import SamplingParams

CALL = {"id": "call_0", "type": "function", "function": {"name": "find", "arguments": '{"what": "é"}'}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": '你好 👩‍👩‍👧 \x1b[2J\u2028\n"quoted"'},
    {"role": "assistant", "content": "", "reasoning_content": "hm\n", "tool_calls": [CALL]},
    {"role": "tool", "content": "42", "tool_call_id": "call_0", "name": "find"},
    {"role": "assistant", "content": "42"},
]
TRANSCRIPT = Transcript(
    "tiny.gguf",
    Settings(SamplingParams(temp=0.5, seed=3, logit_bias=((3, float("-inf")),)), 100, True, 20),
    MESSAGES,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.json"
    save(path, TRANSCRIPT)
    return path


def test_what_is_saved_is_loaded(file: Path) -> None:
    assert load(file) == TRANSCRIPT
    assert load(str(file)) == TRANSCRIPT


def test_it_is_readable(file: Path) -> None:
    """By people, and by any reader of JSON: no NaN and no infinity."""
    text = file.read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
    assert list(content) == ["format", "version", "model", "settings", "messages"]
    assert (content["format"], content["version"], content["model"]) == ("qwencli chat", 1, "tiny.gguf")
    assert content["messages"] == MESSAGES
    assert content["settings"]["temp"] == 0.5
    assert '      "content": "42",\n' in text
    assert "你好 👩‍👩‍👧" in text
    assert text.endswith("}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are POSIX's")
def test_only_its_owner_reads_it(file: Path) -> None:
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_transcript_is_overwritten_and_nothing_else(file: Path, tmp_path: Path) -> None:
    other = TRANSCRIPT._replace(messages=MESSAGES[:2])
    save(file, other)
    assert load(file) == other
    foreign = tmp_path / "notes.txt"
    foreign.write_text("my notes", encoding="utf-8")
    with pytest.raises(
        InputError,
        match=r"notes\.txt: not a transcript of qwencli, so it is left alone; /save! overwrites it$",
    ):
        save(foreign, other)
    assert foreign.read_text(encoding="utf-8") == "my notes"
    save(foreign, other, overwrite=True)
    assert load(foreign) == other
    empty = tmp_path / "empty"
    empty.touch()
    save(empty, other)
    assert load(empty) == other
    assert sorted(os.listdir(tmp_path)) == ["chat.json", "empty", "notes.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX's devices")
@pytest.mark.parametrize("path", [".", "missing/chat.json", "/dev/null", "chat.json/x"])
def test_where_nothing_can_be_written(
    file: Path, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for overwrite in False, True:
        with pytest.raises(QwenError) as error:
            save(path, TRANSCRIPT, overwrite)
        assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == ["chat.json"]
    assert not Path("/dev/null").is_file()


def test_a_write_that_fails_leaves_the_old_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(QwenError, match=r"chat.json: cannot be written: No space left on device$"):
        save(file, TRANSCRIPT._replace(messages=[]))
    assert load(file) == TRANSCRIPT
    assert os.listdir(tmp_path) == ["chat.json"]


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for path in tmp_path / "missing", tmp_path:
        with pytest.raises(QwenError, match=": cannot be read: "):
            load(path)
    large = tmp_path / "large"
    with open(large, "wb") as f:
        f.truncate(MAX_BYTES + 1)
    with pytest.raises(FormatError, match="large: larger than 64 MB"):
        load(large)


GOOD: dict[str, Any] = {
    "format": "qwencli chat",
    "version": 1,
    "model": "m",
    "settings": {},
    "messages": [{"role": "user", "content": "?"}],
}


def with_message(**changed: Any) -> dict[str, Any]:
    """A transcript with one message that differs; None leaves a key out."""
    return GOOD | {"messages": [{k: v for k, v in (GOOD["messages"][0] | changed).items() if v is not None}]}


def with_call(**changed: Any) -> dict[str, Any]:
    return with_message(role="assistant", tool_calls=[CALL | changed])


WRONG: dict[str, bytes | dict[str, Any]] = {
    "empty": b"",
    "no JSON": b"hello",
    "cut": json.dumps(GOOD).encode()[:-1],
    "no UTF-8": b'{"format": "\xff"}',
    "a list": b"[]",
    "a number": b"5",
    "deep": b"[" * 10**6,
    "deep object": b'{"a":' * 10**5,
    "a long number": b"9" * 10**5,
    "zeros": bytes(1000),
    "a GGUF file": b"GGUF\x03\0\0\0",
    "format": GOOD | {"format": "other"},
    "no format": {"messages": []},
    "version": GOOD | {"version": 2},
    "version as text": GOOD | {"version": "1"},
    "model": GOOD | {"model": 5},
    "no model": {k: v for k, v in GOOD.items() if k != "model"},
    "settings": GOOD | {"settings": []},
    "messages": GOOD | {"messages": {}},
    "unknown setting": GOOD | {"settings": {"tmp": 1}},
    "setting of a wrong type": GOOD | {"settings": {"temp": "1"}},
    "setting out of range": GOOD | {"settings": {"top_p": 2}},
    "NaN": GOOD | {"settings": {"temp": float("nan")}},
    "tools": GOOD | {"settings": {"tools": []}},
    "sampling": GOOD | {"settings": {"sampling": {}}},
    "bias": GOOD | {"settings": {"logit_bias": "3"}},
    "max_tokens": GOOD | {"settings": {"max_tokens": -1}},
    "message": GOOD | {"messages": ["hello"]},
    "role": with_message(role="root"),
    "no role": with_message(role=None),
    "a list as role": with_message(role=["user"]),
    "no content": with_message(content=None),
    "content": with_message(content=["hello"]),
    "half a character": with_message(content="\ud83d"),
    "name": with_message(name=5),
    "reasoning": with_message(role="assistant", reasoning_content=["hm"]),
    "calls": with_message(role="assistant", tool_calls={}),
    "call": with_message(role="assistant", tool_calls=[5]),
    "call of no function": with_call(type="code"),
    "call without id": with_call(id=5),
    "arguments": with_call(function={"name": "find", "arguments": {}}),
    "function": with_call(function=5),
    "late system message": GOOD | {"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]},
}


def test_the_good_one_is_good(tmp_path: Path) -> None:
    for i, content in enumerate([GOOD, with_call(), with_message(content="\x00")]):
        (tmp_path / f"{i}").write_text(json.dumps(content), encoding="utf-8")
        load(tmp_path / f"{i}")


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_transcript(tmp_path: Path, what: str) -> None:
    content = WRONG[what]
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(FormatError, match=r"x\.json: not a transcript: \S") as error:
        load(path)
    assert "\n" not in str(error.value)
