"""DRY, "don't repeat yourself": tokens that would continue a repetition become less likely, the more so the longer it is.

After https://github.com/oobabooga/text-generation-webui/pull/5677, with the breakers of llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from .breakers import Breakers
from .candidates import Candidates
from .penalties import add

LARGEST_LOG = 88.7228391
"""log of the largest float32, as llama.cpp has it."""


def dry(
    c: Candidates,
    tokens: Sequence[int],
    multiplier: float,
    base: float,
    allowed_length: int,
    breakers: Breakers,
) -> Candidates:
    """Penalize each token that would continue a repetition of at least `allowed_length` of the last `tokens`."""
    longest = LARGEST_LOG // math.log(base) if base > 1.0 else math.inf
    lengths = repetitions(tokens, allowed_length, breakers)
    return add(
        c,
        {
            token: -multiplier * base ** min(length - allowed_length, longest)
            for token, length in lengths.items()
            if () not in breakers.get(token, ())
        },
    )


def repetitions(tokens: Sequence[int], allowed_length: int, breakers: Breakers) -> dict[int, int]:
    """The tokens that followed earlier occurrences of the text's present end, and the length of the longest such occurrence.

    An occurrence has at least `allowed_length` tokens, and no breaker among them. This takes time linear in the tokens: lengths inside
    an occurrence are known from its twin (the Z-algorithm, on the reversed text).
    """
    limit = unbroken(tokens, breakers)
    if len(tokens) <= allowed_length or limit < allowed_length:
        return {}
    backwards, n = tokens[::-1], len(tokens)
    lengths: dict[int, int] = {}  # z: how many tokens, going backwards from here, equal those from the end
    found: dict[int, int] = {}
    left = right = 0  # the occurrence that reaches furthest: backwards[left:right]
    for i in places_of(backwards[0], backwards):
        length = min(lengths.get(i - left, 0), right - i) if i < right else 0
        if i + length >= right:
            while i + length < n and backwards[length] == backwards[i + length]:
                length += 1
            left, right = i, i + length
        lengths[i] = length
        if (shown := min(length, limit)) >= allowed_length:
            follower = backwards[i - 1]
            found[follower] = max(found.get(follower, 0), shown)
    return found


def places_of(token: int, tokens: Sequence[int]) -> Iterator[int]:
    """All places of a token but the first one of the list."""
    place = 0
    try:
        while True:
            place = tokens.index(token, place + 1)
            yield place
    except ValueError:
        return


def unbroken(tokens: Sequence[int], breakers: Breakers) -> int:
    """How many tokens there are after the last breaker."""
    n = len(tokens)
    for n_after, token in enumerate(reversed(tokens) if breakers else ()):
        if token in breakers:
            start = n - n_after
            tails = [
                len(tail) for tail in breakers[token] if tuple(tokens[start : start + len(tail)]) == tail
            ]
            if tails:
                return n_after - max(tails)
    return n
