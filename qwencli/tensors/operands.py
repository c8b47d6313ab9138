"""What ops can read: each function returns a tensor if the node `name` can take it, or raises ModelError."""

from __future__ import annotations

from ..errors import ModelError
from ..network.graph import ExpertLinear, Graph, Input, KVStore, Route, SwiGLU, Tensor, Weight


def a_tensor(name: str, operand: object) -> Tensor:
    """A tensor, not numbers."""
    if not isinstance(operand, Tensor):
        kind = type(operand).__name__
        raise ModelError(
            f"graph: '{name}' can't take a value of type {kind}: expected a tensor, such as a constant"
        )
    return operand


def own(graph: Graph, name: str, tensor: Tensor) -> Tensor:
    """A tensor of this very graph."""
    if graph.nodes.get(tensor.name) is not tensor:
        raise ModelError(f"graph: '{tensor.name}', which '{name}' reads, is a tensor of another graph")
    return tensor


def constant(name: str, tensor: Tensor) -> Tensor:
    """A constant of any type."""
    if not isinstance(a_tensor(name, tensor).op, Weight):
        raise _error(name, tensor, "a constant")
    return tensor


def floats(name: str, tensor: Tensor) -> Tensor:
    """An F32 constant: kernels read no other type there."""
    op = a_tensor(name, tensor).op
    if not isinstance(op, Weight) or op.info.type.name != "F32":
        raise _error(name, tensor, "an F32 constant")
    return tensor


def rows(name: str, tensor: Tensor) -> Tensor:
    """Rows of numbers, in the order of the inputs."""
    is_handle = isinstance(tensor.op, (KVStore, Route))
    if is_handle or len(tensor.shape) < 2 or route_of(tensor):
        raise _error(name, tensor, "rows")
    return tensor


def a_route(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(a_tensor(name, tensor).op, Route):
        raise _error(name, tensor, "a route")
    return tensor


def of_experts(name: str, tensor: Tensor, route: Tensor) -> Tensor:
    """A row for each of the experts that the route has chosen. A device may have them in another order than that of the inputs."""
    if route_of(a_tensor(name, tensor)) is not a_route(name, route):
        raise _error(name, tensor, f"products of the experts of '{route.name}'")
    return tensor


def route_of(tensor: Tensor) -> Tensor | None:
    """Return the route whose experts' products a tensor is computed from, row by row; None for any other tensor."""
    if isinstance(tensor.op, ExpertLinear):
        return tensor.src[2]
    return route_of(tensor.src[0]) if isinstance(tensor.op, SwiGLU) else None


def size(tensor: Tensor) -> int:
    """Return the size of the last dimension."""
    n = tensor.shape[-1]
    assert isinstance(n, int)
    return n


def kind(tensor: Tensor) -> str:
    """Return what a tensor is, for errors."""
    shape = f"[{', '.join(map(str, tensor.shape))}]"
    if isinstance(tensor.op, Weight):
        return f"a constant {shape} {tensor.op.info.type.name}"
    if isinstance(tensor.op, (KVStore, Route)):
        return "a handle"
    if isinstance(tensor.op, Input):
        return f"an input {shape}"
    return f"{'rows of experts' if route_of(tensor) else 'rows'} {shape}"


def _error(name: str, tensor: Tensor, expected: str) -> ModelError:
    return ModelError(f"graph: '{name}' can't take '{tensor.name}', {kind(tensor)}: expected {expected}")
