"""Tiles, how much of a product is computed at once in registers, and how weights in place are prefetched. What is best depends on the CPU,
and only affects speed."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple, TypeVar

from .formats import FORMATS

DISTANCES, SPACINGS = (4096, 2048, 8192, 16384), (1, 2)
"""How many bytes before they are multiplied in place weights are prefetched, and how many cache lines together: what is worth trying, the
usual first."""
AHEAD, TOGETHER = DISTANCES[0], SPACINGS[0]
ANY_DISTANCE = range(0, 65536 + 1, 64)
"""The distances that may be chosen."""
T = TypeVar("T", int, str)


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
    """The kernels of products on an ISA, and how far they prefetch.

    `chosen` has by format what measured fastest: "tile", "together" and "ahead". What is missing, or can't be chosen, is as usual.
    """

    def __init__(self, isa: str, chosen: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._large = isa == "avx512vnni"
        self._chosen = chosen or {}

    def one(self, name: str, n_cols: int, together: int | None = None) -> str:
        """Return the kernel for one token and weights of the format `name`, compiled for `n_cols` columns if that makes it faster."""
        together = together or self._choice(name, "together", SPACINGS, TOGETHER)
        return f"matmul:{name.lower()}:one:{together}" + (
            f":{n_cols}" if FORMATS[name].family == "q8_0" else ""
        )

    def ahead(self, name: str) -> int:
        """Return how many bytes before they are multiplied in place weights are prefetched."""
        return self._choice(name, "ahead", ANY_DISTANCE, AHEAD)

    def many(self, name: str, tile: str | None = None) -> str:
        """Return the kernel for two or more tokens."""
        known = [str(each) for each in self.candidates(name)]
        tile = tile or self._choice(name, "tile", known, known[0])
        return f"matmul:{name.lower()}:many:{tile}"

    def candidates(self, name: str) -> tuple[Tile, ...]:
        """Return the tiles worth trying, the usual one first."""
        if not self._large:
            return _SMALL[FORMATS[name].family]
        return _LARGE[FORMATS[name].family] + _BY_WORDS.get(name, ())

    def _choice(self, name: str, field: str, known: Container[Any], usual: T) -> T:
        """Return what was chosen for a format, or what is usual if that isn't one of those `known`."""
        found = self._chosen.get(name, {}).get(field)
        return found if type(found) is type(usual) and found in known else usual
