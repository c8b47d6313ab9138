"""What is drawn of a graph: boxes, the edges between them, and frames around layers. Formats and layouts come after this."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..errors import InputError
from ..network.graph import N_OUTPUTS, N_TOKENS, Input, Tensor, Weight
from .folding import Group, Run, fold, key_of, shortened, without_number
from .values import Value, kind_of, value_of

if TYPE_CHECKING:
    from ..measure.node_times import NodeTime
    from ..network.model import Model

DEVICE = "cpu"
"""Where nodes are that a placement doesn't name."""
OUTSIDE = "outside"
"""The kind of a node of a layer that isn't shown, but read by one that is."""


@dataclass(frozen=True, eq=False)
class Box:
    """A node, or the same node of all layers that a frame stands for: then `name` has `i` for the number of the layer.

    `kind` is that of values.kind_of, or OUTSIDE. `values` has the node's value in each layer: types and bytes may differ.
    """

    name: str
    kind: str
    device: str
    layer: int | None
    nodes: tuple[Tensor, ...]
    values: tuple[Value, ...]
    times: tuple[NodeTime, ...] = ()

    @property
    def op(self) -> str:
        return type(self.nodes[0].op).__name__

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values[0].shape

    @property
    def types(self) -> tuple[str, ...]:
        """In alphabetical order, each once."""
        return tuple(sorted({value.type for value in self.values}))

    @property
    def n_bytes(self) -> tuple[int, int]:
        """The least and the most of one layer."""
        sizes = [value.n_bytes for value in self.values]
        return min(sizes), max(sizes)

    @property
    def seconds(self) -> float:
        """What the node takes, in the mean over layers."""
        return sum(time.seconds for time in self.times) / len(self.times) if self.times else 0.0

    @property
    def share(self) -> float | None:
        """The least time that the machine needs, as a share of the time taken; None if nothing counts what the node costs."""
        least = sum(time.least for time in self.times)
        return least / sum(time.seconds for time in self.times) if least and self.seconds else None

    @property
    def within(self) -> str:
        """The name of the node that this one is computed together with, empty if there is none."""
        within = self.times[0].within if self.times else ""
        folded = len(self.nodes) > 1 and self.layer is not None
        return without_number(within, self.layer) if folded and self.layer is not None else within


@dataclass(frozen=True, eq=False)
class Edge:
    """`target` reads `source`: `n_bytes`, which have to be copied if the two are on different devices.

    `node` is what the first node of `target` reads: with layers drawn as one, not always the first node of `source`.
    """

    source: Box
    target: Box
    node: Tensor

    @property
    def crosses(self) -> bool:
        """Whether the value is computed on another device than the one that reads it. Inputs and weights are where they are read."""
        return self.source.device != self.target.device and bool(self.node.src)

    @property
    def n_bytes(self) -> int:
        return self.source.n_bytes[1]


@dataclass(frozen=True, eq=False)
class Frame:
    """One layer, or one that stands for several (then `times` is how often it comes in a row), or several that repeat together."""

    title: str
    times: int
    parts: tuple[Box | Frame, ...]

    @property
    def seconds(self) -> float:
        """What all layers that it stands for take."""
        return seconds_of(self.parts)


@dataclass(frozen=True)
class Device:
    """A device, and what the shown part of the graph has there: nodes that compute something, and bytes of weights."""

    name: str
    n_nodes: int
    weight_bytes: int


@dataclass(frozen=True, eq=False)
class Picture:
    """`parts` from the first to the last. Edges are in the order of the boxes that read."""

    title: str
    n_tokens: int
    parts: tuple[Box | Frame, ...]
    edges: tuple[Edge, ...]
    devices: tuple[Device, ...]
    boxes: tuple[Box, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", tuple(boxes_of(self.parts)))

    @property
    def is_profiled(self) -> bool:
        return any(box.times for box in self.boxes)

    @property
    def seconds(self) -> float:
        """What all shown nodes take, every layer counted."""
        return seconds_of(self.parts)

    def attached(self) -> dict[Box, Box]:
        """The weights that only one box on the same device reads, with that box: they can be drawn as a part of it."""
        readers: dict[Box, list[Edge]] = {}
        for edge in self.edges:
            readers.setdefault(edge.source, []).append(edge)
        return {
            box: edges[0].target
            for box, edges in readers.items()
            if box.kind == "weight" and len(edges) == 1 and box.device == edges[0].target.device
        }


def boxes_of(parts: Iterable[Box | Frame]) -> Iterator[Box]:
    for part in parts:
        if isinstance(part, Box):
            yield part
        else:
            yield from boxes_of(part.parts)


def seconds_of(parts: Iterable[Box | Frame]) -> float:
    return sum(time.seconds for box in boxes_of(parts) for time in box.times)


def picture_of_model(
    model: Model,
    title: str,
    n_tokens: int = 1,
    placement: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    full: bool = False,
    times: Mapping[str, NodeTime] | None = None,
) -> Picture:
    """A model's graph in a step with `n_tokens` tokens and one output. See `picture`. Raises InputError."""
    return picture(model.graph.nodes.values(), model.layers, title, n_tokens, placement, layers, full, times)


def picture(
    nodes: Iterable[Tensor],
    states: Sequence[Tensor] = (),
    title: str = "",
    n_tokens: int = 1,
    placement: Mapping[str, str] | None = None,
    layers: Sequence[int] | None = None,
    full: bool = False,
    times: Mapping[str, NodeTime] | None = None,
) -> Picture:
    """What to draw of a graph's nodes, which are in the order of execution, without weights and
    inputs that nothing reads.

    `states` are the tensors between layers, as in Model.layers: layer i is what comes after the i-th, up to the next. `placement` gives a
    node's device by its name (see `devices` for those that it leaves out). Layers that are alike are drawn as one, unless all are
    wanted (`full`) or only some (`layers`). `times` are those of a profile. Raises InputError if a layer in `layers` doesn't exist.
    """
    return _Drawing(list(nodes), states, n_tokens, placement or {}, times or {}).picture(title, layers, full)


class _Drawing:
    """A picture in the making: the graph divided into what comes before the layers, each layer, and what comes after them."""

    def __init__(
        self,
        nodes: list[Tensor],
        states: Sequence[Tensor],
        n_tokens: int,
        placement: Mapping[str, str],
        times: Mapping[str, NodeTime],
    ) -> None:
        self._n_tokens, self._times = n_tokens, times
        self._sizes = {N_TOKENS: n_tokens, N_OUTPUTS: 1}
        self._states = states
        self._devices = devices(nodes, placement)
        self._read = {source.name for node in nodes for source in node.src}
        ends = {state.name for state in states}
        self._sections: list[list[Tensor]] = [[]]
        for node in nodes:
            if node.name in self._read or not isinstance(node.op, (Input, Weight)):
                self._sections[-1].append(node)
            if node.name in ends:
                self._sections.append([])
        self._boxes: dict[str, Box] = {}

    @property
    def n_layers(self) -> int:
        return max(0, len(self._states) - 1)

    def picture(self, title: str, layers: Sequence[int] | None, full: bool) -> Picture:
        parts: list[Box | Frame] = []
        if layers is not None:
            for number in sorted({*layers}):
                parts += self._alone(number)
        else:
            parts += [self._box([node]) for node in self._sections[0]]
            numbers = range(self.n_layers)
            runs = [Run(1, (i,)) for i in numbers] if full else fold([self._key(i) for i in numbers])
            parts += [self._frame(run) for run in runs]
            parts += (
                [self._box([node]) for node in self._sections[self.n_layers + 1 :][-1]]
                if self._states
                else []
            )
        edges = self._edges(parts)
        return Picture(title, self._n_tokens, tuple(parts), tuple(edges), tuple(self._summary(parts)))

    def _key(self, number: int) -> object:
        nodes, before = self._sections[number + 1], self._states[number]
        return key_of(nodes, number, before, lambda node: self._devices[node.name])

    def _alone(self, number: int) -> list[Box | Frame]:
        """A layer, after what it reads that isn't shown yet."""
        if not 0 <= number < self.n_layers:
            raise InputError(f"there is no layer {number}: the model has {self.n_layers}, from 0 on")
        nodes = self._sections[number + 1]
        own = {node.name for node in nodes}
        needed = {source.name: source for node in nodes for source in node.src if source.name not in own}
        missing = [
            self._box([node], node.src != ()) for name, node in needed.items() if name not in self._boxes
        ]
        return [*missing, self._frame(Run(1, (number,)))]

    def _frame(self, run: Run | Group, is_in_group: bool = False) -> Frame:
        numbers, many = run.layers, "s" if len(run.layers) > 1 else ""
        times = f", {run.times} x" + " each time" * is_in_group if run.times > 1 else ""
        title = f"layer{many} {shortened(numbers)}{times}"
        if isinstance(run, Group):
            return Frame(title, run.times, tuple(self._frame(part, True) for part in run.parts))
        same = zip(*(self._sections[number + 1] for number in numbers))
        return Frame(title, run.times, tuple(self._box(nodes, layer=numbers[0]) for nodes in same))

    def _box(self, nodes: Sequence[Tensor], is_outside: bool = False, layer: int | None = None) -> Box:
        first = nodes[0]
        box = Box(
            without_number(first.name, layer) if layer is not None and len(nodes) > 1 else first.name,
            OUTSIDE if is_outside else kind_of(first, first.name in self._read),
            self._devices[first.name],
            layer,
            tuple(nodes),
            tuple(value_of(node, self._sizes) for node in nodes),
            () if is_outside else tuple(self._times[node.name] for node in nodes if node.name in self._times),
        )
        self._boxes |= dict.fromkeys((node.name for node in nodes), box)
        return box

    def _edges(self, parts: Iterable[Box | Frame]) -> Iterator[Edge]:
        for box in boxes_of(parts):
            if box.kind != OUTSIDE:
                sources = {self._boxes[node.name]: node for node in box.nodes[0].src}
                yield from (Edge(source, box, node) for source, node in sources.items())

    def _summary(self, parts: Iterable[Box | Frame]) -> Iterator[Device]:
        """The devices in the order in which they are first used."""
        boxes = [box for box in boxes_of(parts) if box.kind != OUTSIDE]
        for name in dict.fromkeys(box.device for box in boxes):
            here = [box for box in boxes if box.device == name]
            computed = sum(len(box.nodes) for box in here if box.kind not in ("weight", "input"))
            weights = sum(value.n_bytes for box in here if box.kind == "weight" for value in box.values)
            yield Device(name, computed, weights)


def devices(nodes: Sequence[Tensor], placement: Mapping[str, str]) -> dict[str, str]:
    """The device of each node: the one that `placement` names; for an input or a weight that it leaves out, that of the first node that
    reads it; else DEVICE."""
    found: dict[str, str] = {}
    of_readers: dict[str, str] = {}
    for node in reversed(nodes):
        default = DEVICE if node.src else of_readers.get(node.name, DEVICE)
        found[node.name] = placement.get(node.name, default)
        for source in node.src:
            of_readers[source.name] = found[node.name]
    return found
