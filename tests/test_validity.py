"""Weights that are no numbers are found in every type, as llama.cpp's --check-tensors finds them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from gguf_builder import Gguf, Tensor, tiny

from qwencli.errors import FormatError
from qwencli.gguf import validity
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.types import GGML_TYPES, GGMLType
from qwencli.gguf.validity import HALVES, PLAIN, check_tensors
from qwencli.llm import LLM

INTEGERS = {"I8", "I16", "I32", "I64", "NVFP4"}
UNCHECKED = {"Q8_1"}
"""A type of activations: llama.cpp takes no file that has it."""
N_BLOCKS = 7
BAD_HALVES = {"inf": 0x7C00, "-inf": 0xFC00, "nan": 0x7C01, "-nan": 0xFFFF}


def tensor(kind: GGMLType, blocks: np.ndarray, name: str = "t") -> Tensor:
    return Tensor(name, (kind.block_size, len(blocks)), kind.id, blocks.tobytes())


def file_with(folder: Path, *tensors: Tensor) -> GGUFFile:
    return GGUFFile(Gguf({"general.architecture": ("str", "qwen3")}, list(tensors)).write(folder / "m.gguf"))


def sound(kind: GGMLType) -> np.ndarray:
    """Blocks of zeros: every float in them is 0."""
    return np.zeros((N_BLOCKS, kind.block_bytes), np.uint8)


KINDS = [kind for kind in GGML_TYPES.values() if kind.name not in UNCHECKED]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_sound_blocks(tmp_path: Path, kind: GGMLType) -> None:
    check_tensors(file_with(tmp_path, tensor(kind, sound(kind))))


def test_every_type_is_known() -> None:
    assert {kind.name for kind in KINDS} == {*PLAIN, *HALVES, *INTEGERS, "Q8_K", "IQ1_M", "MXFP4"}


def bad_blocks(kind: GGMLType) -> dict[str, list[bytes]]:
    """Blocks of the type with one float that is none, by where it is."""
    zeros, found = bytes(kind.block_bytes), {}

    def put(at: int, what: bytes) -> bytes:
        return zeros[:at] + what + zeros[at + len(what) :]

    if kind.name == "F32":
        found["it"] = [struct.pack("<f", x) for x in (float("inf"), float("-inf"), float("nan"))]
    elif kind.name == "F64":
        found["it"] = [struct.pack("<d", x) for x in (float("inf"), float("-inf"), float("nan"))]
    elif kind.name == "BF16":
        found["it"] = [struct.pack("<H", x) for x in (0x7F80, 0xFF80, 0x7F81, 0xFFFF)]
    elif kind.name == "F16":
        found["it"] = [struct.pack("<H", x) for x in BAD_HALVES.values()]
    elif kind.name == "Q8_K":
        found["d"] = [put(0, struct.pack("<f", x)) for x in (float("inf"), float("nan"))]
    elif kind.name == "MXFP4":
        found["e"] = [put(0, b"\xff")]
    elif kind.name == "IQ1_M":
        for half in BAD_HALVES.values():
            nibbles = [half >> 4 * i & 15 for i in range(4)]
            found.setdefault("scale", []).append(put(48, struct.pack("<4H", *(n << 12 for n in nibbles))))
    else:
        for at in HALVES[kind.name]:
            found[str(at)] = [put(at, struct.pack("<H", x)) for x in BAD_HALVES.values()]
    return found


CHECKED = [kind for kind in KINDS if kind.name not in INTEGERS]


@pytest.mark.parametrize("kind", CHECKED, ids=lambda kind: kind.name)
def test_a_block_with_a_float_that_is_none(tmp_path: Path, kind: GGMLType) -> None:
    for where, blocks in bad_blocks(kind).items():
        for number, block in enumerate(blocks):
            data = sound(kind)
            data[number] = np.frombuffer(block, np.uint8)
            with pytest.raises(FormatError) as raised:
                check_tensors(file_with(tmp_path, tensor(kind, data)))
            assert str(raised.value) == (
                f"{tmp_path / 'm.gguf'}: tensor 't' has NaN or infinity in block {number} of {kind.name}:"
                " the file is damaged, fetch it again"
            ), where


@pytest.mark.parametrize(
    "kind", [kind for kind in CHECKED if kind.name in (*HALVES, "F16", "IQ1_M")], ids=lambda kind: kind.name
)
def test_random_bytes_are_judged_as_the_gguf_package_dequantizes_them(tmp_path: Path, kind: GGMLType) -> None:
    """A block has a scale that is none exactly if a weight of it is none."""
    try:
        known = GGMLQuantizationType(kind.id)
        dequantize(sound(kind), known)
    except (NotImplementedError, ValueError):
        pytest.skip("this version of gguf doesn't dequantize it")
    rng, n_wrong = np.random.default_rng(kind.id), 0
    for _ in range(300):
        block = rng.integers(0, 256, (1, kind.block_bytes), np.uint8)
        for at in HALVES.get(kind.name, (0,)):
            if rng.integers(2):
                block[0, at : at + 2] = 0x00, 0x7C
        with np.errstate(all="ignore"):
            expected = not np.isfinite(dequantize(block, known)).all()
        info = file_with(tmp_path, tensor(kind, block))
        wrong = validity._wrong(info.tensors["t"], info.data(info.tensors["t"]))
        assert wrong is not None
        assert bool(wrong[0]) == expected
        n_wrong += expected
    assert n_wrong > 0


def test_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's number is that in the tensor; a tensor with several dimensions counts as one row of blocks."""
    kind = next(kind for kind in KINDS if kind.name == "Q8_0")
    monkeypatch.setattr(validity, "PIECE", 100)
    data = sound(kind)
    data[5, 1] = 0x7C
    with pytest.raises(FormatError, match="in block 5 of Q8_0"):
        check_tensors(file_with(tmp_path, tensor(kind, sound(kind), "a"), tensor(kind, data, "b")))


@pytest.mark.parametrize("changed", [{}, {"use_mmap": False}, {"backend": "numpy"}])
def test_llm_refuses_such_a_file(tmp_path: Path, changed: dict[str, Any]) -> None:
    model = tiny()
    name = model.tensors[-1].name
    data = np.frombuffer(model.tensors[-1].data, np.float32).copy()
    data[77] = np.nan
    model.tensors[-1] = model.tensors[-1]._replace(data=data.tobytes())
    path = model.write(tmp_path / "m.gguf")
    with pytest.raises(FormatError, match=f"tensor '{name}' has NaN or infinity in block 77 of F32"):
        LLM(path, check_tensors=True, **changed)
    LLM(path, **changed)  # without the check it loads, as with llama.cpp


def test_the_demo_is_sound() -> None:
    from qwencli.hub.places import EMBEDDED

    check_tensors(GGUFFile(EMBEDDED))
