"""The CPU backend's part of the KV cache: where layers are in a page and in a state, and the memory of pages and states."""

from __future__ import annotations

import sys

import numpy as np

from ...errors import QwenError
from ...kernels import layout
from ...network.model import Model
from ..kv_cache import PAGE, CacheTypes, Layers
from .memory import Bytes, address_of, aligned_zeros

PAGE_UNIT = 512
"""The memory of a page or of a state is a multiple of this many bytes, so that no two of them share a cache line."""


class CacheLayout:
    """Where the layers that a backend holds are in a page of the KV cache and in a state of a recurrent model: one after the other."""

    def __init__(self, model: Model, types: CacheTypes, layers: Layers) -> None:
        c = model.config
        heads: list[int] = [layout.kv_bytes(str(kind), c.head_dim) for kind in types]
        self.types = types
        self.layers = layers
        self.page_layer_bytes = sum(heads) * c.n_head_kv
        self.state_layer_bytes = 4 * sum(c.delta_nets.n_state) if c.delta_nets else 0

    def in_page(self, layer: int) -> int:
        """Return where a layer with attention starts in a page, in bytes."""
        return self.layers.attention.index(layer) * self.page_layer_bytes

    def in_state(self, layer: int) -> int:
        """Return where a recurrent layer starts in a state, in bytes."""
        return self.layers.recurrent.index(layer) * self.state_layer_bytes

    @property
    def page_bytes(self) -> int:
        return round_up(len(self.layers.attention) * self.page_layer_bytes, PAGE_UNIT)

    @property
    def state_bytes(self) -> int:
        return round_up(len(self.layers.recurrent) * self.state_layer_bytes, PAGE_UNIT)


def kv_layout(model: Model, types: CacheTypes) -> str:
    """See Backend.kv_layout; the same for all that hold some of the layers. The details are in kernels/kv/ and kernels/delta.py."""
    c, nets = model.config, model.config.delta_nets
    n_layer = len(c.attention_layers)
    states = f"; states [{len(nets.layers)}] of {nets.n_state}" if nets else ""
    pages = f"[{n_layer}][{c.n_head_kv}] of keys"
    if types == ("f16", "f16"):
        return f"{np.dtype(np.float16).str} {pages} [{c.head_dim}][{PAGE}], values [{PAGE}][{c.head_dim}]{states}"
    return (
        f"{sys.byteorder}-endian {pages} {types.k}, values {types.v} [{c.head_dim}], pages of {PAGE}{states}"
    )


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


ARENA_BYTES = 2**24
"""Pages of the cache are allocated together, up to this many bytes: from 4 MB on NumPy asks for huge pages. Memory is committed when it is
touched."""


class PageMemory:
    """The memory of the cache's pages, or of states. It is allocated when a page is first used, and committed when it is touched.

    `per_page` and `what` say in errors what pages hold, as in "64 more positions of the KV cache".
    """

    def __init__(self, page_bytes: int, per_page: int, what: str) -> None:
        self._page_bytes = page_bytes
        self._per_page = per_page
        self._what = what
        self._n_together = max(1, ARENA_BYTES // max(page_bytes, 1))
        self._arenas: dict[int, Bytes] = {}
        self._addresses: dict[int, int] = {}  # by page, since each step needs those of all pages

    @property
    def arenas(self) -> list[Bytes]:
        """The memory that is allocated: each arena is some pages."""
        return list(self._arenas.values())

    def address(self, page: int) -> int:
        """Return the address of a page. Raises QwenError if there is no memory for it."""
        if page not in self._addresses:
            arena, place = divmod(page, self._n_together)
            if arena not in self._arenas:
                try:
                    self._arenas[arena] = aligned_zeros(self._page_bytes * self._n_together)
                except MemoryError:
                    more = self._per_page * self._n_together
                    n_bytes = self._page_bytes * self._n_together
                    raise QwenError(
                        f"not enough memory for {more} more {self._what} ({n_bytes} bytes)"
                    ) from None
            self._addresses[page] = address_of(self._arenas[arena]) + place * self._page_bytes
        return self._addresses[page]

    def memory(self, page: int) -> Bytes:
        """Return the bytes of a page. Raises QwenError as `address` does."""
        self.address(page)
        arena, place = divmod(page, self._n_together)
        return self._arenas[arena][place * self._page_bytes :][: self._page_bytes]
