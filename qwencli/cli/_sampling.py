"""The options of SamplingParams, with llama.cpp's names. Those that are seldom needed show with --help-sampling alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ..errors import InputError
from ..sampling import (
    LIMITS,
    SAMPLERS,
    SamplingParams,
    parse_logit_bias,
    parse_sampler_letters,
    parse_samplers,
)

NAMES = {
    "temp": ("--temp", "--temperature"),
    "penalty_last_n": ("--repeat-last-n",),
    "top_n_sigma": ("--top-n-sigma", "--top-nsigma"),
    "typical_p": ("--typical-p", "--typical"),
    "dynatemp_exponent": ("--dynatemp-exp",),
    "mirostat_eta": ("--mirostat-lr",),
    "mirostat_tau": ("--mirostat-ent",),
}
"""Options whose names are not the field's."""
USUAL = {
    "temp": "Temperature; 0 takes the likeliest token.",
    "top_k": "Choose among the N likeliest tokens; 0 = all.",
    "top_p": "Choose among the likeliest tokens that together have probability N; 1 = all.",
    "min_p": "Leave out tokens with less than N times the likeliest one's probability; 0 = none.",
    "repeat_penalty": "Divide the logits of recent tokens by this; 1 = off.",
    "presence_penalty": "Subtract this from the logits of recent tokens; 0 = off.",
}
MORE = {
    "Repetition": {
        "frequency_penalty": "Subtract this from the logits of recent tokens for each time that they occur; 0 = off.",
        "penalty_last_n": "How many tokens are recent; 0 = none, -1 = all.",
        "dry_multiplier": "DRY: tokens that would continue a repetition of n tokens lose multiplier * base^(n - allowed length); 0 = off.",
        "dry_base": "DRY: the base.",
        "dry_allowed_length": "DRY: how long a repetition may be.",
        "dry_penalty_last_n": "DRY: how many tokens are looked at; 0 = none, -1 = all.",
        "dry_sequence_breakers": "DRY: repetitions end at this text. May be given several times; 'none' for no such text.",
    },
    "Choice": {
        "top_n_sigma": "Leave out tokens more than N standard deviations below the largest logit; -1 = none.",
        "typical_p": "Choose among the tokens nearest to the expected surprise that together have probability N; 1 = all.",
        "xtc_probability": "XTC: how often all tokens of at least the threshold are left out, but the least likely of them; 0 = never.",
        "xtc_threshold": "XTC: that probability; above 0.5 = never.",
        "logit_bias": "Add to a token's logit: 15043+1, 15043-1.5; 15043-inf forbids it. May be given several times.",
    },
    "Temperature": {
        "dynatemp_range": "Let the temperature vary by this up and down, with the entropy; 0 = off.",
        "dynatemp_exponent": "How the entropy becomes a temperature.",
    },
    "Mirostat, in place of all others but temperature and bias": {
        "mirostat": "Its version, 1 or 2; 0 = off.",
        "mirostat_eta": "How fast it adapts.",
        "mirostat_tau": "The surprise that it aims at, in bits.",
    },
    "Order": {
        "samplers": f"The samplers that are used, in their order. Default: '{'; '.join(SAMPLERS)}'.",
        "sampler_letters": "The same by letters. Default: edskypmxt.",
    },
}
"""What --help-sampling shows, in groups."""
DEFAULTS = SamplingParams()


class NumberRange(click.FloatRange):
    """A FloatRange that refuses NaN too, which compares as neither too small nor too large."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


def parsed(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A callback that makes of an option's texts what `parse` does, whose InputError is the option's."""

    def callback(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            return (
                tuple(map(parse, value))
                if isinstance(value, tuple)
                else None
                if value is None
                else parse(value)
            )
        except InputError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return callback


OTHERS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "logit_bias": (
        ("-l", "--logit-bias"),
        {"callback": parsed(parse_logit_bias), "metavar": "TOKEN(+/-)BIAS", "multiple": True},
    ),
    "dry_sequence_breakers": (("--dry-sequence-breaker",), {"metavar": "TEXT", "multiple": True}),
    "samplers": (("--samplers",), {"callback": parsed(parse_samplers), "metavar": "NAMES"}),
    "sampler_letters": (
        ("--sampler-seq", "--sampling-seq"),
        {"callback": parsed(parse_sampler_letters), "metavar": "LETTERS"},
    ),
}
"""Options that are no numbers: their names, and what click is told of them."""


def option(field: str, text: str, hidden: bool) -> click.Option:
    names, settings = OTHERS.get(field, (NAMES.get(field, ("--" + field.replace("_", "-"),)), {}))
    if field in LIMITS:
        low, high = LIMITS[field]
        whole = isinstance(getattr(DEFAULTS, field), int)
        settings = {
            "type": click.IntRange(int(low), int(high)) if whole else NumberRange(low, high),
            "metavar": "N",
        }
    return click.Option([*names, field], help=text, hidden=hidden, **settings)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of SamplingParams, passed on to the command as one dict `sampling` of what was given."""

    @wraps(command)
    def wrapper(**kwargs: Any) -> Any:
        values = [(o, kwargs.pop(o.name)) for o in options]
        sampling = {o.name: value for o, value in values if value is not None and (value or not o.multiple)}
        letters, breakers = sampling.pop("sampler_letters", None), sampling.get("dry_sequence_breakers")
        if letters is not None:
            if "samplers" in sampling:
                raise click.UsageError("give --samplers or --sampler-seq, not both")
            sampling["samplers"] = letters
        if breakers:
            sampling["dry_sequence_breakers"] = tuple(
                text.replace("\\n", "\n").replace("\\t", "\t") for text in breakers if text != "none"
            )
        return command(sampling=sampling, **kwargs)

    options = [option(field, text, False) for field, text in USUAL.items()]
    options += [option(field, text, True) for group in MORE.values() for field, text in group.items()]
    options.append(
        click.Option(
            ["-s", "--seed"],
            type=click.IntRange(0, 2**64 - 1),
            metavar="N",
            help="Repeat a run: the same seed gives the same text.",
        )
    )
    about = click.Option(
        ["--help-sampling"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=show_help,
        help="Show the options of the other samplers, and exit.",
    )
    wrapper.__click_params__ = [*getattr(command, "__click_params__", []), about, *reversed(options)]  # type: ignore[attr-defined]
    return wrapper


def show_help(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    formatter = ctx.make_formatter()
    for group, fields in MORE.items():
        with formatter.section(group):
            records = [
                option(field, with_default(field, text), False).get_help_record(ctx)
                for field, text in fields.items()
            ]
            formatter.write_dl([record for record in records if record])
    click.echo(formatter.getvalue().strip())
    ctx.exit()


def with_default(field: str, text: str) -> str:
    return f"{text} Default: {getattr(DEFAULTS, field):g}." if field in LIMITS else text
