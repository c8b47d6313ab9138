"""The KV cache's bookkeeping: which page holds which positions of which sequence, and which states a recurrent model has of it.

What a page or a state looks like in memory is up to each backend.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import InputError, NoMemory, QwenError
from ..gguf.types import GGML_TYPES
from ..kernels import layout
from ..units import size

PAGE: int = layout.PAGE
"""Positions a page."""
TYPES = {kind.name.lower(): kind for kind in GGML_TYPES.values() if kind.name.lower() in layout.KV_TYPES}
"""What keys and values can be kept as, by llama.cpp's names."""


class CacheTypes(NamedTuple):
    """The types that keys and values are kept in: names of TYPES, None for the backend's own choice."""

    k: str | None = None
    v: str | None = None

    def chosen(self, default: str, head_dim: int) -> CacheTypes:
        """Both types. Raises InputError for an unknown type, or one whose blocks don't divide a head of `head_dim` values."""
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
        """The bytes that `n_values` numbers of keys and as many of values take. Both types have to be chosen."""
        return sum(TYPES[name].n_bytes(n_values) for name in self if name is not None)


DEFAULT_TYPES = CacheTypes()
HALVES = CacheTypes("f16", "f16")
"""The CPU backend's own choice."""


MOST_BORDERS = 4
"""Page borders at which a sequence keeps a state, in addition to its last two states."""


@dataclass(eq=False)
class KVSequence:
    """A sequence's place in the cache: position p is in page `pages[p // PAGE]`, and `length` positions are filled.

    Where the model is recurrent, `states` maps numbers of positions to the state after that many: the sequence can continue only from
    one of these. The states at `borders`, multiples of PAGE, are kept for sequences that will begin alike.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    states: dict[int, int] = field(default_factory=dict)
    borders: list[int] = field(default_factory=list)


class Pool:
    """Numbers from 0 up that are taken, shared and given back. The lowest free one is taken first: it has memory already."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self.n_used = 0
        """How many numbers were ever taken: backends hold memory for that many."""

    def take(self) -> int:
        """The lowest free number, which has one user now."""
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
        """Give each of the numbers one more user."""
        self._users.update(numbers)

    def give(self, number: int) -> None:
        """Take a user away; a number without any is free."""
        self._users[number] -= 1
        if not self._users[number]:
            heapq.heappush(self._free, number)


class KVCache:
    """The owner of all pages and states: it alone hands them out and takes them back.

    A page is taken when a position in it is needed, so a long context costs nothing until it is filled. In a step, `reserve` takes what a
    sequence needs and `commit` makes it count; whoever gives up a sequence calls `release`.

    Whole pages can belong to several sequences that begin alike; a page is free when the last of them lets go of it. The same holds for the
    states of a `recurrent` model: no state is changed once a step has written it, each step writes new ones.

    `make_page` and `make_state` are called with each number that is handed out, to make memory for it, and raise QwenError if they can't.
    """

    def __init__(
        self,
        recurrent: bool = False,
        make_page: Callable[[int], object] = lambda page: None,
        make_state: Callable[[int], object] = lambda state: None,
    ) -> None:
        self.recurrent = recurrent
        self._make_page = make_page
        self._make_state = make_state
        self._pages = Pool()
        self._states = Pool()
        self._most_bytes: int | None = None
        self._page_bytes = 0
        self._state_bytes = 0

    def bound(self, most_bytes: int, page_bytes: int, state_bytes: int) -> None:
        """Hand out at most `most_bytes`, of which each page and each state takes as many as given."""
        self._most_bytes = most_bytes
        self._page_bytes = page_bytes
        self._state_bytes = state_bytes

    @property
    def n_pages(self) -> int:
        """Pages ever used."""
        return self._pages.n_used

    @property
    def n_states(self) -> int:
        """States ever used."""
        return self._states.n_used

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Give `seq` what `n_tokens` more positions need: pages, and states for the end and for the last page border before it.

        The positions count as filled only after `commit`. Where there is too little memory, raises QwenError (NoMemory for what `bound`
        allows), and lets go of all that was reserved for the sequence.
        """
        end = seq.length + n_tokens
        wanted = self._wanted_states(seq.length, end)
        self._drop_states(seq, lambda position: position not in (seq.length, *seq.borders, *wanted))
        missing = wanted - seq.states.keys()
        try:
            self._check_bound(max(0, n_pages_for(end) - len(seq.pages)), len(missing))
            while len(seq.pages) * PAGE < end:
                seq.pages.append(self._pages.take())
                self._make_page(seq.pages[-1])
            for position in sorted(missing):
                seq.states[position] = self._states.take()
                self._make_state(seq.states[position])
        except QwenError:
            self.trim(seq)
            raise

    def is_reserved(self, seq: KVSequence, n_tokens: int) -> bool:
        """Whether `seq` has what `n_tokens` more positions need."""
        end = seq.length + n_tokens
        return (
            n_pages_for(end) <= len(seq.pages) and self._wanted_states(seq.length, end) <= seq.states.keys()
        )

    def _wanted_states(self, length: int, end: int) -> set[int]:
        """The numbers of positions after which a step from `length` to `end` writes a state."""
        if not self.recurrent:
            return set()
        border = end // PAGE * PAGE
        return {end, border} if end - length > 1 and border > length else {end}

    def _check_bound(self, more_pages: int, more_states: int) -> None:
        n_pages = self._pages.n_taken + more_pages
        n_states = self._states.n_taken + more_states
        n_bytes = n_pages * self._page_bytes + n_states * self._state_bytes
        if self._most_bytes is not None and n_bytes > self._most_bytes:
            raise NoMemory(
                f"there is no memory for {more_pages * PAGE} more tokens: what was left for all sequences"
                f" ({size(self._most_bytes)}) is in use"
            )

    def commit(self, seq: KVSequence, n_tokens: int) -> None:
        """The step that wrote `n_tokens` positions is done. A step that fails before this leaves the sequence as it was.

        Of the states these are kept: the last one, the one before the step, for a caller that goes back by this step, and some at borders.
        """
        before = seq.length
        seq.length += n_tokens
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

    def fill(self, seq: KVSequence, n_tokens: int, states: Collection[int]) -> None:
        """Give a new sequence `n_tokens` positions, whose pages and states the caller is to write.

        It has states after the numbers of positions in `states`, in ascending order, as if steps had ended there. Raises QwenError.
        """
        for end in states or [n_tokens]:
            n_more = end - seq.length
            self.reserve(seq, n_more)
            self.commit(seq, n_more)
        seq.borders = [border for border in seq.borders if border in states]
        self._drop_states(seq, lambda position: position not in states)

    def rewind(self, seq: KVSequence, length: int) -> None:
        """Forget positions from `length` on; where the model is recurrent, from the last state up to there."""
        seq.length = self.reach(seq, min(length, seq.length))
        seq.borders = [position for position in seq.borders if position <= seq.length]
        self._drop_states(seq, lambda position: position > seq.length)

    def reach(self, seq: KVSequence, length: int) -> int:
        """How many of the first `length` positions another sequence could continue from."""
        if not self.recurrent:
            return length
        return max((position for position in seq.states if position <= length), default=0)

    def share(self, source: KVSequence, n_tokens: int) -> KVSequence:
        """A new sequence that begins with the first `n_tokens` positions of `source`, rounded down to whole pages, without a copy.

        It has the source's states up to `n_tokens`: one of them may lie beyond the new sequence's own positions.
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
            page = (
                seq.pages.pop()
            )  # before it is given back: Ctrl-C in between may lose a page, but never free one twice
            self._pages.give(page)
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
    """Drop positions, in ascending order, until `most` are left: each time the one whose neighbours are closest to each other.

    The last one stays.
    """
    while len(positions) > most:
        gaps = [after - before for before, after in zip([0, *positions], positions[1:])]
        del positions[gaps.index(min(gaps))]


def n_pages_for(n_tokens: int) -> int:
    """How many pages that many positions need."""
    return -(-n_tokens // PAGE)
