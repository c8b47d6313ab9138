"""Where the tests find what is not part of the repository, and how they call commands."""

import io
import sys
from pathlib import Path

import other_cpus
import pytest
from command_line import Call, Result, process
from gguf_builder import reciter

from qwencli.cli import main

other_cpus.pretend_as_told()  # before any test module asks what the CPU has

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Demo models in many formats, the real Qwen tokenizer, reference texts. Not in the repository: tests that need it skip without it."""


@pytest.fixture
def shared() -> Path:
    """The shared folder; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the shared test data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answer is known: command_line.TEXT. It has run once: what a first run compiles it would announce on stderr."""
    path = reciter().write(tmp_path_factory.mktemp("models") / "story.gguf")
    process("run", "-m", path, "-p", "hi", "--temp", "0")
    process(
        "perplexity",
        "-m",
        path,
        "-f",
        "-",
        "-c",
        "16",
        "--chunks",
        "3",
        stdin=None,
        input=b"the and in a " * 30,
    )
    return path


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Call:
    """Run a command line in this process, in an empty folder and with no model in the environment."""
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.delenv("QWENCLI_MODEL", raising=False)

    def call(*args: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(a) for a in args])
        out, err = capfdbinary.readouterr()
        return Result(code, out.decode("utf-8"), err.decode("utf-8"))

    return call
