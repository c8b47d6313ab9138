"""The model in memory, or not: it is unloaded after a while without requests, and loaded again by the next one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from ...errors import QwenError
from .garbage import keep, release


class Presence:
    """Whether the model is in memory. `load` and `unload` see to it; they are slow, and called in other threads than the event loop's.

    Its methods are for the event loop's thread.
    """

    def __init__(self, load: Callable[[], None], unload: Callable[[], None]) -> None:
        self.asleep = False
        self._load, self._unload = load, unload
        self._n_users = 0
        self._last_use = time.monotonic()
        self._unload_next = False
        self._kept = False
        """Whether the model that was unloaded was kept out of garbage collections."""
        self._changing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        """Have the model in memory for a while. Raises QwenError where it can't be loaded."""
        self._n_users += 1
        try:
            while self.asleep or self._changing:
                await self._change(self._load_again)
            yield
        finally:
            self._n_users -= 1
            self._last_use = time.monotonic()
            if self._unload_next and not self._n_users:
                self._unload_next = False
                self._begin(self._unload_now)

    def unload_soon(self) -> None:
        """Unload the model as soon as nobody uses it."""
        self._unload_next = True

    def watch(self, seconds: float | None) -> None:
        """From now on unload the model when nobody has used it for so long; never if None."""
        if seconds is not None:
            self._watching = asyncio.ensure_future(self._watch(seconds))

    async def stop(self) -> None:
        """End watching, and wait for what goes on."""
        if self._watching:
            self._watching.cancel()
        if self._changing:
            with suppress(QwenError):
                await self._changing

    async def _watch(self, seconds: float) -> None:
        while True:
            left = self._last_use + seconds - time.monotonic()
            if self.asleep or self._n_users:
                left = seconds
            elif left <= 0:
                await self._change(self._unload_now)
                left = seconds
            await asyncio.sleep(left)

    async def _change(self, how: Callable[[], Callable[[], None] | None]) -> None:
        """Change what is in memory, or wait for the change that goes on. It goes on where the one who waits leaves."""
        await asyncio.shield(self._changing or self._begin(how))

    def _begin(self, how: Callable[[], Callable[[], None] | None]) -> asyncio.Task[None]:
        async def run() -> None:
            try:
                if work := how():
                    await asyncio.to_thread(work)
                    self.asleep = not self.asleep
            except QwenError:
                if self.asleep:
                    raise
                # else its file is gone, and the model stays where it is
            finally:
                self._changing = None

        self._changing = asyncio.ensure_future(run())
        self._changing.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._changing

    def _load_again(self) -> Callable[[], None] | None:
        return self._filled if self.asleep else None

    def _filled(self) -> None:
        self._load()
        if self._kept:
            keep()

    def _unload_now(self) -> Callable[[], None] | None:
        return None if self.asleep or self._n_users else self._emptied

    def _emptied(self) -> None:
        self._unload()
        self._kept = release()
