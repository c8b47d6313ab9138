"""How much a request may send, and for how long; and that all it does ends when its client is gone."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..options import ServerOptions
from .errors import ApiError
from .logs import ClientLeft

DRAINED = 64 << 20
"""Bytes that are read of a body that is too large, since many clients take an answer only after they have sent everything."""

MAX_HELD = 256 << 20
"""Bytes of all bodies that are in memory at once."""


class Limited:
    """Reads the whole body before the endpoint is called, and cancels the endpoint when the client leaves."""

    def __init__(self, app: ASGIApp, options: ServerOptions) -> None:
        self._app, self._options = app, options
        self._held = 0
        """Bytes of all bodies now."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = bytearray()
        try:
            await self._read(scope, receive, body)
            await self._answer(scope, receive, send, bytes(body))
        finally:
            self._held -= len(body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        given = complete = False

        async def receive_body() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.shield(gone)  # else it would end with whoever waits for it
            return {"type": "http.disconnect"}

        async def send_piece(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)
            await asyncio.sleep(0)  # sending seldom waits: others get their turn between the pieces

        gone = asyncio.ensure_future(self._gone(receive))
        answer = asyncio.ensure_future(self._app(scope, receive_body, send_piece))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not complete:  # uvicorn reports a complete answer as a disconnect, too
                raise ClientLeft
            await answer
        finally:
            for task in answer, gone:
                if not task.done():  # awaiting one again would lose where it failed
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):  # nobody is left to hear of it
                        await task

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> None:
        """Read all that the client sends into `body`. Raises ApiError 413, 408 and 503, ClientLeft."""
        limit, headers = self._options.max_body, dict(scope["headers"])
        too_large = ApiError(f"the request is too large, expected at most {limit} bytes", 413)
        if (
            headers.get(b"expect", b"").lower() == b"100-continue"
            and int(headers.get(b"content-length", 0)) > limit
        ):
            raise too_large  # it asks before it sends

        async def read() -> None:
            n, more = 0, True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                piece, more = message.get("body", b""), message.get("more_body", False)
                n += len(piece)
                if n <= limit:
                    body.extend(piece)
                    self._held += len(piece)
                if self._held > MAX_HELD:
                    raise ApiError(
                        "the server is busy with other requests, try again later", 503, retry_after=1
                    )
                if n > DRAINED:
                    break
            if n > limit:
                raise too_large

        try:
            await asyncio.wait_for(read(), self._options.timeout)
        except asyncio.TimeoutError:
            raise ApiError(f"the request was not complete within {self._options.timeout:g} s", 408) from None

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
