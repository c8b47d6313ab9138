"""Options for the chats of a server, gathered in one object."""

from __future__ import annotations

from typing import Any

import click

from ..errors import InputError
from ._answers import TemplateOptions, template_options
from ._llama.command import llama_option
from ._options import Gathered, gathered
from ._serving import json_object

SWITCH = "enable_thinking"
SHOWN = 60
"""Characters of a value in a message."""
FORMATS = ["auto", "none", "deepseek", "deepseek-legacy"]


class ChatOptions(Gathered):
    """What was asked for; None where it wasn't."""

    templates: TemplateOptions
    chat_template_kwargs: dict[str, Any] | None
    think: bool | None
    reasoning_budget: int
    reasoning_budget_message: str
    reasoning_effort: str | None
    reasoning_format: str
    reasoning_preserve: bool | None
    skip_chat_parsing: bool
    prefill_assistant: bool

    def settings(self) -> dict[str, Any]:
        """Fields of ServerOptions, but for the template. Raises InputError."""
        variables = dict(self.chat_template_kwargs or {})
        switch = variables.pop(SWITCH, None)
        if type(switch) not in (bool, type(None)):
            raise InputError(
                f"--chat-template-kwargs: {SWITCH} is {str(switch)[:SHOWN]!r}, expected true or false"
            )
        if self.reasoning_preserve is not None:
            variables["preserve_reasoning"] = self.reasoning_preserve
        effort = (
            variables.pop("reasoning_effort", None)
            if self.reasoning_effort is None
            else self.reasoning_effort
        )
        return {
            "template_kwargs": variables,
            "think": switch if self.think is None else self.think,
            "reasoning_budget": None if self.reasoning_budget == -1 else self.reasoning_budget,
            "reasoning_message": self.reasoning_budget_message,
            "reasoning_effort": None if effort == "default" else effort,
            "reasoning_format": self.reasoning_format,
            "parse_answers": not self.skip_chat_parsing,
            "prefill_assistant": self.prefill_assistant,
        }


chat_options = gathered(
    ChatOptions,
    "chats",
    template_options,
    llama_option(
        "--chat-template-kwargs",
        metavar="JSON",
        callback=json_object,
        help="Variables of the template, a JSON object.",
    ),
    click.option(
        "--think/--no-think",
        default=None,
        help="Whether the model thinks first where the request doesn't say.",
    ),
    llama_option(
        "--reasoning-budget",
        type=click.IntRange(-1, 2**31 - 1),
        default=-1,
        metavar="N",
        help="End thinking after N tokens where the request doesn't say; -1 = never.",
    ),
    llama_option(
        "--reasoning-budget-message",
        default="",
        metavar="TEXT",
        help="What ends the thinking there, before its tag.",
    ),
    llama_option(
        "--reasoning-effort",
        metavar="LEVEL",
        help="How much to think, for templates that know levels, such as low or high.",
    ),
    llama_option(
        "--reasoning-format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="Where thinking stands: none = in the text, deepseek = apart from it.",
    ),
    llama_option(
        "--reasoning-preserve", default=None, help="Whether templates that can keep earlier thinking do."
    ),
    llama_option(
        "--skip-chat-parsing",
        default=False,
        help="Whether an answer is all text, its thinking and tool calls too.",
    ),
    llama_option(
        "--prefill-assistant",
        default=True,
        help="Whether a last message of the assistant's is gone on with. Default: it is.",
    ),
)
