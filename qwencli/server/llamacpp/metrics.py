"""Figures for Prometheus, by llama.cpp's names, and some more about the cache."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ...backends.kv_cache import PAGE
from ..service.service import Service

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


class Figures:
    """A collector: prometheus_client asks it for everything at once."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterable[Metric]:
        service, c = self._service, self._service.counters
        kept, cache = service.llm.engine.prefixes.kept, service.llm.engine.backend.cache
        n_running = sum(slot.generation is not None for slot in service.slots())
        # as in llama-server, texts that are embedded are prompts
        n_prompt, prompt_seconds = c.n_prompt + c.n_text_tokens, c.prompt_seconds + c.text_seconds
        for name, text, count in (
            ("prompt_tokens_total", "Number of prompt tokens processed.", n_prompt),
            ("prompt_seconds_total", "Prompt process time", prompt_seconds),
            ("prompt_tokens_cached_total", "Number of prompt tokens that the cache had.", c.n_cached),
            ("tokens_predicted_total", "Number of generation tokens processed.", c.n_generated),
            ("tokens_predicted_seconds_total", "Predict process time", c.generation_seconds),
            ("n_decode_total", "Total number of steps", c.n_steps),
            ("requests_total", "Number of requests that ended.", c.n_requests),
            ("embedding_texts_total", "Number of texts that were embedded.", c.n_texts),
            ("embedding_tokens_total", "Number of their tokens.", c.n_text_tokens),
        ):
            yield CounterMetricFamily(f"llamacpp:{name}", text, value=count)
        for name, text, value in (
            (
                "n_busy_slots_per_decode",
                "Average number of busy slots per step",
                ratio(c.n_busy_slots, c.n_steps),
            ),
            (
                "prompt_tokens_seconds",
                "Average prompt throughput in tokens/s.",
                ratio(n_prompt, prompt_seconds),
            ),
            (
                "predicted_tokens_seconds",
                "Average generation throughput in tokens/s.",
                ratio(c.n_generated, c.generation_seconds),
            ),
            ("requests_processing", "Number of requests processing.", n_running),
            ("requests_deferred", "Number of requests deferred.", service.n_waiting),
            (
                "kv_cache_tokens",
                "Number of positions that finished sequences keep in the cache.",
                sum(len(k.tokens) for k in kept),
            ),
            ("kv_cache_sequences", "Number of finished sequences in the cache.", len(kept)),
            (
                "kv_cache_capacity_tokens",
                "Number of positions for which there is memory.",
                cache.n_pages * PAGE,
            ),
        ):
            yield GaugeMetricFamily(f"llamacpp:{name}", text, value=value)


def ratio(n: float, of: float) -> float:
    return n / of if of else 0.0


def text(service: Service) -> bytes:
    """All figures in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Figures(service))
    return generate_latest(registry)
