"""Responses that are kept in memory, for requests that go on from them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

MAX_KEPT, MAX_CHARACTERS = 1000, 64 << 20


@dataclass(frozen=True)
class Kept:
    """A response as JSON, and that of all items of its conversation, its own output among them, some of which have ids."""

    owner: str
    """The key that it was made with; only who knows that key finds it."""
    response: str
    items: tuple[str, ...]
    ids: Mapping[str, str]
    """The output's items by their ids."""

    @cached_property
    def size(self) -> int:
        """Characters. What several responses of a conversation share is counted for each."""
        return len(self.response) + sum(map(len, self.items))


class Store:
    """The newest responses, and those that were asked for last, as far as there is room."""

    def __init__(self, most: int = MAX_KEPT, room: int = MAX_CHARACTERS) -> None:
        self._most, self._room = most, room
        self._kept = OrderedDict[str, Kept]()
        self._size = 0

    def add(self, id: str, kept: Kept) -> None:
        """Keep it; the least recently used are dropped for it."""
        self._kept[id] = kept
        self._size += kept.size
        while len(self._kept) > self._most or self._size > self._room:
            self._size -= self._kept.popitem(last=False)[1].size

    def get(self, id: str, owner: str) -> Kept | None:
        """None where there is none of this owner's."""
        kept = self._kept.get(id)
        if kept is None or kept.owner != owner:
            return None
        self._kept.move_to_end(id)
        return kept

    def item(self, id: str, owner: str) -> str | None:
        """The JSON of an item that one of the owner's responses has put out."""
        return next(
            (k.ids[id] for k in reversed(self._kept.values()) if k.owner == owner and id in k.ids), None
        )

    def delete(self, id: str, owner: str) -> bool:
        """Whether there was one."""
        if self.get(id, owner) is None:
            return False
        self._size -= self._kept.pop(id).size
        return True
