"""Commands that are started as llama.cpp's programs are: with their options, read as they read them, and with LLAMA_ARG_* variables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from .._streams import printable, warn
from .entries import NO, YES, Entry, Kind
from .meanings import MEANINGS, PRINTED
from .table import find, spellings, with_variables

F = TypeVar("F", bound=Callable[..., Any])
SHOWN = 60
"""Characters of a value in a message."""


class Refused(click.UsageError):
    """Wrong usage that one line says all about."""

    def show(self, file: Any = None) -> None:
        click.echo(f"qwencli: error: {printable(self.message)}", err=True)


class LlamaOption(click.Option):
    """An option whose variable is named in the help of commands that read it."""

    def __init__(self, *args: Any, variable: str | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.variable = variable

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        if record is None or self.variable is None or not isinstance(ctx.command, LlamaCommand):
            return record
        read = self.variable not in READ_ELSEWHERE and any(
            entry.variable == self.variable for entry in with_variables(ctx.command.name or "")
        )
        return (record[0], f"{record[1]}  [{self.variable}]") if read else record


def llama_option(spelling: str, *names: str, **settings: Any) -> Callable[[F], F]:
    """A click option with all of llama.cpp's spellings. `names` are further ones, and the parameter's."""
    entry = find(spelling)
    declared = list(entry.names)
    if not settings.get("is_flag"):
        declared += [f" /{negation}" for negation in entry.negations]
    return click.option(*declared, *names, cls=LlamaOption, variable=entry.variable, **settings)


def llama_parameter(spellings: Sequence[str], name: str, **settings: Any) -> click.Option:
    """An option with spellings that are given, of which the first is llama.cpp's."""
    return LlamaOption([*spellings, name], variable=find(spellings[0]).variable, **settings)


class StartLine:
    """A command's arguments, sorted."""

    def __init__(self) -> None:
        self.args: list[str] = []
        """What click will read."""
        self.asked: dict[str, tuple[str, ...]] = {}
        """llama.cpp's options that are on the line, with their last values."""
        self.idle: list[str] = []
        """Options that are taken without effect."""
        self.variables: dict[str, str] = {}
        """By the spellings of an option, the variable that set it."""


class LlamaCommand(click.Command):
    """A command with llama.cpp's options. Its own are click's; what becomes of the others is in the table, which is by command."""

    unless: tuple[str, ...] = ("--url",)
    """Options that turn to something else than a model here, for which the variables say nothing."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:
            return super().parse_args(ctx, args)
        own = {
            name: option
            for option in self.get_params(ctx)
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        line = self._read(ctx, args, own)
        given, line.args = line.args, []
        if not any(word.partition("=")[0] in self.unless for word in given):
            self._read_variables(ctx, line, own)
        try:
            rest = super().parse_args(ctx, line.args + given)
        except click.BadParameter as error:
            names = error.param.opts if error.param else ()
            variable = next((line.variables[name] for name in names if name in line.variables), None)
            if variable is None:
                raise
            raise Refused(f"{variable}: {error.message}", ctx) from None
        if ctx.params.get("tensor_split") and not ctx.params.get("device"):
            ctx.params["tensor_split"] = None
            line.idle.append("-ts")
        if line.idle and not ctx.params.get("quiet"):
            warn(f"without effect here: {', '.join(dict.fromkeys(line.idle))}")
        return rest

    def _read(self, ctx: click.Context, words: Sequence[str], own: Mapping[str, click.Option]) -> StartLine:
        """Sort the arguments: click's own, and llama.cpp's, which become click's or nothing. Raises UsageError."""
        known = spellings(self.name or "")
        line = StartLine()
        left = list(words)
        compared: list[tuple[Entry, str, list[str]]] = []
        while left:
            word = left.pop(0)
            if word == "--":
                line.args += [word, *left]
                break
            name, equals, value = word.partition("=")
            if name.startswith("--"):
                name = name.replace("_", "-")
            entry, option = known.get(name), own.get(name)
            if entry is None and option is None:
                self._check_letters(ctx, name, own, known)
                line.args.append(word)
                continue
            if entry is None or (option is not None and entry.name not in MEANINGS):
                values = _own_values(option, equals, value, left) if option else ()
                line.args += [name + equals + value, *values] if equals else [name, *values]
                if entry:
                    line.asked[entry.name] = tuple(values) or (value,)
                continue
            values = [value] if equals else _values(ctx, name, entry, left)
            line.asked[entry.name] = tuple(values)
            if entry.same_as:
                compared.append((entry, name, values))
                continue
            args = self._meaning(ctx, line, entry, name, name, values)
            if args and args[0] not in own:
                if args[0] not in ABOUT_LOGS:
                    raise click.NoSuchOption(name, ctx=ctx)
                line.idle.append(name)
            else:
                line.args += args
        for entry, name, values in compared:
            self._meaning(ctx, line, entry, name, name, values)
        return line

    def _read_variables(self, ctx: click.Context, line: StartLine, own: Mapping[str, click.Option]) -> None:
        """Add what the variables say of options that the line doesn't have. Raises Refused."""
        rivals = RIVALS if RIVALS & line.asked.keys() else set()
        for entry in with_variables(self.name or ""):
            if entry.name in line.asked or entry.name in rivals:
                continue
            for variable, no in (entry.negated_variable, True), (entry.variable, False):
                value = os.environ.get(variable) if variable else None
                if variable is None or value is None or entry.variable in READ_ELSEWHERE:
                    continue
                if no or value:
                    spelling, values = _meant(entry, variable, value, no)
                    args = self._meaning(ctx, line, entry, spelling, variable, values) if spelling else []
                    if args and args[0] in own:  # else it is for other programs
                        line.variables |= dict.fromkeys(own[args[0]].opts, variable)
                        line.args += args
                break
        if self.name == "serve":
            line.idle += unknown_variables()

    def _meaning(
        self,
        ctx: click.Context,
        line: StartLine,
        entry: Entry,
        spelling: str,
        shown: str,
        values: Sequence[str],
    ) -> list[str]:
        """What click is given for one of llama.cpp's options, none for what has no effect. `shown` is what messages call it.

        Raises Refused.
        """
        rival = line.asked.get(entry.same_as or "")
        if entry.asks_for_nothing(spelling, values) or (rival and rival == tuple(values)):
            return []
        if entry.kind is Kind.PRINTS:
            PRINTED[entry.name](ctx)
        if entry.kind is Kind.REFUSED:
            raise Refused(f"{shown}: {entry.note}", ctx)
        if entry.kind is Kind.NO_MEANING:
            line.idle.append(shown)
            return []
        meaning = MEANINGS.get(entry.name)
        try:
            return meaning(spelling, values) if meaning else [spelling, *values]
        except ValueError as error:
            raise Refused(f"{shown}: {error}", ctx) from None

    def _check_letters(
        self, ctx: click.Context, name: str, own: Mapping[str, click.Option], known: Mapping[str, Entry]
    ) -> None:
        """Refuse a mistyped option of several letters, which click would take for one letter with its value."""
        first = own.get(name[:2])
        if len(name) > 2 and name[1] != "-" and first and not first.is_flag:
            numeric = isinstance(first.type, (click.IntRange, click.FloatRange)) or first.type in (
                click.INT,
                click.FLOAT,
            )
            if numeric and name[2].isalpha():
                import difflib

                near = difflib.get_close_matches(name, [*own, *known])
                raise click.NoSuchOption(name, possibilities=near, ctx=ctx)


RIVALS = {"--model", "--hf-repo", "--model-url"}
"""Each names the model, so that a flag stands against the others' variables too."""
ABOUT_LOGS = {"--quiet", "--verbose", "--log-format"}
"""What not every command has, and none needs."""
READ_ELSEWHERE = {"HF_TOKEN", "LLAMA_API_KEY"}
"""Variables that aren't llama.cpp's alone."""


def unknown_variables() -> list[str]:
    """Variables that look like llama.cpp's, but of which it has no option."""
    names = {name for entry in with_variables("serve") for name in (entry.variable, entry.negated_variable)}
    return sorted(name for name in os.environ if name.startswith("LLAMA_ARG_") and name not in names)


def _own_values(option: click.Option, equals: str, value: str, left: list[str]) -> list[str]:
    """The values that follow one of click's options, taken from what is left."""
    if option.is_flag or option.count or equals:
        return []
    taken = left[: option.nargs]
    del left[: option.nargs]
    return taken


def _values(ctx: click.Context, name: str, entry: Entry, left: list[str]) -> list[str]:
    """The values that follow one of llama.cpp's options, taken from what is left. Raises UsageError for too few."""
    n = len(entry.values)
    if entry.words and not (left and left[0].strip().lower() in (*entry.words, *YES, *NO, "-1")):
        return [entry.words[0]]
    if len(left) < n:
        raise click.BadOptionUsage(
            name, f"Option {name!r} requires {'an argument' if n == 1 else f'{n} arguments'}.", ctx
        )
    taken = left[:n]
    del left[:n]
    return taken


def _meant(entry: Entry, variable: str, value: str, no: bool) -> tuple[str | None, list[str]]:
    """The spelling and the values that a variable stands for, None for a switch that stays off. Raises Refused."""
    if entry.values:
        return entry.name, [value]
    if no or value.strip().lower() in NO:
        return (entry.negations[-1] if entry.negations else None), []
    if value.strip().lower() in YES:
        return entry.name, []
    raise Refused(f"{variable}: {value[:SHOWN]!r} is neither on nor off")
