"""Arithmetic of layouts: things in a row that must not overlap, and lines in a gap that must not lie on each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

LINE = 14.0
"""The width that a line takes, and the least distance between lines."""


def spread(
    widths: Sequence[float], wanted: Sequence[float], weights: Sequence[float], between: float
) -> list[float]:
    """The middles of things of these widths in a row, as close as possible to those wanted, in this order and without overlaps.

    Least squares, by pooling neighbours that would overlap (https://en.wikipedia.org/wiki/Isotonic_regression).
    """
    offsets = [0.0]
    for left, right in pairwise(widths):
        offsets.append(offsets[-1] + (left + right) / 2 + between)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets):
        mean, total, count = want - offset, weight, 1
        while pools and pools[-1][0] >= mean:
            other, w, n = pools.pop()
            mean, total, count = (other * w + mean * total) / (w + total), w + total, n + count
        pools.append((mean, total, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets)]


def assign_tracks(nets: Sequence[tuple[float, list[float]]]) -> list[tuple[int, int]]:
    """A track for each net, (x above, xs below): pairs of net and track. Those that would overlap get different ones.

    Where one comes down at the x at which another goes on, the first has to turn off above, or both would be one line.
    """
    spans = [(min(x, *ends), max(x, *ends)) for x, ends in nets]
    after: dict[int, set[int]] = {
        i: {
            j
            for j, (x, _) in enumerate(nets)
            if i != j and any(abs(x - end) < LINE / 2 for end in nets[i][1])
        }
        for i in range(len(nets))
    }
    todo = sorted(range(len(nets)), key=lambda i: spans[i][1] - spans[i][0])
    done: dict[int, int] = {}
    while todo:
        free = [i for i in todo if not after[i] & {*todo}] or todo[:1]
        net = free[0]
        todo.remove(net)
        low = max((done[other] + 1 for other in after[net] if other in done), default=0)
        taken = {
            done[other]
            for other in done
            if spans[other][0] - LINE / 2 < spans[net][1] and spans[net][0] - LINE / 2 < spans[other][1]
        }
        done[net] = next(n for n in range(low, low + len(nets) + 1) if n not in taken)
    return list(done.items())
