"""Tensor types: their weights as floats, what belongs to them in a file, and whole files against llama.cpp."""
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_builder import Gguf, Tensor, f32, tiny

from qwencli.backends import LOGITS, Batch, Piece
from qwencli.backends.dequantize import to_float32
from qwencli.backends.numpy_ref import NumpyBackend
from qwencli.ggml_types import GGML_TYPES
from qwencli.gguf_file import GGUFFile
from qwencli.kv_cache import KVSequence
from qwencli.model import load_model

ORACLES = Path(__file__).with_name("oracles")
NVFP4 = 40


@pytest.mark.parametrize(("name", "kind"), [("q1_0", 41), ("q2_0", 42)])
def test_types_that_the_gguf_package_lacks_are_ggmls_bit_for_bit(name: str, kind: int) -> None:
    oracle = np.load(ORACLES / "dequantize.npz")
    blocks, expected = oracle[f"{name}_blocks"], oracle[f"{name}_weights"]
    n_blocks, block = expected.shape
    for shape in (n_blocks,), (2, n_blocks // 2), (1, n_blocks, 1):  # a vector, rows of several blocks, rows of one
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
    return NumpyBackend(load_model(GGUFFile(file.write(path)))).run([LOGITS], Batch([Piece(KVSequence(), tokens, len(tokens))]))[LOGITS]


def test_products_with_nvfp4_weights_are_multiplied_by_their_scale(tmp_path: Path) -> None:
    """As llama.cpp does; `input_scale` is for activations of 4 bits, which neither has on a CPU."""
    packed, plain = tiny(), tiny()
    for i, (name, scale) in enumerate([("blk.0.ffn_down", 0.013), ("blk.1.attn_output", -0.07)]):
        tensor = nvfp4(f"{name}.weight", 32, 64, i)
        packed.replace(tensor)
        packed.tensors += [f32(f"{name}.scale", [scale]), f32(f"{name}.input_scale", [7.0])]
        weights = gguf.dequantize(np.frombuffer(tensor.data, np.uint8).reshape(32, -1), gguf.GGMLQuantizationType.NVFP4)
        plain.replace(f32(f"{name}.weight", weights * np.float32(scale)))
    np.testing.assert_allclose(logits(packed, tmp_path / "packed.gguf"), logits(plain, tmp_path / "plain.gguf"), rtol=1e-4, atol=1e-4)
    assert abs(logits(packed, tmp_path / "packed.gguf") - logits(tiny(), tmp_path / "tiny.gguf")).max() > 0.1
