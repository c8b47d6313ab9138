"""Find the fastest tile of products on this CPU. `qwencli warmup` does it once; the result is kept next to the compiled kernels."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping

import numpy as np

from ...kernels import layout
from ...kernels.arguments import PRODUCT
from ...kernels.formats import sizes
from ...kernels.jit import Kernels
from ...kernels.tiles import AHEAD, Tiles
from .memory import address_of, aligned_zeros, quantized_at
from .team import Kernel

NOTE = "tiles.json"
N_ROWS = 4 * layout.PANEL_ROWS
N_COLS = 1024
N_TOKENS = 96
REPEATS = 25
WORTH_IT = 0.97
"""A tile replaces the usual one only if it takes at most this share of the usual one's time: a smaller gain may be chance."""


def chosen_tiles(kernels: Kernels) -> dict[str, str]:
    """Return the tiles that were found before, by format. Empty if there are none, or if the file isn't ours."""
    try:
        found = json.loads(kernels.note(NOTE) or "{}")
    except ValueError:
        return {}
    return {str(name): str(tile) for name, tile in found.items()} if isinstance(found, dict) else {}


def kernels_to_try(isa: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Return, by format, the kernels that multiply many tokens, the usual one first."""
    tiles = Tiles(isa)
    return {name: [tiles.many(name, str(tile)) for tile in tiles.candidates(name)] for name in names}


def tune(kernels: Kernels, names: Iterable[str]) -> dict[str, str]:
    """Try the tiles of some formats, for a tenth of a second each, and keep the best. Raises KernelError if a kernel can't be compiled."""
    best = chosen_tiles(kernels)
    for name, specs in kernels_to_try(kernels.isa.name, names).items():
        seconds = measure(name, kernels.load(specs))
        usual, fastest = specs[0], min(seconds, key=lambda spec: seconds[spec])
        best[name] = (fastest if seconds[fastest] <= WORTH_IT * seconds[usual] else usual).rpartition(":")[2]
    kernels.keep_note(NOTE, json.dumps(best, indent=1, sort_keys=True))
    return best


def measure(name: str, addresses: Mapping[str, int]) -> dict[str, float]:
    """Return the fewest seconds that a product with many tokens took with each kernel. Kernels take turns, since the machine may be
    busy."""
    block, n_bytes, kind = sizes(name)
    row_bytes = N_COLS // block * n_bytes
    weights = aligned_zeros(N_ROWS * row_bytes)
    y = aligned_zeros(4 * N_TOKENS * N_ROWS)
    scratch = aligned_zeros(layout.panel_bytes(kind, N_COLS))
    x = aligned_zeros(4 * N_TOKENS * N_COLS)
    quantized = [aligned_zeros(N_TOKENS * n) for n in layout.activation_bytes(kind, N_COLS)]
    count = np.array([N_TOKENS], np.int64)
    scale = np.ones(1, np.float32)
    args = PRODUCT.pack(
        count=address_of(count),
        chunk_rows=N_ROWS,
        w=address_of(weights),
        row_bytes=row_bytes,
        n_rows=N_ROWS,
        n_cols=N_COLS,
        x=address_of(x),
        **quantized_at(quantized),
        y=address_of(y),
        y_stride=4 * N_ROWS,
        bias=0,
        residual=0,
        scale=address_of(scale),
        ahead=AHEAD,
    )
    functions = {spec: Kernel(address) for spec, address in addresses.items()}
    seconds = dict.fromkeys(functions, float("inf"))
    for _ in range(REPEATS):
        for spec, function in functions.items():
            start = time.perf_counter()
            function(address_of(args), 0, address_of(scratch))
            seconds[spec] = min(seconds[spec], time.perf_counter() - start)
    return seconds
