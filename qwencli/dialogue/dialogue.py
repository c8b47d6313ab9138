"""A conversation with a model: its messages, and what the user does to them. It knows neither a model nor a terminal."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import ContextFull, InputError
from ..sampling import SamplingParams
from ..text.chat.answers import Content, Event, Reasoning, ToolCall

if TYPE_CHECKING:
    from ..text.chat.template import Message


MAX_COUNT = 2**31 - 1
Events = Generator[Event, None, None]


@dataclass
class Settings:
    """How a model answers. `reasoning_budget` is the most tokens of thinking, 0 for none.

    With `think` None it may think: a template here is told so, a server is told nothing.

    Raises InputError for values that make no sense.
    """

    sampling: SamplingParams
    max_tokens: int | None = None
    think: bool | None = None
    reasoning_budget: int | None = None
    tools: Sequence[Message] | None = None
    """OpenAI's definitions of functions that the model may call."""

    def __post_init__(self) -> None:
        for name in "max_tokens", "reasoning_budget":
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
                raise InputError(
                    f"{name} is {value!r}, expected a whole number from 0 to {MAX_COUNT}, or none"
                )
        if self.think is not None and type(self.think) is not bool:
            raise InputError(f"think is {self.think!r}, expected true, false or none")


class ChatModel(Protocol):
    """What answers: a model on this machine, or one on a server."""

    @property
    def stop_reason(self) -> str | None:
        """Why the last answer ended: eos, stop, length, context, cancelled."""

    def answer(self, messages: Sequence[Message], settings: Settings) -> Iterator[Event]:
        """The next message, piece by piece. Closing the iterator stops it.

        Raises ContextFull, before anything else, where the conversation is longer than the context; QwenError.
        """

    def stats(self) -> dict[str, float]:
        """Figures of the last answer by llama.cpp's names, see request/timings.py; those that are not known are left out."""


class Dialogue:
    """The messages, oldest first, in OpenAI's form, and what a user can do to them.

    A question joins the messages together with its answer. Where no answer comes, because of an error or because it was stopped before
    its first word, the messages stay as they were and the question is put into `draft`, ready to be edited. An answer that was stopped
    later is kept as far as it was written.

    `may_drop` is called where the conversation fills the context, and says whether its oldest turns may be dropped. `report` is called with
    a line that says what was dropped.
    """

    def __init__(
        self,
        model: ChatModel,
        settings: Settings,
        messages: Sequence[Message] = (),
        may_drop: Callable[[], bool] = lambda: False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.model, self.settings = model, settings
        self.messages: list[Message] = list(messages)
        self.draft = ""
        self.attached = ""
        """Text that goes before the next question: files that were read."""
        self.may_drop, self._report = may_drop, report
        self._cut = False
        """Whether the last answer filled the context."""

    def ask(self, text: str) -> Events:
        """Ask, and pass on the answer as it comes; closing the generator stops it. Raises ContextFull, QwenError."""
        self.draft = text
        yield from self._answer([*self.messages, {"role": "user", "content": self.attached + text}])

    def regenerate(self) -> Events:
        """Answer the last question again. Raises InputError if there is none, ContextFull, QwenError."""
        yield from self._answer(self.messages[: self._last_question() + 1])

    def go_on(self) -> Events:
        """Go on with the last answer where it ends. Raises InputError if there is none, ContextFull, QwenError."""
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant" or last.get("tool_calls"):
            raise InputError("there is no answer to go on with")
        yield from self._answer([*self.messages], CollectedAnswer.of(last))

    def undo(self) -> str:
        """Take back the last question with its answer. Returns the question. Raises InputError if there is none."""
        last = self._last_question()
        question: str = self.messages[last]["content"]
        del self.messages[last:]
        self._cut = False
        return question

    def edit(self) -> None:
        """Like `undo`, and put the question into `draft`."""
        self.draft = self.undo()

    def clear(self) -> None:
        """Start over with the same system message."""
        self.messages = self.messages[: n_system(self.messages)]
        self.draft = self.attached = ""
        self._cut = False

    @property
    def system(self) -> str:
        """The system message, "" for none."""
        return self.messages[0]["content"] if n_system(self.messages) else ""

    @system.setter
    def system(self, text: str) -> None:
        self.messages[: n_system(self.messages)] = [{"role": "system", "content": text}] if text else []

    def _last_question(self) -> int:
        questions = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not questions:
            raise InputError("nothing was asked yet")
        return questions[-1]

    def _answer(self, messages: list[Message], begun: CollectedAnswer | None = None) -> Iterator[Event]:
        """Let the model answer `messages`, which become the dialogue's once there is an answer. `begun`: the last one is its beginning."""
        answer = begun or CollectedAnswer()
        complete = False
        n_messages = len(messages)
        try:
            for event in self._events(messages):
                if len(messages) < n_messages:
                    self._report(
                        f"the context is full: dropped the {n_messages - len(messages)} oldest messages"
                    )
                    n_messages = len(messages)
                answer.add(event)
                yield event
            complete = True
        finally:  # also where the answer is stopped
            if complete or answer.content or answer.calls:
                self.messages = [*(messages[:-1] if begun else messages), answer.message()]
                self.draft = self.attached = ""
                self._cut = complete and self.model.stop_reason == "context"

    def _events(self, messages: list[Message]) -> Iterator[Event]:
        """The model's answer. Where the conversation is too long, turns that may be dropped are dropped from `messages`."""
        allowed = None
        if self._cut and len(turns(messages)) > 1:
            allowed = self.may_drop() and drop_oldest(messages)
        while True:
            try:
                yield from self.model.answer(messages, self.settings)
                return
            except ContextFull as error:
                if allowed is None:
                    allowed = len(turns(messages)) > 1 and self.may_drop()
                if not allowed:
                    raise
                if not drop_oldest(messages):
                    raise ContextFull(f"the last message alone is too long: {error}") from None


def n_system(messages: Sequence[Message]) -> int:
    """How many messages at the start are the system's: 0 or 1."""
    return int(bool(messages) and messages[0]["role"] == "system")


def turns(messages: Sequence[Message]) -> list[int]:
    """Where turns start: at each question, but the first one right after the system message."""
    questions = [i for i, m in enumerate(messages) if m["role"] == "user"]
    return [n_system(messages), *questions[1:]] if questions else []


def drop_oldest(messages: list[Message]) -> bool:
    """Drop the oldest turns, as many as make up a quarter of the text before the last question, but never the last turn.

    After a drop what is left has to be computed again, so one drop makes room for more than one turn. Returns whether any were dropped.
    """
    begins = turns(messages)
    if len(begins) < 2:
        return False
    sizes = [sum(len(m["content"] or "") for m in messages[begin:end]) for begin, end in pairwise(begins)]
    n = next(n for n in range(1, len(sizes) + 1) if 4 * sum(sizes[:n]) >= sum(sizes))
    del messages[begins[0] : begins[n]]
    return True


class CollectedAnswer:
    """What the events of an answer add up to."""

    def __init__(self) -> None:
        self.reasoning = self.content = ""
        self.calls: list[ToolCall] = []

    @classmethod
    def of(cls, message: Message) -> CollectedAnswer:
        """A message without calls, to which more can be added."""
        answer = cls()
        answer.reasoning = message.get("reasoning_content") or ""
        answer.content = message.get("content") or ""
        return answer

    def add(self, event: Event) -> None:
        if isinstance(event, Reasoning):
            self.reasoning += event.text
        elif isinstance(event, Content):
            self.content += event.text
        else:
            self.calls.append(event)

    def message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI's form, with its thinking as `reasoning_content`."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {
                    "id": f"call_{i}",
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(call.arguments, ensure_ascii=False),
                    },
                }
                for i, call in enumerate(self.calls)
            ]
        return message
