"""Choosing the next token from logits: llama.cpp's default chain of samplers, in its order and with its defaults."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import InputError, QwenError
from .metadata import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. The defaults are llama.cpp's.

    `temp` 0 takes the likeliest token. `top_k` 0, `top_p` 1 and `min_p` 0 each switch that filter off. `repeat_penalty` divides
    positive logits of the last `penalty_last_n` tokens (and multiplies negative ones), `presence_penalty` is subtracted from them.
    Without `seed` each run differs.
    """
    temp: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"{name} is {value}, expected a value from {low} to {high}")

    @classmethod
    def from_metadata(cls, metadata: Metadata, **chosen: Any) -> SamplingParams:
        """llama.cpp's defaults, over them the file's `general.sampling.*`, over both what is `chosen` and not None.

        Raises ModelError for a value of the wrong type, InputError for one that is out of range.
        """
        params = cls()
        for field, key in FILE_KEYS.items():
            getter = metadata.integer if isinstance(getattr(params, field), int) else metadata.number
            low, high = LIMITS[field]
            value = getter(f"general.sampling.{key}", getattr(params, field), -2**31 if field == "top_k" else low, high)
            params = replace(params, **{field: max(value, 0) if field == "top_k" else value})  # as llama.cpp: -1 is all, too
        names = {f.name for f in fields(cls)}
        return replace(params, **{name: value for name, value in chosen.items() if value is not None and name in names})


LIMITS: dict[str, tuple[float, float]] = {
    "temp": (0.0, 100.0), "top_k": (0, 2**31 - 1), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
    "repeat_penalty": (0.01, 100.0), "presence_penalty": (-100.0, 100.0), "penalty_last_n": (0, 2**31 - 1)}
FILE_KEYS = {"temp": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p",
             "repeat_penalty": "penalty_repeat", "penalty_last_n": "penalty_last_n"}
"""Our names and those of the keys under `general.sampling.` in a GGUF file."""

GAMMA, MASK = 0x9E3779B97F4A7C15, 2**64 - 1


def uniform(seed: int, index: int) -> float:
    """The `index`-th random number of the stream `seed`, in [0, 1): SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), counted directly.

    A token's random number depends on nothing but the seed and its place in the answer, so that an answer can be repeated whatever
    else is being generated.
    """
    z = (seed + (index + 1) * GAMMA) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


class Draw(NamedTuple):
    """What choosing a token needs beside its logits. `recent` are the tokens to penalise, each once; `chance` is random, in [0, 1)."""
    temp: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    recent: list[int]
    chance: float


class Sampler:
    """Chooses the tokens of one sequence."""

    def __init__(self, params: SamplingParams) -> None:
        import secrets
        self.params = params
        self.seed = params.seed if params.seed is not None else secrets.randbits(32)
        self._n_sampled = 0

    def draw(self, tokens: Sequence[int], index: int) -> Draw:
        """What the choice of the token after `tokens` needs, the answer's `index`-th, which decides its random number."""
        p = self.params
        penalized = p.penalty_last_n and (p.repeat_penalty != 1.0 or p.presence_penalty != 0.0)
        recent = list(Counter(tokens[-p.penalty_last_n:])) if penalized else []
        chance = uniform(self.seed, index) if p.temp > 0 else 0.0
        return Draw(p.temp, p.top_k, p.top_p, p.min_p, p.repeat_penalty, p.presence_penalty, recent, chance)

    def sample(self, logits: NDArray[np.float32], tokens: Sequence[int]) -> int:
        """The next token after `tokens`, given its logits, float32 [n_vocab]. Raises QwenError if one is NaN or infinite."""
        token = choose(logits, self.draw(tokens, self._n_sampled))
        self._n_sampled += 1
        if token == NOT_FINITE:
            raise QwenError(f"the logits of position {len(tokens)} are not finite: is the model damaged?")
        return token


NOT_FINITE = -1


def choose(logits: NDArray[np.float32], d: Draw) -> int:
    """The token that a draw takes from logits, float32 [n_vocab]; NOT_FINITE if one of them is NaN or infinite."""
    import numpy as np
    if not np.isfinite(logits).all():
        return NOT_FINITE
    logits = penalize(logits, d.recent, d.repeat_penalty, d.presence_penalty)
    if d.temp == 0:
        return int(logits.argmax())
    ids = keep_top_k(logits, d.top_k)
    ids = ids[:count_top_p(logits[ids], d.top_p)]
    ids = ids[:count_min_p(logits[ids], d.min_p)]
    with np.errstate(over="ignore"):  # the lowest temperatures leave the likeliest token alone
        chances = np.cumsum(softmax((logits[ids].astype(np.float64) - logits[ids[0]]) / d.temp))
    return int(ids[min(int(np.searchsorted(chances, d.chance * chances[-1], side="right")), len(ids) - 1)])


def penalize(logits: NDArray[np.float32], recent: Sequence[int], repeat: float, presence: float) -> NDArray[np.float32]:
    """Make the tokens in `recent` less likely (https://arxiv.org/abs/1909.05858, with llama.cpp's rule for negative logits)."""
    if not recent or (repeat == 1.0 and presence == 0.0):
        return logits
    import numpy as np
    seen = np.fromiter(Counter(recent), np.int64)
    logits = logits.copy()
    some = logits[seen]
    logits[seen] = np.where(some <= 0, some * np.float32(repeat), some / np.float32(repeat)) - np.float32(presence)
    return logits


def keep_top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The ids of the k largest logits, largest first and among equals the lowest id first; all of them for k = 0."""
    import numpy as np
    if not 0 < k < len(logits):
        return np.argsort(-logits, kind="stable")
    least = np.partition(logits, len(logits) - k)[len(logits) - k]
    ids = np.flatnonzero(logits >= least)  # more than k where several equal the least
    return ids[np.argsort(-logits[ids], kind="stable")][:k]


def count_top_p(logits: NDArray[np.float32], p: float) -> int:
    """How many of the sorted logits it takes for their probabilities to add up to p (https://arxiv.org/abs/1904.09751)."""
    import numpy as np
    if p >= 1.0:
        return len(logits)
    return min(int(np.searchsorted(np.cumsum(softmax(logits)), p)) + 1, len(logits))


def count_min_p(logits: NDArray[np.float32], p: float) -> int:
    """How many of the sorted logits have at least p times the first one's probability (https://arxiv.org/abs/2407.01082)."""
    import numpy as np
    if p <= 0.0:
        return len(logits)
    return int(np.count_nonzero(logits >= logits[0] + np.float32(np.log(p))))


def softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    import numpy as np
    e: NDArray[np.float64] = np.exp(logits.astype(np.float64) - logits.max())
    e /= e.sum()
    return e
