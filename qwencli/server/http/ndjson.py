"""JSON objects that come one by one, each in a line of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

from ...errors import QwenError
from .errors import api_error
from .logs import record_of
from .sse import HEADERS, encoded


def line(data: Any) -> bytes:
    return (encoded(data) + "\n").encode()


def line_stream(request: Request, objects: AsyncIterator[Any]) -> StreamingResponse:
    """An answer that comes in lines. An error on the way is the last one, in the form of the request's API."""
    form = record_of(request.scope).error_form

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for each in objects:
                yield line(each)
        except QwenError as error:
            yield line(form(api_error(error)))

    return StreamingResponse(lines(), headers=HEADERS, media_type="application/x-ndjson")
