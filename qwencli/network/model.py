"""A model: what an architecture's file in `architectures/` builds from a GGUF file, and the tensors that it asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InputError, ModelError, shown
from ..gguf.file import GGUFFile, TensorInfo
from .config import Config
from .graph import Graph, Tensor

OTHER_PARTS = "v.", "mm."
"""What the names of tensors for images begin with, which files of Ollama's hold next to the text model."""


@dataclass(frozen=True)
class Model:
    """What a backend needs to run a file. `layers` are the states between layers, from the embedding to the last layer's output; `warnings`
    what a user should know of the file."""

    file: GGUFFile
    config: Config
    graph: Graph
    layers: tuple[Tensor, ...]
    warnings: tuple[str, ...] = ()

    def check_generates(self) -> None:
        """Raise InputError for a model that reads texts but writes none: each of its tokens would see those after it."""
        if not self.config.causal:
            raise InputError(
                f"{self.file.path.name}: this model's attention goes in both directions, so it generates no text: it embeds and ranks"
                " texts, with qwencli serve"
            )


class Weights:
    """The file's tensors as leaves of a graph. The architecture asks for each with the shape that it expects."""

    def __init__(self, file: GGUFFile, graph: Graph) -> None:
        self._file, self._graph, self._used = file, graph, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def __call__(self, name: str, *shape: int, rows: range | None = None) -> Tensor:
        """The tensor, or some of its rows (see Graph.weight). Raises ModelError if it is missing or has another shape."""
        info = self._file.tensors.get(name)
        if info is None:
            raise ModelError(
                f"{self._file.path}: tensor '{name}' is missing, expected one of shape {list(shape)}"
            )
        if info.shape != shape:
            raise ModelError(
                f"{self._file.path}: tensor '{name}' has the shape {list(info.shape)}, expected {list(shape)}"
            )
        self._used.add(name)
        return self._graph.weight(info, self._scale(info), rows)

    def _scale(self, info: TensorInfo) -> TensorInfo | None:
        """The scale of a weight of a scaled type. An embedding has none, since it is looked up and not multiplied, as in llama.cpp."""
        if not info.type.scaled or info.name == "token_embd.weight":
            return None
        name = info.name.removesuffix("weight") + "scale"
        scale = self._file.tensors.get(name)
        if scale is None:
            raise ModelError(
                f"{self._file.path}: tensor '{info.name}' is {info.type.name}, which needs its scale, the tensor '{name}', "
                "but the file has none: convert the model again"
            )
        expected = info.shape[:-2] or (1,)  # one per expert
        if (scale.shape, scale.type.name) != (expected, "F32"):
            raise ModelError(
                f"{self._file.path}: tensor '{name}' is {scale.type.name} {list(scale.shape)}, expected F32 {list(expected)}"
            )
        self._used |= {
            name,
            info.name.removesuffix("weight") + "input_scale",
        }  # the latter is for activations of 4 bits
        return scale

    def as_row(self, name: str, n: int) -> Tensor:
        """A vector of n numbers as a matrix [1, n]; files have it in either shape. Raises ModelError as a call does."""
        info = self._file.tensors.get(name)
        if info is None or info.shape == (1, n):
            return self(name, 1, n)
        self(name, n)
        return self._graph.weight(info, as_row=True)

    def error(self, what: str) -> ModelError:
        """An error that names the file."""
        return ModelError(f"{self._file.path}: {what}")

    def optional(self, name: str, *shape: int) -> Tensor | None:
        """The tensor, None if the file doesn't have it. Raises ModelError if it has another shape."""
        return self(name, *shape) if name in self else None

    def skip_layers(self, which: range) -> None:
        """Count the tensors of some layers as used, although they have no place in the graph."""
        layers = {name: re.match(r"blk\.([0-9]{1,9})\.", name) for name in self._file.tensors}
        self._used |= {name for name, layer in layers.items() if layer and int(layer[1]) in which}

    def check_all_used(self) -> None:
        """Raise ModelError if the graph leaves out a tensor of the file: answers would be silently wrong."""
        others = {name for name in self._file.tensors if name.startswith(OTHER_PARTS)}
        if unused := sorted(self._file.tensors.keys() - self._used - others):
            raise ModelError(
                f"{self._file.path}: {len(unused)} tensors have no place in this architecture, such as '{shown(unused[0])}'"
            )
