"""Many requests on one engine: slots, a queue, and a thread that steps; for asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...backends.kv_cache import PAGE
from ...engine.embedding import Embedding, check_reading
from ...engine.engine import Engine
from ...engine.fit import Fit
from ...errors import QwenError
from ...llm import LLM
from ...request.request import Request
from ...request.timings import n_computed, timings
from .generation import Busy, Ending, Generation, NotServed, Slot, TextPart
from .leftovers import Leftovers
from .presence import Presence

FAIR_BATCH = 128
"""Tokens a step while answers are being written: a long prompt is read next to them in chunks that hold none of them up for long."""
START = {"embeddings": "--embedding", "rerank": "--rerank"}
"""The options that make a server one for this alone."""
Work = tuple[Callable[[Engine], Any], "asyncio.Future[Any]"]
T = TypeVar("T")
Waiting = tuple[Embedding, "asyncio.Future[NDArray[np.float32]]"]


@dataclass
class Counters:
    """What was done since the start. Seconds are those of whole steps, counted once for each sequence that took part."""

    n_requests: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    n_texts: int = 0
    n_text_tokens: int = 0
    text_seconds: float = 0.0
    """Texts that were embedded."""
    n_steps: int = 0
    n_busy_slots: int = 0
    """Sequences, summed over all steps."""
    n_longest: int = 0
    """Tokens of the longest sequence."""


class Cached(NamedTuple):
    """What the cache keeps of finished sequences. `n_room` is the number of positions for which there is memory."""

    n_tokens: int
    n_sequences: int
    n_room: int


def room_for_prefixes(fit: Fit, n_ctx: int, n_slots: int) -> int:
    """Positions of finished sequences to keep: a context for each slot, but no more than a quarter of the free memory holds.

    At least one context.
    """
    return max(n_ctx, min(n_slots * n_ctx, (fit.positions(n_slots) or 0) // 4))


class Service:
    """Runs up to `n_slots` requests at once on `llm`; `n_queue` more may wait. Its methods are for the event loop's thread.

    `pooling` is what becomes of texts that are embedded, by default as the file says. Raises InputError where that is "rank" and the model
    can't.
    """

    def __init__(self, llm: LLM, n_slots: int = 4, n_queue: int = 64, pooling: str | None = None) -> None:
        self.llm, self.n_slots, self.n_queue = llm, n_slots, n_queue
        self.pooling = pooling or llm.pooling
        if self.pooling == "rank":
            llm.ranking  # noqa: B018 - raises here where the model can't
        self.counters = Counters()
        self.only: str | None = None
        """As in ServerOptions."""
        self.presence = Presence(self._load, self._unload)
        """While the model is unloaded, `llm` has only what is known of the file, and its tokenizer."""
        self._cached: Cached | None = None
        self._keep_prefixes()
        self._slots: list[Generation | None] = [None] * n_slots
        self._waiting: deque[Generation] = deque()
        self.leftovers = Leftovers(n_slots)
        self._embeddings: deque[Waiting] = deque()
        self._work: deque[Work] = deque()
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
        while time.monotonic() < end and self._busy():
            await asyncio.sleep(0.05)
        with self._changed:
            self._ended = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)

    def generate(self, request: Request, tells_progress: bool = False) -> Generation:
        """Take a request. `tells_progress`: its parts tell how its prompt is read, too.

        Raises Busy where too many wait, Ending at the end, NotServed, InputError and ContextFull where it can never run.
        """
        if self._ending:
            raise Ending
        if self.only:
            raise NotServed(f"this server generates nothing: start it without {START[self.only]}")
        generation = Generation(self.llm.begin(request), self._cancel)
        self.llm.engine.check(generation.sequence)
        generation.tells_progress = tells_progress
        if request.slot is not None:
            generation.wanted = request.slot % self.n_slots
        with self._changed:
            if len(self._waiting) >= self.n_queue + self._slots.count(None):
                raise Busy(
                    f"{self.n_queue} requests are waiting already, try again later", self._expected_wait()
                )
            self._waiting.append(generation)
            self._changed.notify()
        return generation

    async def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """A text's vectors, float32: [1, n_embd], or with the pooling "none" [n_tokens, n_embd]. Raises as `generate`."""
        return await self._read_text(tokens, Embedding(tokens, self.pooling))

    async def rank(self, tokens: list[int]) -> float:
        """The score of a query and a document, as `llm.ranking` puts them into one text. Raises as `generate`."""
        return float((await self._read_text(tokens, self.llm.ranking.reading(tokens)))[0, 0])

    async def _read_text(self, tokens: list[int], text: Embedding) -> NDArray[np.float32]:
        """Wait for the turn of a text, and for its result."""
        if self._ending:
            raise Ending
        check_reading(self.llm.engine, tokens)
        done: asyncio.Future[NDArray[np.float32]] = asyncio.get_running_loop().create_future()
        with self._changed:
            if len(self._embeddings) >= self.n_queue:
                raise Busy(
                    f"{self.n_queue} texts are waiting already, try again later", self._expected_wait()
                )
            self._embeddings.append((text, done))
            self._changed.notify()
        found = await done
        self.counters.n_texts += 1
        self.counters.n_text_tokens += len(tokens)
        return found

    async def between_steps(self, work: Callable[[Engine], T]) -> T:
        """Do something with the engine where no step runs, in its thread, which waits meanwhile. Raises Ending, and what `work` does."""
        if self._ending:
            raise Ending
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._work.append((work, done))
            self._changed.notify()
        return await done

    def _keep_prefixes(self) -> None:
        engine = self.llm.engine
        engine.prefixes.room = room_for_prefixes(self.llm.fit, engine.n_ctx, self.n_slots)

    def _unload(self) -> None:
        while self._busy():  # with what was cancelled just now
            time.sleep(0.01)
        self._cached = self.cached
        self.llm.unload()

    def _load(self) -> None:
        self.llm = self.llm.again()
        self._cached = None
        self._keep_prefixes()

    @property
    def cached(self) -> Cached:
        """What is in the cache; while the model is unloaded, what was in it at the end."""
        if self._cached:
            return self._cached
        engine = self.llm.engine
        kept = engine.prefixes.kept
        return Cached(sum(len(k.tokens) for k in kept), len(kept), engine.backend.cache.n_pages * PAGE)

    def slots(self) -> list[Slot]:
        return [Slot(i, generation) for i, generation in enumerate(self._slots)]

    @property
    def n_waiting(self) -> int:
        return len(self._waiting)

    def _busy(self) -> bool:
        with self._changed:
            return bool(self._waiting or self._embeddings or self._work or any(self._slots))

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
                while not (
                    self._ended
                    or self._next()
                    or self._embeddings
                    or self._work
                    or self._cancelled
                    or any(self._slots)
                ):
                    self._changed.wait()
            self._end_cancelled()
            if self._ended:
                break
            self._do_work()
            self._admit()
            if any(self._slots):
                self._step()
            if self._embeddings:
                self._embed_some(*self._embeddings[0])
        for generation in [*filter(None, self._slots), *self._waiting]:
            self.llm.engine.cancel(generation.sequence)
            self._finish(generation, Ending())
        for _, done in [*self._embeddings, *self._work]:
            self._tell(_fail, done, Ending())

    def _do_work(self) -> None:
        while self._work:
            work, done = self._work.popleft()
            try:
                tell = partial(_set, done, None if done.done() else work(self.llm.engine))
            except Exception as error:  # whatever it is, it must not end the engine's thread
                tell = partial(_fail, done, as_qwen_error(error))
            self._tell(tell)

    def _admit(self) -> None:
        """Give free slots to requests that wait."""
        while True:
            with self._changed:  # it must not be found neither waiting nor running: the queue would take one more, the service end too soon
                if not (next := self._next()):
                    return
                generation, slot = next
                self._waiting.remove(generation)
                self._slots[slot] = generation
            try:
                self.llm.engine.submit(generation.sequence)
            except Exception as error:  # whatever it is, it must not end the engine's thread
                self._slots[slot] = None
                self._finish(generation, as_qwen_error(error))
                continue
            generation.slot, generation.started = slot, time.monotonic()
            self._tell_progress(generation)

    def _next(self) -> tuple[Generation, int] | None:
        """The first that waits and may run now, and its slot. Those that wait for a slot hold up none that run elsewhere."""
        free = [i for i, generation in enumerate(self._slots) if generation is None]
        if not free:
            return None
        wanted = {generation.wanted for generation in self._waiting}
        for generation in self._waiting:
            if generation.wanted in free:
                return generation, generation.wanted
            if generation.wanted is None:
                return generation, min(free, key=lambda slot: slot in wanted)
        return None

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
        """Take one step, and pass on what it brought."""
        engine, running = self.llm.engine, [generation for generation in self._slots if generation]
        writing = any(generation.sequence.generated for generation in running)
        try:
            engine.step(FAIR_BATCH if writing else None)
        except (
            Exception
        ) as error:  # the step did nothing; whatever it is, it must not end the engine's thread
            for generation in running:
                engine.cancel(generation.sequence, "error")
                self._finish(generation, as_qwen_error(error))
            return
        self.counters.n_steps += 1
        self.counters.n_busy_slots += len(running)
        for generation in running:
            self._tell_progress(generation)
            self._read(generation)

    def _tell_progress(self, generation: Generation) -> None:
        n = generation.sequence.n_prompt_done
        if generation.tells_progress and n > generation.n_told:
            generation.n_told = n
            self._tell(generation.deliver, TextPart("", [], n, timings(generation.sequence)))

    def _read(self, generation: Generation) -> None:
        """Pass on a sequence's new tokens, and its end."""
        answer, seq = generation.answer, generation.sequence
        start = answer.n_read
        texts = []
        try:
            while answer.unread:
                texts.append(answer.next())
            if seq.stop_reason and not seq.error:
                texts.append(answer.end())
        except QwenError as error:
            self.llm.engine.cancel(seq, "error")
            self._finish(generation, error)
            return
        tokens = seq.tokens[seq.n_prompt + start : seq.n_prompt + answer.n_read]
        generation.has_new_line |= any("\n" in text for text in texts)
        if tokens or any(texts):
            self._tell(generation.deliver, TextPart("".join(texts), tokens))
        if seq.stop_reason:
            self._finish(generation, seq.error)

    def _finish(self, generation: Generation, error: QwenError | None = None) -> None:
        generation.error = error
        if generation.slot is not None:
            self._slots[generation.slot] = None
            seq, c = generation.sequence, self.counters
            self.leftovers.note(generation.slot, seq.context if seq.use_cache else [])
            c.n_requests += 1
            c.n_prompt += n_computed(seq)
            c.n_cached += seq.n_cached
            c.n_generated += len(seq.generated)
            c.n_longest = max(c.n_longest, len(seq.tokens))
            c.prompt_seconds += seq.prompt_seconds
            c.generation_seconds += seq.generation_seconds
        self._tell(generation.deliver, error)

    def _embed_some(self, embedding: Embedding, done: asyncio.Future[NDArray[np.float32]]) -> None:
        """Read a chunk of a text; the next one comes after the next step of the answers."""
        tell: Callable[..., None]
        start = time.perf_counter()
        try:
            # where it is done already, nobody waits for it any longer
            found = None if done.done() else embedding.read(self.llm.engine)
            if found is None and not done.done():
                return
            tell = partial(_set, done, found)
        except Exception as error:  # whatever it is, it must not end the engine's thread
            tell = partial(_fail, done, as_qwen_error(error))
        finally:
            self.counters.text_seconds += time.perf_counter() - start
            self.counters.n_steps += 1
            self.counters.n_busy_slots += 1
        embedding.release(self.llm.engine)
        with self._changed:
            self._embeddings.popleft()
        self._tell(tell)

    def _tell(self, what: Callable[..., object], *args: Any) -> None:
        """Call something in the event loop's thread, unless that has ended."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(what, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise


def as_qwen_error(error: Exception) -> QwenError:
    """An unexpected error as the request that it ends sees it; the log finds the original in its cause."""
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
