"""Anthropic's API: /v1/messages, /v1/messages/count_tokens."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..http.app import API
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..options import ServerOptions
from ..service.service import Service
from ..shared.chat import Asked, ChatAnswer, asked_of
from ..shared.counting import n_prompt
from ..shared.json_text import json_response
from .answer import Answer
from .fields import MessagesRequest

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
"""Of errors, by status. All others of 4xx are an "invalid_request_error", of 5xx an "api_error"."""


def routes(service: Service, options: ServerOptions) -> list[Route]:
    api = Anthropic(service, options)
    return [
        Route("/v1/messages", api.messages, methods=["POST"]),
        Route("/v1/messages/count_tokens", api.count_tokens, methods=["POST"]),
    ]


class Anthropic:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options

    @describe("The next message of a conversation", MessagesRequest, stream=True)
    async def messages(self, request: HTTPRequest) -> Response:
        body = await json_body(request, MessagesRequest)
        asked = await asyncio.to_thread(self._asked, body)
        chat = ChatAnswer(asked, track(request, self._service.generate(asked.request)))
        answer = Answer(self._options.name, chat, body.hides_thinking)
        if body.stream:
            return event_stream(request, answer.events(), named=True)
        return json_response(encoded(await answer.whole()))

    def _asked(self, body: MessagesRequest) -> Asked:
        """Slow. Raises ApiError, QwenError."""
        return asked_of(body.conversation(self._options), self._service.llm, self._options)

    @describe("How many tokens the prompt of a conversation has", MessagesRequest)
    async def count_tokens(self, request: HTTPRequest) -> Response:
        body = await json_body(request, MessagesRequest)
        n = await asyncio.to_thread(self._count, body)
        return JSONResponse({"input_tokens": n})

    def _count(self, body: MessagesRequest) -> int:
        """Slow. Raises ApiError, QwenError."""
        return n_prompt(body.conversation(self._options), self._service.llm, self._options)


def error_form(error: ApiError) -> dict[str, Any]:
    """Anthropic's JSON for an error."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    about = {"type": kind, "message": str(error)}
    return {"type": "error", "error": about, "request_id": error.request_id}


ANTHROPIC = API(routes, error_form, prefix="/v1/messages")
