"""Options that say what an answer has to follow."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ._llama.command import llama_option
from ._streams import read_text

if TYPE_CHECKING:
    from ..llm import LLM
    from ..text.grammar.constraints import Start


@dataclass
class GrammarOptions:
    """The options for what an answer has to follow, of which at most one can be given. Raises UsageError for more."""

    json_schema: str | None
    grammar: str | None
    regex: str | None

    def __post_init__(self) -> None:
        if sum(value is not None for value in vars(self).values()) > 1:
            raise click.UsageError("give one of --json-schema, --grammar and --regex")

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    def start(self, llm: LLM) -> Start | None:
        """Compiled for a model, None where no option was given. Raises InputError, QwenError."""
        if not self:
            return None
        from ..text.grammar.constraints import grammar, json_schema, regex

        if self.json_schema is not None:
            return json_schema(
                llm.vocabulary, text_or_file(self.json_schema, r"\s*[{\[]|\s*(true|false)\s*$")
            )
        if self.grammar is not None:
            return grammar(llm.vocabulary, text_or_file(self.grammar, r"[\w-]+\s*::=|(?s:.*\n)|\s*start\s*:"))
        assert self.regex is not None
        return regex(llm.vocabulary, self.regex)


def text_or_file(value: str, text: str) -> str:
    """The value itself if its start matches `text`, a regular expression; else what is in the file of that name. Raises QwenError."""
    return value if re.match(text, value) else read_text(value)


def grammar_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passed to the command as `grammar`, one GrammarOptions."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        return command(
            grammar=GrammarOptions(*(kwargs.pop(name) for name in GrammarOptions.__dataclass_fields__)),
            **kwargs,
        )

    for option in (
        click.option("--regex", metavar="REGEX", help="The answer matches a regular expression."),
        llama_option(
            "--grammar", metavar="FILE|TEXT", help="The answer follows a grammar: llama.cpp's GBNF, or Lark."
        ),
        llama_option("-j", metavar="FILE|JSON", help="The answer is JSON of this schema."),
    ):
        wrapper = option(wrapper)
    return wrapper
