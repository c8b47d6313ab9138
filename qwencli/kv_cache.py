"""Which page of the KV cache holds which positions of which sequence. What a page looks like in memory is each backend's affair."""
from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 64
"""Positions a page."""


@dataclass(eq=False)
class KVSequence:
    """A sequence's place in the cache: position p lies in page `pages[p // PAGE]`, and `length` positions are filled."""
    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """Hands out pages. A page is taken when a position in it is needed, so a long context costs nothing until it is filled."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self.n_pages = 0  # ever used, so the number that backends hold memory for

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Give `seq` the pages for `n_tokens` more positions. They count as filled only after `commit`."""
        while len(seq.pages) * PAGE < seq.length + n_tokens:
            if not self._free:
                self._free.append(self.n_pages)
                self.n_pages += 1
            seq.pages.append(self._free.pop())

    def commit(self, seq: KVSequence, n_tokens: int) -> None:
        """The step that wrote `n_tokens` positions is done; one that fails before this leaves the sequence as it was."""
        seq.length += n_tokens

    def release(self, seq: KVSequence) -> None:
        """Take all pages back."""
        self._free.extend(seq.pages)
        seq.pages, seq.length = [], 0
