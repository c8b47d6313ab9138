"""Which backend runs a file when none is asked for."""

from pathlib import Path

import pytest
from gguf_builder import tiny

from qwencli import LLM
from qwencli.backends.choose import choose_backend
from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.cpu.lower import lowers
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Batch, Segment
from qwencli.errors import ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.kernels import formats
from qwencli.network.graph import SwiGLU
from qwencli.network.load import load_model


def test_the_compiled_kernels_run_what_they_can() -> None:
    said: list[str] = []
    assert isinstance(LLM(EMBEDDED, report=said.append).engine.backend, CPUBackend)
    assert not said


def test_numpy_runs_the_rest_and_says_so(tmp_path: Path) -> None:
    """The tiny qwen2 model has heads of 8 values; vectors have 16."""
    said: list[str] = []
    llm = LLM(tiny("qwen2").write(tmp_path / "m.gguf"), report=said.append)
    assert isinstance(llm.engine.backend, NumpyBackend)
    assert said == ["no compiled kernels for heads of 8 values: running on the slow NumPy backend"]


def test_numpy_runs_ops_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """An op for which only the NumPy backend has a function, as a new one at first."""
    monkeypatch.delitem(lowers._functions, SwiGLU)
    said: list[str] = []
    assert choose_backend("auto", load_model(GGUFFile(EMBEDDED)), said.append) == "numpy"
    assert said == ["no compiled kernels for SwiGLU: running on the slow NumPy backend"]
    backend = CPUBackend(load_model(GGUFFile(EMBEDDED)), 1)
    with pytest.raises(
        ModelError, match=r"no kernels for SwiGLU, which 'ffn_swiglu-0' needs: --backend numpy"
    ):
        backend.run(["result_output"], Batch([Segment(KVSequence(), [1], 1)]))


def test_numpy_runs_types_without_kernels(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(formats.FORMATS, "IQ4_XS")
    said: list[str] = []
    llm = LLM(shared / "models" / "demo-iq4_xs.gguf", report=said.append)
    assert isinstance(llm.engine.backend, NumpyBackend)
    assert len(said) == 1
    assert "IQ4_XS" in said[0]
