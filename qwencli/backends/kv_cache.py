"""The KV cache's bookkeeping: which pages hold a sequence's positions, and which states a recurrent model has kept for it.

Each backend decides what a page or a state looks like in memory.
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
from ..network.config import Config
from ..network.graph import Conv, KVStore, Tensor
from ..units import size

PAGE: int = layout.PAGE
"""Positions in a page."""
TYPES = {kind.name.lower(): kind for kind in GGML_TYPES.values() if kind.name.lower() in layout.KV_TYPES}
"""The types that keys and values can have, by llama.cpp's names."""


class CacheTypes(NamedTuple):
    """The types of keys and values: names in TYPES, or None for the backend's default."""

    k: str | None = None
    v: str | None = None

    def chosen(self, default: str, head_dim: int) -> CacheTypes:
        """Return both types, `default` in place of None. Raises InputError for an unknown type, or if a head of `head_dim` values isn't a
        whole number of its blocks."""
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
        """Return the bytes that `n_values` numbers of keys and `n_values` numbers of values take. Both types have to be chosen."""
        return sum(TYPES[name].n_bytes(n_values) for name in self if name is not None)


DEFAULT_TYPES = CacheTypes()
HALVES = CacheTypes("f16", "f16")
"""The CPU backend's default."""


class Layers(NamedTuple):
    """The layers of which a backend holds keys and values (numbers as in KVStore), and those of which it holds states (as in Conv)."""

    attention: tuple[int, ...]
    recurrent: tuple[int, ...]

    @classmethod
    def of(cls, nodes: Iterable[Tensor]) -> Layers:
        """The layers whose keys, values and states these nodes of a graph use."""
        ops = [node.op for node in nodes]
        return cls(
            tuple(op.layer for op in ops if isinstance(op, KVStore)),
            tuple(op.layer for op in ops if isinstance(op, Conv)),
        )

    def of_model(self, config: Config) -> Layers:
        """The same layers, by their numbers in the model."""
        recurrent = config.delta_nets.layers if config.delta_nets else ()
        return Layers(
            tuple(config.attention_layers[i] for i in self.attention),
            tuple(recurrent[i] for i in self.recurrent),
        )


MOST_BORDERS = 4
"""The most borders at which a sequence keeps a state, in addition to its last two states."""


@dataclass(eq=False)
class KVSequence:
    """A sequence's place in the cache: position p is in page `pages[p // PAGE]`, and `length` positions are filled.

    For a recurrent model, `states` maps a number of positions to the state after them: the sequence can continue only from one of these.
    The states at `borders`, multiples of PAGE, are kept for later sequences with the same beginning.
    """

    pages: list[int] = field(default_factory=list)
    length: int = 0
    states: dict[int, int] = field(default_factory=dict)
    borders: list[int] = field(default_factory=list)


class Pool:
    """Numbers from 0 up that are taken, shared and given back. The lowest free number is taken first: it already has memory."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._users: Counter[int] = Counter()
        self.n_used = 0
        """The number of numbers that were ever in use: backends hold memory for all of them."""

    def take(self) -> int:
        """Take the lowest free number, for one user."""
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
        """Add a user to each of the numbers."""
        self._users.update(numbers)

    def give(self, number: int) -> None:
        """Remove a user of a number. Without users it is free."""
        self._users[number] -= 1
        if not self._users[number]:
            heapq.heappush(self._free, number)


class KVCache:
    """The owner of all pages and states: it alone hands them out and takes them back.

    A page is taken when a position in it is needed, so a long context costs nothing until it is filled. Before a step `reserve` takes what
    a sequence needs, and after it `commit` marks the positions as filled. Code that gives up a sequence calls `release`.

    Several sequences with the same beginning can share whole pages; a page is free when the last of them has let go of it. The same holds
    for the states of a `recurrent` model: a state never changes once a step has written it; each step writes new states.

    `make_page` and `make_state` are called with each number that is handed out, to make memory for it. They raise QwenError if they can't.
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
        """Limit what is handed out to `most_bytes`. A page counts as `page_bytes`, a state as `state_bytes`."""
        self._most_bytes = most_bytes
        self._page_bytes = page_bytes
        self._state_bytes = state_bytes

    @property
    def n_pages(self) -> int:
        """The number of pages that were ever in use."""
        return self._pages.n_used

    @property
    def n_states(self) -> int:
        """The number of states that were ever in use."""
        return self._states.n_used

    def reserve(self, seq: KVSequence, n_tokens: int) -> None:
        """Give `seq` what `n_tokens` more positions need: pages, and states for the end and for the last border before it.

        The positions count as filled only after `commit`. If there is too little memory, everything reserved for the sequence is given
        back, and QwenError is raised (NoMemory if the limit of `bound` is reached).
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
        """Return the numbers of positions after which a step from `length` to `end` writes a state."""
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
        """Mark `n_tokens` positions as filled, after the step that wrote them. If the step fails before, the sequence is unchanged.

        These states are kept: the last one, the one before the step, so that the caller can undo this step, and some at borders.
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
        """Give a new sequence `n_tokens` positions, whose pages and states the caller then writes.

        It gets a state after each number of positions in `states`, which are ascending, as if steps had ended there. Raises QwenError.
        """
        for end in states or [n_tokens]:
            n_more = end - seq.length
            self.reserve(seq, n_more)
            self.commit(seq, n_more)
        seq.borders = [border for border in seq.borders if border in states]
        self._drop_states(seq, lambda position: position not in states)

    def rewind(self, seq: KVSequence, length: int) -> None:
        """Forget the positions from `length` on; for a recurrent model those after the last state at or before `length`."""
        seq.length = self.reach(seq, min(length, seq.length))
        seq.borders = [position for position in seq.borders if position <= seq.length]
        self._drop_states(seq, lambda position: position > seq.length)

    def reach(self, seq: KVSequence, length: int) -> int:
        """Return the largest number of positions, at most `length`, after which another sequence can continue."""
        if not self.recurrent:
            return length
        return max((position for position in seq.states if position <= length), default=0)

    def share(self, source: KVSequence, n_tokens: int) -> KVSequence:
        """Return a new sequence that shares the first `n_tokens` positions of `source`, rounded down to whole pages. Nothing is copied.

        It has the source's states up to `n_tokens`; one of them may be after the new sequence's own positions.
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
        """Give back pages and states that are reserved but not filled."""
        while len(seq.pages) > n_pages_for(seq.length):
            # before it is given back: Ctrl-C in between may lose a page, but never free one twice
            page = seq.pages.pop()
            self._pages.give(page)
        self._drop_states(seq, lambda position: position > seq.length)

    def release(self, seq: KVSequence) -> None:
        """Give back all pages and states of a sequence."""
        seq.length = 0
        seq.borders.clear()
        self.trim(seq)
        self._drop_states(seq, lambda position: True)

    def _drop_states(self, seq: KVSequence, which: Callable[[int], bool]) -> None:
        for position in [position for position in seq.states if which(position)]:
            self._states.give(seq.states.pop(position))


def thin(positions: list[int], most: int) -> None:
    """Drop ascending positions until `most` are left: each time the one whose two neighbours are closest to each other.

    The last one stays.
    """
    while len(positions) > most:
        gaps = [after - before for before, after in zip([0, *positions], positions[1:])]
        del positions[gaps.index(min(gaps))]


def n_pages_for(n_tokens: int) -> int:
    """Return the number of pages that `n_tokens` positions need."""
    return -(-n_tokens // PAGE)
