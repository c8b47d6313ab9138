"""Where boxes and edges go: rows from top to bottom, edges with right angles between the rows.

A transformer is nearly a line, so this is simple. Each frame has rows of its own. A value that is read further down runs as a line through
the rows between: short ones among the boxes, long ones (residual connections) to the right of them, inputs and shared weights to the left
of everything. Lengths are in pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from .picture import Box, Edge, Frame, Picture

BETWEEN = 18
"""Between boxes of a row."""
LINE = 14
"""The width that a line takes among boxes, and the least distance between lines."""
TRACK = 8
"""Between horizontal parts of edges."""
GAP = 14
"""Between rows, in addition to tracks; above a box there is room for an arrowhead, and with edges that cross devices for a text."""
TEXT = 13
SIDE = 4
"""A line through this many rows and more runs at the side."""
INSIDE, TITLE = 14, 24
"""Between a frame and its boxes; above, for its title."""
SWEEPS = 8


@dataclass(eq=False)
class Place:
    """The place of a box, or (without one) of a line that passes a row on its way from `source` down. x is the middle, y the top."""

    source: Box
    width: float
    height: float
    is_line: bool = False
    x: float = 0.0
    y: float = 0.0


@dataclass(eq=False)
class Rectangle:
    """A frame on paper."""

    frame: Frame
    left: float
    top: float
    right: float
    bottom: float


@dataclass(eq=False)
class Layout:
    """All that is to be drawn, within `left` to `right` and 0 to `height`. A route is the corners of an edge, from source to target."""

    places: dict[Box, Place]
    frames: list[Rectangle]
    routes: dict[Edge, list[tuple[float, float]]]
    left: float
    right: float
    height: float


@dataclass(eq=False)
class _Block:
    """Rows of one frame without frames in it, or of boxes outside of frames. `frames` are those around it, the outermost first."""

    boxes: list[Box]
    frames: tuple[Frame, ...]
    first: int = 0
    last: int = 0


@dataclass(eq=False)
class _Net:
    """A value on its way: edges that begin at one box, and where it passes each row."""

    source: Box
    edges: list[Edge]
    lines: dict[int, Place] = field(default_factory=dict)


def lay_out(picture: Picture, size: Callable[[Box], tuple[float, float]]) -> Layout:
    """The layout of all boxes but weights that are drawn as a part of others. `size` gives a box's width and height."""
    return _Layouter(picture, size).layout()


class _Layouter:
    def __init__(self, picture: Picture, size: Callable[[Box], tuple[float, float]]) -> None:
        attached = picture.attached()
        self._edges = [edge for edge in picture.edges if edge.source not in attached]
        self._blocks: list[_Block] = []
        self._collect(picture.parts, (), attached)
        self._places = {box: Place(box, *size(box)) for block in self._blocks for box in block.boxes}
        self._incoming: dict[Box, list[Edge]] = defaultdict(list)
        self._outgoing: dict[Box, list[Edge]] = defaultdict(list)
        for edge in self._edges:
            self._incoming[edge.target].append(edge)
            self._outgoing[edge.source].append(edge)
        self._rank: dict[Box, int] = {}
        self._rows: list[list[Place]] = []
        self._nets: list[_Net] = []

    def _collect(
        self, parts: Iterable[Box | Frame], frames: tuple[Frame, ...], attached: Mapping[Box, Box]
    ) -> None:
        """Divide the picture into blocks."""
        for part in parts:
            if isinstance(part, Frame):
                self._collect(part.parts, (*frames, part), attached)
            elif part not in attached:
                if not self._blocks or self._blocks[-1].frames != frames:
                    self._blocks.append(_Block([], frames))
                self._blocks[-1].boxes.append(part)

    def layout(self) -> Layout:
        for block in self._blocks:
            self._rank_boxes(block)
        self._make_rows()
        for block in self._blocks:
            rows = self._rows[block.first : block.last + 1]
            self._order(rows)
            self._align(rows)
        self._place_side_lines()
        ports = self._ports()
        tracks, labels = self._tracks(ports)
        height = self._place_rows(tracks, labels)
        frames = self._rectangles()
        routes = {edge: self._route(net, edge, ports, tracks) for net in self._nets for edge in net.edges}
        xs = [p.x + side * p.width / 2 for row in self._rows for p in row for side in (-1, 1)]
        xs += [x for r in frames for x in (r.left, r.right)] + [
            x for route in routes.values() for x, _ in route
        ]
        return Layout(self._places, frames, routes, min(xs, default=0), max(xs, default=0), height)

    # -- rows -----------------------------------------------------------------------------------------------------------

    def _rank_boxes(self, block: _Block) -> None:
        """Give each box of a block its row: below all that it reads, but above all of the next block."""
        block.first = max(self._rank.values(), default=-1) + 1
        own = set(block.boxes)
        for box in block.boxes:
            above = [self._rank[e.source] for e in self._incoming[box] if e.source in own]
            self._rank[box] = max(above, default=block.first - 1) + 1
        for box in reversed(block.boxes):  # further down where that makes no line longer
            below = [self._rank[edge.target] for edge in self._outgoing[box] if edge.target in own]
            shared = all(len(self._outgoing[edge.source]) > 1 for edge in self._incoming[box])
            if below and shared and self._incoming[box]:
                self._rank[box] = min(below) - 1
        block.last = max(self._rank[box] for box in block.boxes)

    def _make_rows(self) -> None:
        """Put boxes into rows, and lines of values that pass them."""
        self._rows = [[] for _ in range(self._blocks[-1].last + 1)] if self._blocks else []
        for box, place in self._places.items():
            self._rows[self._rank[box]].append(place)
        for box, edges in list(self._outgoing.items()):
            if not edges:
                continue
            net = _Net(box, edges)
            self._nets.append(net)
            first, last = self._rank[box] + 1, max(self._rank[edge.target] for edge in edges)
            for row in range(first, last):
                net.lines[row] = line = Place(box, LINE, 0, is_line=True)
                if not self._is_at_side(net, last - first):
                    self._rows[row].append(line)

    @staticmethod
    def _is_global(net: _Net) -> bool:
        return net.source.kind in ("input", "weight")

    def _is_at_side(self, net: _Net, length: int | None = None) -> bool:
        return self._is_global(net) or (len(net.lines) if length is None else length) >= SIDE

    def _neighbours(self, rows: Sequence[Sequence[Place]]) -> dict[Place, tuple[list[Place], list[Place]]]:
        """For each place in rows, the places above and below that it is connected with directly."""
        here = {place for row in rows for place in row}
        found: dict[Place, tuple[list[Place], list[Place]]] = {place: ([], []) for place in here}
        for net in self._nets:
            start = self._rank[net.source]
            for row, place in [(start, self._places[net.source]), *net.lines.items()]:
                below = [self._places[e.target] for e in net.edges if self._rank[e.target] == row + 1]
                below += [net.lines[row + 1]] if row + 1 in net.lines else []
                for other in below:
                    if place in here and other in here:
                        found[place][1].append(other)
                        found[other][0].append(place)
        return found

    def _order(self, rows: list[list[Place]]) -> None:
        """Order the places of each row so that few edges cross: each at the mean of those that it is connected with, row by row."""
        around = self._neighbours(rows)
        position = {place: i - (len(row) - 1) / 2 for row in rows for i, place in enumerate(row)}
        for sweep in range(SWEEPS):
            side = sweep % 2
            for row in rows if side == 0 else rows[::-1]:
                wanted = {}
                for place in row:
                    others = around[place][side]
                    wanted[place] = (
                        sum(map(position.__getitem__, others)) / len(others) if others else position[place]
                    )
                row.sort(key=wanted.__getitem__)
                position.update((place, i - (len(row) - 1) / 2) for i, place in enumerate(row))

    def _align(self, rows: list[list[Place]]) -> None:
        """Move the places of each row to the mean of those that they are connected with, as far as the others let them.

        What is alone in its row stays in the middle: then the way of the states is a straight line.
        """
        around = self._neighbours(rows)
        for row in rows:
            spread(row, [0.0] * len(row), [1.0] * len(row))
        for sweep in range(SWEEPS):
            for row in rows if sweep % 2 == 0 else rows[::-1]:
                if len(row) == 1:
                    continue
                wanted, weights = [], []
                for place in row:
                    others = around[place][0] + around[place][1]
                    pulls = [4.0 if place.is_line or other.is_line else 1.0 for other in others]
                    total = sum(pulls)
                    wanted.append(sum(p * o.x for p, o in zip(pulls, others)) / total if total else 0.0)
                    weights.append(max(total, 0.1))
                spread(row, wanted, weights)

    # -- lines at the side ----------------------------------------------------------------------------------------------

    def _place_side_lines(self) -> None:
        """Long lines go to the right of the rows that they pass; those of inputs and shared weights to the left of all rows."""
        edge_of_row = [max((p.x + p.width / 2 for p in row), default=0.0) for row in self._rows]
        for net in sorted(self._nets, key=lambda net: len(net.lines)):
            if net.lines and self._is_at_side(net) and not self._is_global(net):
                x = max(edge_of_row[row] for row in net.lines) + LINE
                for row, line in net.lines.items():
                    line.x = edge_of_row[row] = x
                    self._rows[row].append(line)
        left = min((p.x - p.width / 2 for row in self._rows for p in row), default=0.0)
        x = left - INSIDE * max((len(block.frames) for block in self._blocks), default=0)
        for net in sorted(self._nets, key=lambda net: len(net.lines)):
            if net.lines and self._is_global(net):
                x -= LINE
                for row, line in net.lines.items():
                    line.x = x
                    self._rows[row].append(line)

    # -- edges ----------------------------------------------------------------------------------------------------------

    def _above(self, net: _Net, edge: Edge) -> Place:
        """Where an edge comes from, in the row above its target."""
        return net.lines.get(self._rank[edge.target] - 1) or self._places[net.source]

    def _ports(self) -> dict[Edge, float]:
        """Where edges end at the top of their targets: straight below where they come from, as far as others let them."""
        nets = {net.source: net for net in self._nets}
        ports: dict[Edge, float] = {}
        for box, edges in self._incoming.items():
            if not edges:
                continue
            place = self._places[box]
            half = max(place.width / 2 - 10, 0)
            edges = sorted(edges, key=lambda edge: self._above(nets[edge.source], edge).x)
            wanted = [
                min(max(self._above(nets[edge.source], edge).x, place.x - half), place.x + half)
                for edge in edges
            ]
            points = [Place(box, LINE, 0) for _ in edges]
            spread(points, wanted, [1.0] * len(points), between=0)
            shift = sum(wanted) / len(wanted) - sum(p.x for p in points) / len(points)
            ports |= {edge: point.x + shift for edge, point in zip(edges, points)}
        return ports

    def _tracks(self, ports: Mapping[Edge, float]) -> tuple[dict[tuple[int, Box], int], set[int]]:
        """For each gap below a row, and each value that moves sideways in it, the number of its track. And which gaps have texts."""
        tracks: dict[tuple[int, Box], int] = {}
        labels = {self._rank[edge.target] - 1 for edge in self._edges if edge.crosses}
        moves: dict[int, list[tuple[Box, float, list[float]]]] = defaultdict(list)
        for net in self._nets:
            start = self._rank[net.source]
            for row, place in [(start, self._places[net.source]), *net.lines.items()]:
                ends = [ports[e] for e in net.edges if self._rank[e.target] == row + 1]
                ends += [net.lines[row + 1].x] if row + 1 in net.lines else []
                if any(abs(x - place.x) > 1 for x in ends):
                    moves[row].append((net.source, place.x, ends))
        for row, nets in moves.items():
            for i, number in assign_tracks([(x, ends) for _, x, ends in nets]):
                tracks[row, nets[i][0]] = number
        return tracks, labels

    def _route(
        self, net: _Net, edge: Edge, ports: Mapping[Edge, float], tracks: Mapping[tuple[int, Box], int]
    ) -> list[tuple[float, float]]:
        """The corners of an edge."""
        start, end = self._rank[net.source], self._rank[edge.target]
        place = self._places[net.source]
        x, points = place.x, [(place.x, place.y + place.height)]
        for row in range(start, end):
            to = ports[edge] if row + 1 == end else net.lines[row + 1].x
            if abs(to - x) > 1:
                y = self._track_tops[row] + TRACK * tracks[row, net.source]
                points += [(x, y), (to, y)]
                x = to
        return [*points, (x, self._places[edge.target].y)]

    # -- from top to bottom ---------------------------------------------------------------------------------------------

    def _place_rows(self, tracks: Mapping[tuple[int, Box], int], labels: set[int]) -> float:
        """Give every row its y. Returns the height of all."""
        n_tracks: dict[int, int] = defaultdict(int)
        for (gap, _), track in tracks.items():
            n_tracks[gap] = max(n_tracks[gap], track + 1)
        begins = {block.first: block for block in self._blocks}
        self._track_tops: dict[int, float] = {}
        y = 0.0
        open_frames: tuple[Frame, ...] = ()
        for number, row in enumerate(self._rows):
            if block := begins.get(number):
                kept = sum(a is b for a, b in zip(open_frames, block.frames))
                y += INSIDE * (len(open_frames) - kept)
                if number:
                    y += self._gap_below(number - 1, y, n_tracks, labels)
                y += (INSIDE + TITLE) * (len(block.frames) - kept)
                open_frames = block.frames
            elif number:
                y += self._gap_below(number - 1, y, n_tracks, labels)
            height = max((place.height for place in row), default=0.0)
            for place in row:
                place.y = y + (height - place.height) / 2
            y += height
        return y + INSIDE * len(open_frames)

    def _gap_below(self, row: int, y: float, n_tracks: Mapping[int, int], labels: set[int]) -> float:
        self._track_tops[row] = y + GAP / 2
        return GAP + TRACK * n_tracks.get(row, 0) + (TEXT if row in labels else 0)

    def _rectangles(self) -> list[Rectangle]:
        """The frames, the outer ones before those in them."""
        found: dict[Frame, Rectangle] = {}
        for block in self._blocks:
            rows = self._rows[block.first : block.last + 1]
            places = [
                p for row in rows for p in row if not (p.is_line and p.source.kind in ("input", "weight"))
            ]
            boxes = [p for p in places if not p.is_line]
            for depth, frame in enumerate(block.frames):
                pad = INSIDE * (len(block.frames) - depth)
                title = (TITLE + INSIDE) * (len(block.frames) - depth)
                rectangle = Rectangle(
                    frame,
                    min(p.x - p.width / 2 for p in places) - pad,
                    min(p.y for p in boxes) - title,
                    max(p.x + p.width / 2 for p in places) + pad,
                    max(p.y + p.height for p in boxes) + pad,
                )
                if frame in found:
                    old = found[frame]
                    rectangle.left, rectangle.top = min(old.left, rectangle.left), old.top
                    rectangle.right = max(old.right, rectangle.right)
                found[frame] = rectangle
        outermost = [found[block.frames[0]] for block in self._blocks if block.frames]
        for rectangle in outermost:
            rectangle.left = min(other.left for other in outermost)
            rectangle.right = max(other.right for other in outermost)
        return list(found.values())


def spread(
    row: Sequence[Place], wanted: Sequence[float], weights: Sequence[float], between: float = BETWEEN
) -> None:
    """Place a row as close as possible to the wanted places without overlaps, in this order: least squares, by pooling neighbours that
    would overlap (https://en.wikipedia.org/wiki/Isotonic_regression)."""
    offsets = [0.0]
    for left, right in pairwise(row):
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + between)
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for want, weight, offset in zip(wanted, weights, offsets):
        mean, total, count = want - offset, weight, 1
        while pools and pools[-1][0] >= mean:
            other, w, n = pools.pop()
            mean, total, count = (other * w + mean * total) / (w + total), w + total, n + count
        pools.append((mean, total, count))
    means = [mean for mean, _, count in pools for _ in range(count)]
    for place, mean, offset in zip(row, means, offsets):
        place.x = mean + offset


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
