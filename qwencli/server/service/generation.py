"""A request, and its answer on its way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ...answer_text import AnswerText
from ...engine.engine import Sequence
from ...errors import QwenError
from ...llm import LLM
from ...sampling import SamplingParams
from ...text.chat.thinking import ReasoningBudget

if TYPE_CHECKING:
    from ...text.grammar.constraints import Constraint


class Busy(QwenError):
    """The queue is full. `retry_after` is in seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Ending(Busy):
    """The service is ending."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down", 5)


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it. Fields as in Completion."""

    tokens: list[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    budget: ReasoningBudget | None = None
    constraint: Constraint | None = None


class Piece(NamedTuple):
    """What a step brought: text that is certain, and the ids that it came from. Either may be empty."""

    text: str
    tokens: list[int]


class Generation(AsyncIterator[Piece]):
    """An answer on its way. Iterating ends when it is complete and raises QwenError where it failed; leaving early needs `cancel`."""

    def __init__(self, llm: LLM, request: Request, cancel: Callable[[Generation], None]) -> None:
        ends = frozenset[int]() if request.ignore_eos else llm.tokenizer.eog_ids
        self.sequence = Sequence(
            list(request.tokens),
            request.sampling,
            request.max_tokens,
            ends,
            breakers=llm.breakers(request.sampling),
            constraint=request.constraint,
        )
        self.text = AnswerText(llm, self.sequence, request.stop, request.budget)
        self.slot: int | None = None
        self.error: QwenError | None = None
        self.created, self.started = time.monotonic(), 0.0
        self._cancel, self._pieces = cancel, asyncio.Queue[Piece | QwenError | None]()

    @property
    def stop_word(self) -> str:
        """The stop string that ended the answer, "" for none."""
        return self.text.stop_word

    def cancel(self) -> None:
        """Free the slot within a step. Without effect on what is complete."""
        self._cancel(self)

    async def aclose(self) -> None:
        self.cancel()

    async def __anext__(self) -> Piece:
        item = await self._pieces.get()
        if isinstance(item, Piece):
            return item
        self._pieces.put_nowait(item)  # whoever asks again gets the same end
        if item is None:
            raise StopAsyncIteration
        raise item

    def deliver(self, item: Piece | QwenError | None) -> None:
        """A piece, the error that ends the answer, or None where it is complete."""
        self._pieces.put_nowait(item)


class Slot(NamedTuple):
    """A place for a running request."""

    id: int
    generation: Generation | None
