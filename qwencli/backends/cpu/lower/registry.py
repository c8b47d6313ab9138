"""The CPU backend's functions by op. Each module of this folder registers the ops that it lowers."""

from __future__ import annotations

from collections.abc import Callable

from ...registry import Registry

lowers: Registry[Callable[..., None]] = Registry("CPU")
"""f(program, node) adds the rows of a node. For an op that Plus may hold there is also f(program, node, plus), which adds `plus` to the
result. They raise ModelError if the kernels can't take the node's sources."""
