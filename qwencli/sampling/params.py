"""How tokens are chosen: the settings of all samplers, each described once, and where their values come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError, ModelError
from ..gguf.metadata import Metadata
from .parsing import SAMPLERS, checked_bias, checked_breakers, parse_samplers
from .setting import NumberSetting, number, setting, settings_of

COUNT = 2**31 - 1
N_SEEDS = 2**64
FILE_PREFIX = "general.sampling."
SEQUENCE = FILE_PREFIX + "sequence"
"""The key of a GGUF file for `samplers`, in one string."""
TEMPERATURE = "Temperature"
CHOICE = "Choice"
REPETITION = "Repetition"
ADAPTIVE = "Adaptive-p, last of all samplers where --samplers names it"
MIROSTAT = "Mirostat, in place of all others but temperature and bias"
ORDER = "Order"


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The defaults are llama.cpp's, and so are the names, mostly those of its server.

    `samplers` says which are applied, one after the other, each to what the ones before have left; `logit_bias` comes before them all.
    `mirostat` 1 or 2 takes their place, after `temp`. Options, HTTP requests, chats and files take their names, ranges and help from
    here (see SETTINGS). Raises InputError for a value that is out of range or of the wrong type.
    """

    temp: float = number(
        0.8,
        0.0,
        100.0,
        "Temperature; 0 always takes the likeliest token.",
        flags=("--temp", "--temperature"),
        request="temperature",
        file_key="temp",
    )
    dynatemp_range: float = number(
        0.0,
        0.0,
        100.0,
        "Let the temperature vary by up to this much: higher where the probabilities are more even; 0 = off.",
        group=TEMPERATURE,
    )
    dynatemp_exponent: float = number(
        1.0,
        0.0,
        100.0,
        "The exponent of the relative entropy that the temperature follows.",
        group=TEMPERATURE,
        flags=("--dynatemp-exp",),
    )
    top_k: int = number(40, 0, COUNT, "Choose among the N likeliest tokens; 0 = all.", file_key="top_k")
    top_p: float = number(
        0.95,
        0.0,
        1.0,
        "Choose among the likeliest tokens that together have probability N; 1 = all.",
        file_key="top_p",
    )
    min_p: float = number(
        0.05,
        0.0,
        1.0,
        "Leave out tokens with less than N times the likeliest one's probability; 0 = none.",
        file_key="min_p",
    )
    typical_p: float = number(
        1.0,
        0.0,
        1.0,
        "Choose among the tokens nearest to the expected surprise that together have probability N; 1 = all.",
        group=CHOICE,
        flags=("--typical-p", "--typical"),
    )
    top_n_sigma: float = number(
        -1.0,
        -1.0,
        100.0,
        "Leave out tokens more than N standard deviations below the largest logit; 0 and less = none.",
        group=CHOICE,
        flags=("--top-n-sigma", "--top-nsigma"),
    )
    xtc_probability: float = number(
        0.0,
        0.0,
        1.0,
        "XTC: how often to leave out all tokens that reach the threshold, except the least likely of them; 0 = never.",
        group=CHOICE,
        file_key="xtc_probability",
    )
    xtc_threshold: float = number(
        0.1,
        0.0,
        1.0,
        "XTC: the threshold, a probability; above 0.5 = never.",
        group=CHOICE,
        file_key="xtc_threshold",
    )
    repeat_penalty: float = number(
        1.0,
        0.01,
        100.0,
        "Divide the positive logits of recent tokens by this, and multiply the negative ones; 1 = off.",
        file_key="penalty_repeat",
    )
    frequency_penalty: float = number(
        0.0,
        -100.0,
        100.0,
        "Subtract this from the logits of recent tokens for each time that they occur; 0 = off.",
        group=REPETITION,
    )
    presence_penalty: float = number(
        0.0, -100.0, 100.0, "Subtract this from the logits of recent tokens; 0 = off."
    )
    penalty_last_n: int = number(
        64,
        -1,
        COUNT,
        "How many of the last tokens are recent; 0 = none, -1 = all.",
        group=REPETITION,
        flags=("--repeat-last-n",),
        request="repeat_last_n",
        file_key="penalty_last_n",
    )
    dry_multiplier: float = number(
        0.0,
        0.0,
        100.0,
        "DRY: a token that would continue a repetition of n tokens loses multiplier * base^(n - allowed length); 0 = off.",
        group=REPETITION,
    )
    dry_base: float = number(1.75, 1.0, 100.0, "DRY: the base.", group=REPETITION)
    dry_allowed_length: int = number(
        2, 1, COUNT, "DRY: the shortest repetition that costs anything, in tokens.", group=REPETITION
    )
    dry_penalty_last_n: int = number(
        64,
        -1,
        COUNT,
        "DRY: how many of the last tokens are searched for repetitions; 0 = none, -1 = all.",
        group=REPETITION,
    )
    dry_sequence_breakers: tuple[str, ...] = setting(
        ("\n", ":", '"', "*"),
        "DRY: a text that repetitions don't reach across.",
        group=REPETITION,
        flags=("--dry-sequence-breaker",),
    )
    mirostat: int = number(
        0, 0, 2, "Mirostat's version, 1 or 2; 0 = off.", group=MIROSTAT, file_key="mirostat"
    )
    mirostat_tau: float = number(
        5.0,
        0.0,
        100.0,
        "Mirostat: the surprise to aim at, in bits.",
        group=MIROSTAT,
        flags=("--mirostat-ent",),
        file_key="mirostat_tau",
    )
    mirostat_eta: float = number(
        0.1,
        0.0,
        100.0,
        "Mirostat: how fast it adapts.",
        group=MIROSTAT,
        flags=("--mirostat-lr",),
        file_key="mirostat_eta",
    )
    adaptive_target: float = number(
        -1.0,
        -1.0,
        1.0,
        "Adaptive-p: prefer tokens with about this probability; below 0 = off.",
        group=ADAPTIVE,
    )
    adaptive_decay: float = number(
        0.9,
        0.0,
        0.99,
        "Adaptive-p: how much each earlier token counts for the probability to aim at next.",
        group=ADAPTIVE,
    )
    logit_bias: tuple[tuple[int, float], ...] = setting(
        (),
        "Add to a token's logit: 15043+1, 15043-1.5; 15043-inf forbids it.",
        group=CHOICE,
        flags=("-l", "--logit-bias"),
    )
    samplers: tuple[str, ...] = setting(SAMPLERS, "The samplers that are used, in their order.", group=ORDER)
    min_keep: int = number(
        0, 0, COUNT, "How many tokens top_p, min_p, typ_p and xtc leave at least.", flags=()
    )
    n_probs: int = number(
        0,
        0,
        COUNT,
        "How many of the likeliest tokens are reported with each one that is chosen.",
        flags=(),
        of_report=True,
    )
    post_sampling_probs: bool = setting(
        False,
        "Whether probabilities are reported as the samplers have left them, not as the model has them.",
        flags=(),
        of_report=True,
    )
    explain: bool = setting(
        False, "Whether to report how many tokens each sampler left.", flags=(), of_report=True
    )
    seed: int | None = number(
        None, 0, N_SEEDS - 1, "Repeat a run: the same seed gives the same text.", flags=("-s", "--seed")
    )

    def __post_init__(self) -> None:
        for s in NUMBERS.values():
            value = getattr(self, s.name)
            kind = "whole number" if s.is_whole else "number"
            if isinstance(value, bool) or not isinstance(value, int if s.is_whole else (int, float)):
                raise InputError(f"{s.name} is {value!r}, expected a {kind}")
            if not s.least <= value <= s.most:
                raise InputError(f"{s.name} is {value}, expected a value from {s.least} to {s.most}")
        if self.seed is not None and not (type(self.seed) is int and 0 <= self.seed < N_SEEDS):
            raise InputError(f"seed is {self.seed!r}, expected a whole number from 0 to {N_SEEDS - 1}")
        for name in "explain", "post_sampling_probs":
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected True or False")
        object.__setattr__(self, "samplers", parse_samplers(self.samplers))
        object.__setattr__(self, "dry_sequence_breakers", checked_breakers(self.dry_sequence_breakers))
        object.__setattr__(self, "logit_bias", checked_bias(self.logit_bias))

    @classmethod
    def from_metadata(cls, metadata: Metadata, **chosen: Any) -> SamplingParams:
        """llama.cpp's defaults, overridden by the file's `general.sampling.*`, and both by what is `chosen` and not None.

        Raises ModelError for values of the file that can't be used, InputError for chosen ones.
        """
        values: dict[str, Any] = {}
        for s in NUMBERS.values():
            if s.file_key is None:
                continue
            get = metadata.integer if s.is_whole else metadata.number
            least = -(2**31) if s.name == "top_k" else s.least  # as in llama.cpp: 0 and less is all
            value = get(FILE_PREFIX + s.file_key, s.default, least, s.most)
            values[s.name] = max(value, 0) if s.name == "top_k" else value
        sequence = metadata.string(SEQUENCE, None)
        if sequence and chosen.get("samplers") is None:
            values["samplers"] = _recommended(sequence, metadata)
        given = {name: value for name, value in chosen.items() if value is not None and name in SETTINGS}
        return replace(cls(**values), **given)


SETTINGS = settings_of(SamplingParams)
"""All settings by name: what options, requests, chats and files know of them."""
NUMBERS = {name: s for name, s in SETTINGS.items() if isinstance(s, NumberSetting) and s.default is not None}
"""Those that are always a number: all but `seed`, which may be None."""


def _recommended(sequence: str, metadata: Metadata) -> tuple[str, ...]:
    try:
        return parse_samplers(sequence)
    except InputError as error:
        raise ModelError(f"{metadata.path}: metadata key '{SEQUENCE}': {error}") from None
