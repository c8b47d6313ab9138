"""A model: what an architecture's file in `models/` makes of a GGUF file, and the tensors that it asks for."""

from __future__ import annotations

import importlib
import pkgutil
import re
from dataclasses import dataclass

from ..errors import ModelError
from ..gguf.file import GGUFFile, TensorInfo
from . import architectures
from .config import Config
from .graph import Graph, Tensor


@dataclass(frozen=True)
class Model:
    """What a backend needs to run a file. `layers` are the states between layers, from the embedding to the last layer's output."""

    file: GGUFFile
    config: Config
    graph: Graph
    layers: tuple[Tensor, ...]


class Weights:
    """The file's tensors as leaves of a graph, each asked for with the shape that the architecture expects."""

    def __init__(self, file: GGUFFile, graph: Graph) -> None:
        self._file, self._graph, self._used = file, graph, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def __call__(self, name: str, *shape: int, rows: range | None = None) -> Tensor:
        """The tensor, or some of its rows (see Graph.weight)."""
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
        """What products with a weight of a scaled type are multiplied by. An embedding has none: it is looked up, as llama.cpp does."""
        if not info.type.scaled or info.name == "token_embd.weight":
            return None
        name = info.name.removesuffix("weight") + "scale"
        scale = self._file.tensors.get(name)
        if scale is None:
            raise ModelError(
                f"{self._file.path}: tensor '{info.name}' is {info.type.name}, which needs its scale, the tensor '{name}', "
                "but the file has none: convert the model again"
            )
        expected = info.shape[:-2] or (1,)  # one an expert
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
        """A vector of n numbers as a matrix [1, n], as which a file may also hold it."""
        info = self._file.tensors.get(name)
        if info is None or info.shape == (1, n):
            return self(name, 1, n)
        self(name, n)
        return self._graph.weight(info, as_row=True)

    def error(self, what: str) -> ModelError:
        """An error that names the file."""
        return ModelError(f"{self._file.path}: {what}")

    def optional(self, name: str, *shape: int) -> Tensor | None:
        return self(name, *shape) if name in self else None

    def skip_layers(self, which: range) -> None:
        """Layers that don't run need no place in the graph."""
        layers = {name: re.match(r"blk\.([0-9]{1,9})\.", name) for name in self._file.tensors}
        self._used |= {name for name, layer in layers.items() if layer and int(layer[1]) in which}

    def check_all_used(self) -> None:
        """A tensor that the graph leaves out would make the answers wrong without a word."""
        if unused := sorted(self._file.tensors.keys() - self._used):
            raise ModelError(
                f"{self._file.path}: {len(unused)} tensors have no place in this architecture, such as '{unused[0]}'"
            )


def known_architectures() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(architectures.__path__))


def load_model(file: GGUFFile) -> Model:
    """Build the graph of the file's architecture. Raises ModelError where the file does not describe a model that runs."""
    architecture = file.metadata.string("general.architecture")
    if architecture not in known_architectures():
        raise ModelError(
            f"{file.path}: the architecture '{architecture}' is not supported; known are {', '.join(known_architectures())};"
            " how to add one: CONTRIBUTING.md"
        )
    model: Model = importlib.import_module(f"{architectures.__name__}.{architecture}").build(file)
    return model
