"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from ...errors import QwenError
from .errors import api_error
from .logs import record_of

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second keeps nginx from collecting events before it passes them on."""


PING = {"type": "http.response.body", "body": b":\n\n", "more_body": True}
"""A comment, which clients read over."""


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

    return EventStream(events(), record_of(request.scope).ping)


class EventStream(StreamingResponse):
    """Events as they come, and a comment whenever none came for `ping` seconds, so that nobody takes the stream for dead."""

    def __init__(self, events: AsyncIterator[bytes], ping: float | None) -> None:
        super().__init__(events, headers=HEADERS, media_type="text/event-stream")
        self._ping = ping

    async def stream_response(self, send: Send) -> None:
        if self._ping is None:
            return await super().stream_response(send)
        lock = asyncio.Lock()
        last, ended = time.monotonic(), False

        async def send_in_turn(message: Message) -> None:
            nonlocal last, ended
            async with lock:
                ended = message["type"] == PING["type"] and not message.get("more_body")
                await send(message)
                last = time.monotonic()

        async def send_pings(every: float) -> None:
            nonlocal last
            while True:
                await asyncio.sleep(max(0.0, last + every - time.monotonic()))
                async with lock:
                    if ended:
                        return
                    if time.monotonic() >= last + every:
                        await send(PING)
                        last = time.monotonic()

        pings = asyncio.ensure_future(send_pings(self._ping))
        try:
            await super().stream_response(send_in_turn)
        finally:
            pings.cancel()
