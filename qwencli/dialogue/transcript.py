"""Conversations in files: readable JSON, with the messages in OpenAI's form."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import FormatError, InputError, QwenError
from ..sampling import SamplingParams
from ..system.files import read_file, replacing
from .dialogue import Settings
from .settings import changed, values

if TYPE_CHECKING:
    from ..text.chat.template import Message

FORMAT, VERSION = "qwencli chat", 1
MAX_BYTES = 64 * 2**20
ROLES = ("system", "user", "assistant", "tool")


class Transcript(NamedTuple):
    """A conversation, its settings, and the name of the model that answered."""

    model: str
    settings: Settings
    messages: Sequence[Message]


def save(path: str | os.PathLike[str], transcript: Transcript, overwrite: bool = False) -> None:
    """Write a transcript, whole or not at all, readable only by the user.

    A file that isn't a transcript is left alone unless `overwrite`. Raises InputError for one, QwenError if nothing can be written.
    """
    if not overwrite and os.path.exists(path) and not _may_go(path):
        raise InputError(f"{path}: not a transcript of qwencli, so it is left alone; /save! overwrites it")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": transcript.model,
        "settings": values(transcript.settings),
        "messages": list(transcript.messages),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with replacing(path) as f:
        f.write(text.encode() + b"\n")


def _may_go(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.getsize(path) == 0 or bool(load(path))
    except FormatError:
        return False
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def load(path: str | os.PathLike[str]) -> Transcript:
    """Read a transcript. Raises FormatError if it isn't one, QwenError if it can't be read."""
    raw = read_file(path, MAX_BYTES)
    if len(raw) > MAX_BYTES:
        raise FormatError(f"{path}: larger than {MAX_BYTES // 2**20} MB, so not a transcript")
    try:
        return _parsed(raw)
    except RecursionError:
        raise FormatError(f"{path}: not a transcript: nested too deeply") from None
    except (ValueError, InputError) as error:  # JSON's and UTF-8's errors are ValueErrors
        raise FormatError(f"{path}: not a transcript: {error}") from None


def _parsed(raw: bytes) -> Transcript:
    content = json.loads(raw)
    _check(
        isinstance(content, dict) and content.get("format") == FORMAT,
        f'expected a JSON object with "format": "{FORMAT}"',
    )
    _check(
        content.get("version") == VERSION, f"its version is {content.get('version')!r}, expected {VERSION}"
    )
    model, settings, messages = (content.get(key) for key in ("model", "settings", "messages"))
    _check(_is_text(model), "its model is not a string")
    _check(isinstance(settings, dict), "it has no settings")
    _check(isinstance(messages, list), "it has no messages")
    for i, message in enumerate(messages):
        _check_message(i, message)
    return Transcript(model, changed(Settings(SamplingParams()), settings), messages)


def _check_message(i: int, m: Any) -> None:
    """Raises ValueError unless `m` can be the i-th message of a conversation."""
    where = f"message {i + 1}"
    _check(
        isinstance(m, dict) and m.get("role") in ROLES, f"{where} has none of the roles {', '.join(ROLES)}"
    )
    _check(m["role"] != "system" or i == 0, f"{where} is a system message, which only the first one can be")
    calls = m.get("tool_calls", [])
    _check(isinstance(calls, list) and all(map(_is_call, calls)), f"the tool calls of {where} are malformed")
    _check(_is_text(m.get("content")), f"the content of {where} is not a string")
    for key in m.keys() - {"role", "content", "tool_calls"}:
        _check(_is_text(m[key]), f"{key} of {where} is not a string")


def _is_call(call: Any) -> bool:
    """Whether it is a function call in OpenAI's form, with the arguments as JSON text."""
    function = call.get("function") if isinstance(call, dict) else None
    return (
        isinstance(function, dict)
        and call.get("type") == "function"
        and _is_text(call.get("id"))
        and _is_text(function.get("name"))
        and _is_text(function.get("arguments"))
    )


def _is_text(value: Any) -> bool:
    """Whether it is a string that can be written as UTF-8: JSON can name halves of surrogate pairs."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _check(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)
