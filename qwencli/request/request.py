"""A request: all that decides an answer, and the rules that follow from it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..engine.shift import Shift
from ..sampling import Constraint, SamplingParams
from ..text.chat.thinking import ReasoningBudget
from ..text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..text.grammar.constraints import Start


@dataclass(frozen=True)
class Thinking:
    """The thinking that an answer may begin with; by default nothing is known of any, as for a text that goes on.

    With `first` a grammar holds for what comes after the thinking, not for the thinking itself. `inside` says that the prompt has opened
    the block already. `limit` is the most tokens of thinking, 0 for none; None sets no limit. `message` is what the thinking ends with at
    its limit.
    """

    first: bool = False
    inside: bool = False
    limit: int | None = None
    message: str = ""


@dataclass(frozen=True)
class Request:
    """A prompt, as token ids, and all that decides how it is answered.

    `max_tokens` None means as many as the context holds. The strings of `stop` end the answer and are left out of it. With `ignore_eos` it
    goes on where the model would end it. `grammar` is what the answer has to follow; see text/grammar/constraints.py.

    Without `use_cache` nothing is taken from prompts that begin alike, and nothing is kept for them. `shift` is what is dropped where the
    context is full; without it the answer ends there. `slot` is the only place of a server in which it may run; None for any.

    A request has no state, so that it can be answered more than once.
    """

    tokens: Sequence[int]
    sampling: SamplingParams
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    thinking: Thinking = Thinking()
    grammar: Start | None = None
    use_cache: bool = True
    shift: Shift | None = None
    slot: int | None = None

    def end_ids(self, tokenizer: Tokenizer) -> Collection[int]:
        """The tokens that end the answer and are not part of it.

        A grammar says where an answer may end, and allows the model's end tokens only there: ignoring them would make them part of the
        answer. So with a grammar they always end it.
        """
        return () if self.ignore_eos and self.grammar is None else tokenizer.eog_ids

    def budget(self) -> ReasoningBudget | None:
        """What ends the thinking at its limit, for one answer; None where there is no limit."""
        thinking = self.thinking
        if thinking.limit is None:
            return None
        return ReasoningBudget(thinking.limit, thinking.inside, thinking.message)

    def constraint(self, tokenizer: Tokenizer) -> Constraint | None:
        """What one answer has to follow: the grammar, from the start or from where its thinking ends."""
        if self.grammar is None:
            return None
        constraint = self.grammar()
        if not self.thinking.first:
            return constraint
        from ..text.chat.after_thinking import AfterThinking  # only where a grammar and thinking meet

        return AfterThinking(constraint, tokenizer, self.thinking.inside)


def may_think(think: bool | None, limit: int | None) -> bool:
    """Whether an answer may think: unless it is told not to, or has no tokens for it."""
    return think is not False and limit != 0
