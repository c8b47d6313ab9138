"""Where the tests find what is not part of the repository."""
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Demo models in many formats, the real Qwen tokenizer, reference texts. Not in the repository: tests that need it skip without it."""


@pytest.fixture
def shared() -> Path:
    """The shared folder; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared test data in {SHARED}")
    return SHARED
