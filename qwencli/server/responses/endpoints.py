"""OpenAI's responses: /v1/responses, /v1/responses/input_tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..http.app import API
from ..http.errors import ApiError
from ..http.guard import key_of
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..options import ServerOptions
from ..service.service import Service
from ..shared.chat import Asked, ChatAnswer, asked_of
from ..shared.counting import n_prompt
from ..shared.json_text import json_response
from ..shared.logprobs import MAX_REPORTED
from .answer import Answer, new_id
from .fields import ResponseRequest
from .items import AnyItem, MessageItem, ReferenceItem, items_of
from .shortening import shortened
from .store import Kept, Store


def routes(service: Service, options: ServerOptions) -> list[Route]:
    api = Responses(service, options)
    post = {"/responses": api.create, "/responses/input_tokens": api.count}
    return [
        *(
            Route(prefix + path, endpoint, methods=["POST"])
            for path, endpoint in post.items()
            for prefix in ("/v1", "")
        ),
        Route("/v1/responses/{id}", api.kept, methods=["GET"]),
        Route("/v1/responses/{id}", api.delete, methods=["DELETE"]),
    ]


class Responses:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options
        self._store = Store()

    @describe("The next items of a conversation", ResponseRequest, stream=True)
    async def create(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ResponseRequest)
        owner = key_of(request.scope, self._options.api_keys)
        items = self._items(body, owner)
        llm = self._service.llm
        asked = await asyncio.to_thread(self._asked, body, items)
        self._check_amount(body, asked)
        id = new_id("resp")

        def keep(response: dict[str, Any]) -> None:
            if body.store is not False:
                self._store.add(id, kept_of(response, items, owner))

        chat = ChatAnswer(asked, track(request, self._service.generate(asked.request, body.tells_progress)))
        sampling = asked.request.sampling
        about = {"model": self._options.name, **body.shown()}
        about |= {"temperature": sampling.temp, "top_p": sampling.top_p}
        answer = Answer(id, about, chat, llm.tokenizer, body.n_top, bool(body.timings_per_token), keep)
        if body.stream:
            return event_stream(request, answer.events(), named=True)
        return json_response(await asyncio.to_thread(encoded, await answer.whole()))

    def _asked(self, body: ResponseRequest, items: Sequence[AnyItem]) -> Asked:
        """Slow. Raises ApiError, QwenError."""
        conversation = body.of_conversation(items)
        if body.truncation != "auto":
            return asked_of(conversation, self._service.llm, self._options, body.n_probs)
        return shortened(
            conversation, lambda part: asked_of(part, self._service.llm, self._options, body.n_probs)
        )

    def _items(self, body: ResponseRequest, owner: str) -> list[AnyItem]:
        """All items of the conversation, those before this request among them. Raises ApiError."""
        known: list[AnyItem] = []
        if body.previous_response_id is not None:
            previous = self._store.get(body.previous_response_id, owner)
            if previous is None:
                raise ApiError(
                    "previous_response_id: there is no such response here, or no longer; send the whole conversation",
                    404,
                    "previous_response_id",
                    "previous_response_not_found",
                )
            known = items_of(previous.items)
        if isinstance(body.input, str):
            return [*known, MessageItem(role="user", content=body.input)]
        for i, item in enumerate(body.input):
            if isinstance(item, ReferenceItem):
                if (text := self._store.item(item.id, owner)) is None:
                    raise ApiError(
                        f"input.{i}: there is no such item here, or no longer; send the item itself",
                        404,
                        "input",
                        "item_not_found",
                    )
                known += items_of([text])
            else:
                known.append(item)
        return known

    def _check_amount(self, body: ResponseRequest, asked: Asked) -> None:
        """Raises ApiError for more reports than an answer can hold."""
        limit = asked.request.max_tokens
        room = self._service.llm.engine.n_ctx - len(asked.request.tokens)
        n_tokens = room if limit is None else min(limit, room)
        if body.n_top is not None and n_tokens * (1 + body.n_top) > MAX_REPORTED:
            raise ApiError(
                f"top_logprobs: too many for an answer of up to {n_tokens} tokens; lower max_output_tokens",
                param="top_logprobs",
            )

    @describe("How many tokens the prompt of a conversation has", ResponseRequest)
    async def count(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ResponseRequest)
        items = self._items(body, key_of(request.scope, self._options.api_keys))
        n = await asyncio.to_thread(self._count, body, items)
        return JSONResponse({"object": "response.input_tokens", "input_tokens": n})

    def _count(self, body: ResponseRequest, items: Sequence[AnyItem]) -> int:
        """Slow. Raises ApiError, QwenError."""
        return n_prompt(body.of_conversation(items), self._service.llm, self._options)

    @describe("A response that was kept")
    async def kept(self, request: HTTPRequest) -> Response:
        owner = key_of(request.scope, self._options.api_keys)
        kept = self._store.get(request.path_params["id"], owner)
        if kept is None:
            raise _no_response()
        return json_response(kept.response)

    @describe("A response that was kept is forgotten")
    async def delete(self, request: HTTPRequest) -> Response:
        id = request.path_params["id"]
        if not self._store.delete(id, key_of(request.scope, self._options.api_keys)):
            raise _no_response()
        return JSONResponse({"id": id, "object": "response", "deleted": True})


def kept_of(response: dict[str, Any], items: Sequence[AnyItem], owner: str) -> Kept:
    """A response with the conversation that it ends."""
    output = {item["id"]: encoded(item) for item in response["output"]}
    before = [item.model_dump_json(exclude_none=True) for item in items]
    return Kept(owner, encoded(response), (*before, *output.values()), output)


def _no_response() -> ApiError:
    return ApiError("there is no such response here, or no longer", 404, "response_id", "response_not_found")


RESPONSES = API(routes, idle_paths=("/v1/responses/{id}",))
