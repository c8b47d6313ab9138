"""Where boxes and edges go: rows from top to bottom, edges with right angles between the rows.

A transformer is nearly a line, so this is simple. Each frame has rows of its own. A value that is read further down runs as a line through
the rows between: short ones among the boxes, long ones (residual connections) to the right of them, inputs and shared weights to the left
of everything. Lengths are in pixels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from .picture import Box, Edge, Frame, Picture
from .rows import INSIDE, Net, Place, Rows
from .spacing import LINE, assign_tracks, spread

JOG = 4.0
"""Edges don't turn for less than this."""
TRACK = 8.0
"""Between horizontal parts of edges."""
GAP = 14.0
"""Between rows, in addition to tracks; above a box there is room for an arrowhead, and with edges that cross devices for a text."""
TEXT = 13.0
BYTES = 64.0
"""The width of such a text."""
TITLE = 24.0
"""Above what is in a frame, for its title."""


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


def lay_out(picture: Picture, size: Callable[[Box], tuple[float, float]]) -> Layout:
    """The layout of all boxes but weights that are drawn as a part of others. `size` gives a box's width and height."""
    return _Layouter(Rows(picture, size)).layout()


class _Layouter:
    """From rows to a layout: `_ports` says where edges end, `_tracks` in which track of the gap below a row a value moves sideways, and
    `_track_tops` where the first of the tracks is."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._ports: dict[Edge, float] = {}
        self._tracks: dict[tuple[int, Box], int] = {}
        self._track_tops: dict[int, float] = {}

    def layout(self) -> Layout:
        rows = self._rows
        for box, edges in rows.incoming.items():
            self._ports |= self._ports_of(box, edges)
        self._assign_tracks()
        height = self._place_rows()
        frames = self._rectangles()
        routes = {edge: self._route(net, edge) for net in rows.nets.values() for edge in net.edges}
        xs = [p.x + side * p.width / 2 for row in rows.rows for p in row for side in (-1, 1)]
        xs += [x for r in frames for x in (r.left, r.right)]
        return Layout(rows.places, frames, routes, min(xs, default=0), max(xs, default=0), height)

    # -- edges ----------------------------------------------------------------------------------------------------------

    def _ports_of(self, box: Box, edges: list[Edge]) -> dict[Edge, float]:
        """Where edges end at the top of their target: straight below where they come from, as far as the others let them."""
        if not edges:
            return {}
        place = self._rows.places[box]
        row = self._rows.rank[box] - 1
        above = {
            edge: self._rows.nets[edge.source].lines.get(row, self._rows.places[edge.source]).x
            for edge in edges
        }
        edges = sorted(edges, key=above.__getitem__)
        half = max(place.width / 2 - 10, 0)
        wanted = [min(max(above[edge], place.x - half), place.x + half) for edge in edges]
        most = 2 * half / len(edges)
        widths = [min(BYTES if edge.crosses else LINE, most) for edge in edges]
        ports = spread(widths, wanted, [1.0] * len(edges), between=0)
        beyond = max(0, ports[-1] - place.x - half) + min(0, ports[0] - place.x + half)
        found = {edge: x - beyond for edge, x in zip(edges, ports)}
        return {edge: above[edge] if abs(above[edge] - x) < JOG else x for edge, x in found.items()}

    def _assign_tracks(self) -> None:
        moves: dict[int, list[tuple[Box, float, list[float]]]] = defaultdict(list)
        for net in self._rows.nets.values():
            for row, place, edges, line in self._rows.ways(net):
                ends = [self._ports[edge] for edge in edges] + ([line.x] if line else [])
                if any(abs(x - place.x) > 1 for x in ends):
                    moves[row].append((net.source, place.x, ends))
        for row, nets in moves.items():
            for i, number in assign_tracks([(x, ends) for _, x, ends in nets]):
                self._tracks[row, nets[i][0]] = number

    def _route(self, net: Net, edge: Edge) -> list[tuple[float, float]]:
        """The corners of an edge."""
        rank, place = self._rows.rank, self._rows.places[net.source]
        end = rank[edge.target]
        x, points = place.x, [(place.x, place.y + place.height)]
        for row in range(rank[net.source], end):
            to = self._ports[edge] if row + 1 == end else net.lines[row + 1].x
            if abs(to - x) > 1:
                y = self._track_tops[row] + TRACK * self._tracks[row, net.source]
                points += [(x, y), (to, y)]
                x = to
        return [*points, (x, self._rows.places[edge.target].y)]

    # -- from top to bottom ---------------------------------------------------------------------------------------------

    def _place_rows(self) -> float:
        """Give every row its y. Returns the height of all."""
        gaps = self._gaps()
        begins = {block.first: block for block in self._rows.blocks}
        y = 0.0
        open_frames: tuple[Frame, ...] = ()
        for number, row in enumerate(self._rows.rows):
            if block := begins.get(number):
                kept = sum(a is b for a, b in zip(open_frames, block.frames))
                y += INSIDE * (len(open_frames) - kept)
                y += self._begin_gap(number - 1, y, gaps)
                y += (INSIDE + TITLE) * (len(block.frames) - kept)
                open_frames = block.frames
            else:
                y += self._begin_gap(number - 1, y, gaps)
            height = max((place.height for place in row), default=0.0)
            for place in row:
                place.y = y + (height - place.height) / 2
            y += height
        return y + INSIDE * len(open_frames)

    def _begin_gap(self, row: int, y: float, gaps: list[float]) -> float:
        """The height of the gap below a row, which begins at y; 0 above the first row."""
        if row < 0:
            return 0.0
        self._track_tops[row] = y + GAP / 2
        return gaps[row]

    def _gaps(self) -> list[float]:
        """The height of the gap below each row."""
        gaps = [GAP for _ in self._rows.rows]
        for (row, _), track in self._tracks.items():
            gaps[row] = max(gaps[row], GAP + TRACK * (track + 1))
        for row in {self._rows.rank[edge.target] - 1 for edge in self._rows.edges if edge.crosses}:
            gaps[row] += TEXT
        return gaps

    def _rectangles(self) -> list[Rectangle]:
        """The frames, the outer ones before those in them; those of a depth have the same width."""
        found: dict[Frame, Rectangle] = {}
        for block in self._rows.blocks:
            rows = self._rows.rows[block.first : block.last + 1]
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
        for depth in range(max((len(block.frames) for block in self._rows.blocks), default=0)):
            alike = [found[b.frames[depth]] for b in self._rows.blocks if len(b.frames) > depth]
            left, right = min(r.left for r in alike), max(r.right for r in alike)
            for rectangle in alike:
                rectangle.left, rectangle.right = left, right
        return list(found.values())
