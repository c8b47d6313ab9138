"""From the bytes of a streamed answer to its JSON objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ...errors import QwenError

MAX_EVENT = 2**20
"""Bytes of one event, or of one line."""


def events(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The data of server-sent events that come in pieces (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    An event that is cut off by the end of the stream is dropped. Raises QwenError for one of more than MAX_EVENT bytes.
    """
    pending, data, size = b"", list[bytes](), 0
    for piece in pieces:
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            field, colon, value = line.removesuffix(b"\r").partition(b":")
            if field in (b"data", b"error"):  # llama-server wrote its errors into a field of their own
                data.append(value.removeprefix(b" "))
                size += len(line)
            elif not field and not colon:
                if event := b"\n".join(data).strip():
                    yield event
                data, size = [], 0
        if size + len(pending) > MAX_EVENT:
            raise QwenError(f"the server sent an event of more than {MAX_EVENT} bytes")


def lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that are not empty; the last one needs no end. Raises QwenError for one of more than MAX_EVENT bytes."""
    pending = b""
    for piece in pieces:
        *whole, pending = (pending + piece).split(b"\n")
        yield from filter(None, map(bytes.strip, whole))
        if len(pending) > MAX_EVENT:
            raise QwenError(f"the server sent a line of more than {MAX_EVENT} bytes")
    if pending.strip():
        yield pending


def parsed(data: bytes | str) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
