"""The text of an answer while its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .engine.engine import Sequence as EngineSequence
from .text.chat.thinking import ReasoningBudget
from .text.tokenizer import StreamDecoder

if TYPE_CHECKING:
    from .llm import LLM


class AnswerText:
    """Reads a running sequence's tokens one by one, as text that is certain.

    One of the strings `stop` ends the answer and is left out of it; `budget` ends its thinking. Both act on the engine at once, so
    that nothing is generated in vain where each token is read before the next step.
    """

    def __init__(
        self, llm: LLM, seq: EngineSequence, stop: Sequence[str] = (), budget: ReasoningBudget | None = None
    ) -> None:
        self._llm, self._seq, self._budget = llm, seq, budget
        self._decoder, self._text = StreamDecoder(llm.tokenizer), StopStrings(stop)
        self.n_read = seq.n_prompt

    @property
    def unread(self) -> bool:
        """Whether there are tokens to read. Behind a stop string there are none."""
        return not self._text.found and self.n_read < len(self._seq.tokens)

    @property
    def stop_word(self) -> str:
        """The stop string that ended the answer, "" for none."""
        return self._text.found

    def next(self) -> str:
        """Read a token: the text that can neither be half a character nor begin a stop string now."""
        seq, engine = self._seq, self._llm.engine
        decoded = self._decoder.add(seq.tokens[self.n_read])
        self.n_read += 1
        if self._budget and (closing := self._budget.add(decoded)):
            engine.extend(seq, self._llm.tokenizer.encode(closing))
        return self._passed(decoded)

    def end(self) -> str:
        """What was held back, now that the sequence has ended and all is read. Raises its error where it failed."""
        if self._seq.error:
            raise self._seq.error
        return self._passed(self._decoder.end()) + self._text.end()

    def _passed(self, text: str) -> str:
        text = self._text.add(text)
        if self._text.found and self._seq.stop_reason != "stop":
            self._llm.engine.cancel(self._seq)
            self._seq.stop_reason = "stop"
        return text


class StopStrings:
    """Passes text on up to the first of some strings, holding back what may turn out to begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held, self.found = [s for s in stops if s], "", ""

    def add(self, text: str) -> str:
        """The text that can be passed on now. `found` is the stop string once one is complete; nothing is passed on from its begin on."""
        if self.found:
            return ""
        self._held += text
        ends = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        if ends:  # the first to be complete counts, however the text came in pieces
            end, start = min(ends)
            self.found = self._held[start:end]
            return self._held[:start]
        n_held = len(self._held)
        keep = max(
            (
                n
                for stop in self._stops
                for n in range(1, min(len(stop), n_held + 1))
                if self._held.endswith(stop[:n])
            ),
            default=0,
        )
        out, self._held = self._held[: n_held - keep], self._held[n_held - keep :]
        return out

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        return "" if self.found else self._held
