"""An answer on its way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import NamedTuple

from ...engine.engine import Sequence
from ...errors import QwenError
from ...request.answer import RunningAnswer


class Busy(QwenError):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Ending(Busy):
    """The service is ending."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", 5)


class NotServed(QwenError):
    """The service isn't for requests of this kind."""


class TextPart(NamedTuple):
    """What a step brought: text that is certain, and the ids that it came from. Either may be empty.

    Where progress is told, there are parts without either, of which `n_read` is how many of the prompt's tokens were read then, and
    `timings` what that had cost.
    """

    text: str
    tokens: list[int]
    n_read: int | None = None
    timings: Mapping[str, float] | None = None


class Generation(AsyncIterator[TextPart]):
    """A running answer, for the event loop: iterate over it for its text as it comes.

    Iterating ends when the answer is complete, and raises QwenError where it failed. Whoever leaves early has to call `cancel`.
    """

    def __init__(self, answer: RunningAnswer, cancel: Callable[[Generation], None]) -> None:
        self.answer = answer
        self.slot: int | None = None
        self.wanted: int | None = None
        """The only slot in which it may run; None for any."""
        self.error: QwenError | None = None
        self.has_new_line = False
        """Whether its text has one by now."""
        self.tells_progress = False
        """Whether the reading of its prompt is told."""
        self.n_told = -1
        """How many of the prompt's tokens it was told last."""
        self.created = time.monotonic()
        self.started = 0.0
        """When it got its slot, 0 before."""
        self._cancel = cancel
        self._parts = asyncio.Queue[TextPart | QwenError | None]()

    @property
    def sequence(self) -> Sequence:
        return self.answer.sequence

    def cancel(self) -> None:
        """Free the slot within a step. Has no effect on an answer that is complete."""
        self._cancel(self)

    async def aclose(self) -> None:
        self.cancel()

    async def __anext__(self) -> TextPart:
        item = await self._parts.get()
        if isinstance(item, TextPart):
            return item
        self._parts.put_nowait(item)  # whoever asks again gets the same end
        if item is None:
            raise StopAsyncIteration
        raise item

    def deliver(self, item: TextPart | QwenError | None) -> None:
        """A part, the error that ends the answer, or None where it is complete. To be called in the event loop's thread."""
        self._parts.put_nowait(item)


class Slot(NamedTuple):
    """A place for a running request."""

    id: int
    generation: Generation | None
