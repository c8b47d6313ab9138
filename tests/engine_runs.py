"""Running an engine until its sequences are done, or holding it back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from qwencli.engine.engine import Engine, Sequence


def finish(engine: Engine, *sequences: Sequence) -> None:
    """Submit the sequences and step until all are done."""
    for seq in sequences:
        engine.submit(seq)
    for _ in range(1000):
        if all(seq.stop_reason for seq in sequences):
            return
        engine.step()
    pytest.fail(f"not finished after 1000 steps: {[len(seq.tokens) for seq in sequences]}")


@contextmanager
def held(engine: Engine, n_tokens: int = 0) -> Iterator[threading.Event]:
    """Once a sequence has `n_tokens`, steps wait until the event is set, so that a slow test isn't too late for what it does meanwhile."""
    go, step = threading.Event(), engine.step

    def held_step(n_batch: int | None = None) -> Any:
        if any(len(seq.generated) >= n_tokens for seq in engine.running):
            go.wait(60)
        return step(n_batch)

    engine.step = held_step  # type: ignore[method-assign]
    try:
        yield go
    finally:
        go.set()
        engine.step = step  # type: ignore[method-assign]
