"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.responses import StreamingResponse

from ...errors import QwenError
from .errors import error_object

DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's."""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second keeps nginx from collecting events before it passes them on."""


def encoded(data: Any) -> str:
    """JSON as it is sent."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def event(data: Any) -> bytes:
    """An event that brings JSON."""
    return f"data: {encoded(data)}\n\n".encode()


def event_stream(path: str, chunks: AsyncIterator[Any], done: bool = False) -> StreamingResponse:
    """An answer to a request of `path` that comes in events, ended by DONE if `done`; an error on the way is the last event."""

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk)
            if done:
                yield DONE
        except QwenError as error:
            yield event(error_object(path, error))

    return StreamingResponse(events(), headers=HEADERS, media_type="text/event-stream")
