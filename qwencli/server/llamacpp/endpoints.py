"""llama.cpp's own API, as llama-server has it: /completion, /tokenize, /slots and the like."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ... import __version__
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body, track
from ..http.sse import encoded, event_stream
from ..service.config import Config
from ..service.generation import Request as ServiceRequest
from ..service.service import Service, Slot
from ..shared.conversations import ConversationFields, rendered
from ..shared.schemas import nth_seed
from . import request as requested
from .answer import Answer, Asked, settings
from .request import CompletionFields, DetokenizeFields, EmbeddingFields, TokenizeFields

T = TypeVar("T")
MAX_TEXTS = 1024
"""Texts of one request for embeddings."""


def routes(service: Service, config: Config) -> list[Route]:
    """The API's endpoints, for a running service."""
    api = LlamaCpp(service, config)
    get = {"/health": api.health, "/v1/health": api.health, "/props": api.props, "/slots": api.slots}
    post = {
        "/completion": api.completion,
        "/completions": api.completion,
        "/tokenize": api.tokenize,
        "/detokenize": api.detokenize,
        "/apply-template": api.apply_template,
        "/embedding": api.embedding,
        "/embeddings": api.embedding,
        "/props": api.change_props,
    }
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
    ]


@dataclass(frozen=True)
class LlamaCpp:
    """Each method answers an endpoint."""

    service: Service
    config: Config

    @describe("Whether the server answers")
    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    @describe("The server's properties")
    async def props(self, request: Request) -> Response:
        llm, config, tokenizer = self.service.llm, self.config, self.service.llm.tokenizer
        named = {
            name: tokenizer.decode([token]) if token is not None else ""
            for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
        }
        usual = settings(config.sampling, requested.RANDOM, config.max_tokens)
        return JSONResponse(
            {
                "default_generation_settings": {"params": usual, "n_ctx": llm.engine.n_ctx},
                "total_slots": self.service.n_slots,
                "model_alias": config.name,
                "model_path": config.name,
                "modalities": {"vision": False, "video": False, "audio": False},
                "endpoint_slots": True,
                "endpoint_props": False,
                "endpoint_metrics": True,
                "ui": config.ui,
                "chat_template": llm.file.metadata.string("tokenizer.chat_template", ""),
                "chat_template_caps": {},
                **named,
                "build_info": f"qwencli {__version__}",
                "is_sleeping": False,
            }
        )

    @describe("Refused: nothing of the server can be changed")
    async def change_props(self, request: Request) -> Response:
        raise ApiError("This server does not support changing global properties.", 501)

    @describe("What each slot does")
    async def slots(self, request: Request) -> Response:
        slots = self.service.slots()
        if request.query_params.get("fail_on_no_slot") and all(slot.generation for slot in slots):
            raise ApiError("no slot available", 503)
        return JSONResponse([self._slot(slot) for slot in slots])

    def _slot(self, slot: Slot) -> dict[str, Any]:
        known: dict[str, Any] = {
            "id": slot.id,
            "n_ctx": self.service.llm.engine.n_ctx,
            "speculative": False,
            "is_processing": slot.generation is not None,
        }
        if not slot.generation:
            return known
        seq, n = slot.generation.sequence, len(slot.generation.sequence.generated)
        return known | {
            "n_prompt_tokens": seq.n_prompt,
            "n_prompt_tokens_processed": seq.n_prompt_done - seq.n_cached,
            "n_prompt_tokens_cache": seq.n_cached,
            "params": settings(seq.sampling, seq.sampler.seed, seq.max_tokens),
            "next_token": [
                {
                    "has_next_token": seq.stop_reason is None,
                    "n_remain": -1 if seq.max_tokens is None else seq.max_tokens - n,
                    "n_decoded": n,
                }
            ],
        }

    @describe("Continue a prompt", CompletionFields, stream=True)
    async def completion(self, request: Request) -> Response:
        body = await json_body(request, CompletionFields)
        answers = await self._answers(request, body)
        if body.stream:
            return event_stream(request.url.path, merged([answer.events() for answer in answers]))
        whole = await asyncio.gather(*(answer.whole() for answer in answers))
        return Response(
            whole[0] if len(whole) == 1 else f"[{','.join(whole)}]", media_type="application/json"
        )

    async def _answers(self, request: Request, body: CompletionFields) -> list[Answer]:
        """All answers that a request asks for, as they begin. Raises ApiError, InputError, Busy."""
        service, llm = self.service, self.service.llm
        body.check(service.n_slots)
        max_tokens, n_each = body.limit(self.config.max_tokens), body.n_cmpl or body.n or 1

        def prepare() -> tuple[list[tuple[list[int], str]], Asked, Any]:
            sampling = body.sampling(self.config.sampling, llm.tokenizer, body.n_reported)
            prompts = requested.prompts_of(llm, body.prompt, (service.n_slots + service.n_queue) // n_each)
            for tokens in prompts:
                requested.check_context(llm, tokens)
            requested.check_amount(body, llm.engine.n_ctx - min(map(len, prompts)), max_tokens)
            llm.breakers(sampling)  # looked up in the whole vocabulary, once
            texts = [llm.tokenizer.decode(tokens) for tokens in prompts]
            return (
                list(zip(prompts, texts)),
                Asked(body, sampling, max_tokens, llm, self.config.name),
                requested.constraint_of(llm, body),
            )

        prompts, asked, constraint = await asyncio.to_thread(prepare)
        answers: list[Answer] = []
        for tokens, text in prompts:
            for i in range(n_each):
                generation = None
                if tokens:
                    generation = track(
                        request,
                        service.generate(
                            ServiceRequest(
                                tokens,
                                nth_seed(asked.sampling, i),
                                1 if max_tokens == 0 else max_tokens,
                                body.stops,
                                bool(body.ignore_eos),
                                constraint=constraint() if constraint else None,
                            )
                        ),
                    )
                answers.append(Answer(asked, len(answers), tokens, text, generation))
        return answers

    @describe("The tokens of a text", TokenizeFields)
    async def tokenize(self, request: Request) -> Response:
        body, tokenizer = await json_body(request, TokenizeFields), self.service.llm.tokenizer

        def answer() -> str:
            special = bool(body.add_special), body.parse_special is not False
            ids = [] if body.content is None else requested.mixed(tokenizer, body.content, *special)
            items: Sequence[Any] = (
                [{"id": id, "piece": piece(tokenizer.token_bytes(id))} for id in ids]
                if body.with_pieces
                else ids
            )
            parts = (
                encoded(items[i : i + 1000])[1:-1] for i in range(0, len(items), 1000)
            )  # so other threads run meanwhile
            return f'{{"tokens":[{",".join(parts)}]}}'

        return Response(await asyncio.to_thread(answer), media_type="application/json")

    @describe("The text of tokens", DetokenizeFields)
    async def detokenize(self, request: Request) -> Response:
        body = await json_body(request, DetokenizeFields)
        return JSONResponse(
            {"content": await asyncio.to_thread(self.service.llm.tokenizer.decode, body.tokens or [])}
        )

    @describe("The prompt that a chat template makes of messages", ConversationFields)
    async def apply_template(self, request: Request) -> Response:
        body = await json_body(request, ConversationFields)
        think, _ = body.thinking(self.config)
        prompt, _ = await asyncio.to_thread(rendered, body, self.service.llm, self.config, think)
        return JSONResponse({"prompt": prompt.text.replace(prompt.guard, "")})

    @describe("Embeddings of texts", EmbeddingFields)
    async def embedding(self, request: Request) -> Response:
        body, llm = await json_body(request, EmbeddingFields), self.service.llm
        given = body.input if body.input is not None else body.content
        if given is None:
            raise ApiError('"input" or "content" must be provided')
        prompts = await asyncio.to_thread(requested.prompts_of, llm, given, MAX_TEXTS, "content")
        if not all(prompts):
            raise ApiError("Input content cannot be empty")
        for tokens in prompts:
            requested.check_context(llm, tokens, 0)
        norm = 2 if body.embd_normalize is None else body.embd_normalize
        texts = []
        for i, tokens in enumerate(prompts):
            values = normalised(await self.service.embed(tokens), norm).tolist()
            texts.append(
                encoded({"index": i, "embedding": [values]})
            )  # one by one, so others are served meanwhile
        return Response(f"[{','.join(texts)}]", media_type="application/json")


def piece(data: bytes) -> str | list[int]:
    """A token's text; its bytes where they are none."""
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


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[T]:
    """What comes from any of several, until all have ended. Raises what one of them raises."""
    items = asyncio.Queue[tuple[T] | BaseException | None]()

    async def pump(source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                items.put_nowait((item,))
            items.put_nowait(None)
        except Exception as error:  # whatever it is: it is raised again where the items are taken
            items.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            item = await items.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item[0]
    finally:
        for task in tasks:
            task.cancel()
