"""The CPU backend's functions by op: each module of this folder registers what it lowers."""

from __future__ import annotations

from collections.abc import Callable

from ...registry import Registry

lowers: Registry[Callable[..., None]] = Registry("CPU")
"""f(program, node) adds the rows of a node; for an op that Plus may hold also f(program, node, plus), what is added to its result.

Raises ModelError where the kernels can't take what its sources are."""
