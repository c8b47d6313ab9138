"""The tokens that may still be chosen, and what samplers ask about them: the likeliest, their probabilities, where a token is."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
Bools = NDArray[np.bool_]


class Candidates(NamedTuple):
    """`ids` and their `logits`, finite, [n] each, n > 0.

    They are in the order of their ids or, if `ordered`, in falling order of their logits, equal ones by id. A sampler returns new
    candidates and leaves those that it was given as they are.
    """

    ids: I64
    logits: Floats
    ordered: bool = False

    @property
    def n(self) -> int:
        return len(self.ids)

    def pick(self, which: I64 | Bools | slice) -> Candidates:
        """Some of them, in the order that they have here."""
        if isinstance(which, np.ndarray) and which.dtype == np.bool_:
            which = np.flatnonzero(which)  # several times as fast as indexing with booleans
        return Candidates(self.ids[which], self.logits[which], self.ordered)

    def find(self, tokens: I64) -> tuple[I64, Bools]:
        """For each of some tokens [n]: its index, int64 [n], and whether it is a candidate at all, bool [n]."""
        sorter = np.argsort(self.ids) if self.ordered else None
        places = np.minimum(np.searchsorted(self.ids, tokens, sorter=sorter), self.n - 1)
        if sorter is not None:
            places = sorter[places]
        return places, self.ids[places] == tokens

    def change(self, places: I64, logits: Floats) -> Candidates:
        """The same tokens, those at `places` with new logits, which are clipped to the range of their type."""
        changed = self.logits.copy()
        limits = np.finfo(self.logits.dtype)
        changed[places] = np.clip(logits, limits.min, limits.max)
        if not self.ordered:
            return Candidates(self.ids, changed)
        order = np.lexsort((self.ids, -changed))
        return Candidates(self.ids[order], changed[order], True)


def all_of(logits: Floats) -> Candidates:
    """Every token of a vocabulary."""
    return Candidates(_counted(len(logits)), logits)


@lru_cache(1)
def _counted(n: int) -> I64:
    ids = np.arange(n)
    ids.flags.writeable = False
    return ids


def likeliest(c: Candidates, k: int) -> Candidates:
    """The k likeliest, in order; all if there are fewer."""
    if c.ordered:
        return c.pick(slice(k))
    best = largest(c.logits, k)
    return Candidates(c.ids[best], c.logits[best], True)


def largest(values: Floats, k: int) -> I64:
    """The indices of the k largest values, the largest first, equal ones by index: int64 [k], or fewer.

    At least k values reach the k-th largest of the groups' maxima, and mostly not many more do: a vocabulary is never sorted.
    """
    n, n_groups = len(values), max(4 * k, 512)
    some = np.arange(n)
    if n_groups < n // 4:
        maxima = values[: n - n % n_groups].reshape(-1, n_groups).max(axis=0)
        some = np.flatnonzero(values >= np.partition(maxima, n_groups - k)[n_groups - k])
    elif k < n:
        some = np.flatnonzero(values >= np.partition(values, n - k)[n - k])
    return some[np.argsort(-values[some], kind="stable")][:k]


def weights(logits: Floats) -> Floats:
    """exp(logit - the largest logit)."""
    with np.errstate(over="ignore", under="ignore"):  # a difference beyond float32's range is -inf
        w: Floats = np.exp(logits - logits.max())
    return w


def surprise(logits: Floats) -> tuple[Floats, Floats, float]:
    """Each one's probability, its negative logarithm in nats, and the mean of that, the entropy."""
    w = weights(logits)
    total = float(w.sum(dtype=np.float64))
    with np.errstate(over="ignore", invalid="ignore"):
        nats = np.log(total) + (logits.max() - logits)
        p = w / total
        return p, nats, float(np.nansum(p * nats, dtype=np.float64))  # 0 times infinity counts as 0


def drawn(c: Candidates, chance: float) -> tuple[int, float]:
    """The token that a random number in [0, 1) falls on, and its probability."""
    sums = np.cumsum(weights(c.logits), dtype=np.float64)
    # chance is at most 1 - 2**-53: the product is less than the sum
    i = int(np.searchsorted(sums, chance * sums[-1], side="right"))
    return int(c.ids[i]), float((sums[i] - (sums[i - 1] if i else 0.0)) / sums[-1])


def log_probabilities(logits: Floats, token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """The natural logarithm of a token's probability, and the n likeliest tokens with theirs, the likeliest first."""
    total = float(logits.max()) + float(np.log(weights(logits).sum(dtype=np.float64)))
    top = largest(logits, n).tolist() if n else []
    return float(logits[token]) - total, [(i, float(logits[i]) - total) for i in top]
