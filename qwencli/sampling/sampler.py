"""Choosing a sequence's tokens, one after the other."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kernels.layout import MAX_TOP_K
from .adaptive import Average, adaptive_p, probabilities
from .breakers import Breakers
from .candidates import Candidates, all_of, drawn, likeliest, log_probabilities
from .chain import STAGES, Now, adapts, last, stages
from .constraint import Constraint
from .filters import min_p, temperature, top_k, top_p
from .mirostat import adapted
from .params import SamplingParams
from .penalties import penalties

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
FOR_XTC = 2**63
"""Where XTC's random numbers start in the stream, half its period after those that draw tokens."""
NOT_FINITE = -1
OUT_OF_REACH = 1e30
"""What is subtracted from the logits of forbidden tokens in machine code, where all tokens stay: none comes near the others again."""


def uniform(seed: int, index: int) -> float:
    """The `index`-th random number of the stream `seed`, in [0, 1): SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), counted directly.

    A token's random number depends only on the seed and the token's place in the answer, so that an answer can be repeated whatever else
    is being generated.
    """
    z = (seed + (index + 1) * GAMMA) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class Draw(NamedTuple):
    """What choosing a token in machine code needs besides its logits. `recent` are the tokens to penalize, and how often each occurred;
    `chance` is random, in [0, 1)."""

    temp: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    recent: Mapping[int, int]
    chance: float


class TokenReport(NamedTuple):
    """How a token was chosen. `logprob` and those of `top`, the likeliest tokens, are natural logarithms of the model's probabilities;
    `stages` are samplers and how many tokens each left; `probability` is the token's among those that were left at the end, and `left` has
    the likeliest of these with theirs, if `post_sampling_probs` asks for them."""

    token: int
    logprob: float
    top: list[tuple[int, float]]
    stages: list[tuple[str, int]]
    probability: float
    left: list[tuple[int, float]] = []  # noqa: RUF012 - never changed


class Sampler:
    """Chooses the tokens of one sequence, of those that `constraint` allows.

    `report` says how the last one was chosen, if `n_probs` or `explain` ask for it.
    """

    def __init__(
        self, params: SamplingParams, breakers: Breakers | None = None, constraint: Constraint | None = None
    ) -> None:
        self.params = params
        self._breakers = breakers or {}
        self._constraint = constraint
        # not `secrets`, whose import takes 5 ms
        self.seed = int.from_bytes(os.urandom(4), "little") if params.seed is None else params.seed
        self.report: TokenReport | None = None
        self._stages = stages(params)
        self._draw = compiled_chain(params, self._stages) if constraint is None else None
        self._mu = self._next_mu = 2 * params.mirostat_tau
        self._adapts = adapts(params)
        self._average = self._next_average = Average.at(
            max(params.adaptive_target, 0.0), params.adaptive_decay
        )
        self._index = -1

    def draw(self, tokens: Sequence[int], index: int) -> Draw | None:
        """What the choice of the token after `tokens` needs, the answer's `index`-th, which decides its random number.

        None if machine code doesn't have all of the samplers, or if a report is wanted: then `choose` does it.
        """
        if self._draw is None:
            return None
        draw = self._draw
        if "penalties" in self._stages:
            draw = draw._replace(recent=Counter(last(tokens, self.params.penalty_last_n)))
        return draw._replace(chance=uniform(self.seed, index)) if draw.temp > 0 else draw

    def choose(self, logits: NDArray[np.float32], tokens: Sequence[int], index: int) -> int:
        """The token after `tokens`, the answer's `index`-th, by its logits, float32 [n_vocab]; NOT_FINITE if one is NaN or infinite.

        Raises QwenError if the constraint does.
        """
        if not np.isfinite(logits).all():
            return NOT_FINITE
        if index != self._index:  # a step that is repeated finds things as they were
            self._mu, self._average, self._index = self._next_mu, self._next_average, index
        left, counts = self.left(logits, tokens, index)
        if self._adapts:
            before = left
            left = adaptive_p(before, self._average.target(self.params.adaptive_target))
            counts.append(("adaptive_p", left.n))
        token, probability = drawn(left, uniform(self.seed, index))
        if self._adapts:
            known = float(probabilities(before)[before.ids == token][0])
            self._next_average = self._average.with_chosen(known, self.params.adaptive_decay)
        if self.params.mirostat:
            self._next_mu = adapted(self._mu, probability, self.params.mirostat_tau, self.params.mirostat_eta)
        if self.params.n_probs or self.params.explain:
            logprob, top = log_probabilities(logits, token, self.params.n_probs)
            self.report = TokenReport(token, logprob, top, counts, probability, self._likeliest(left))
        return token

    def _likeliest(self, left: Candidates) -> list[tuple[int, float]]:
        """The likeliest of those that are left, with their probabilities among them, none of which is 0."""
        if not (self.params.post_sampling_probs and self.params.n_probs):
            return []
        ordered = likeliest(left, left.n)
        found = zip(ordered.ids.tolist(), probabilities(ordered).tolist())
        return [(token, p) for token, p in found if p > 0][: self.params.n_probs]

    def left(
        self, logits: NDArray[np.float32], tokens: Sequence[int], index: int
    ) -> tuple[Candidates, list[tuple[str, int]]]:
        """The tokens that may be chosen now, with logits that say how likely they are, and how many tokens each sampler left."""
        now = Now(tokens, uniform(self.seed, index + FOR_XTC), self._mu, len(logits), self._breakers)
        left, counts = all_of(logits), []
        mask = self._constraint.mask(tokens[len(tokens) - index :]) if self._constraint else None
        if mask is not None:
            ids = np.flatnonzero(mask)
            left = Candidates(ids, logits[ids])
            counts.append(("grammar", left.n))
        for name in self._stages:
            left = STAGES[name](left, self.params, now)
            counts.append((name, left.n))
        return left, counts


def compiled_chain(p: SamplingParams, stages: Sequence[str]) -> Draw | None:
    """The settings for the chain in machine code (kernels/sampling.py); None if that isn't the chain that is wanted."""
    in_order = [name for name in ("penalties", "top_k", "top_p", "min_p", "temperature") if name in stages]
    temp = p.temp if "temperature" in stages else 1.0
    forbids = "logit_bias" in stages and "penalties" not in stages and only_forbids(p)
    if (
        list(stages[forbids:]) != in_order
        or p.n_probs
        or p.explain
        or p.dynatemp_range
        or p.min_keep > 1
        or adapts(p)
        or not (temp == 0 or ("top_k" in stages and p.top_k <= MAX_TOP_K))
    ):
        return None
    draw = Draw(
        temp,
        p.top_k if "top_k" in stages else 1,
        p.top_p if "top_p" in stages else 1.0,
        p.min_p if "min_p" in stages else 0.0,
        p.repeat_penalty,
        p.frequency_penalty,
        p.presence_penalty,
        {},
        0.0,
    )
    if not forbids:
        return draw
    return draw._replace(
        repeat_penalty=1.0,
        frequency_penalty=0.0,
        presence_penalty=OUT_OF_REACH,
        recent={token: 1 for token, _ in p.logit_bias},
    )


def only_forbids(p: SamplingParams) -> bool:
    """Whether all biases forbid a token. Then forbidden ones are out of reach like recent ones with a huge penalty."""
    return all(bias == -math.inf for _, bias in p.logit_bias)


def choose(logits: NDArray[np.float32], d: Draw) -> int:
    """The token that a draw takes from logits, float32 [n_vocab]; NOT_FINITE if one of them is NaN or infinite. Machine code's twin."""
    if not np.isfinite(logits).all():
        return NOT_FINITE
    left = penalties(all_of(logits), d.recent, d.repeat_penalty, d.frequency_penalty, d.presence_penalty)
    if d.temp > 0:
        left = min_p(top_p(top_k(left, d.top_k), d.top_p), d.min_p)
    return drawn(temperature(left, d.temp), d.chance)[0]
