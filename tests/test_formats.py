"""Tensor types: their weights as floats, the scales that come with them, and the perplexity of whole files compared with llama.cpp's."""

import json
import os
from pathlib import Path

import gguf
import make_formats
import make_formats_doc
import numpy as np
import pytest
from gguf_builder import Gguf, Tensor, f32, tiny

from qwencli import LLM
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.types import GGML_TYPES
from qwencli.measure.perplexity import perplexity
from qwencli.network.load import load_model

ORACLES = Path(__file__).with_name("oracles")
FIGURES = json.loads((ORACLES / "formats.json").read_text())
TEXT = "wiki-excerpt.txt"
NVFP4 = 40


@pytest.mark.parametrize(("name", "kind"), [("q1_0", 41), ("q2_0", 42)])
def test_types_that_the_gguf_package_lacks_are_ggmls_bit_for_bit(name: str, kind: int) -> None:
    oracle = np.load(ORACLES / "dequantize.npz")
    blocks, expected = oracle[f"{name}_blocks"], oracle[f"{name}_weights"]
    n_blocks, block = expected.shape
    for shape in (
        (n_blocks,),
        (2, n_blocks // 2),
        (1, n_blocks, 1),
    ):  # a vector, rows of several blocks, rows of one
        found = to_float32(blocks.reshape(*shape[:-1], -1), GGML_TYPES[kind])
        assert found.shape == (*shape[:-1], shape[-1] * block)
        assert found.tobytes() == expected.tobytes()


def nvfp4(name: str, n_rows: int, n_cols: int, seed: int) -> Tensor:
    """Random blocks of 64 weights: four scales of magnitude 1, then pairs of E2M1."""
    blocks = np.random.RandomState(seed).randint(0, 256, (n_rows * n_cols // 64, 36)).astype(np.uint8)
    blocks[:, :4] = 0x30 + blocks[:, :4] % 16
    return Tensor(name, (n_cols, n_rows), NVFP4, blocks.tobytes())


def logits(file: Gguf, path: Path) -> np.ndarray:
    tokens = [5, 77, 140, 3]
    return NumpyBackend(load_model(GGUFFile(file.write(path)))).run(
        [LOGITS], Batch([Segment(KVSequence(), tokens, len(tokens))])
    )[LOGITS]


def test_products_with_nvfp4_weights_are_multiplied_by_their_scale(tmp_path: Path) -> None:
    """As in llama.cpp; `input_scale` is for activations of 4 bits, which neither program uses on a CPU."""
    packed, plain = tiny(), tiny()
    for i, (name, scale) in enumerate([("blk.0.ffn_down", 0.013), ("blk.1.attn_output", -0.07)]):
        tensor = nvfp4(f"{name}.weight", 32, 64, i)
        packed.replace(tensor)
        packed.tensors += [f32(f"{name}.scale", [scale]), f32(f"{name}.input_scale", [7.0])]
        weights = gguf.dequantize(
            np.frombuffer(tensor.data, np.uint8).reshape(32, -1), gguf.GGMLQuantizationType.NVFP4
        )
        plain.replace(f32(f"{name}.weight", weights * np.float32(scale)))
    np.testing.assert_allclose(
        logits(packed, tmp_path / "packed.gguf"), logits(plain, tmp_path / "plain.gguf"), rtol=1e-4, atol=1e-4
    )
    assert abs(logits(packed, tmp_path / "packed.gguf") - logits(tiny(), tmp_path / "tiny.gguf")).max() > 0.1


# whole files


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model in every type, from scripts/make_formats.py: the one that QWENCLI_FORMATS names, else a new one."""
    if folder := os.environ.get("QWENCLI_FORMATS"):
        return Path(folder)
    pytest.importorskip(
        "llama_cpp",
        reason="needs llama-cpp-python (extra `oracle`), or QWENCLI_FORMATS with make_formats.py's files",
    )
    return tmp_path_factory.mktemp("formats")


def perplexity_of(path: Path, text: Path) -> float:
    """The perplexity as `qwencli perplexity -c 256` computes it, in the backend that runs the file."""
    llm = LLM(path, report=lambda line: None)
    tokens = llm.tokenizer.encode(text.read_text(encoding="utf-8"), add_special=True)
    *_, last = perplexity(llm.engine.backend, tokens, 256)
    return last.ppl


@pytest.mark.parametrize("kind", FIGURES)
def test_every_type_has_the_perplexity_of_llama_cpp(shared: Path, formats: Path, kind: str) -> None:
    path = make_formats.file_of(formats, kind)
    if not path.exists():
        make_formats.quantize(kind, path, make_formats.importance_matrix())
    make_formats.check_types(path, kind)
    assert perplexity_of(path, shared / "models" / TEXT) == pytest.approx(FIGURES[kind][TEXT], rel=1e-3)


def test_there_is_a_figure_for_every_type_that_holds_weights() -> None:
    """Q8_1 and Q8_K are for activations; integers and doubles are for tensors that aren't weights."""
    others = {"Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64"}
    assert FIGURES.keys() | others == {kind.name for kind in GGML_TYPES.values()}
    assert FIGURES.keys() == set(make_formats_doc.ORDER)
