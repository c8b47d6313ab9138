"""The chain of samplers: each by its name, and which of them a sequence's settings need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .breakers import Breakers
from .candidates import Candidates
from .dry import dry
from .filters import dynamic_temperature, min_p, temperature, top_k, top_n_sigma, top_p, typical_p, xtc
from .mirostat import mirostat_1, mirostat_2
from .params import SamplingParams
from .penalties import logit_bias, penalties


class Now(NamedTuple):
    """What a sampler may look at besides its settings. `chance` is XTC's random number, in [0, 1); `mu` is Mirostat's surprise in bits."""

    tokens: Sequence[int]
    chance: float
    mu: float
    n_vocab: int
    breakers: Breakers


def last(tokens: Sequence[int], n: int) -> Sequence[int]:
    """The last n tokens, all for -1."""
    return tokens if n < 0 else tokens[max(0, len(tokens) - n) :]


def chosen_temperature(c: Candidates, p: SamplingParams) -> Candidates:
    if p.dynatemp_range > 0:
        return dynamic_temperature(c, p.temp, p.dynatemp_range, p.dynatemp_exponent)
    return temperature(c, p.temp)


STAGES: dict[str, Callable[[Candidates, SamplingParams, Now], Candidates]] = {
    "logit_bias": lambda c, p, now: logit_bias(c, p.logit_bias),
    "penalties": lambda c, p, now: penalties(
        c,
        Counter(last(now.tokens, p.penalty_last_n)),
        p.repeat_penalty,
        p.frequency_penalty,
        p.presence_penalty,
    ),
    "dry": lambda c, p, now: dry(
        c,
        last(now.tokens, p.dry_penalty_last_n),
        p.dry_multiplier,
        p.dry_base,
        p.dry_allowed_length,
        now.breakers,
    ),
    "top_n_sigma": lambda c, p, now: top_n_sigma(c, p.top_n_sigma),
    "top_k": lambda c, p, now: top_k(c, p.top_k),
    "typ_p": lambda c, p, now: typical_p(c, p.typical_p, p.min_keep),
    "top_p": lambda c, p, now: top_p(c, p.top_p, p.min_keep),
    "min_p": lambda c, p, now: min_p(c, p.min_p, p.min_keep),
    "xtc": lambda c, p, now: xtc(c, p.xtc_threshold, p.min_keep) if now.chance < p.xtc_probability else c,
    "temperature": lambda c, p, now: chosen_temperature(c, p),
    "mirostat": lambda c, p, now: (
        mirostat_1(c, now.mu, now.n_vocab) if p.mirostat == 1 else mirostat_2(c, now.mu)
    ),
}


def stages(p: SamplingParams) -> list[str]:
    """The names of the samplers that change anything, in order."""
    if p.mirostat:
        return ["logit_bias"] * bool(p.logit_bias) + ["temperature", "mirostat"]
    on = {
        "penalties": p.penalty_last_n != 0
        and (p.repeat_penalty, p.frequency_penalty, p.presence_penalty) != (1.0, 0.0, 0.0),
        "dry": p.dry_multiplier > 0 and p.dry_penalty_last_n != 0,
        "top_n_sigma": p.top_n_sigma > 0,
        "top_k": p.top_k > 0,
        "typ_p": p.typical_p < 1,
        "top_p": p.top_p < 1,
        "min_p": p.min_p > 0,
        "xtc": p.xtc_probability > 0,
        "temperature": True,
    }
    return ["logit_bias"] * bool(p.logit_bias) + [name for name in p.samplers if on.get(name)]


def adapts(p: SamplingParams) -> bool:
    """Whether adaptive-p chooses: it comes after all others, wherever it is named, and never with Mirostat."""
    return "adaptive_p" in p.samplers and p.adaptive_target >= 0 and not p.mirostat
