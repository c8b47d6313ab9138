"""Several answers at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merged(sources: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T | None]]:
    """What comes from any of several sources, each item with the source's index; None where that source ends.

    Ends with the last source. Raises what one of them raises.
    """
    items = asyncio.Queue[tuple[int, T | None] | Exception]()

    async def pump(i: int, source: AsyncIterator[T]) -> None:
        try:
            async for item in source:
                items.put_nowait((i, item))
            items.put_nowait((i, None))
        except Exception as error:  # whatever it is: it is raised again where the items are taken
            items.put_nowait(error)

    tasks = [asyncio.ensure_future(pump(i, source)) for i, source in enumerate(sources)]
    try:
        n_running = len(tasks)
        while n_running:
            found = await items.get()
            if isinstance(found, Exception):
                raise found
            n_running -= found[1] is None
            yield found
    finally:
        for task in tasks:
            task.cancel()
