"""Tiles: every candidate gives the same bits; what was found to be best is kept, and nothing else that lies in its place is believed."""

from pathlib import Path

import numpy as np
import pytest
from blocks import filled_rows, random_rows
from guarded import guarded
from kernel_calls import Quantized

from qwencli.backends.cpu import tuning
from qwencli.backends.cpu.backend import kernels_of
from qwencli.kernels import formats, isa
from qwencli.kernels.arguments import Record
from qwencli.kernels.jit import Kernels
from qwencli.kernels.tiles import Tiles

ISA = isa.choose().name


def results_of_all_tiles(name: str, w: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    kernels_of(ISA).load(tuning.kernels_to_try(ISA, [name])[name])
    activations = Quantized(ISA, x, formats.FORMATS[name].family, "after")
    return [
        activations.multiply(ISA, name, "many", w, tile=str(tile)) for tile in Tiles(ISA).candidates(name)
    ]


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "F16"])
def test_all_tiles_give_the_same_bits(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 512)).astype(np.float32)
    found = results_of_all_tiles(name, random_rows(name, 45, 512, rng), x)
    assert len(found) > 1
    for other in found[1:]:
        assert np.array_equal(found[0], other)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K", "IQ4_XS"])
def test_no_tile_overflows(name: str) -> None:
    """The largest and the smallest quants, scales and activations, so that sums are as large as they can be."""
    x = np.ones((11, 512), np.float32)
    x[1::2] = -1
    x[2::3, ::2] *= -1
    activations = Quantized(ISA, x, formats.FORMATS[name].family, "after")
    for byte in 0xFF, 0x7F, 0x80, 0x00:
        w = filled_rows(name, 45, 512, byte, 1.0)
        one = activations.multiply(ISA, name, "one", w)
        for found in results_of_all_tiles(name, w, x):
            assert np.array_equal(one, found)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Those of this process, with a folder of their own."""
    kernels = kernels_of(ISA)
    kernels.load(tuning.kernels_to_try(ISA, ["Q8_0"])["Q8_0"])
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path))
    return kernels


@pytest.mark.parametrize("quickest", [0, -1])
def test_the_quickest_is_kept(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, quickest: int) -> None:
    """For one format and then for another: the first isn't forgotten."""
    monkeypatch.setattr(
        tuning,
        "measure",
        lambda name, specs: {spec: 0.5 if spec == list(specs)[quickest] else 1.0 for spec in specs},
    )
    assert tuning.chosen_tiles(kernels) == {}
    expected = str(Tiles(ISA).candidates("Q8_0")[quickest])
    kernels.folder.mkdir()
    kernels.keep_note(tuning.NOTE, '{"Q4_0": "9x9"}')
    assert tuning.tune(kernels, ["Q8_0"]) == tuning.chosen_tiles(kernels) == {"Q4_0": "9x9", "Q8_0": expected}
    assert Tiles(ISA, tuning.chosen_tiles(kernels)).many("Q8_0") == f"matmul:q8_0:many:{expected}"


def test_a_little_quicker_is_not_enough(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        tuning, "measure", lambda name, addresses: {spec: 1.0 - 0.01 * i for i, spec in enumerate(addresses)}
    )
    assert tuning.tune(kernels, ["Q8_0"]) == {"Q8_0": str(Tiles(ISA).candidates("Q8_0")[0])}


@pytest.mark.parametrize("name", ["Q8_0", "NVFP4"])
def test_measuring_runs_every_candidate(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """On arguments that all lie in their array: the scale, which only some formats read, is the last of them."""
    pack = Record.pack
    monkeypatch.setattr(Record, "pack", lambda self, **fields: guarded(pack(self, **fields), "after"))
    kernels = kernels_of(ISA)
    addresses = kernels.load(tuning.kernels_to_try(ISA, [name])[name])
    seconds = tuning.measure(name, addresses)
    assert list(seconds) == list(addresses)
    assert all(0 < each < 60 for each in seconds.values())


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '"2x4"', '{"Q8_0": 5}', '{"Q8_0": "1x1000000"}', '{"Q8_0": "../x"}', "\0"]
)
def test_a_damaged_note_changes_nothing(kernels: Kernels, text: str) -> None:
    kernels.folder.mkdir()
    (kernels.folder / tuning.NOTE).write_text(text)
    assert Tiles(ISA, tuning.chosen_tiles(kernels)).many("Q8_0") == Tiles(ISA).many("Q8_0")
