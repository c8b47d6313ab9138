"""Ops and the functions that compute them: each registered where it is defined, and missed before a model runs."""

from dataclasses import dataclass
from pathlib import Path

import pytest
from random_models import random_model

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.numpy.ops import computes
from qwencli.backends.registry import Registry
from qwencli.errors import ModelError
from qwencli.network import graph
from qwencli.network.graph import Add, Input, Op, Weight


@dataclass(frozen=True)
class Unknown(Op):
    """() -> what no backend computes."""


def test_a_function_is_registered_where_it_is_defined() -> None:
    registry = Registry("test")  # type: ignore[var-annotated]

    @registry(Add)
    def add() -> int:
        return 3

    assert registry[Add] is add
    assert add() == 3
    with pytest.raises(ValueError, match="the test backend implements Add twice"):
        registry(Add)
    with pytest.raises(KeyError):
        registry[Unknown]


def test_numpy_computes_every_op() -> None:
    ops = {op for op in vars(graph).values() if isinstance(op, type) and issubclass(op, Op)}
    leaves = {op for op in ops if issubclass(op, (Input, Weight))}
    assert {op for op in ops - {Op} - leaves if op not in computes._functions} == set()


def test_an_op_that_nothing_computes_is_an_error_at_once(tmp_path: Path) -> None:
    model = random_model(tmp_path, "F16")
    model.graph._add("strange-0", Unknown(), (), (1,))
    with pytest.raises(ModelError, match=r"gguf: the NumPy backend has no Unknown, which 'strange-0' needs$"):
        NumpyBackend(model)
