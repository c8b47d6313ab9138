"""What each slot's last request left in the cache: saved to a file, taken from one, or dropped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ...backends.kv_cache import KVSequence
from ...engine.engine import Engine
from ...engine.prefix_cache import common_prefix
from ...engine.session import load, save
from ...errors import NoMemory

NOTHING = np.zeros(0, np.int32)


class Leftovers:
    """The last tokens of each of `n_slots` slots. Prompts may take over what any of them left, whichever slot they get.

    What works with an engine is called in the engine's thread, between its steps.
    """

    def __init__(self, n_slots: int) -> None:
        self._tokens = [NOTHING] * n_slots

    def note(self, slot: int, tokens: list[int]) -> None:
        """A slot's request has ended, with these tokens."""
        self._tokens[slot] = np.array(tokens, np.int32)

    def save(self, slot: int, engine: Engine, path: Path) -> int:
        """Write what is left, whole or not at all; how many tokens that is. Raises QwenError."""
        kept, n = self._kept(slot, engine)
        states = {position: state for position, state in kept.states.items() if position <= n}
        borders = [border for border in kept.borders if border <= n]
        save(path, engine.backend, self._tokens[slot][:n], KVSequence(kept.pages, n, states, borders))
        return n

    def restore(self, slot: int, engine: Engine, path: Path) -> int:
        """Take over a saved slot; how many tokens that is. Nothing changes where it can't be read. Raises as session.load."""
        while True:
            try:
                session = load(path, engine.backend, engine.n_ctx)
                break
            except NoMemory:
                if not engine.prefixes.make_room():
                    raise
        engine.prefixes.keep(session.tokens, session.kv)
        self._tokens[slot] = session.tokens
        return len(session.tokens)

    def erase(self, slot: int, engine: Engine) -> int:
        """Drop what is left, and whatever goes on from it; how many tokens that was."""
        _, n = self._kept(slot, engine)
        if n:
            engine.prefixes.forget(self._tokens[slot][:n])
        self._tokens[slot] = NOTHING
        return n

    def _kept(self, slot: int, engine: Engine) -> tuple[KVSequence, int]:
        """The finished sequence that has most of a slot's tokens from the start, and how many: as many as can be gone on from."""
        tokens, cache = self._tokens[slot], engine.backend.cache
        found = [
            (kept.kv, cache.reach(kept.kv, common_prefix(kept.tokens, tokens)))
            for kept in engine.prefixes.kept
        ]
        return max(found, key=lambda one: one[1], default=(KVSequence(), 0))
