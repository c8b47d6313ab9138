"""Which buffer holds what, for /props: looked up now and then, however often clients ask."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ...machine.buffers import folded, memory_report
from ..service.service import Service

SECONDS = 2.0
"""For how long an answer holds. Looking takes some 70 ms for each GB of the model."""


class Memory:
    """The buffers of a process that serves a model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._lock = asyncio.Lock()
        self._buffers: list[dict[str, Any]] = []
        self._until = 0.0

    async def buffers(self) -> list[dict[str, Any]]:
        """The buffers, folded by layers: see machine/buffers.py. Requests that come at the same time share one look, in a thread."""
        async with self._lock:
            if time.monotonic() >= self._until:
                report = await asyncio.to_thread(memory_report, self._service.llm)
                self._buffers = folded(report["buffers"])
                self._until = time.monotonic() + SECONDS
            return self._buffers
