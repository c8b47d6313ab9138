"""Running an engine to the end."""
import pytest

from qwencli.engine import Engine, Sequence


def finish(engine: Engine, *sequences: Sequence) -> None:
    """Submit the sequences and step until all are done."""
    for seq in sequences:
        engine.submit(seq)
    for _ in range(1000):
        if all(seq.stop_reason for seq in sequences):
            return
        engine.step()
    pytest.fail(f"not finished after 1000 steps: {[len(seq.tokens) for seq in sequences]}")
