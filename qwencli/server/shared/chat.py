"""From a conversation to a request, and from what the model writes to what an API tells of it. All APIs with chats are made of this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...llm import LLM
from ...request.prompt import ChatPrompt
from ...request.request import Request, Thinking
from ...text.chat.answers import AnswerParser, Content, Event, Reasoning, ToolCall
from ...text.chat.thinking import last_block
from ...text.chat.tool_calls import CLOSE, OPEN
from ..options import ServerOptions
from ..service.generation import Generation, TextPart
from .conversations import ConversationFields, prompt_of, tokens_of
from .forms import after_beginning, call_or_answer, call_schema, grammar_of

if TYPE_CHECKING:
    from ...text.grammar.constraints import Start

Forms = dict[str, dict[str, Any] | str]
"""What an answer has to follow, by the field that asks for it."""


@dataclass(frozen=True)
class Asked:
    """A conversation as a request.

    `opening` is what its prompt holds of the answer already; with `goes_on` it begins in the middle of an answer. `told` is what stands
    before the answer. Calls of `tools` are told apart from its text, and so is thinking, with `tells_thinking`.
    """

    body: ConversationFields
    request: Request
    opening: str = ""
    told: tuple[Event, ...] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    tells_thinking: bool = True
    goes_on: bool = False


def opened(body: ConversationFields, llm: LLM, options: ServerOptions) -> tuple[ChatPrompt, str]:
    """The prompt, and how an answer opens that has to be a call: it is one from its first word on, without thinking. Slow.

    Raises as `asked_of`.
    """
    thinks, _ = body.thinking(options)
    forced = bool(body.forced_tools())
    prompt = prompt_of(body, llm, options, thinks and not forced)
    said = prompt.beginning.said if prompt.beginning else None
    return prompt, ("\n" if said else "") + OPEN + "\n" if forced else ""


def asked_of(body: ConversationFields, llm: LLM, options: ServerOptions, n_probs: int = 0) -> Asked:
    """The request that a conversation is. Slow. Raises ApiError, QwenError."""
    forms = body.answer_forms()
    _, limit = body.thinking(options)
    thinking = Thinking()
    prompt, opening = opened(body, llm, options)
    if opening:
        forms = {"tools": call_schema(body.forced_tools())}
    tokens = tokens_of(prompt, llm, opening)
    grammar = grammar_for(body, llm, forms, bool(opening))
    if not opening:
        thinking = prompt.thinking(limit, grammar is not None, body.message_at_budget(options))
        if grammar and prompt.beginning and (said := prompt.beginning.said):
            grammar = after_beginning(llm, grammar, said, next(iter(forms)))
    request = body.request(llm, options, tokens, n_probs, grammar, thinking)
    tells = body.tells_thinking(options)
    told = told_before(prompt, tells, bool(body.echo)) if options.parse_answers and not opening else ()
    return Asked(
        body, request, opening, told, body.callable_tools(options), tells, prompt.beginning is not None
    )


def grammar_for(body: ConversationFields, llm: LLM, forms: Forms, forced: bool) -> Start | None:
    """What the answer has to follow: where tools may be called, a call or what `forms` asks for. Slow. Raises ApiError, QwenError."""
    if forced or not body.usable_tools or len(forms) != 1:
        return grammar_of(llm, forms)
    functions = [tool["function"] for tool in body.usable_tools]
    [(field, schema)] = forms.items()
    return call_or_answer(llm, functions, field, schema, body.parallel_tool_calls is not False)


def told_before(prompt: ChatPrompt, tells_thinking: bool, echo: bool) -> tuple[Event, ...]:
    """What stands before an answer: the beginning that it goes on from, and where thinking is content, the prompt's block of it."""
    beginning = prompt.beginning
    if not beginning:
        block = "" if tells_thinking else last_block(prompt.rendered.text)
        return (Content(block),) if block else ()
    if not echo:
        return ()
    if not tells_thinking:
        return (Content("".join(beginning.written(prompt.template))),)
    thought = (Reasoning(beginning.thought),) if beginning.thought else ()
    return (*thought, Content(beginning.said)) if beginning.said else thought


class ChatAnswer:
    """The answer to a chat while it comes, told by events: thinking, text and tool calls apart.

    Nothing is told of what follows a call that was to be the only one.
    """

    def __init__(self, asked: Asked, generation: Generation) -> None:
        self.generation = generation
        self._opening = asked.opening
        self._told = [*asked.told]
        inside = generation.answer.request.thinking.inside
        self._parser = AnswerParser(inside, asked.tools, asked.tells_thinking, asked.goes_on)
        self._told += self._parser.add(asked.opening)
        self._one_call = asked.body.parallel_tool_calls is False
        self.n_calls = 0

    def add(self, part: TextPart) -> list[Event]:
        """What a part brings."""
        return self._passed(self._begun() + self._parser.add(part.text))

    def end(self) -> list[Event]:
        """What was held back, now that nothing follows."""
        closed = self._opening and self.generation.sequence.stop_reason == "eos"
        events = self._parser.add("\n" + CLOSE) if closed else []
        return self._passed(self._begun() + events + self._parser.end())

    def _begun(self) -> list[Event]:
        """What stands before the answer, once."""
        told, self._told = self._told, []
        return told

    def _passed(self, events: list[Event]) -> list[Event]:
        passed = []
        for event in events:
            if self._one_call and self.n_calls:
                break
            if isinstance(event, ToolCall):
                self.n_calls += 1
                if self._one_call:
                    self.generation.cancel()
            passed.append(event)
        return passed
