"""Which row each box is in, where in the row, and where values pass that are read further down. Lengths are in pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from .picture import Box, Edge, Frame, Picture
from .spacing import LINE, spread

BETWEEN = 18.0
"""Between boxes of a row."""
INSIDE = 14.0
"""Between a frame and what is in it."""
SIDE = 4
"""A line through this many rows and more runs at the side."""
SWEEPS = 8
STRAIGHT = 4.0
"""How much more it counts that lines are straight than that boxes are below each other."""


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
class Block:
    """Rows of one frame without frames in it, or of boxes outside of frames. `frames` are those around it, the outermost first."""

    boxes: list[Box]
    frames: tuple[Frame, ...]
    first: int = 0
    last: int = 0


@dataclass(eq=False)
class Net:
    """A value on its way: edges that begin at one box, and where it passes each row."""

    source: Box
    edges: list[Edge]
    lines: dict[int, Place] = field(default_factory=dict)


class Rows:
    """The rows of a picture, with the x of everything. `size` gives a box's width and height.

    Weights that are drawn as a part of others are not in it.
    """

    def __init__(self, picture: Picture, size: Callable[[Box], tuple[float, float]]) -> None:
        attached = picture.attached()
        self.edges = [edge for edge in picture.edges if edge.source not in attached]
        self.blocks: list[Block] = []
        self._collect(picture.parts, (), attached)
        self.places = {box: Place(box, *size(box)) for block in self.blocks for box in block.boxes}
        self.incoming: dict[Box, list[Edge]] = {box: [] for box in self.places}
        self._outgoing: dict[Box, list[Edge]] = {box: [] for box in self.places}
        for edge in self.edges:
            self.incoming[edge.target].append(edge)
            self._outgoing[edge.source].append(edge)
        self.rank: dict[Box, int] = {}
        for block in self.blocks:
            self._rank_boxes(block)
        self.rows: list[list[Place]] = []
        self.nets: dict[Box, Net] = {}
        self._make_rows()
        around = self._neighbours()
        for block in self.blocks:
            rows = self.rows[block.first : block.last + 1]
            order(rows, around)
            align(rows, around)
        self._place_side_lines()

    def _collect(
        self, parts: Iterable[Box | Frame], frames: tuple[Frame, ...], attached: Mapping[Box, Box]
    ) -> None:
        """Divide the picture into blocks."""
        for part in parts:
            if isinstance(part, Frame):
                self._collect(part.parts, (*frames, part), attached)
            elif part not in attached:
                if not self.blocks or self.blocks[-1].frames != frames:
                    self.blocks.append(Block([], frames))
                self.blocks[-1].boxes.append(part)

    def _rank_boxes(self, block: Block) -> None:
        """Give each box of a block its row: below all that it reads, but above all of the next block."""
        block.first = max(self.rank.values(), default=-1) + 1
        own = set(block.boxes)
        for box in block.boxes:
            above = [self.rank[e.source] for e in self.incoming[box] if e.source in own]
            self.rank[box] = max(above, default=block.first - 1) + 1
        for box in reversed(block.boxes):  # further down where that makes no line longer
            below = [self.rank[edge.target] for edge in self._outgoing[box] if edge.target in own]
            shared = all(len(self._outgoing[edge.source]) > 1 for edge in self.incoming[box])
            if below and shared and self.incoming[box]:
                self.rank[box] = min(below) - 1
        block.last = max(self.rank[box] for box in block.boxes)

    def _make_rows(self) -> None:
        """Put boxes into rows, and lines of values that pass them."""
        self.rows = [[] for _ in range(self.blocks[-1].last + 1)] if self.blocks else []
        for box, place in self.places.items():
            self.rows[self.rank[box]].append(place)
        for box, edges in self._outgoing.items():
            if not edges:
                continue
            self.nets[box] = net = Net(box, edges)
            first, last = self.rank[box] + 1, max(self.rank[edge.target] for edge in edges)
            for row in range(first, last):
                net.lines[row] = line = Place(box, LINE, 0.0, is_line=True)
                if not self._is_at_side(net, last - first):
                    self.rows[row].append(line)

    @staticmethod
    def _is_global(net: Net) -> bool:
        return net.source.kind in ("input", "weight")

    def _is_at_side(self, net: Net, length: int | None = None) -> bool:
        return self._is_global(net) or (len(net.lines) if length is None else length) >= SIDE

    def ways(self, net: Net) -> Iterator[tuple[int, Place, list[Edge], Place | None]]:
        """For each row of a net but the last: the row, where the value is there, who reads it in the next row, and where it passes that."""
        yield from (
            (row, place, [e for e in net.edges if self.rank[e.target] == row + 1], net.lines.get(row + 1))
            for row, place in [(self.rank[net.source], self.places[net.source]), *net.lines.items()]
        )

    def _neighbours(self) -> dict[Place, tuple[list[Place], list[Place]]]:
        """For each place, the places of the same block in the row above and in that below with which it is connected."""
        found: dict[Place, tuple[list[Place], list[Place]]] = {p: ([], []) for row in self.rows for p in row}
        starts = {block.first for block in self.blocks}
        for net in self.nets.values():
            for row, place, edges, line in self.ways(net):
                below = [self.places[edge.target] for edge in edges] + ([line] if line else [])
                for other in below if row + 1 not in starts else []:
                    if place in found and other in found:
                        found[place][1].append(other)
                        found[other][0].append(place)
        return found

    def _place_side_lines(self) -> None:
        """Long lines go to the right of the rows that they pass; those of inputs and shared weights to the left of all rows."""
        edge_of_row = [max((p.x + p.width / 2 for p in row), default=0.0) for row in self.rows]
        for net in sorted(self.nets.values(), key=lambda net: len(net.lines)):
            if net.lines and self._is_at_side(net) and not self._is_global(net):
                x = max(edge_of_row[row] for row in net.lines) + LINE
                for row, line in net.lines.items():
                    line.x = edge_of_row[row] = x
                    self.rows[row].append(line)
        left = min((p.x - p.width / 2 for row in self.rows for p in row), default=0.0)
        x = left - INSIDE * max((len(block.frames) for block in self.blocks), default=0)
        for net in sorted(self.nets.values(), key=lambda net: len(net.lines)):
            if net.lines and self._is_global(net):
                x -= LINE
                for row, line in net.lines.items():
                    line.x = x
                    self.rows[row].append(line)


Around = Mapping[Place, tuple[list[Place], list[Place]]]


def order(rows: list[list[Place]], around: Around) -> None:
    """Order the places of each row so that few edges cross: each at the mean of those that it is connected with, row by row."""
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


def align(rows: list[list[Place]], around: Around) -> None:
    """Move the places of each row to the mean of those that they are connected with, as far as the others let them.

    What is alone in its row stays in the middle: then the way of the states is a straight line.
    """
    for row in rows:
        put(row, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            if len(row) == 1:
                continue
            wanted, weights = [], []
            for place in row:
                others = around[place][0] + around[place][1]
                pulls = [STRAIGHT if place.is_line or other.is_line else 1.0 for other in others]
                total = sum(pulls)
                wanted.append(sum(p * o.x for p, o in zip(pulls, others)) / total if total else 0.0)
                weights.append(max(total, 0.1))
            put(row, wanted, weights)


def put(row: list[Place], wanted: list[float], weights: list[float]) -> None:
    """Set the x of all places in a row."""
    for place, x in zip(row, spread([place.width for place in row], wanted, weights, BETWEEN)):
        place.x = x
