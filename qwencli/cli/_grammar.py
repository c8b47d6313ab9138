"""Options by which an answer is held to something."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ._streams import read_text

if TYPE_CHECKING:
    from ..llm import LLM
    from ..text.grammar.constraints import Start


@dataclass
class Grammar:
    """What an answer is held to: one of these at most."""

    json_schema: str | None
    grammar: str | None
    regex: str | None

    def __post_init__(self) -> None:
        if sum(value is not None for value in vars(self).values()) > 1:
            raise click.UsageError("give one of --json-schema, --grammar and --regex")

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())

    def start(self, llm: LLM) -> Start | None:
        """Compiled for a model, None for nothing. Raises InputError."""
        if not self:
            return None
        from ..text.grammar.constraints import grammar, json_schema, regex

        if self.json_schema is not None:
            return json_schema(llm, text_or_file(self.json_schema, r"\s*[{\[]|\s*(true|false)\s*$"))
        if self.grammar is not None:
            return grammar(llm, text_or_file(self.grammar, r"[\w-]+\s*::=|(?s:.*\n)|\s*start\s*:"))
        assert self.regex is not None
        return regex(llm, self.regex)


def text_or_file(value: str, text: str) -> str:
    """The value itself if it begins as `text`, a regular expression, says; else what is in the file of that name."""
    return value if re.match(text, value) else read_text(value)


def grammar_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Passed on to the command as one Grammar, `grammar`."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        return command(
            grammar=Grammar(*(kwargs.pop(name) for name in Grammar.__dataclass_fields__)), **kwargs
        )

    for option in (
        click.option("--regex", metavar="REGEX", help="The answer matches a regular expression."),
        click.option(
            "--grammar", metavar="FILE|TEXT", help="The answer follows a grammar: llama.cpp's GBNF, or Lark."
        ),
        click.option("--json-schema", metavar="FILE|JSON", help="The answer is JSON of this schema."),
    ):
        wrapper = option(wrapper)
    return wrapper
