"""Documents ranked by how well they answer a query: /rerank, in the forms of Jina's API and of Text Embeddings Inference."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.routing import Route

from ...engine.embedding import check_reading
from ...request.prompt import check_length
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body
from ..http.sse import encoded
from ..options import ServerOptions
from ..service.service import Service
from ..shared.fields import COUNT, WHOLE, Fields
from ..shared.json_text import json_response

MAX_DOCUMENTS = 1024
"""Documents of one request."""
PATHS = "/rerank", "/v1/rerank", "/reranking", "/v1/reranking"
Documents = Annotated[list[str], Field(fail_fast=True, max_length=MAX_DOCUMENTS)] | None


class RerankFields(Fields):
    """The body of /rerank: with `texts` in place of `documents` it is that of Text Embeddings Inference, with an answer in its form."""

    query: str | None = None
    documents: Documents = None
    texts: Documents = None
    top_n: Annotated[int, Field(ge=0, le=COUNT), WHOLE] | None = None
    """How many of the best documents are named; by default all."""
    return_text: bool | None = None
    """Whether the answer repeats the documents; only with `texts`."""
    model: str | None = None


def rerank_routes(service: Service, options: ServerOptions) -> list[Route]:
    """The endpoints, for a running service."""
    rerank = Rerank(service, options).rerank
    return [Route(path, rerank, methods=["POST"]) for path in PATHS]


@dataclass(frozen=True)
class Rerank:
    """What the endpoint needs."""

    service: Service
    options: ServerOptions

    @describe("Documents in the order of how well they answer a query", RerankFields)
    async def rerank(self, request: HTTPRequest) -> Response:
        if self.service.pooling != "rank":
            raise ApiError("This server does not support reranking. Start it with `--reranking`", 501)
        body = await json_body(request, RerankFields)
        if body.query is None:
            raise ApiError('"query" must be provided', param="query")
        documents = body.documents or body.texts
        if not documents:
            raise ApiError('"documents" must be a non-empty string array', param="documents")
        prompts = await asyncio.to_thread(self._prompts, body.query, documents)
        scores = [await self.service.rank(tokens) for tokens in prompts]
        return json_response(encoded(self._answer(body, documents, scores, sum(map(len, prompts)))))

    def _prompts(self, query: str, documents: list[str]) -> list[list[int]]:
        """The query with each document, as the model reads them. Slow. Raises InputError, ContextFull."""
        llm, prompts = self.service.llm, []
        for document in documents:
            check_length([query, document], llm.tokenizer, llm.engine.n_ctx)
            prompts.append(llm.ranking.prompt(query, document))
            check_reading(llm.engine, prompts[-1], "the query with a document")
        return prompts

    def _answer(self, body: RerankFields, documents: list[str], scores: list[float], n_tokens: int) -> Any:
        """The best first."""
        in_short = "texts" in body.model_fields_set
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top_n]
        if in_short:
            return [
                {"index": i, "score": scores[i]} | ({"text": documents[i]} if body.return_text else {})
                for i in order
            ]
        return {
            "model": self.options.name,
            "object": "list",
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
            "results": [{"index": i, "relevance_score": scores[i]} for i in order],
        }
