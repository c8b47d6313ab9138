"""The options of SamplingParams, made from its settings. Those that are rarely needed are shown by --help-sampling only."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ..errors import InputError
from ..sampling import SETTINGS, parse_logit_bias, parse_sampler_letters, parse_samplers
from ..sampling.parsing import LETTERS, SAMPLERS
from ..sampling.setting import NumberSetting, Setting
from ._llama.command import llama_parameter

OPTIONS = [s for s in SETTINGS.values() if s.options]


class NumberRange(click.FloatRange):
    """A FloatRange that refuses NaN too, which is neither too small nor too large by comparison."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that turns an option's text, or each of its texts, into what `parse` makes of it; InputErrors become the option's."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            if isinstance(value, tuple):
                return tuple(map(parse, value))
            return None if value is None else parse(value)
        except InputError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


LISTS: dict[str, dict[str, Any]] = {
    "logit_bias": {"callback": parsed(parse_logit_bias), "metavar": "TOKEN(+/-)BIAS", "multiple": True},
    "dry_sequence_breakers": {"metavar": "TEXT", "multiple": True},
    "samplers": {"callback": parsed(parse_samplers), "metavar": "NAMES"},
}
"""What click is told about options that aren't numbers."""
NOTES = {
    "logit_bias": "May be given several times.",
    "dry_sequence_breakers": "May be given several times; 'none' for none at all.",
    "samplers": f"Default: '{'; '.join(SETTINGS['samplers'].default)}'.",
}
"""What is added to their help."""


def option(s: Setting, about: str, hidden: bool) -> click.Option:
    if isinstance(s, NumberSetting):
        within = click.IntRange(int(s.least), int(s.most)) if s.is_whole else NumberRange(s.least, s.most)
        return llama_parameter(s.options, s.name, help=about, hidden=hidden, type=within, metavar="N")
    return llama_parameter(s.options, s.name, help=about, hidden=hidden, **LISTS[s.name])


def letters_option(hidden: bool) -> click.Option:
    """The second way to give `samplers`."""
    return click.Option(
        ["--sampler-seq", "--sampling-seq", "sampler_letters"],
        help=f"The same by letters. Default: {''.join(LETTERS)[: len(SAMPLERS)]}.",
        hidden=hidden,
        callback=parsed(parse_sampler_letters),
        metavar="LETTERS",
    )


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of SamplingParams, passed on to the command as one dict `sampling` of what was given."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        values = [(o, kwargs.pop(o.name)) for o in options]
        sampling = {o.name: value for o, value in values if value is not None and (value or not o.multiple)}
        letters = sampling.pop("sampler_letters", None)
        breakers = sampling.get("dry_sequence_breakers")
        if letters is not None:
            if "samplers" in sampling:
                raise click.UsageError("give --samplers or --sampler-seq, not both")
            sampling["samplers"] = letters
        if breakers:
            sampling["dry_sequence_breakers"] = tuple(
                text.replace("\\n", "\n").replace("\\t", "\t") for text in breakers if text != "none"
            )
        return command(sampling=sampling, **kwargs)

    options = [option(s, s.help, s.group is not None) for s in OPTIONS] + [letters_option(hidden=True)]
    about = click.Option(
        ["--help-sampling"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show_help,
        help="Show the options of the other samplers and exit.",
    )
    wrapper.__click_params__ = [*getattr(command, "__click_params__", []), about, *reversed(options)]  # type: ignore[attr-defined]
    return wrapper


def show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    """Print the options that --help leaves out, in groups and with their defaults."""
    if not value or ctx.resilient_parsing:
        return
    groups: dict[str, list[click.Option]] = {}
    for s in OPTIONS:
        if s.group is not None:
            groups.setdefault(s.group, []).append(option(s, with_default(s), hidden=False))
    groups[SETTINGS["samplers"].group or ""].append(letters_option(hidden=False))
    formatter = ctx.make_formatter()
    for title, options in groups.items():
        with formatter.section(title):
            formatter.write_dl([record for o in options if (record := o.get_help_record(ctx))])
    click.echo(formatter.getvalue().strip())
    ctx.exit()


def with_default(s: Setting) -> str:
    return f"{s.help} {f'Default: {s.default:g}.' if isinstance(s, NumberSetting) else NOTES[s.name]}"
