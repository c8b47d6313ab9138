"""Tiles: how much of a product is computed at once, in registers. The best tile depends on the CPU. A tile only affects speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from .formats import FORMATS

AHEAD, TOGETHER = 4096, 1
"""How many bytes before they are multiplied in place weights are prefetched, and how many cache lines at a time."""


class Tile(NamedTuple):
    """The vectors of 16 rows of a panel (for float weights: the rows) and the tokens that are multiplied at once; and whether sums and
    scales are multiplied as 16-bit words (see MicroKernel)."""

    n_rows: int
    n_tokens: int
    by_words: bool = False

    def __str__(self) -> str:
        return f"{self.n_rows}x{self.n_tokens}" + "w" * self.by_words

    @classmethod
    def parse(cls, text: str) -> Tile:
        """Read a tile that `str` has written. Raises ValueError for any other text."""
        n_rows, n_tokens = text.removesuffix("w").split("x")
        return cls(int(n_rows), int(n_tokens), text.endswith("w"))


# a tile takes an accumulator for each vector of rows and token; the first table is for 32 registers of 64 bytes, the second for fewer or
# smaller ones
_LARGE = {
    "q8k": (Tile(2, 6), Tile(2, 4)),
    "q8_0": (Tile(2, 6), Tile(2, 8), Tile(2, 4)),
    "float": (Tile(4, 4), Tile(4, 6)),
    "bf16": (Tile(4, 4), Tile(4, 6)),
}
_SMALL = {
    "q8k": (Tile(1, 4), Tile(1, 2), Tile(2, 2)),
    "q8_0": (Tile(1, 4), Tile(1, 2), Tile(2, 2)),
    "float": (Tile(2, 2), Tile(4, 2)),
    "bf16": (Tile(2, 2), Tile(4, 2)),
}
_BY_WORDS = {"Q4_K": (Tile(2, 6, by_words=True),)}


class Tiles:
    """The kernels of products on an ISA. `chosen` maps formats to the tiles that measured fastest; unknown tiles are ignored."""

    def __init__(self, isa: str, chosen: Mapping[str, str] | None = None) -> None:
        self._large = isa == "avx512vnni"
        self._chosen = chosen or {}

    def one(self, name: str, n_cols: int) -> str:
        """Return the kernel for one token and weights of the format `name`, compiled for `n_cols` columns if that makes it faster."""
        return f"matmul:{name.lower()}:one:{TOGETHER}" + (
            f":{n_cols}" if FORMATS[name].family == "q8_0" else ""
        )

    def many(self, name: str, tile: str | None = None) -> str:
        """Return the kernel for two or more tokens."""
        known = [str(each) for each in self.candidates(name)]
        tile = tile or self._chosen.get(name)
        return f"matmul:{name.lower()}:many:{tile if tile in known else known[0]}"

    def candidates(self, name: str) -> tuple[Tile, ...]:
        """Return the tiles worth trying, the usual one first."""
        if not self._large:
            return _SMALL[FORMATS[name].family]
        return _LARGE[FORMATS[name].family] + _BY_WORDS.get(name, ())
