"""Keep finished sequences in the KV cache for new ones with the same beginning: a chat's next turn computes only what is new."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from ..backends.kv_cache import PAGE, KVSequence
from ..backends.protocol import I32, Backend
from ..errors import QwenError

MOST_STATES = 16
"""The most states of a recurrent model that are kept. A state is as large as the keys and values of some hundred to a thousand
positions."""


class Kept(NamedTuple):
    """A finished sequence: `tokens`, i32 [n], are the tokens whose keys and values are in `kv`."""

    tokens: I32
    kv: KVSequence


class Prefix(NamedTuple):
    """The part of the cache that a new sequence takes over. `n_common` of its tokens are the beginning of another sequence; a recurrent
    model may take over fewer."""

    kv: KVSequence
    n_common: int


class PrefixCache:
    """Keeps sequences of up to `room` positions in all. The least recently used one is dropped first."""

    def __init__(self, backend: Backend, room: int) -> None:
        self._backend = backend
        self.room = room
        self.kept: list[Kept] = []
        """The most recently used one is the last."""

    def keep(self, tokens: Iterable[int], kv: KVSequence) -> None:
        """Take over a finished sequence's filled pages, which hold the first `kv.length` of `tokens`."""
        self._backend.cache.trim(kv)
        known = np.fromiter(tokens, np.int32)[: kv.length]
        new = Kept(known, KVSequence(kv.pages, len(known), kv.states, kv.borders))
        kv.pages = []
        kv.length = 0
        kv.states = {}
        kv.borders = []
        for old in [old for old in self.kept if common_prefix(old.tokens, known) == len(old.tokens)]:
            self._drop(old)  # the new one begins with all of it
        if len(known):
            self.kept.append(new)
        while self.kept and (
            sum(len(kept.tokens) for kept in self.kept) > self.room or self._n_states() > MOST_STATES
        ):
            self._drop(self.kept[0])

    def take(self, tokens: Iterable[int], running: Iterable[tuple[list[int], KVSequence]]) -> Prefix:
        """Take over the longest beginning of `tokens` that a kept or running sequence has computed, without the last token: its logits are
        needed.

        Whole pages are shared; the positions after them, in a part of a page, are copied. A recurrent model continues from a state.
        """
        wanted = np.fromiter(tokens, np.int32)[:-1]
        known = [*self.kept, *(Kept(np.array(begin[: kv.length], np.int32), kv) for begin, kv in running)]
        common = [common_prefix(source.tokens, wanted) for source in known]
        lengths = [self._backend.cache.reach(source.kv, length) for source, length in zip(known, common)]
        if not any(lengths):
            return Prefix(KVSequence(), max(common, default=0))
        best = int(np.argmax(lengths))
        if best < len(self.kept):
            self.kept.append(self.kept.pop(best))
        return Prefix(self._copy(known[best].kv, lengths[best]), max(common))

    def _copy(self, source: KVSequence, length: int) -> KVSequence:
        cache = self._backend.cache
        kv = cache.share(source, length)
        rest = length % PAGE
        try:
            if rest:
                cache.reserve(kv, rest)
                self._backend.copy_page(source.pages[length // PAGE], kv.pages[-1])
                cache.commit(kv, rest)
        except QwenError:  # no memory for a copy: these positions are computed again, which may fail
            cache.rewind(kv, kv.length)
            cache.trim(kv)
        except BaseException:  # Ctrl-C
            cache.release(kv)
            raise
        return kv

    def _n_states(self) -> int:
        return len({state for kept in self.kept for state in kept.kv.states.values()})

    def make_room(self) -> bool:
        """Free the pages of the least recently used sequence. Returns False if none is left."""
        if self.kept:
            self._drop(self.kept[0])
            return True
        return False

    def forget(self, tokens: I32) -> None:
        """Drop the sequences that begin with these tokens."""
        for kept in [kept for kept in self.kept if common_prefix(kept.tokens, tokens) == len(tokens)]:
            self._drop(kept)

    def _drop(self, kept: Kept) -> None:
        # removed before its pages are freed: Ctrl-C must not leave it here with pages that belong to others
        self.kept = [other for other in self.kept if other is not kept]
        self._backend.cache.release(kept.kv)


def common_prefix(a: I32, b: I32) -> int:
    """Return how many tokens two sequences have in common from the start."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n
