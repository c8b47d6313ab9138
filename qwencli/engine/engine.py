"""The engine: sequences of token ids in, tokens out, step by step. It knows nothing about text."""

from __future__ import annotations

import time
from collections.abc import Collection
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from ..backends.kv_cache import PAGE, KVSequence
from ..backends.protocol import F32, I32, Backend, Batch, Segment, first_bad_layer
from ..errors import ContextFull, InputError, QwenError
from ..sampling import Breakers, Constraint, SamplingParams
from ..sampling.sampler import NOT_FINITE, Sampler, TokenReport
from .prefix_cache import Prefix, PrefixCache
from .shift import Shift

BATCH, MICRO_BATCH = 2048, 512
"""llama.cpp's defaults of -b and -ub."""


@dataclass(eq=False)
class Sequence:
    """A prompt, how to continue it, and all of its state.

    `tokens` is the prompt followed by the generated tokens. With `max_tokens` None only the context limits the answer. A token in `end_ids`
    ends the answer and is not part of it. `stop_reason` is None while the sequence runs, then eos, stop, length, context, cancelled or
    error; `error` then has the error.
    """

    tokens: list[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    end_ids: Collection[int] = ()
    stop_reason: str | None = None
    error: QwenError | None = None
    kv: KVSequence = field(default_factory=KVSequence)
    prompt_seconds: float = 0.0
    generation_seconds: float = 0.0
    n_prompt_done: int = 0
    """Prompt tokens whose keys and values are in the cache."""
    n_cached: int = 0
    """Prompt tokens that were in the cache from the start, from a sequence with the same beginning."""
    border: int = 0
    """The last border before other sequences differ. A step of a recurrent model ends there to leave a state for more sequences that begin
    alike."""
    breakers: Breakers = field(default_factory=dict)
    """Tokens across which repetitions that the DRY sampler finds don't reach."""
    use_cache: bool = True
    """Whether it takes over what others have computed, and leaves to others what it has computed."""
    shift: Shift | None = None
    """What is dropped where the context is full; None: the answer ends there."""
    n_dropped: int = 0
    """Tokens that were dropped so."""
    n_start: int = 0
    """Tokens that precede those."""
    constraint: Constraint | None = None
    """What the answer has to follow. When that is complete, the answer ends as with a token in `end_ids`."""
    reports: dict[int, TokenReport] = field(default_factory=dict)
    """The tokens that the sampler chose from, by position in the answer, if `sampling` asks for them."""

    def __post_init__(self) -> None:
        self.n_prompt = len(self.tokens)
        self.sampler = Sampler(self.sampling, self.breakers, self.constraint)

    @property
    def generated(self) -> list[int]:
        """The answer's tokens."""
        return self.tokens[self.n_prompt :]

    @property
    def context(self) -> list[int]:
        """The tokens that the model sees: all that weren't dropped."""
        if not self.n_dropped:
            return self.tokens
        return self.tokens[: self.n_start] + self.tokens[self.n_start + self.n_dropped :]

    @property
    def n_context(self) -> int:
        """How many those are."""
        return len(self.tokens) - self.n_dropped


def tokens_of_a_step(n_batch: int | None = None, n_ubatch: int | None = None) -> int:
    """The most tokens of a step: `n_ubatch`, llama.cpp's micro-batch, but at most `n_batch`.

    A batch of several micro-batches is several steps here, and after each of them all generating sequences get a token. Raises InputError
    for a number below 1.
    """
    for name, number in ("n_batch", n_batch), ("n_ubatch", n_ubatch):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, expected at least 1")
    return min(n_batch or BATCH, n_ubatch or MICRO_BATCH)


class Engine:
    """Runs sequences on a backend.

    `n_ctx` limits each sequence, `n_batch` the tokens of one step. Finished sequences of up to `n_kept` positions in all stay in the cache.
    """

    def __init__(self, backend: Backend, n_ctx: int, n_batch: int = 512, n_kept: int = 0) -> None:
        self.backend = backend
        self.n_ctx = n_ctx
        self.n_batch = n_batch
        self.running: list[Sequence] = []
        self.prefixes = PrefixCache(backend, n_kept)

    def submit(self, seq: Sequence) -> None:
        """Accept a sequence. Tokens that it has in common with the beginning of a running or kept sequence aren't computed again.

        Raises what `check` does.
        """
        self.check(seq)
        self._take_prefix(seq)
        seq.n_cached = seq.n_prompt_done = seq.kv.length
        self.running.append(seq)

    def _take_prefix(self, seq: Sequence) -> None:
        """Let a sequence begin with what others have computed of its context."""
        # without the last token: its step may have to be repeated
        running = ((s.context[:-1], s.kv) for s in self.running if s is not seq and s.use_cache)
        found = self.prefixes.take(seq.context, running) if seq.use_cache else Prefix(KVSequence(), 0)
        seq.kv, seq.border = found.kv, found.n_common // PAGE * PAGE

    def check(self, seq: Sequence) -> None:
        """Check that a sequence can be submitted. Changes nothing.

        Raises InputError for an empty prompt, ids outside the vocabulary, a sequence that was submitted before, or a model that generates
        nothing; ContextFull for a prompt longer than the context.
        """
        if seq.stop_reason or seq in self.running:
            raise InputError("the sequence was submitted before, expected a new one")
        self.backend.model.check_generates()
        self.check_prompt(seq.tokens)
        self._check_tokens([token for token, _ in seq.sampling.logit_bias], "logit_bias")

    def check_prompt(self, tokens: SequenceOf[int], what: str = "the prompt") -> None:
        """Raise InputError for a prompt without tokens or with ids outside the vocabulary, ContextFull for one longer than the context."""
        if not len(tokens):
            raise InputError(f"{what} is empty, expected at least one token")
        if len(tokens) > self.n_ctx:
            raise ContextFull(
                f"{what} has {len(tokens)} tokens, more than the context of {self.n_ctx}: shorten it or raise -c",
                len(tokens),
                self.n_ctx,
            )
        self._check_tokens(tokens, what)

    def extend(self, seq: Sequence, tokens: list[int]) -> None:
        """Append tokens to a running sequence's answer, as far as its limits allow. Raises InputError for ids outside the vocabulary."""
        self._check_tokens(tokens)
        for token in tokens:
            if seq in self.running:
                self._append(seq, token)

    def _check_tokens(self, tokens: SequenceOf[int], where: str = "the prompt") -> None:
        n_vocab = self.backend.model.config.n_vocab
        if not all(0 <= t < n_vocab for t in tokens):
            raise InputError(f"{where} has a token outside the vocabulary of {n_vocab}")

    def cancel(self, seq: Sequence, reason: str = "cancelled") -> None:
        """End a sequence now. Its pages stay in the cache as long as there is room."""
        if seq in self.running:
            self._finish(seq, reason)

    def step(self, n_batch: int | None = None) -> list[tuple[Sequence, int]]:
        """Advance the running sequences by a part of a prompt or one token each; in all at most `n_batch` tokens (default: the engine's).

        Returns the tokens that were generated. A sequence that fails by itself ends with its error. Raises QwenError if the whole step
        fails; then no sequence has changed, and the step can be repeated.
        """
        segments = self._schedule(n_batch or self.n_batch)
        if not segments:
            return []
        start = time.perf_counter()
        batch = Batch([segment for _, segment in segments])
        draws = [
            seq.sampler.draw(seq.tokens, len(seq.tokens) - seq.n_prompt)
            for seq, segment in segments
            if segment.n_outputs
        ]
        chosen = iter(self.backend.sample(batch, draws))
        produced = []
        for seq, segment in segments:
            is_prompt = len(seq.tokens) == seq.n_prompt
            if is_prompt:
                seq.n_prompt_done = min(seq.kv.length, seq.n_prompt)
            if segment.n_outputs:
                token = self._accept(seq, next(chosen), segment)
                if token is not None:
                    produced.append((seq, token))
            seconds = time.perf_counter() - start
            if is_prompt:
                seq.prompt_seconds += seconds
            else:
                seq.generation_seconds += seconds
        return produced

    def _schedule(self, room: int) -> list[tuple[Sequence, Segment]]:
        """Choose what the next step runs, and reserve memory: a token of each generating sequence, then prompts as far as there is room.

        In both groups the sequences that have waited longest come first.
        """
        segments, waiting = [], []
        for seq in list(self.running):
            # it may have all of its tokens: if none were wanted, or Ctrl-C came after the last one
            if seq.max_tokens is not None and len(seq.tokens) - seq.n_prompt >= seq.max_tokens:
                self._finish(seq, "length")
            elif seq.n_context >= self.n_ctx:
                self._make_room(seq)
        for seq in sorted(self.running, key=lambda s: s.n_context - s.kv.length > 1):
            context = seq.context
            # if Ctrl-C came after the last step was committed and before its token was appended, the step is repeated
            self.backend.cache.rewind(seq.kv, len(context) - 1)
            end = seq.kv.length + room
            if self.backend.cache.recurrent and seq.kv.length < seq.border:
                end = min(end, seq.border)
            todo = context[seq.kv.length : end]
            if not todo:
                waiting.append(seq)
                continue
            try:
                self._reserve(seq.kv, len(todo))
            except QwenError as error:  # no memory for this one; the others go on
                self._fail(seq, error)
                continue
            room -= len(todo)
            is_last = seq.kv.length + len(todo) == len(context)
            segments.append((seq, Segment(seq.kv, todo, int(is_last))))
        self.running = waiting + [seq for seq, _ in segments]
        return segments

    def _accept(self, seq: Sequence, found: int | F32, segment: Segment) -> int | None:
        """Append a token. `found` is the token, or logits to sample it from. Returns the token, or None if it ends the answer."""
        try:
            place = len(seq.tokens) - seq.n_prompt
            token = found if isinstance(found, int) else seq.sampler.choose(found, seq.tokens, place)
        except QwenError as error:  # its constraint can't go on; the other sequences do
            self._fail(seq, error)
            return None
        if token == NOT_FINITE:
            layer = self._first_bad_layer(segment) or "the output layer"
            where = f"position {len(seq.tokens)} are not finite, first in {layer}"
            self._fail(seq, QwenError(f"the logits of {where}: is the model damaged?"))
            return None
        if token in seq.end_ids:
            self._finish(seq, "eos")
            return None
        if seq.sampler.report:
            seq.reports[place] = seq.sampler.report
        self._append(seq, token)
        return token

    def _append(self, seq: Sequence, token: int) -> None:
        error = None
        ended = False
        try:
            ended = seq.constraint is not None and seq.constraint.ended([*seq.generated, token])
        except QwenError as failed:
            error = failed
        seq.tokens.append(token)  # Ctrl-C before this line leaves the sequence as it was
        if error:
            self._fail(seq, error)
        elif ended:
            self._finish(seq, "eos")
        elif seq.max_tokens is not None and len(seq.tokens) - seq.n_prompt >= seq.max_tokens:
            self._finish(seq, "length")
        elif seq.n_context >= self.n_ctx and not seq.shift:
            self._finish(seq, "context")

    def _make_room(self, seq: Sequence) -> None:
        """Drop a part of a context that is full, where the sequence wants that, and has the rest read again; else end it.

        Keys in the cache belong to their positions, so that the rest can't be moved to others.
        """
        if not seq.shift or len(seq.tokens) == seq.n_prompt:
            return self._finish(seq, "context")
        n_dropped = seq.shift.dropped(seq.n_context, self.n_ctx)
        self._give_back(seq)  # before anything changes: after Ctrl-C its context is just computed again
        seq.n_start = seq.shift.start(self.n_ctx)
        seq.n_dropped += n_dropped
        self._take_prefix(seq)

    def _give_back(self, seq: Sequence) -> None:
        """Leave what was computed to other sequences, unless it isn't for them."""
        if seq.use_cache:
            self.prefixes.keep(seq.context, seq.kv)
        else:
            self.backend.cache.release(seq.kv)

    def hidden(self, kv: KVSequence, tokens: SequenceOf[int] | I32, n_outputs: int) -> F32:
        """Run tokens that continue a sequence that the caller owns, and gives back with `release`.

        Returns the last norm's output for the last `n_outputs` of them, float32 [n_outputs, n_embd]. Raises QwenError.
        """
        self._reserve(kv, len(tokens))
        return self.backend.hidden(Batch([Segment(kv, tokens, n_outputs)]))

    def logits(self, kv: KVSequence, tokens: SequenceOf[int] | I32) -> list[F32]:
        """Run tokens as `hidden` does, and return the logits after each of them, float32 [n_vocab]. Raises QwenError."""
        self._reserve(kv, len(tokens))
        found = self.backend.sample(Batch([Segment(kv, tokens, len(tokens))]), [None] * len(tokens))
        rows = [row for row in found if not isinstance(row, int)]
        if len(rows) < len(found):
            raise QwenError("the logits are not finite: is the model damaged?")
        return rows

    def release(self, kv: KVSequence) -> None:
        """Give back the pages of a sequence that the caller owns."""
        self.backend.cache.release(kv)

    def _reserve(self, kv: KVSequence, n_tokens: int) -> None:
        """Reserve memory for more positions, dropping kept sequences if there is none. Raises QwenError if that isn't enough."""
        while True:
            try:
                return self.backend.cache.reserve(kv, n_tokens)
            except QwenError:
                if not self.prefixes.make_room():
                    raise

    def _fail(self, seq: Sequence, error: QwenError) -> None:
        seq.error = error
        self._finish(seq, "error")

    def _finish(self, seq: Sequence, reason: str) -> None:
        seq.stop_reason = reason
        self.running.remove(seq)
        if reason == "error":
            self.backend.cache.release(seq.kv)
        else:
            self._give_back(seq)

    def _first_bad_layer(self, segment: Segment) -> str | None:
        """Return the first layer whose output wasn't finite in the last step, found by repeating the step."""
        self.backend.cache.rewind(segment.seq, segment.seq.length - len(segment.tokens))
        return first_bad_layer(self.backend, Batch([segment]))
