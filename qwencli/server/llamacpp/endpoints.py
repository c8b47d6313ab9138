"""llama.cpp's own API, as llama-server has it: /completion, /tokenize, /slots and the like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ...engine.embedding import check_reading
from ...llm import LLM
from ...request.prompt import check_room
from ...request.request import Request
from ..http.app import API
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..options import ServerOptions
from ..service.service import Service
from ..shared.conversations import ConversationFields, prompt_of
from ..shared.errors import error_type
from ..shared.fields import COUNT, nth_seed
from ..shared.json_text import json_array, json_object, json_response
from ..shared.logprobs import MAX_REPORTED
from ..shared.prompts import mixed, prompts_of
from ..shared.streams import merged
from ..shared.vectors import check_embeds
from . import absent
from .answer import Asked, PromptAnswer
from .fields import CompletionFields, DetokenizeFields, EmbeddingFields, InfillFields, TokenizeFields
from .infill import infill_prompt
from .metrics import Metrics
from .props import Props
from .rerank import rerank_routes
from .slots import Slots

if TYPE_CHECKING:
    from ...text.grammar.constraints import Start

AS_IT_IS = -1
"""The `embd_normalize` that changes nothing."""
MAX_TEXTS = 1024
"""Texts of one request for embeddings."""


def routes(service: Service, options: ServerOptions) -> list[Route]:
    """The API's endpoints, for a running service."""
    api, slots, props = LlamaCpp(service, options), Slots(service, options), Props(service, options)
    get = {
        "/health": api.health,
        "/v1/health": api.health,
        **({options.health_path: api.health} if options.health_path else {}),
        "/props": props.props,
        "/slots": slots.slots,
        "/metrics": Metrics(service, options).metrics,
    }
    post = {
        "/completion": api.completion,
        "/completions": api.completion,
        "/infill": api.infill,
        "/tokenize": api.tokenize,
        "/detokenize": api.detokenize,
        "/apply-template": api.apply_template,
        "/embedding": api.embedding,
        "/embeddings": api.embedding,
        "/props": props.change,
        "/slots/{id_slot}": slots.change,
    }
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
        *absent.routes(),
        *rerank_routes(service, options),
    ]


@dataclass(frozen=True)
class LlamaCpp:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    service: Service
    options: ServerOptions

    @describe("Whether the server answers")
    async def health(self, request: HTTPRequest) -> Response:
        return JSONResponse({"status": "ok"})

    @describe("Continue a prompt", CompletionFields, stream=True)
    async def completion(self, request: HTTPRequest) -> Response:
        return await self._complete(request, await json_body(request, CompletionFields))

    @describe("Fill a gap in a text", InfillFields, stream=True)
    async def infill(self, request: HTTPRequest) -> Response:
        return await self._complete(request, await json_body(request, InfillFields))

    async def _complete(self, request: HTTPRequest, body: CompletionFields) -> Response:
        answers = await self._answers(request, body)
        if body.stream:
            return event_stream(request, events_of(answers))
        whole = await asyncio.gather(*(answer.whole() for answer in answers))
        return json_response(whole[0] if len(whole) == 1 else json_array(whole))

    async def _answers(self, request: HTTPRequest, body: CompletionFields) -> list[PromptAnswer]:
        """All answers that a request asks for, as they start. Raises ApiError, InputError, Busy."""
        body.check(self.service.n_slots)
        n_each = body.n_cmpl or body.n or 1
        limit = body.limit(self.options.max_tokens)
        asked = Asked(body, limit, self.service.llm, self.options.name)
        answers: list[PromptAnswer] = []
        for each, text in await asyncio.to_thread(self._requests, body, limit, n_each):
            for i in range(n_each):
                one = replace(each, sampling=nth_seed(each.sampling, i))
                taken = self.service.generate(one, body.tells_progress) if one.tokens else None
                generation = track(request, taken) if taken else None
                answers.append(PromptAnswer(asked, len(answers), one, text, generation))
        return answers

    def _requests(self, body: CompletionFields, limit: int | None, n_each: int) -> list[tuple[Request, str]]:
        """What is asked, prompt by prompt, with the prompt's text. Slow. Raises ApiError, InputError, ContextFull."""
        service, llm = self.service, self.service.llm
        sampling = body.sampling(self.options.sampling, llm.tokenizer, body.n_reported)
        if isinstance(body, InfillFields):
            prompts = [infill_prompt(body, llm, self.options)]
        else:
            prompts = prompts_of(llm, body.prompt, (service.n_slots + service.n_queue) // n_each)
        for tokens in prompts:
            check_room(len(tokens), llm.engine.n_ctx)
        room = COUNT if self.options.context_shift else llm.engine.n_ctx - min(map(len, prompts))
        check_amount(body, room, limit)
        llm.breakers(sampling)  # looked up here, not where everybody waits
        texts = [llm.tokenizer.decode(tokens) for tokens in prompts]
        grammar = grammar_of(llm, body)
        most = 1 if limit == 0 else limit  # 0: the prompt is read, which takes a token
        asked = [
            Request(tokens, sampling, most, *body.ends(self.options), grammar=grammar) for tokens in prompts
        ]
        return [(body.placed(one, llm, self.options), text) for one, text in zip(asked, texts)]

    @describe("The tokens of a text", TokenizeFields)
    async def tokenize(self, request: HTTPRequest) -> Response:
        body = await json_body(request, TokenizeFields)
        tokenizer = self.service.llm.tokenizer

        def answer() -> str:
            special = bool(body.add_special), body.parse_special is not False
            ids = [] if body.content is None else mixed(tokenizer, body.content, *special)
            items: Sequence[Any] = (
                [{"id": id, "piece": piece(tokenizer.token_bytes(id))} for id in ids]
                if body.with_pieces
                else ids
            )
            # a thousand at a time, so that other threads run meanwhile
            parts = (encoded(items[i : i + 1000])[1:-1] for i in range(0, len(items), 1000))
            return json_object({"tokens": json_array(parts)})

        return json_response(await asyncio.to_thread(answer))

    @describe("The text of tokens", DetokenizeFields)
    async def detokenize(self, request: HTTPRequest) -> Response:
        body = await json_body(request, DetokenizeFields)
        return JSONResponse(
            {"content": await asyncio.to_thread(self.service.llm.tokenizer.decode, body.tokens or [])}
        )

    @describe("The prompt that a chat template makes of messages", ConversationFields)
    async def apply_template(self, request: HTTPRequest) -> Response:
        body = await json_body(request, ConversationFields)
        thinks, _ = body.thinking(self.options)
        prompt = await asyncio.to_thread(prompt_of, body, self.service.llm, self.options, thinks)
        text, guard = prompt.rendered
        return JSONResponse({"prompt": text.replace(guard, "")})

    @describe("Embeddings of texts", EmbeddingFields)
    async def embedding(self, request: HTTPRequest) -> Response:
        check_embeds(self.service)
        body = await json_body(request, EmbeddingFields)
        llm = self.service.llm
        given = body.input if body.input is not None else body.content
        if given is None:
            raise ApiError('"input" or "content" must be provided')
        prompts = await asyncio.to_thread(prompts_of, llm, given, MAX_TEXTS, "content")
        if not all(prompts):
            raise ApiError("Input content cannot be empty")
        for tokens in prompts:
            check_room(len(tokens), llm.engine.n_ctx, 0)
            check_reading(llm.engine, tokens)
        norm = self.options.embd_normalize if body.embd_normalize is None else body.embd_normalize
        if self.service.pooling == "none":
            norm = AS_IT_IS  # as there: only what is pooled is normalised
        texts = []
        for i, tokens in enumerate(prompts):
            rows = await self.service.embed(tokens)
            # encoded one by one, so that others are served meanwhile
            values = (encoded(normalised(row, norm).tolist()) for row in rows)
            texts.append(
                json_object({"index": str(i), "embedding": await asyncio.to_thread(json_array, values)})
            )
        return json_response(json_array(texts))


def piece(data: bytes) -> str | list[int]:
    """A token's text, or its bytes where they aren't UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def normalised(embedding: NDArray[np.float32], norm: int) -> NDArray[np.float64]:
    """An embedding divided by its norm, as `embd_normalize` of llama.cpp says."""
    values: NDArray[np.float64] = embedding.astype(np.float64)
    largest = float(np.abs(values).max())
    if norm < 0 or not largest:
        return values
    size = (
        largest / 32760
        if norm == 0
        else largest * float(((np.abs(values) / largest) ** norm).sum()) ** (1 / norm)
    )
    return values / size


async def events_of(answers: Sequence[PromptAnswer]) -> AsyncIterator[dict[str, Any]]:
    """The events of all answers as they come. Raises QwenError where one of them fails."""
    async for _, event in merged([answer.events() for answer in answers]):
        if event is not None:
            yield event


def check_amount(body: CompletionFields, room: int, limit: int | None) -> None:
    """Raises ApiError for more probabilities than one answer may hold. `room` is what the context leaves for it, in tokens."""
    n = room if limit is None else min(room, limit)
    if body.n_reported * n > MAX_REPORTED:
        raise ApiError(
            f"n_probs is {body.n_reported} for an answer of up to {n} tokens: lower it or n_predict",
            param="n_probs",
        )


def grammar_of(llm: LLM, body: CompletionFields) -> Start | None:
    """What the answer has to follow. As in llama.cpp `grammar` comes before `json_schema`. Raises InputError, QwenError."""
    if not body.grammar and body.json_schema is None:
        return None
    from ...text.grammar.constraints import gbnf, json_schema

    return (
        gbnf(llm.vocabulary, body.grammar) if body.grammar else json_schema(llm.vocabulary, body.json_schema)
    )


def error_form(error: ApiError) -> dict[str, Any]:
    """llama.cpp's JSON for an error."""
    about = {"code": error.status, "message": str(error), "type": error_type(error)}
    return {"error": {**about, **error.details}}


LLAMACPP = API(
    routes,
    error_form,
    open_paths=("/health", "/v1/health"),
    polled_paths=("/health", "/v1/health", "/metrics", "/slots"),
    idle_paths=("/health", "/v1/health", "/metrics", "/props"),
)
