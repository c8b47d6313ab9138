"""Which buffer holds what, for /props: looked up now and then, however often clients ask."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ...llm import LLM
from ...machine.buffers import folded, memory_report

SECONDS = 2.0
"""For how long an answer holds. Looking takes some 70 ms for each GB of the model."""


class Memory:
    """The buffers of a process that serves `llm`."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._lock = asyncio.Lock()
        self._buffers: list[dict[str, Any]] = []
        self._until = 0.0

    async def buffers(self) -> list[dict[str, Any]]:
        """The buffers, folded by layers: see machine/buffers.py. Requests that come at the same time share one look, in a thread."""
        async with self._lock:
            if time.monotonic() >= self._until:
                report = await asyncio.to_thread(memory_report, self._llm)
                self._buffers = folded(report["buffers"])
                self._until = time.monotonic() + SECONDS
            return self._buffers
