"""Which function of a backend implements which op of the graph, registered where it is defined."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import ModelError
from ..network.graph import Input, Op, Weight
from ..network.model import Model

F = TypeVar("F", bound=Callable[..., object])


class Registry(Generic[F]):
    """A backend's functions by op, and the decorator that registers them:

    computes = Registry[Callable[..., Any]]("NumPy")

    @computes(Add)
    def add(...): ...

    computes[Add]  # add
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._functions: dict[type[Op], F] = {}

    def __call__(self, op: type[Op]) -> Callable[[F], F]:
        """Register a function for `op`. Raises ValueError where it has one."""
        if op in self._functions:
            raise ValueError(f"the {self._backend} backend implements {op.__name__} twice")

        def register(function: F) -> F:
            self._functions[op] = function
            return function

        return register

    def __contains__(self, op: type[Op]) -> bool:
        return op in self._functions

    def __getitem__(self, op: type[Op]) -> F:
        """The op's function. Raises KeyError for an op that has none: `check` looks for that before a model runs."""
        return self._functions[op]

    def check(self, model: Model) -> None:
        """Raises ModelError if the model's graph has an op that nothing is registered for. Inputs and weights need nothing."""
        for node in model.graph.nodes.values():
            if type(node.op) not in self._functions and not isinstance(node.op, (Input, Weight)):
                raise ModelError(
                    f"{model.file.path}: the {self._backend} backend has no {type(node.op).__name__}, which '{node.name}' needs"
                )
