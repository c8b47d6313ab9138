"""Conversations with a model that runs here: messages in, events of its answer out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..engine.engine import Sequence as EngineSequence
from ..errors import ContextFull
from ..llm import LLM, Completion
from ..sampling import Constraint
from ..text.chat.answers import AnswerParser, Content
from ..text.chat.messages import for_template
from ..text.chat.template import ChatTemplate, Message, Rendered
from ..text.chat.thinking import ReasoningBudget, closing, ends_inside
from .dialogue import Answer, Events
from .look_ahead import LookAhead

if TYPE_CHECKING:
    from .dialogue import Settings

ANY_QUESTION = "What next?"
LONG_TEXT = 2**20
"""Characters; so many are cut into tokens in less than a second."""


class Told(NamedTuple):
    """The text of a conversation up to the end of an answer, and the tokens that it was read and written in."""

    text: str
    guard: str
    tokens: list[int]


class LocalChat:
    """A ChatModel (dialogue.py) over an LLM, by `template`, else the file's own, else ChatML.

    What two conversations have in common is computed once: a next turn costs only what is new. An answer stands in it with the very tokens
    that the model wrote. Templates, however, write some answers otherwise once they are past (Qwen3's leaves their thinking out): with
    `look_ahead` these are read again while nobody waits, in a thread that has the engine to itself until the next answer, or `close`.
    `on_step` and `on_token` are Completion's. Each answer, behind its thinking, is held to what `constraint` gives.
    """

    def __init__(
        self,
        llm: LLM,
        template: ChatTemplate | None = None,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
        on_step: Callable[[int, int], None] | None = None,
        on_token: Callable[[int], None] | None = None,
        look_ahead: bool = False,
        constraint: Callable[[], Constraint] | None = None,
    ) -> None:
        self.llm, self._stop, self._ignore_eos, self._constraint = llm, stop, ignore_eos, constraint
        self.template = template or llm.chat_template or ChatTemplate.named("chatml")
        self.on_step, self.on_token = on_step, on_token
        self.completion: Completion | None = None
        self._told = Told("", "", [])
        self._look_ahead = LookAhead(llm.engine) if look_ahead else None

    @property
    def sequence(self) -> EngineSequence:
        """The last answer's."""
        assert self.completion is not None, "asked before an answer"
        return self.completion.sequence

    @property
    def stop_reason(self) -> str | None:
        return self.completion.sequence.stop_reason if self.completion else None

    def stats(self) -> dict[str, float]:
        """The last answer's timings, and how much of the context it filled (`context_n` of `n_ctx` tokens)."""
        if self.completion is None:
            return {}
        return self.completion.timings() | {
            "context_n": len(self.completion.sequence.tokens),
            "n_ctx": self.llm.engine.n_ctx,
        }

    def answer(self, messages: Sequence[Message], settings: Settings) -> Events:
        """See ChatModel.answer."""
        self.close()
        think = settings.think is not False and settings.reasoning_budget != 0
        prompt = self._render(messages, settings, think)
        inside = ends_inside(prompt.text)
        if inside and not think:  # a template that always begins with thinking
            prompt, inside = prompt._replace(text=prompt.text + closing(prompt.text)), False
        self._check_length(prompt.text)
        tokens = self._encode(prompt)
        n_ctx = self.llm.engine.n_ctx
        if len(tokens) >= n_ctx:
            raise ContextFull(
                f"the conversation has {len(tokens)} tokens, which leaves no room for an answer in the context of {n_ctx}: "
                "shorten it or raise -c"
            )
        limit = settings.reasoning_budget if think else 0  # also where a template knows of no switch
        budget = None if limit is None else ReasoningBudget(limit, inside)
        constraint = self._constraint and self._constraint()
        if constraint and (inside or (think and self.template.reads("enable_thinking"))):
            from ..text.chat.after_thinking import AfterThinking

            constraint = AfterThinking(constraint, self.llm.tokenizer, inside)
        pieces, parser, answer = (
            self._complete(tokens, settings, budget, constraint),
            AnswerParser(inside, settings.tools),
            Answer(),
        )
        try:
            for piece in pieces:
                for event in parser.add(piece):
                    answer.add(event)
                    yield event
            for event in parser.end():
                answer.add(event)
                yield event
        finally:
            pieces.close()
            written = self.llm.tokenizer.decode(self.sequence.generated)
            self._told = Told(prompt.text + written, prompt.guard, self.sequence.tokens)
        if self._look_ahead:
            past = [*messages, answer.message()]
            self._look_ahead.start(lambda: self._next_begin(past, settings, think))

    def close(self) -> None:
        """Give the engine back; what was looked ahead stays in the cache."""
        if self._look_ahead:
            self._look_ahead.stop()

    def wait(self) -> None:
        """Wait until all that can be looked ahead is."""
        if self._look_ahead:
            self._look_ahead.wait()

    def _next_begin(self, messages: list[Message], settings: Settings, think: bool) -> list[int]:
        """The tokens that a next turn will begin with, whatever its question: all before the control token that precedes it.

        No tokens where the template shows no question as it stands.
        """
        prompt = self._render([*messages, {"role": "user", "content": ANY_QUESTION}], settings, think)
        before = prompt.text.rpartition(ANY_QUESTION)[0]
        end = max((before.rfind(control) for control in self.llm.tokenizer.control_texts), default=0)
        return self._encode(prompt._replace(text=before[: max(end, 0)]))

    def _render(self, messages: Sequence[Message], settings: Settings, think: bool) -> Rendered:
        return self.template.rendered(
            self.llm.tokenizer, list(map(for_template, messages)), settings.tools, enable_thinking=think
        )

    def go_on(self, text: str, settings: Settings) -> Events:
        """Continue a text as it stands, without a template; control tokens in it are recognised."""
        self.close()
        self._check_length(text)
        tokens = self.llm.tokenizer.encode(text, add_special=True, parse_special=True)
        constraint = self._constraint and self._constraint()
        with contextlib.closing(self._complete(tokens, settings, None, constraint)) as pieces:
            yield from map(Content, pieces)

    def _check_length(self, text: str) -> None:
        """Raise ContextFull for a text that is too long whatever its tokens are: cutting takes a second a megabyte, and Ctrl-C waits."""
        n_ctx = self.llm.engine.n_ctx
        if len(text) > LONG_TEXT and self.llm.tokenizer.fewest(text) > n_ctx:
            raise ContextFull(
                f"the conversation has {len(text)} characters, more than the context of {n_ctx} tokens can hold: "
                "shorten it or raise -c"
            )

    def _complete(
        self,
        tokens: list[int],
        settings: Settings,
        budget: ReasoningBudget | None,
        constraint: Constraint | None,
    ) -> Generator[str, None, None]:
        self.completion = Completion(
            self.llm,
            tokens,
            settings.sampling,
            settings.max_tokens,
            self._stop,
            self._ignore_eos,
            self.on_step,
            self.on_token,
            budget,
            constraint,
        )
        return self.completion.run()

    def _encode(self, prompt: Rendered) -> list[int]:
        """The prompt's tokens; where it goes on from what was told, with the tokens that this was told in: a model may have written a
        word in other tokens than the tokenizer cuts it into."""
        told, rest = self._told, prompt.text[len(self._told.text) :]
        tokenizer = self.llm.tokenizer
        goes_on = told.tokens and told.guard == prompt.guard and prompt.text.startswith(told.text)
        if goes_on and (not rest or rest.startswith(tuple(tokenizer.control_texts))):
            return told.tokens + prompt.encode(tokenizer, len(told.text))
        return prompt.encode(tokenizer)
