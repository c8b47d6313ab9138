"""What a request may send, and for how long; and that all it does ends when its client is gone."""
from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .config import Config
from .errors import ApiError
from .logs import ClientLeft

DRAINED = 64 << 20
"""Bytes of a body that is too large which are read all the same, since many clients hear an answer only when they have sent all."""


class Limited:
    """Reads the whole body before the endpoint is called, and cancels the endpoint when the client leaves."""

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body = await self._body(scope, receive)
        given = complete = False

        async def receive_body() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone
            return {"type": "http.disconnect"}

        async def send_piece(message: Message) -> None:
            nonlocal complete
            complete = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)
            await asyncio.sleep(0)  # sending seldom waits, and others have their turn between the pieces of a long answer

        gone = asyncio.ensure_future(self._gone(receive))
        answer = asyncio.ensure_future(self._app(scope, receive_body, send_piece))
        try:
            await asyncio.wait({gone, answer}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not complete:  # a complete answer is reported as the client's leave, too
                raise ClientLeft
            await answer
        finally:
            for task in answer, gone:
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Raises ApiError 413 and 408, ClientLeft."""
        limit, headers = self._config.max_body, dict(scope["headers"])
        too_large = ApiError(f"the request is too large, expected at most {limit} bytes", 413)
        if headers.get(b"expect", b"").lower() == b"100-continue" and int(headers.get(b"content-length", 0)) > limit:
            raise too_large  # it asks before it sends

        async def read() -> bytes:
            body, n = bytearray(), 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                n += len(message["body"])
                if n <= limit:
                    body += message["body"]
                if n > DRAINED:
                    raise too_large
                if not message.get("more_body"):
                    break
            if n > limit:
                raise too_large
            return bytes(body)

        try:
            return await asyncio.wait_for(read(), self._config.timeout)
        except asyncio.TimeoutError:
            raise ApiError(f"the request was not complete within {self._config.timeout:g} s", 408) from None

    @staticmethod
    async def _gone(receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
