"""Find the fastest variants of products on this CPU: tiles, and how weights in place are prefetched. `qwencli warmup` does it once; what it
finds is kept next to the compiled kernels."""

from __future__ import annotations

import json
import mmap
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...kernels import layout
from ...kernels.arguments import PRODUCT, ROW
from ...kernels.formats import sizes
from ...kernels.jit import Kernels
from ...kernels.tiles import AHEAD, DISTANCES, SPACINGS, Tiles
from .lower.products import chunk_rows
from .memory import address_of, aligned_zeros, quantized_at
from .team import Kernel, Team, physical_cores

NOTE = "tiles.json"
N_ROWS = 4 * layout.PANEL_ROWS
N_COLS = 1024
N_TOKENS = 96
REPEATS = 25
PARTS, BYTES_A_THREAD = 8, 2**20
"""The number of parts in which weights in memory are read, and the bytes of a product for each thread. Products are as small as those of a
small model: in larger ones, the first lines, which aren't prefetched, would matter less."""
SECONDS, ROUNDS = 0.25, 4
"""How long prefetches are measured for each format, and at least how often each of them."""
WORTH_IT = 0.97
"""A variant replaces the usual one only if it takes at most this share of the usual one's time: a smaller gain may be chance."""
Variant = TypeVar("Variant")
Choices = dict[str, dict[str, Any]]
"""By format the "tile", the cache lines prefetched "together", and how many bytes "ahead"."""


def chosen(kernels: Kernels) -> Choices:
    """Return what was found before, as Tiles takes it. Empty if there is nothing, or if the file isn't ours."""
    try:
        found = json.loads(kernels.note(NOTE) or "{}")
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: choice for name, choice in found.items() if isinstance(choice, dict)}


def columns_by_format(specs: Iterable[str]) -> dict[str, set[int]]:
    """Return the formats of the products among some kernels, and for each the numbers of columns that kernels in place are compiled for;
    none if they take any number."""
    found: dict[str, set[int]] = {}
    for spec in specs:
        kernel, *variant = spec.split(":")
        if kernel == PRODUCT.name:
            name, form, *numbers = variant
            found.setdefault(name.upper(), set()).update(map(int, numbers[1:] if form == "one" else ()))
    return found


def kernels_to_try(isa: str, columns: Mapping[str, Collection[int]]) -> list[str]:
    """Return all variants of the products with some formats."""
    tiles = Tiles(isa)
    return [
        *(tiles.many(name, str(tile)) for name in columns for tile in tiles.candidates(name)),
        *(
            tiles.one(name, n_cols, together)
            for name in columns
            for n_cols in columns[name] or [N_COLS]
            for together in SPACINGS
        ),
    ]


def tune(kernels: Kernels, columns: Mapping[str, Collection[int]], n_bytes: int) -> Choices:
    """Try the variants of some formats, for a third of a second each, and keep the best. Weights in place are read from a buffer of
    `n_bytes`, which should be larger than the caches. Raises KernelError if a kernel can't be compiled."""
    found = chosen(kernels)
    in_memory = InMemory(kernels, n_bytes)
    try:
        for name in columns:
            together, ahead = fastest(in_memory.measure(name, max(columns[name], default=N_COLS)))
            tile = fastest(measure_tiles(kernels, name))
            found[name] = {"tile": tile, "together": together, "ahead": ahead}
    finally:
        in_memory.team.close()
    kernels.keep_note(NOTE, json.dumps(found, indent=1, sort_keys=True))
    return found


def fastest(seconds: Mapping[Variant, Sequence[float]]) -> Variant:
    """Return the variant that was fastest in any of its turns, or the first, the usual one, unless another is worth it. None is if the
    best of every other turn of the usual one differ as much: then the machine is too busy to tell."""
    usual = next(iter(seconds))
    best = min(seconds, key=lambda variant: min(seconds[variant]))
    shorter, longer = sorted(min(seconds[usual][i::2]) for i in (0, 1))
    is_steady = shorter > WORTH_IT * longer
    return best if is_steady and min(seconds[best]) <= WORTH_IT * shorter else usual


class Product:
    """A product with weights of a format, of which only the time matters."""

    def __init__(self, name: str, w: int, n_rows: int, n_cols: int, n_tokens: int, chunk_rows: int) -> None:
        kind = sizes(name)[2]
        self._count, self._scale = np.array([n_tokens], np.int64), np.ones(1, np.float32)
        self._x, self._y = aligned_zeros(4 * n_tokens * n_cols), aligned_zeros(4 * n_tokens * n_rows)
        self._quantized = [aligned_zeros(n_tokens * n) for n in layout.activation_bytes(kind, n_cols)]
        self.args = PRODUCT.pack(
            count=address_of(self._count),
            chunk_rows=chunk_rows,
            w=w,
            row_bytes=row_bytes(name, n_cols),
            n_rows=n_rows,
            n_cols=n_cols,
            x=address_of(self._x),
            **quantized_at(self._quantized),
            y=address_of(self._y),
            y_stride=4 * n_rows,
            bias=0,
            residual=0,
            scale=address_of(self._scale),
            ahead=AHEAD,
        )


def program(kernel: int, products: Sequence[Product]) -> NDArray[Any]:
    """Return rows that multiply one product after the other: see Program.link."""
    rows: NDArray[Any] = ROW.zeros(len(products))
    for i, product in enumerate(products):
        args, (values,) = address_of(product.args), product.args
        rows[i] = ROW.values(
            kernel=kernel,
            args=args,
            count=args + PRODUCT.offset("n_rows"),
            divisor=values["chunk_rows"],
            first=i,
            last=1,
            data=values["w"],
            chunk_bytes=values["chunk_rows"] * values["row_bytes"],
            following=(i + 1) % len(products),
        )
    return rows


def row_bytes(name: str, n_cols: int) -> int:
    block, n_bytes, _ = sizes(name)
    return n_cols // int(block) * int(n_bytes)


def measure_tiles(kernels: Kernels, name: str) -> dict[str, list[float]]:
    """Return the seconds that a product with many tokens took with each tile, the usual one first. Tiles take turns, since the machine may
    be busy."""
    tiles = Tiles(kernels.isa.name)
    specs = {str(tile): tiles.many(name, str(tile)) for tile in tiles.candidates(name)}
    addresses = kernels.load(specs.values())
    functions = {tile: Kernel(addresses[spec]) for tile, spec in specs.items()}
    weights = aligned_zeros(N_ROWS * row_bytes(name, N_COLS))
    scratch = aligned_zeros(layout.panel_bytes(sizes(name)[2], N_COLS))
    product = Product(name, address_of(weights), N_ROWS, N_COLS, N_TOKENS, chunk_rows=N_ROWS)
    seconds: dict[str, list[float]] = {tile: [] for tile in functions}
    for _ in range(REPEATS):
        for tile, function in functions.items():
            start = time.perf_counter()
            function(address_of(product.args), 0, address_of(scratch))
            seconds[tile].append(time.perf_counter() - start)
    return seconds


class InMemory:
    """Weights that are too large for the caches, and the threads of a model, which multiply them in place."""

    def __init__(self, kernels: Kernels, n_bytes: int) -> None:
        self.team = Team(kernels, physical_cores(), 64)
        self._kernels = kernels
        # shared, so that its pages are as small as those of a mapped file: with larger ones other prefetches are best
        self._weights = np.frombuffer(mmap.mmap(-1, n_bytes), np.uint8)
        self._weights[:] = 0x3C  # any float of such bytes is neither huge nor tiny
        self._keep: list[
            object
        ] = []  # a thread that is late may still look at rows and their arguments after their step

    def measure(self, name: str, n_cols: int) -> dict[tuple[int, int], list[float]]:
        """Return the seconds that it took to multiply a part of the weights in the format `name`, by the lines prefetched together
        and the distance, the usual ones first. They take turns, and each turn reads another part."""
        tiles = Tiles(self._kernels.isa.name)
        specs = {together: tiles.one(name, n_cols, together) for together in SPACINGS}
        addresses = self._kernels.load(specs.values())
        parts = [self._products(name, n_cols, part) for part in range(PARTS)]
        programs = {
            together: [program(addresses[spec], products) for products in parts]
            for together, spec in specs.items()
        }
        self._keep += [parts, programs]
        seconds: dict[tuple[int, int], list[float]] = {
            (together, ahead): [] for together in SPACINGS for ahead in DISTANCES
        }
        turn, end = 0, time.perf_counter() + SECONDS
        while turn < ROUNDS or time.perf_counter() < end:
            for i, ((together, ahead), taken) in enumerate(seconds.items()):
                # another part in each round, so that the place of a part in memory favours nobody
                part = (turn + i) % PARTS
                for product in parts[part]:
                    product.args["ahead"] = ahead
                start = time.perf_counter()
                self.team.run(programs[together][part])
                taken.append(time.perf_counter() - start)
            turn += 1
        return seconds

    def _products(self, name: str, n_cols: int, part: int) -> list[Product]:
        """Return the products with a part of the weights."""
        n_threads, part_bytes = self.team.n_threads, len(self._weights) // PARTS
        each_row = row_bytes(name, n_cols)
        n_bytes = min(BYTES_A_THREAD * n_threads, part_bytes)
        n_rows = max(1, n_bytes // each_row // layout.LANES) * layout.LANES
        rows_a_chunk = chunk_rows(n_threads, n_rows, each_row, 1)
        start = address_of(self._weights) + part * part_bytes
        return [
            Product(name, start + i * n_rows * each_row, n_rows, n_cols, 1, rows_a_chunk)
            for i in range(part_bytes // (n_rows * each_row))
        ]
