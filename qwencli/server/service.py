"""Many requests on one engine: slots, a queue, and a thread that steps; for asyncio."""
from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..answer_text import AnswerText
from ..backends import HIDDEN, Batch
from ..backends import Piece as BatchPiece
from ..chat.thinking import ReasoningBudget
from ..costs import KV_BYTES
from ..engine import Sequence
from ..errors import QwenError
from ..host import Host
from ..kv_cache import KVSequence
from ..llm import LLM
from ..sampling import SamplingParams

if TYPE_CHECKING:
    from ..grammar import Constraint

FAIR_BATCH = 128
"""Tokens a step while answers are being written: a long prompt beside them is read in chunks that halt none of them for long."""


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


@dataclass
class Counters:
    """Since the start. Seconds are of whole steps, counted once for each sequence that took part."""
    n_requests: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    n_steps: int = 0
    n_busy_slots: int = 0
    """Sequences, summed over all steps."""


class Generation(AsyncIterator[Piece]):
    """An answer on its way. Iterating ends when it is complete and raises QwenError where it failed; leaving early needs `cancel`."""

    def __init__(self, service: Service, request: Request) -> None:
        llm = service.llm
        ends = frozenset[int]() if request.ignore_eos else llm.tokenizer.eog_ids
        self.sequence = Sequence(list(request.tokens), request.sampling, request.max_tokens, ends,
                                 breakers=llm.breakers(request.sampling), constraint=request.constraint)
        self.text = AnswerText(llm, self.sequence, request.stop, request.budget)
        self.slot: int | None = None
        self.error: QwenError | None = None
        self.created, self.started = time.monotonic(), 0.0
        self._service, self._pieces = service, asyncio.Queue[Piece | BaseException | None]()

    @property
    def stop_word(self) -> str:
        """The stop string that ended the answer, "" for none."""
        return self.text.stop_word

    def cancel(self) -> None:
        """Free the slot within a step. Without effect on what is complete."""
        self._service._cancel(self)

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

    def _deliver(self, item: Piece | BaseException | None) -> None:
        self._pieces.put_nowait(item)


class Slot(NamedTuple):
    """A place for a running request."""
    id: int
    generation: Generation | None


@dataclass
class _Embedding:
    tokens: list[int]
    done: asyncio.Future[NDArray[np.float32]]
    kv: KVSequence = field(default_factory=KVSequence)
    hidden: list[NDArray[np.float32]] = field(default_factory=list)


def room_for_prefixes(llm: LLM, n_slots: int, host: Host | None = None) -> int:
    """Positions of finished sequences to keep: a context for each slot, but no more than a quarter of the free memory holds, and one."""
    host = host or Host()
    free, limit, c = host.memory()[1], host.memory_limit(), llm.model.config
    least = min([n for n in (free, limit and limit[0]) if n is not None], default=0)
    positions = least // 4 // (2 * KV_BYTES * c.n_head_kv * c.head_dim * c.n_layer)
    return max(llm.engine.n_ctx, min(n_slots * llm.engine.n_ctx, positions))


class Service:
    """Runs up to `n_slots` requests of `llm` at once; `n_queue` more may wait. All but `start` belongs to the event loop's thread."""

    def __init__(self, llm: LLM, n_slots: int = 4, n_queue: int = 64, pooling: str = "last") -> None:
        self.llm, self.n_slots, self.n_queue, self.pooling = llm, n_slots, n_queue, pooling
        self.counters = Counters()
        llm.engine.prefixes.room = room_for_prefixes(llm, n_slots)
        self._slots: list[Generation | None] = [None] * n_slots
        self._waiting: deque[Generation] = deque()
        self._embeddings: deque[_Embedding] = deque()
        self._cancelled: deque[Generation] = deque()
        self._changed = threading.Condition()
        self._ending = self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the engine's thread. To be called where the event loop runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, grace: float) -> None:
        """Take no more requests, let those that are here finish for `grace` seconds, and end."""
        self._ending = True
        end = time.monotonic() + grace
        while time.monotonic() < end and (self._waiting or self._embeddings or any(self._slots)):
            await asyncio.sleep(0.05)
        with self._changed:
            self._ended = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def generate(self, request: Request) -> Generation:
        """Take a request. Raises Busy where too many wait, InputError and ContextFull where it can never run."""
        if self._ending:
            raise Ending
        generation = Generation(self, request)
        self.llm.engine.check(generation.sequence)
        with self._changed:
            if len(self._waiting) >= self.n_queue + self._slots.count(None):
                raise Busy(f"{self.n_queue} requests are waiting already, try again later", self._expected_wait())
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    async def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """A text's embedding, float32 [n_embd]: the final norm's output, of the last token or the mean of all. Raises as `generate`."""
        if self._ending:
            raise Ending
        self.llm.engine.check(Sequence(tokens, SamplingParams(temp=0)))
        job = _Embedding(tokens, asyncio.get_running_loop().create_future())
        with self._changed:
            if len(self._embeddings) >= self.n_queue:
                raise Busy(f"{self.n_queue} texts are waiting already, try again later", self._expected_wait())
            self._embeddings.append(job)
            self._changed.notify()
        return await job.done

    def slots(self) -> list[Slot]:
        return [Slot(i, generation) for i, generation in enumerate(self._slots)]

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def _expected_wait(self) -> int:
        """Seconds until a place is free, from what requests have taken so far."""
        n = max(1, self.counters.n_requests)
        return max(1, min(60, round((self.counters.prompt_seconds + self.counters.generation_seconds) / n)))

    def _cancel(self, generation: Generation) -> None:
        with self._changed:
            self._cancelled.append(generation)
            self._changed.notify()

    # The engine's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._ended or self._waiting or self._embeddings or self._cancelled or any(self._slots)):
                    self._changed.wait()
            self._end_cancelled()
            if self._ended:
                break
            self._admit()
            if any(self._slots):
                self._step()
            if self._embeddings:
                self._embed_some(self._embeddings[0])
        for generation in [*filter(None, self._slots), *self._waiting]:
            self.llm.engine.cancel(generation.sequence)
            self._finish(generation, Ending())
        for job in self._embeddings:
            self._tell(_fail, job.done, Ending())

    def _admit(self) -> None:
        """Requests that wait take the free slots."""
        while self._waiting and None in self._slots:
            generation = self._waiting.popleft()
            try:
                self.llm.engine.submit(generation.sequence)
            except Exception as error:
                self._finish(generation, as_qwen_error(error))
                continue
            generation.slot, generation.started = self._slots.index(None), time.monotonic()
            self._slots[generation.slot] = generation

    def _end_cancelled(self) -> None:
        while self._cancelled:
            generation = self._cancelled.popleft()
            with self._changed:
                waits = generation in self._waiting
                if waits:
                    self._waiting.remove(generation)
            if waits:
                generation.sequence.stop_reason = "cancelled"
                self._finish(generation)
            elif generation in self._slots:
                self.llm.engine.cancel(generation.sequence)
                self._finish(generation)

    def _step(self) -> None:
        """One step, and what it brought to whom."""
        engine, running = self.llm.engine, [generation for generation in self._slots if generation]
        writing = any(generation.sequence.generated for generation in running)
        try:
            engine.step(FAIR_BATCH if writing else None)
        except BaseException as error:  # the step did nothing; whatever it is, it ends these requests and not the service
            for generation in running:
                engine.cancel(generation.sequence, "error")
                self._finish(generation, as_qwen_error(error))
            return
        self.counters.n_steps += 1
        self.counters.n_busy_slots += len(running)
        for generation in running:
            self._read(generation)

    def _read(self, generation: Generation) -> None:
        """Pass on a sequence's new tokens, and its end."""
        seq, text, start = generation.sequence, generation.text, generation.text.n_read
        try:
            pieces = []
            while text.unread:
                pieces.append(text.next())
            if seq.stop_reason and not seq.error:
                pieces.append(text.end())
        except QwenError as error:
            self.llm.engine.cancel(seq, "error")
            self._finish(generation, error)
            return
        if text.n_read > start or any(pieces):
            self._tell(generation._deliver, Piece("".join(pieces), seq.tokens[start:text.n_read]))
        if seq.stop_reason:
            self._finish(generation, seq.error)

    def _finish(self, generation: Generation, error: QwenError | None = None) -> None:
        generation.error = error
        if generation.slot is not None:
            self._slots[generation.slot] = None
            seq, c = generation.sequence, self.counters
            c.n_requests += 1
            c.n_prompt += seq.n_prompt_done - seq.n_cached
            c.n_cached += seq.n_cached
            c.n_generated += len(seq.generated)
            c.prompt_seconds += seq.prompt_seconds
            c.generation_seconds += seq.generation_seconds
        self._tell(generation._deliver, error)

    def _embed_some(self, job: _Embedding) -> None:
        """Read a chunk of a text; the rest comes after the next step of those who write."""
        backend, kv = self.llm.engine.backend, job.kv
        try:
            if job.done.done():
                raise QwenError("nobody waits for it any more")
            chunk = job.tokens[kv.length:kv.length + self.llm.engine.n_batch]
            self.llm.engine.reserve(kv, len(chunk))
            n_outputs = len(chunk) if self.pooling == "mean" else int(kv.length + len(chunk) == len(job.tokens))
            values = backend.run([HIDDEN], Batch([BatchPiece(kv, chunk, n_outputs)]))
            job.hidden.append(values[HIDDEN])
            if kv.length < len(job.tokens):
                return
            result: NDArray[np.float32] = np.concatenate(job.hidden).mean(axis=0, dtype=np.float32)
            self._tell(_set, job.done, result)
        except Exception as error:
            self._tell(_fail, job.done, as_qwen_error(error))
        with self._changed:
            self._embeddings.popleft()
        backend.cache.release(kv)

    def _tell(self, what: Callable[..., object], *args: Any) -> None:
        """Call something in the event loop's thread, unless that has ended."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def as_qwen_error(error: BaseException) -> QwenError:
    """What an unexpected error is to the request that it ends; the log finds the rest in its cause."""
    if isinstance(error, QwenError):
        return error
    found = QwenError(f"{type(error).__name__} in a step")
    found.__cause__ = error
    return found


def _set(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
