"""Conversations with a model that runs here: messages in, events of its answer out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..engine.engine import Sequence as EngineSequence
from ..errors import ContextFull
from ..llm import LLM
from ..request.answer import RunningAnswer
from ..request.prompt import ChatPrompt, chat_prompt, check_room
from ..request.request import Request, Thinking, may_think
from ..text.chat.answers import AnswerParser, Content
from ..text.chat.beginnings import Beginning, beginning_of, ends_with_answer
from ..text.chat.template import ChatTemplate, Message, Rendered
from ..text.chat.thinking import CLOSE
from .dialogue import CollectedAnswer, Events
from .look_ahead import LookAhead

if TYPE_CHECKING:
    from ..text.grammar.constraints import Start
    from .dialogue import Settings

ANY_QUESTION = "What next?"
LONG_TEXT = 2**20
"""Characters. Shorter texts are cut into tokens in less than a second."""
ADVICE = ": shorten it or raise -c"


class Told(NamedTuple):
    """The text of a conversation up to the end of an answer, and the tokens that it was read and written in."""

    text: str
    guard: str
    tokens: list[int]


class LocalChat:
    """A ChatModel (dialogue.py) over an LLM, by `template`, else the file's own, else ChatML.

    What two conversations have in common is computed once: a next turn costs only what is new. An answer is kept as the very tokens that
    the model wrote. Templates, however, write some answers differently once they are past (Qwen3's leaves their thinking out): with
    `look_ahead` these are read again while nobody waits, in a thread that has the engine to itself until the next answer, or `close`.
    An answer goes on from a last message that is the assistant's.

    `stop`, `ignore_eos` and `grammar` are those of each Request, `on_step` and `on_token` those of LLM.run.
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
        grammar: Start | None = None,
    ) -> None:
        self.llm = llm
        self.template = template or llm.chat_template or ChatTemplate.named("chatml")
        self.on_step, self.on_token = on_step, on_token
        self.running: RunningAnswer | None = None
        """The last answer, running or not."""
        self._stop, self._ignore_eos, self._grammar = stop, ignore_eos, grammar
        self._told = Told("", "", [])
        self._look_ahead = LookAhead(llm.engine) if look_ahead else None

    @property
    def sequence(self) -> EngineSequence:
        """The last answer's."""
        assert self.running is not None, "asked before an answer"
        return self.running.sequence

    @property
    def stop_reason(self) -> str | None:
        return self.running.stop_reason if self.running else None

    def stats(self) -> dict[str, float]:
        """The last answer's timings, and how much of the context it filled (`context_n` of `n_ctx` tokens)."""
        if self.running is None:
            return {}
        context_n = len(self.running.sequence.tokens)
        return self.running.timings() | {"context_n": context_n, "n_ctx": self.llm.engine.n_ctx}

    def answer(self, messages: Sequence[Message], settings: Settings) -> Events:
        """See ChatModel.answer."""
        self.close()
        prompt = self._prompt(messages, settings)
        self._check_length(prompt.rendered.text)
        tokens = self._encode(prompt.rendered)
        check_room(len(tokens), self.llm.engine.n_ctx, what="the conversation", advice=ADVICE)
        thinking = prompt.thinking(settings.reasoning_budget, self._grammar is not None)
        pieces = self._complete(tokens, settings, thinking)
        parser = AnswerParser(prompt.inside, settings.tools, goes_on=prompt.beginning is not None)
        answer = CollectedAnswer()
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
            text, guard = prompt.rendered
            self._told = Told(text + written, guard, self.sequence.tokens)
        if self._look_ahead:
            past = [*messages, answer.message()]
            self._look_ahead.start(lambda: self._next_begin(past, settings))

    def close(self) -> None:
        """Give the engine back; what was looked ahead stays in the cache."""
        if self._look_ahead:
            self._look_ahead.stop()

    def wait(self) -> None:
        """Wait until all that can be looked ahead is."""
        if self._look_ahead:
            self._look_ahead.wait()

    def _next_begin(self, messages: list[Message], settings: Settings) -> list[int]:
        """The tokens that a next turn will begin with, whatever its question: all before the control token that precedes it.

        No tokens where the template changes the questions that it writes.
        """
        prompt = self._prompt([*messages, {"role": "user", "content": ANY_QUESTION}], settings).rendered
        before = prompt.text.rpartition(ANY_QUESTION)[0]
        end = max((before.rfind(control) for control in self.llm.tokenizer.control_texts), default=0)
        return self._encode(prompt._replace(text=before[: max(end, 0)]))

    def _prompt(self, messages: Sequence[Message], settings: Settings) -> ChatPrompt:
        thinks = may_think(settings.think, settings.reasoning_budget)
        if not ends_with_answer(messages) or messages[-1].get("tool_calls"):
            return chat_prompt(self.template, self.llm.tokenizer, messages, settings.tools, thinks)

        def begun(beginning: Beginning | None) -> ChatPrompt:
            asked = messages[:-1], settings.tools, thinks
            return chat_prompt(self.template, self.llm.tokenizer, *asked, beginning=beginning)

        beginning = beginning_of(messages)
        prompt = begun(beginning)
        if beginning and self._written_after(prompt.rendered).strip() == CLOSE:
            return begun(beginning.closed())  # the answer was cut off where its thinking had just ended
        return prompt

    def _written_after(self, prompt: Rendered) -> str:
        """What the last answer has after this prompt, "" where it doesn't begin so."""
        goes_on = prompt.guard == self._told.guard and self._told.text.startswith(prompt.text)
        return self._told.text[len(prompt.text) :] if goes_on else ""

    def go_on(self, text: str, settings: Settings) -> Events:
        """Continue a text as it stands, without a template; control tokens in it are recognised."""
        self.close()
        self._check_length(text)
        tokens = self.llm.tokenizer.encode(text, add_special=True, parse_special=True)
        with contextlib.closing(self._complete(tokens, settings, Thinking())) as pieces:
            yield from map(Content, pieces)

    def _check_length(self, text: str) -> None:
        """Raise ContextFull for a text that is too long whatever its tokens are. Cutting takes a second a megabyte, and Ctrl-C waits."""
        n_ctx = self.llm.engine.n_ctx
        if len(text) > LONG_TEXT and self.llm.tokenizer.fewest(text) > n_ctx:
            raise ContextFull(
                f"the conversation has {len(text)} characters, more than the context of {n_ctx} tokens can hold{ADVICE}"
            )

    def _complete(
        self, tokens: list[int], settings: Settings, thinking: Thinking
    ) -> Generator[str, None, None]:
        request = Request(
            tokens,
            settings.sampling,
            settings.max_tokens,
            self._stop,
            self._ignore_eos,
            thinking,
            self._grammar,
        )
        self.running = self.llm.begin(request)
        return self.llm.run(self.running, self.on_step, self.on_token)

    def _encode(self, prompt: Rendered) -> list[int]:
        """The prompt's tokens. Where it goes on from what was told, that part has the tokens in which it was told: a model may have written
        a word in other tokens than those into which the tokenizer cuts it."""
        told = self._told
        rest = prompt.text[len(told.text) :]
        tokenizer = self.llm.tokenizer
        goes_on = told.tokens and told.guard == prompt.guard and prompt.text.startswith(told.text)
        if goes_on and (not rest or rest.startswith(tuple(tokenizer.control_texts))):
            return told.tokens + prompt.encode(tokenizer, len(told.text))
        return prompt.encode(tokenizer)
