"""A backend's functions by the op that they implement. Each is registered where it is defined."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from ..errors import ModelError
from ..network.graph import Input, Op, Tensor, Weight

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
        """Register a function for `op`. Raises ValueError if it has one already."""
        if op in self._functions:
            raise ValueError(f"the {self._backend} backend implements {op.__name__} twice")

        def register(function: F) -> F:
            self._functions[op] = function
            return function

        return register

    def __contains__(self, op: type[Op]) -> bool:
        return op in self._functions

    def __getitem__(self, op: type[Op]) -> F:
        """Return the function of an op. Raises KeyError if it has none; `check` looks for that before a model runs."""
        return self._functions[op]

    def check(self, path: Path, nodes: Iterable[Tensor]) -> None:
        """Raise ModelError if one of the nodes has an op without a function. Inputs and weights need none. `path` is for the message."""
        for node in nodes:
            if type(node.op) not in self._functions and not isinstance(node.op, (Input, Weight)):
                raise ModelError(
                    f"{path}: the {self._backend} backend has no {type(node.op).__name__}, which '{node.name}' needs"
                )
