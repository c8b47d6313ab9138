"""Figures for Prometheus, by llama.cpp's names, and some more about the cache."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from ..http.errors import ApiError
from ..http.openapi import describe
from ..options import ServerOptions
from ..service.service import Counters, Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Figure(NamedTuple):
    """A figure; `kind` is counter or gauge."""

    kind: str
    name: str
    help: str
    value: float


class Metrics:
    """The figures of a service. Speeds are those since the last time that somebody asked, as in llama-server."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options
        self._started = int(time.time())
        self._last = Counters()

    @describe("Figures for Prometheus; only with --metrics", type="text/plain")
    async def metrics(self, request: Request) -> Response:
        if not self._options.metrics:
            raise ApiError("This server does not support metrics endpoint. Start it with `--metrics`", 501)
        figures = [*self._counters(), *self._speeds(), *self._gauges()]
        headers = {"Process-Start-Time-Unix": str(self._started)}
        return Response("".join(map(lines, figures)), media_type=CONTENT_TYPE, headers=headers)

    def _counters(self) -> Iterable[Figure]:
        c = self._service.counters
        # as in llama-server, texts that are embedded are prompts
        n_prompt, prompt_seconds = c.n_prompt + c.n_text_tokens, c.prompt_seconds + c.text_seconds
        for name, text, count in (
            (
                "prompt_tokens_total",
                "Number of prompt tokens processed, without those that the cache had",
                n_prompt,
            ),
            ("prompt_tokens_cached_total", "Number of prompt tokens that the cache had", c.n_cached),
            ("prompt_seconds_total", "Time spent on prompts", prompt_seconds),
            ("tokens_predicted_total", "Number of tokens generated", c.n_generated),
            ("tokens_predicted_seconds_total", "Time spent on generation", c.generation_seconds),
            ("n_decode_total", "Number of steps", c.n_steps),
            ("n_tokens_max", "Tokens of the longest sequence, prompt and answer", c.n_longest),
            # there are no drafts here
            ("spec_decode_num_draft_tokens_total", "Number of drafted tokens", 0),
            ("spec_decode_num_accepted_tokens_total", "Number of drafted tokens that were accepted", 0),
            ("spec_decode_num_drafts_total", "Number of steps that verified drafts", 0),
            ("requests_total", "Number of requests that ended", c.n_requests),
            ("embedding_texts_total", "Number of texts that were embedded", c.n_texts),
            ("embedding_tokens_total", "Number of their tokens", c.n_text_tokens),
        ):
            yield Figure("counter", name, text, count)

    def _speeds(self) -> Iterable[Figure]:
        now, last = self._service.counters, self._last
        if now.n_steps < last.n_steps:
            last = Counters()  # they have begun anew
        self._last = replace(now)
        for name, text, n, seconds in (
            (
                "prompt_tokens_seconds",
                "Prompt tokens per second since the last look",
                now.n_prompt + now.n_text_tokens - last.n_prompt - last.n_text_tokens,
                now.prompt_seconds + now.text_seconds - last.prompt_seconds - last.text_seconds,
            ),
            (
                "predicted_tokens_seconds",
                "Generated tokens per second since the last look",
                now.n_generated - last.n_generated,
                now.generation_seconds - last.generation_seconds,
            ),
        ):
            yield Figure("gauge", name, text, n / seconds if seconds else 0.0)

    def _gauges(self) -> Iterable[Figure]:
        service, c = self._service, self._service.counters
        yield Figure(
            "gauge",
            "requests_processing",
            "Number of requests processing",
            sum(slot.generation is not None for slot in service.slots()),
        )
        yield Figure("gauge", "requests_deferred", "Number of requests deferred", service.n_waiting)
        yield Figure(
            "gauge",
            "n_busy_slots_per_decode",
            "Average number of busy slots per step",
            c.n_busy_slots / max(c.n_steps, 1),
        )
        cached = service.cached
        yield Figure(
            "gauge",
            "kv_cache_tokens",
            "Number of positions that finished sequences keep in the cache",
            cached.n_tokens,
        )
        yield Figure(
            "gauge", "kv_cache_sequences", "Number of finished sequences in the cache", cached.n_sequences
        )
        yield Figure(
            "gauge",
            "kv_cache_capacity_tokens",
            "Number of positions for which there is memory",
            cached.n_room,
        )


def lines(f: Figure) -> str:
    """A figure in Prometheus' text format."""
    name = f"llamacpp:{f.name}"
    return f"# HELP {name} {f.help}\n# TYPE {name} {f.kind}\n{name} {f.value:.10g}\n"
