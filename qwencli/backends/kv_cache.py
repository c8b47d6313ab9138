"""Which page of the KV cache holds which positions of which sequence, and as what type; and which state a recurrent model has behind them.

What a page or a state looks like in memory is each backend's affair.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import InputError, NoMemory
from ..gguf.types import GGML_TYPES
from ..units import size

PAGE = 64
"""Positions a page."""
TYPES = {
    kind.name.lower(): kind
    for kind in GGML_TYPES.values()
    if kind.name in ("F32", "F16", "BF16", "Q8_0", "Q4_0")
}
"""What keys and values can be kept as, by llama.cpp's names."""


class CacheTypes(NamedTuple):
    """As what keys and values are kept: names of TYPES, None for what the backend does by itself."""

    k: str | None = None
    v: str | None = None

    def chosen(self, default: str, head_dim: int) -> CacheTypes:
        """Both types. Raises InputError for one that is unknown, or whose blocks a head of `head_dim` values can't be divided into."""
        for name in self:
            if name is not None and name not in TYPES:
                raise InputError(
                    f"the KV cache has no type '{name[:40]}', expected one of {', '.join(TYPES)}"
                )
            if name is not None and head_dim % TYPES[name].block_size:
                raise InputError(
                    f"heads of {head_dim} values can't be kept in the KV cache as {name}, which has blocks of"
                    f" {TYPES[name].block_size}: choose f16, bf16 or f32"
                )
        return CacheTypes(self.k or default, self.v or default)

    def n_bytes(self, n_values: int) -> int:
        """Bytes of keys of `n_values` numbers in all, and of as many values; of types that are chosen."""
        return sum(TYPES[name].n_bytes(n_values) for name in self if name is not None)


DEFAULT_TYPES = CacheTypes()
HALVES = CacheTypes("f16", "f16")
"""What the CPU backend does by itself."""


MOST_BORDERS = 4
"""Borders of pages whose states a sequence keeps, beside its last two."""


@dataclass(eq=False)
class KVSequence:
    """A sequence's place in the cache: position p lies in page `pages[p // PAGE]`, and `length` positions are filled.

    Where the model is recurrent `states` says which state the sequence has behind so many positions: it can go on from these alone.
    Those in `borders` are kept.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    states: dict[int, int] = field(default_factory=dict)
    borders: list[int] = field(default_factory=list)


class Pool:
    """Numbers from 0 on that are taken, shared and given back; the lowest that is free is taken first: there is memory for it already."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self.n_used = 0  # ever, so the number that backends hold memory for

    def take(self) -> int:
        if not self._free:
            self._free.append(self.n_used)
            self.n_used += 1
        number = heapq.heappop(self._free)
        self._users[number] = 1
        return number

    @property
    def n_taken(self) -> int:
        return self.n_used - len(self._free)

    def share(self, numbers: Iterable[int]) -> None:
        self._users.update(numbers)

    def give(self, number: int) -> None:
        self._users[number] -= 1
        if not self._users[number]:
            heapq.heappush(self._free, number)


class KVCache:
    """Hands out pages. A page is taken when a position in it is needed, so a long context costs nothing until it is filled.

    Whole pages can belong to several sequences that begin alike; a page is free again when the last of them lets go. So it is with the
    states of a `recurrent` model: no state is changed once a step has written it, each step writes new ones.
    """

    def __init__(self, recurrent: bool = False) -> None:
        self.recurrent = recurrent
        self._pages, self._states = Pool(), Pool()
        self._most_bytes: int | None = None
        self._page_bytes = self._state_bytes = 0

    def bound(self, most_bytes: int, page_bytes: int, state_bytes: int) -> None:
        """Use no more than so many bytes, of which each page and each state takes some."""
        self._most_bytes, self._page_bytes, self._state_bytes = most_bytes, page_bytes, state_bytes

    @property
    def n_pages(self) -> int:
        """Pages ever used."""
        return self._pages.n_used

    @property
    def n_states(self) -> int:
        """States ever used."""
        return self._states.n_used

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Give `seq` the pages for `n_tokens` more positions, and states for behind them and the last border of a page among them.

        They count as filled only after `commit`. Raises NoMemory, and takes nothing, where that is more than there may be.
        """
        end, wanted = seq.length + n_tokens, set[int]()
        if self.recurrent:
            wanted = {end, border} if n_tokens > 1 and (border := end // PAGE * PAGE) > seq.length else {end}
            self._drop_states(seq, lambda position: position not in (seq.length, *seq.borders, *wanted))
        wanted -= seq.states.keys()
        self._check_bound(max(0, n_pages_for(end) - len(seq.pages)), len(wanted))
        while len(seq.pages) * PAGE < end:
            seq.pages.append(self._pages.take())
        for position in sorted(wanted):
            seq.states[position] = self._states.take()

    def _check_bound(self, more_pages: int, more_states: int) -> None:
        n_pages, n_states = self._pages.n_taken + more_pages, self._states.n_taken + more_states
        n_bytes = n_pages * self._page_bytes + n_states * self._state_bytes
        if self._most_bytes is not None and n_bytes > self._most_bytes:
            raise NoMemory(
                f"there is no memory for {more_pages * PAGE} more tokens: what was left for all sequences"
                f" ({size(self._most_bytes)}) is in use"
            )

    def commit(self, seq: KVSequence, n_tokens: int) -> None:
        """The step that wrote `n_tokens` positions is done; one that fails before this leaves the sequence as it was.

        Of the states stay the last one, the one before the step, for who goes back by this step, and some at borders of pages.
        """
        before, seq.length = seq.length, seq.length + n_tokens
        if not self.recurrent:
            return
        if n_tokens > 1:
            seq.borders += [
                position
                for position in seq.states
                if before < position <= seq.length and position % PAGE == 0
            ]
            thin(seq.borders, MOST_BORDERS)
        self._drop_states(seq, lambda position: position not in (before, seq.length, *seq.borders))

    def rewind(self, seq: KVSequence, length: int) -> None:
        """Forget positions from `length` on; where the model is recurrent, from the last state before that on."""
        seq.length = self.reach(seq, min(length, seq.length))
        seq.borders = [position for position in seq.borders if position <= seq.length]
        self._drop_states(seq, lambda position: position > seq.length)

    def reach(self, seq: KVSequence, length: int) -> int:
        """How many of the first `length` positions another sequence could go on from."""
        return (
            max((position for position in seq.states if position <= length), default=0)
            if self.recurrent
            else length
        )

    def forget(self, seq: KVSequence, position: int) -> None:
        """Let go of the state behind so many positions."""
        seq.borders = [border for border in seq.borders if border != position]
        self._drop_states(seq, lambda p: p == position)

    def share(self, source: KVSequence, n_tokens: int) -> KVSequence:
        """A new sequence that begins with the first `n_tokens` positions of `source`, rounded down to whole pages, without a copy.

        It has the source's states up to `n_tokens`, which may be one for more positions than its own.
        """
        n_pages = min(n_tokens, source.length) // PAGE
        seq = KVSequence(
            source.pages[:n_pages],
            n_pages * PAGE,
            {p: state for p, state in source.states.items() if p <= n_tokens},
            [position for position in source.borders if position <= n_tokens],
        )
        self._pages.share(seq.pages)
        self._states.share(seq.states.values())
        return seq

    def trim(self, seq: KVSequence) -> None:
        """Let go of pages and states that were reserved and not filled."""
        while len(seq.pages) > n_pages_for(seq.length):
            self._pages.give(
                seq.pages.pop()
            )  # popped first: Ctrl-C may lose a page, but never free one twice
        self._drop_states(seq, lambda position: position > seq.length)

    def release(self, seq: KVSequence) -> None:
        """Let go of everything."""
        seq.length = 0
        seq.borders.clear()
        self.trim(seq)
        self._drop_states(seq, lambda position: True)

    def _drop_states(self, seq: KVSequence, which: Callable[[int], bool]) -> None:
        for position in [position for position in seq.states if which(position)]:
            self._states.give(seq.states.pop(position))


def thin(positions: list[int], most: int) -> None:
    """Drop positions, in ascending order, until `most` are left: each time the one whose neighbours are nearest to each other.

    The last one stays.
    """
    while len(positions) > most:
        gaps = [after - before for before, after in zip([0, *positions], positions[1:])]
        del positions[gaps.index(min(gaps))]


def n_pages_for(n_tokens: int) -> int:
    """How many pages so many positions need."""
    return -(-n_tokens // PAGE)
