"""Names of headers with capital letters, as llama-server writes them: HTTP doesn't care, but some clients do."""

from __future__ import annotations

from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@lru_cache(256)
def capitalised(name: bytes) -> bytes:
    """`content-type` as `Content-Type`."""
    return b"-".join(part.capitalize() for part in name.split(b"-"))


class Capitalised:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def written(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(capitalised(name), value) for name, value in message["headers"]]
            await send(message)

        await self._app(scope, receive, written)
