"""The texts that DRY's repetitions don't reach across, as tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Breakers = Mapping[int, Sequence[tuple[int, ...]]]
"""A first token and, for each, the tokens that must follow it to complete a breaker's text; () where it is complete."""
MAX_TAIL = 20
"""The most tokens that may follow the first."""


def find_breakers(
    texts: Sequence[str], words: Sequence[bytes], encode: Callable[[str], list[int]]
) -> Breakers:
    """The breakers for some texts in a vocabulary, whose token i stands for the bytes words[i]; `encode` gives the tokens of a text.

    A token that contains a text is a breaker by itself. One that ends with a text's beginning is a breaker if the tokens of the rest, at
    most MAX_TAIL, follow it.
    """
    breakers: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        whole = text.encode()
        tails = {text[:n].encode(): tuple(encode(text[n:])[:MAX_TAIL]) for n in range(1, len(text))}
        beginnings = tuple(tails)
        for token, word in enumerate(words):
            if whole in word:
                breakers.setdefault(token, []).append(())
            elif word.endswith(beginnings):
                breakers.setdefault(token, []).extend(
                    tail for beginning, tail in tails.items() if word.endswith(beginning)
                )
    return breakers
