"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ...errors import QwenError
from .errors import api_error
from .logs import record_of

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second keeps nginx from collecting events before it passes them on."""


def encoded(data: Any) -> str:
    """JSON as it is sent."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def event(data: Any, named: bool = False) -> bytes:
    """An event that carries JSON. `named`: the event has the name that is the JSON's "type", too, or "error" where there is none."""
    name = f"event: {data.get('type', 'error')}\n" if named else ""
    return f"{name}data: {encoded(data)}\n\n".encode()


def event_stream(
    request: Request, chunks: AsyncIterator[Any], end: bytes = b"", named: bool = False
) -> StreamingResponse:
    """An answer that comes in events, followed by `end`. An error on the way is the last event, in the form of the request's API."""
    form = record_of(request.scope).error_form

    async def events() -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                yield event(chunk, named)
            if end:
                yield end
        except QwenError as error:
            yield event(form(api_error(error)), named)

    return StreamingResponse(events(), headers=HEADERS, media_type="text/event-stream")
