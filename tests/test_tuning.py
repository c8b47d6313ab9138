"""Tiles and prefetches: every variant gives the same bits; what was found to be best is kept, and nothing else that lies in its place is
believed."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from blocks import columns, filled_rows, random_rows
from guarded import guarded
from kernel_calls import Quantized
from random_models import random_model

from qwencli.backends.cpu import tuning
from qwencli.backends.cpu.backend import CPUBackend, kernels_of
from qwencli.backends.cpu.team import RUNTIME
from qwencli.backends.protocol import LOGITS, Part
from qwencli.kernels import formats, isa
from qwencli.kernels.arguments import Record
from qwencli.kernels.jit import Kernels
from qwencli.kernels.tiles import AHEAD, ANY_DISTANCE, DISTANCES, SPACINGS, TOGETHER, Tiles
from qwencli.network.graph import N_OUTPUTS, N_TOKENS

ISA = isa.choose().name


def results_of_all_tiles(name: str, w: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
    kernels_of(ISA).load(tuning.kernels_to_try(ISA, {name: []}))
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


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q8_0", "NVFP4", "F16", "BF16"])
def test_any_prefetch_gives_the_same_bits(name: str) -> None:
    """Whatever number of rows is left at the end of the tensor, next to a protected page: what is prefetched there isn't read."""
    rng = np.random.default_rng(3)
    weights, x = random_rows(name, 35, columns(name), rng), rng.standard_normal((1, columns(name)))
    activations = Quantized(ISA, x.astype(np.float32), formats.FORMATS[name].family, "after")
    kernels_of(ISA).load(tuning.kernels_to_try(ISA, {name: [columns(name)]}))
    for n_rows in (*range(1, 18), 35):
        usual = activations.multiply(ISA, name, "one", weights[:n_rows])
        assert np.isfinite(usual).all()
        for together in SPACINGS:
            for ahead in (*DISTANCES, ANY_DISTANCE[0], ANY_DISTANCE[-1]):
                found = activations.multiply(
                    ISA, name, "one", weights[:n_rows], together=together, ahead=ahead
                )
                assert np.array_equal(usual, found)


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Those of this process, with a folder of their own."""
    kernels = kernels_of(ISA)
    kernels.load([*RUNTIME, *tuning.kernels_to_try(ISA, {"Q8_0": [96]})])
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path))
    return kernels


TILES = [str(tile) for tile in Tiles(ISA).candidates("Q8_0")]
PREFETCHES = [(together, ahead) for together in SPACINGS for ahead in DISTANCES]


def measured(monkeypatch: pytest.MonkeyPatch, tiles: list[float], prefetches: list[float]) -> None:
    """Let measuring find these seconds in each of some turns, or more in one of them."""

    def turns(seconds: float) -> list[float]:
        return [seconds, seconds, 3 * seconds, seconds]

    monkeypatch.setattr(tuning, "measure_tiles", lambda kernels, name: dict(zip(TILES, map(turns, tiles))))
    monkeypatch.setattr(
        tuning.InMemory, "measure", lambda self, name, n_cols: dict(zip(PREFETCHES, map(turns, prefetches)))
    )


@pytest.mark.parametrize("quickest", [0, -1])
def test_the_quickest_is_kept(kernels: Kernels, monkeypatch: pytest.MonkeyPatch, quickest: int) -> None:
    """For one format and then for another: the first isn't forgotten."""
    tiles, prefetches = [1.0] * len(TILES), [1.0] * len(PREFETCHES)
    tiles[quickest] = prefetches[quickest] = 0.5
    measured(monkeypatch, tiles, prefetches)
    assert tuning.chosen(kernels) == {}
    kernels.folder.mkdir()
    kernels.keep_note(tuning.NOTE, '{"Q4_0": {"tile": "9x9"}}')
    tile, (together, ahead) = TILES[quickest], PREFETCHES[quickest]
    found = tuning.tune(kernels, {"Q8_0": [96]}, 2**20)
    assert found == tuning.chosen(kernels)
    assert found == {"Q4_0": {"tile": "9x9"}, "Q8_0": {"tile": tile, "together": together, "ahead": ahead}}
    chosen = Tiles(ISA, found)
    assert chosen.many("Q8_0") == f"matmul:q8_0:many:{tile}"
    assert chosen.one("Q8_0", 96) == f"matmul:q8_0:one:{together}:96"
    assert chosen.ahead("Q8_0") == ahead


def test_a_little_quicker_is_not_enough(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many variants, each 1 to 2 % quicker than the usual one."""
    measured(monkeypatch, [1.0, 0.99, 0.98][: len(TILES)], [1.0, 0.99, *[0.98] * 6])
    found = tuning.tune(kernels, {"Q8_0": [96]}, 2**20)
    assert found == {"Q8_0": {"tile": TILES[0], "together": TOGETHER, "ahead": AHEAD}}


def test_a_busy_machine_tells_nothing() -> None:
    """The usual one took 1.0 in one turn, and longer in all others."""
    times = {"usual": [1.0, 2.0, 3.0, 1.1], "other": [0.5, 0.5, 0.5, 0.5]}
    assert tuning.fastest(times) == "usual"
    assert tuning.fastest(times | {"usual": [1.0, 2.0, 3.0, 1.02]}) == "other"


def test_a_model_uses_what_was_found(kernels: Kernels, tmp_path: Path) -> None:
    model = random_model(tmp_path, "Q8_0")
    usual = CPUBackend(model, 1, isa=ISA).kernels_for([LOGITS], (), 1, 1, None)
    kernels.folder.mkdir()
    kernels.keep_note(tuning.NOTE, '{"Q8_0": {"together": 2, "ahead": 8192}}')
    backend = CPUBackend(model, 1, isa=ISA)
    assert backend.kernels_for([LOGITS], (), 1, 1, None) == [
        spec.replace(":one:1", ":one:2") if spec.startswith("matmul:q8_0") else spec for spec in usual
    ]
    program = backend._programs.get(Part((LOGITS,), ()), {N_TOKENS: 1, N_OUTPUTS: 1})
    distances = {
        row.spec.split(":")[1]: int(row.args["ahead"][0])
        for row in program._rows
        if row.spec.startswith("matmul")
    }
    assert distances["q8_0"] == 8192
    assert all(ahead == AHEAD for name, ahead in distances.items() if name != "q8_0")


def test_formats_and_columns_of_kernels() -> None:
    specs = ["ops:add", "matmul:q8_0:one:1:64", "matmul:q8_0:one:2:96", "matmul:q8_0:many:2x6"]
    specs += ["matmul:q4_k:many:2x6", "matmul:q4_k:one:1", "experts:matmul:many"]
    assert tuning.columns_by_format(specs) == {"Q8_0": {64, 96}, "Q4_K": set()}


@pytest.fixture
def all_memory_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """All memory of a product touches a protected page, so that nothing after an array is read or written. The scale, which only some
    formats read, is the last of the arguments."""
    pack = Record.pack
    monkeypatch.setattr(Record, "pack", lambda self, **fields: guarded(pack(self, **fields), "after"))
    monkeypatch.setattr(tuning, "aligned_zeros", lambda n: guarded(np.zeros(n, np.uint8), "after"))
    monkeypatch.setattr(
        tuning, "mmap", SimpleNamespace(mmap=lambda _, n: guarded(np.zeros(n, np.uint8), "after"))
    )


@pytest.mark.usefixtures("all_memory_guarded")
@pytest.mark.parametrize("name", ["Q8_0", "NVFP4"])
def test_measuring_runs_every_tile(name: str) -> None:
    seconds = tuning.measure_tiles(kernels_of(ISA), name)
    assert list(seconds) == [str(tile) for tile in Tiles(ISA).candidates(name)]
    assert all(0 < each < 60 for taken in seconds.values() for each in taken)


@pytest.mark.usefixtures("all_memory_guarded")
@pytest.mark.parametrize("name", ["Q8_0", "NVFP4", "Q4_K", "F16", "BF16"])
def test_measuring_runs_every_prefetch(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(tuning, "SECONDS", 0)
    in_memory = tuning.InMemory(kernels_of(ISA), 2**22)
    try:
        seconds = in_memory.measure(name, 1024)
    finally:
        in_memory.team.close()
    assert list(seconds) == PREFETCHES
    assert all(0 < each < 60 for taken in seconds.values() for each in taken)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '"2x4"',
        '{"Q8_0": 5}',
        '{"Q8_0": "2x4"}',
        *(
            f'{{"Q8_0": {{"{field}": {value}}}}}'
            for field, values in (
                ("tile", ('"1x1000000"', '"../x"', "5", "null", '["2x4"]')),
                ("together", ("0", "3", "-1", "true", "2.0", '"2"', "null", "[2]")),
                ("ahead", ("-64", "1", "65600", "1e300", "8192.0", '"8192"', "true", "{}")),
            )
            for value in values
        ),
        "\0",
    ],
)
def test_a_damaged_note_changes_nothing(kernels: Kernels, text: str) -> None:
    kernels.folder.mkdir()
    (kernels.folder / tuning.NOTE).write_text(text)
    found, usual = Tiles(ISA, tuning.chosen(kernels)), Tiles(ISA)
    assert found.many("Q8_0") == usual.many("Q8_0")
    assert found.one("Q8_0", 96) == usual.one("Q8_0", 96) == "matmul:q8_0:one:1:96"
    assert found.ahead("Q8_0") == usual.ahead("Q8_0") == AHEAD


def test_a_damaged_field_does_not_spoil_the_others() -> None:
    found = Tiles(ISA, {"Q8_0": {"tile": TILES[1], "together": "two", "ahead": 0}})
    assert found.many("Q8_0") == f"matmul:q8_0:many:{TILES[1]}"
    assert found.one("Q8_0", 96) == "matmul:q8_0:one:1:96"
    assert found.ahead("Q8_0") == 0
