"""Where each node of a graph runs: by its layer, by the user's patterns, by what its neighbours do, and by what a device can do."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from ...errors import InputError, ModelError
from ...network.graph import Attention, Conv, DeltaNet, Input, KVStore, Route, Tensor, Weight
from ...network.model import Model
from ..devices import Device, parse_devices
from .wishes import Wishes


@dataclass(frozen=True)
class Placement:
    """`of` has for each node its device's number in `devices`; a weight is where the first node that reads it is. `said` are lines for the
    user: what runs elsewhere than he may think."""

    devices: tuple[Device, ...]
    of: dict[str, int]
    said: tuple[str, ...] = ()

    def names(self) -> dict[str, str]:
        """Return the name of each node's device."""
        return {node: self.devices[number].name for node, number in self.of.items()}


def place(model: Model, wishes: Wishes) -> Placement:
    """Give each node of the model's graph a device.

    Raises InputError if shares or layers don't fit the model, a pattern matches no tensor, or what can't be cut would be.
    """
    return _Placer(model, wishes).placement()


def layers_of(model: Model) -> dict[str, int]:
    """Return each node's layer. The embedding belongs to the first one; what comes after the last layer has the number after it."""
    ends = [layer.name for layer in model.layers]
    found, layer = {}, -1  # the first end is that of the embedding
    for name in model.graph.nodes:
        found[name] = max(layer, 0)
        if layer + 1 < len(ends) and name == ends[layer + 1]:
            layer += 1
    return found


def devices_of_layers(model: Model, wishes: Wishes) -> list[int]:
    """Return the number of the device of each layer, and of what comes after the last one. Raises InputError."""
    n_layer, n_devices = model.config.n_layer, len(wishes.devices)
    if wishes.n_layers is not None:
        if sum(wishes.n_layers) != n_layer:
            counted = ",".join(map(str, wishes.n_layers))
            raise InputError(
                f"the layers per device, {counted}, are {sum(wishes.n_layers)} in all, but the model has {n_layer} layers"
            )
        found = [device for device, n in enumerate(wishes.n_layers) for _ in range(n)]
        return [*found, found[-1]]
    shares = wishes.shares or (1.0,) * n_devices
    # as llama.cpp divides: what comes after the last layer counts as one
    ends = [part / sum(shares) for part in accumulate(shares)]
    last = max(number for number, share in enumerate(shares) if share)
    return [min(bisect_right(ends, layer / (n_layer + 1)), last) for layer in range(n_layer + 1)]


class _Placer:
    def __init__(self, model: Model, wishes: Wishes) -> None:
        self._model = model
        self._wishes = wishes
        self._devices = list(wishes.all_devices)
        self._layers = layers_of(model)
        self._homes = devices_of_layers(model, wishes)
        self._of: dict[str, int] = {}
        self._moved: set[str] = set()  # nodes that aren't where their layer is
        self._lacking: dict[tuple[str, str, str], None] = {}
        nodes = model.graph.nodes.values()
        self._unit_of = {node.name: unit for unit in _units(nodes) for node in unit}

    def placement(self) -> Placement:
        self._check_patterns()
        for node in self._model.graph.nodes.values():
            if node.name not in self._of and not isinstance(node.op, (Input, Weight)):
                self._place(self._unit_of.get(node.name, [node]))
        for node in self._model.graph.nodes.values():
            for source in node.src:
                if isinstance(source.op, (Weight, Input)):
                    self._of.setdefault(source.name, self._of[node.name])
        for node in self._model.graph.nodes.values():  # inputs that nothing reads
            self._of.setdefault(node.name, self._homes[0])
        said = [
            f"{what} runs on {there}, since {here} has no kernels for it"
            for what, here, there in self._lacking
        ]
        return Placement(tuple(self._devices), self._of, tuple(said))

    def _check_patterns(self) -> None:
        weights = [
            node.op.info.name for node in self._model.graph.nodes.values() if isinstance(node.op, Weight)
        ]
        for override in self._wishes.overrides:
            if not any(override.pattern.search(name) for name in weights):
                raise InputError(
                    f"the pattern {override.text[:60]!r} matches no tensor of the model, which are named like {weights[-1][:60]!r}"
                )

    def _place(self, unit: Sequence[Tensor]) -> None:
        """Place nodes that must be on one device."""
        home = self._homes[self._layers[unit[-1].name]]
        device = self._wanted(unit)
        if device is None:
            device = self._neighbours(unit)
        if device is None:
            device = home
        device = self._able(unit, device)
        for node in unit:
            self._of[node.name] = device
            if device != home:
                self._moved.add(node.name)

    def _wanted(self, unit: Sequence[Tensor]) -> int | None:
        """Return the device that the user's patterns name for the nodes' weights. Raises InputError if they name several for a unit.

        A weight of several nodes that can't be cut stays where its layer is if no pattern matches it; with a single node it follows.
        """
        rest = self._homes[self._layers[unit[-1].name]] if len(unit) > 1 else None
        found: dict[str, int | None] = {}
        for node in unit:
            for source in node.src:
                if isinstance(source.op, Weight):
                    name = source.op.info.name
                    overrides = (o for o in self._wishes.overrides if o.pattern.search(name))
                    override = next(overrides, None)
                    found[name] = self._devices.index(override.device) if override else rest
        named = {device for device in found.values() if device is not None}
        if len(named) > 1:
            tensors = ", ".join(
                f"{name[:60]} on {self._devices[device].name}"
                for name, device in found.items()
                if device is not None
            )
            raise InputError(
                f"a layer's convolution and delta net share its state and can't be cut, but the patterns want {tensors}"
                if len(unit) > 1
                else f"'{unit[0].name}' needs tensors that the patterns want on different devices: {tensors}"
            )
        return next(iter(named), None)

    def _neighbours(self, unit: Sequence[Tensor]) -> int | None:
        """Return the device of nodes without weights whose sources are all on one that isn't their layer's: they follow them."""
        if any(isinstance(source.op, Weight) for node in unit for source in node.src):
            return None
        names = {node.name for node in unit}
        sources = [
            source.name
            for node in unit
            for source in node.src
            if source.name not in names and not isinstance(source.op, (Input, Route))
        ]
        devices = {self._of[name] for name in sources}
        return devices.pop() if len(devices) == 1 and self._moved.intersection(sources) else None

    def _able(self, unit: Sequence[Tensor], wanted: int) -> int:
        """Return `wanted`, or the next device that can run the nodes, with NumPy as the last resort. Raises ModelError."""
        missing = lacks(self._model, unit, self._devices[wanted])
        if not missing:
            return wanted
        others: list[int] = [*range(wanted + 1, len(self._devices)), *range(wanted)]
        if all(device.backend != "numpy" for device in self._devices):
            others.append(len(self._devices))
        for number in others:
            device = self._devices[number] if number < len(self._devices) else parse_devices("numpy")[0]
            if not lacks(self._model, unit, device):
                self._devices += [device] * (number == len(self._devices))
                self._lacking[missing[0], self._devices[wanted].name, device.name] = None
                return number
        raise ModelError(
            f"{self._model.file.path}: no device can run {missing[0]}, which '{unit[-1].name}' needs"
        )


def lacks(model: Model, nodes: Iterable[Tensor], device: Device) -> list[str]:
    """Return the types and ops of some nodes that a device can't run."""
    if device.backend == "numpy":
        from ..numpy.ops import computes

        return [type(node.op).__name__ for node in nodes if type(node.op) not in computes]
    from ..cpu.lower import lacks_kernels

    return [missing for node in nodes for missing in lacks_kernels(model, node)]


def _units(nodes: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the nodes that can't be cut: those that share a layer's keys and values, or its state."""
    for node in nodes:
        for source in node.src:
            if isinstance(node.op, (Attention, DeltaNet)) and isinstance(source.op, (KVStore, Conv)):
                yield [source, node]
