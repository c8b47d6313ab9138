"""Options for answers, and how an answer is shown as it comes, its thinking apart from the rest."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ..text.chat.answers import Event, Reasoning, ToolCall
from ..text.chat.thinking import CLOSE, OPEN
from ._llama.command import llama_option
from ._options import Gathered, gathered
from ._streams import printable, write_text

if TYPE_CHECKING:
    from ..dialogue.dialogue import CollectedAnswer
    from ..text.chat.template import ChatTemplate

DIM, PLAIN = "\x1b[2m", "\x1b[0m"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""All but newline and tab."""


class TemplateOptions(Gathered):
    """The template that was asked for, by one option or by the other."""

    chat_template: str | None
    chat_template_file: str | None

    @property
    def asked(self) -> bool:
        return self.chat_template is not None or self.chat_template_file is not None

    def template(self) -> ChatTemplate | None:
        """The template, with its process started; None if none was asked for. Raises InputError."""
        if not self.asked:
            return None
        from ..text.chat.template import ChatTemplate

        if self.chat_template_file is not None:
            template = ChatTemplate.of_file(self.chat_template_file)
        else:
            template = ChatTemplate.named(self.chat_template or "")
        template.start()
        return template


template_options = gathered(
    TemplateOptions,
    "templates",
    llama_option(
        "--chat-template",
        metavar="TEXT|NAME|FILE",
        help="Use this template instead of the model's own: its text, a name that llama.cpp knows (chatml, llama3), or a file.",
    ),
    llama_option("--chat-template-file", metavar="FILE", help="The same, always a file."),
)


length_option = llama_option(
    "-n",
    "max_tokens",
    type=click.IntRange(-1, 2**31 - 1),
    metavar="N",
    callback=lambda ctx, param, value: None if value == -1 else value,
    help="Generate at most N tokens per answer. Default, and -1: until the context is full.",
)


@dataclass
class ThinkingOptions:
    """The options for thinking: whether the model may think, how long, and whether its thinking is shown."""

    think: bool | None
    reasoning_budget: int | None
    hide_thinking: bool

    @property
    def asked(self) -> bool:
        """Whether an option was given that changes the answer."""
        return self.think is not None or self.reasoning_budget is not None


def thinking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passed to the command as `thinking`, one ThinkingOptions."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        return command(
            thinking=ThinkingOptions(*(kwargs.pop(name) for name in ThinkingOptions.__dataclass_fields__)),
            **kwargs,
        )

    for option in (
        click.option("--hide-thinking", is_flag=True, help="Show only the answer."),
        llama_option(
            "--reasoning-budget",
            type=click.IntRange(0, 2**31 - 1),
            metavar="N",
            help="End the model's thinking after N tokens; 0 = no thinking.",
        ),
        click.option(
            "--think/--no-think",
            default=None,
            help="Whether the model is asked to think first. Default: it may.",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper


def answer_fields(answer: CollectedAnswer) -> dict[str, Any]:
    """An answer's text, thinking and tool calls, by the names that --json has for them in every command."""
    message = answer.message()
    return {"text": message.pop("content")} | {
        name: value for name, value in message.items() if name != "role"
    }


class AnswerPrinter:
    """Writes an answer to stdout. Thinking is dimmed at a terminal, else put between its tags; `hide_thinking` leaves it out."""

    def __init__(self, hide_thinking: bool = False) -> None:
        self._hide, self._terminal = hide_thinking, sys.stdout.isatty()
        styled = self._terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._open, self._close = (DIM, PLAIN + "\n\n") if styled else (OPEN + "\n", "\n" + CLOSE + "\n\n")
        self._thinking = False

    def add(self, event: Event) -> None:
        """Show an event at once."""
        thinks = isinstance(event, Reasoning)
        if thinks and self._hide:
            return
        if thinks != self._thinking:
            write_text(self._open if thinks else self._close)
            self._thinking = thinks
        if not isinstance(event, ToolCall):
            write_text(shown(event.text) if self._terminal else event.text)

    def end(self) -> None:
        """To be called at the end, also of an answer that is broken off."""
        if self._terminal:
            write_text((PLAIN if self._thinking and self._open == DIM else "") + "\n")


def shown(text: str) -> str:
    """Text for a terminal, with its control characters escaped: a model must not control it. Joiners and spaces of all scripts stay."""
    return CONTROL.sub(lambda match: printable(match[0]), text)
