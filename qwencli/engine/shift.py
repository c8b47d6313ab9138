"""How an answer goes on where the context is full: without the oldest part of what the model sees."""

from __future__ import annotations

from typing import NamedTuple

ALWAYS_FREE = 4
"""Positions that are never kept, as in llama.cpp."""
LEAST_SHARE = 8
"""At least an eighth of the tokens is dropped at once, since all that follow have to be read again."""


class Shift(NamedTuple):
    """The first `n_keep` tokens stay. Of the others `n_discard` are dropped, the oldest first; 0 for half of them."""

    n_keep: int = 0
    n_discard: int = 0

    def start(self, n_ctx: int) -> int:
        """How many tokens stay."""
        return max(0, min(self.n_keep, n_ctx - ALWAYS_FREE))

    def dropped(self, n_context: int, n_ctx: int) -> int:
        """How many tokens are dropped of `n_context`, the last of which hasn't been computed yet."""
        n_left = n_context - 1 - self.start(n_ctx)
        wanted = max(self.n_discard or n_left // 2, n_left // LEAST_SHARE)
        return max(1, min(wanted, n_left - 1))
