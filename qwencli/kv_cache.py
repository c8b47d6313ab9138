"""Which page of the KV cache holds which positions of which sequence, and as what type. What a page looks like in memory is each backend's
affair."""
from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import InputError
from .ggml_types import GGML_TYPES

PAGE = 64
"""Positions a page."""
TYPES = {kind.name.lower(): kind for kind in GGML_TYPES.values() if kind.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")}
"""What keys and values can be kept as, by llama.cpp's names."""


class CacheTypes(NamedTuple):
    """As what keys and values are kept: names of TYPES, None for what the backend does by itself."""
    k: str | None = None
    v: str | None = None

    def chosen(self, default: str, head_dim: int) -> CacheTypes:
        """Both types. Raises InputError for one that is unknown, or whose blocks a head of `head_dim` values can't be divided into."""
        for name in self:
            if name is not None and name not in TYPES:
                raise InputError(f"the KV cache has no type '{name[:40]}', expected one of {', '.join(TYPES)}")
            if name is not None and head_dim % TYPES[name].block_size:
                raise InputError(f"heads of {head_dim} values can't be kept in the KV cache as {name}, which has blocks of"
                                 f" {TYPES[name].block_size}: choose f16, bf16 or f32")
        return CacheTypes(self.k or default, self.v or default)

    def n_bytes(self, n_values: int) -> int:
        """Bytes of keys of `n_values` numbers in all, and of as many values; of types that are chosen."""
        return sum(TYPES[name].n_bytes(n_values) for name in self if name is not None)


DEFAULT_TYPES = CacheTypes()
HALVES = CacheTypes("f16", "f16")
"""What the CPU backend does by itself."""


@dataclass(eq=False)
class KVSequence:
    """A sequence's place in the cache: position p lies in page `pages[p // PAGE]`, and `length` positions are filled."""
    pages: list[int] = field(default_factory=list)
    length: int = 0


class KVCache:
    """Hands out pages. A page is taken when a position in it is needed, so a long context costs nothing until it is filled.

    Whole pages can belong to several sequences that begin alike; a page is free again when the last of them lets go.
    """

    def __init__(self) -> None:
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self.n_pages = 0  # ever used, so the number that backends hold memory for

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Give `seq` the pages for `n_tokens` more positions. They count as filled only after `commit`."""
        while len(seq.pages) * PAGE < seq.length + n_tokens:
            if not self._free:
                self._free.append(self.n_pages)
                self.n_pages += 1
            page = heapq.heappop(self._free)  # the lowest: memory for it was found before that for higher ones
            self._users[page] = 1
            seq.pages.append(page)

    def commit(self, seq: KVSequence, n_tokens: int) -> None:
        """The step that wrote `n_tokens` positions is done; one that fails before this leaves the sequence as it was."""
        seq.length += n_tokens

    def share(self, source: KVSequence, n_tokens: int) -> KVSequence:
        """A new sequence that begins with the first `n_tokens` positions of `source`, rounded down to whole pages, without a copy."""
        n_pages = min(n_tokens, source.length) // PAGE
        pages = source.pages[:n_pages]
        self._users.update(pages)
        return KVSequence(list(pages), n_pages * PAGE)

    def trim(self, seq: KVSequence) -> None:
        """Let go of the pages that were reserved and not filled."""
        while len(seq.pages) > n_pages_for(seq.length):
            page = seq.pages.pop()  # first: Ctrl-C may lose a page, but never free one twice
            self._users[page] -= 1
            if not self._users[page]:
                heapq.heappush(self._free, page)

    def release(self, seq: KVSequence) -> None:
        """Let go of all pages."""
        seq.length = 0
        self.trim(seq)


def n_pages_for(n_tokens: int) -> int:
    """How many pages so many positions need."""
    return -(-n_tokens // PAGE)
