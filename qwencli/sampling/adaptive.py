"""Adaptive-p: prefers tokens whose probability is near a target, and moves that away from what was chosen so far, so that the mean of the
chosen tokens' probabilities stays near it (llama.cpp, pull request 17927; llama-sampler.cpp)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .candidates import F64, Candidates, weights

WIDTH, PEAK, SHARPNESS = 0.3, 5.0, 10.0
"""How far from the target a probability may be, the logit of one at the target, and how fast logits fall."""


class Average(NamedTuple):
    """The probabilities of the tokens chosen so far, older ones counting less: their sum, and the sum of what each counts."""

    total: float
    weight: float

    @classmethod
    def at(cls, target: float, decay: float) -> Average:
        """As if all tokens up to now had had the target's probability."""
        return cls(target / (1 - decay), 1 / (1 - decay))

    def target(self, target: float) -> float:
        """The probability to aim at now, so that the average comes back to `target`."""
        return min(max(2 * target - self.total / self.weight, 0.0), 1.0)

    def with_chosen(self, probability: float, decay: float) -> Average:
        return Average(probability + decay * self.total, 1 + decay * self.weight)


def adaptive_p(c: Candidates, target: float) -> Candidates:
    """The same tokens with logits that are the larger the nearer their probability is to the target: a parabola that goes on linearly."""
    distance = np.abs(probabilities(c) - target) / WIDTH
    logits = PEAK - SHARPNESS * distance * distance / (1 + distance)
    order = np.argsort(c.ids)
    return Candidates(c.ids[order], logits[order])


def probabilities(c: Candidates) -> F64:
    """Each one's, float64 [n]."""
    w: F64 = weights(c.logits).astype(np.float64)
    return w / w.sum()  # type: ignore[no-any-return]
