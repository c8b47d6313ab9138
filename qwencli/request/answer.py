"""The answer to a request while it runs."""

from __future__ import annotations

from ..engine.engine import Engine
from ..engine.engine import Sequence as EngineSequence
from ..sampling import Breakers
from ..text.tokenizer import StreamDecoder, Tokenizer
from .request import Request
from .stop_strings import StopStrings
from .timings import timings


class RunningAnswer:
    """A request on the engine: its sequence, and the text of the tokens that were read.

    Whoever runs it submits `sequence`, steps the engine, reads with `next` while something is `unread`, and calls `end` when the sequence
    has stopped. Stop strings end the answer and the budget ends its thinking as soon as the token is read that completes them, so that no
    step is in vain where each token is read before the next step.
    """

    def __init__(self, request: Request, engine: Engine, tokenizer: Tokenizer, breakers: Breakers) -> None:
        self.request = request
        self.sequence = EngineSequence(
            list(request.tokens),
            request.sampling,
            request.max_tokens,
            request.end_ids(tokenizer),
            breakers=breakers,
            constraint=request.constraint(tokenizer),
            use_cache=request.use_cache,
            shift=request.shift,
        )
        self.n_read = 0
        """The answer's tokens that were read."""
        self._engine = engine
        self._tokenizer = tokenizer
        self._budget = request.budget()
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(request.stop)

    @property
    def unread(self) -> bool:
        """Whether there are tokens to read. After a stop string there are none."""
        return not self._stops.found and self.sequence.n_prompt + self.n_read < len(self.sequence.tokens)

    @property
    def stop_word(self) -> str:
        """The stop string that ended the answer, "" for none."""
        return self._stops.found

    @property
    def stop_reason(self) -> str | None:
        """Why the answer ended (see engine.Sequence), None while it runs."""
        return self.sequence.stop_reason

    def timings(self) -> dict[str, float]:
        """See timings.py."""
        return timings(self.sequence)

    def next(self) -> str:
        """Read a token: the text that is certain now, so neither half a character nor what may begin a stop string."""
        seq = self.sequence
        decoded = self._decoder.add(seq.tokens[seq.n_prompt + self.n_read])
        self.n_read += 1
        if self._budget and (closing := self._budget.add(decoded)):
            self._engine.extend(seq, self._tokenizer.encode(closing))
        return self._passed(decoded)

    def end(self) -> str:
        """What was held back, now that the sequence has stopped and all is read. Raises the sequence's error where it failed."""
        if self.sequence.error:
            raise self.sequence.error
        return self._passed(self._decoder.end()) + self._stops.end()

    def _passed(self, text: str) -> str:
        text = self._stops.add(text)
        if self._stops.found and self.sequence.stop_reason != "stop":
            self._engine.cancel(self.sequence, "stop")
            self.sequence.stop_reason = "stop"  # also where it had stopped by itself
        return text
