"""The machine's peak: the loops do the work that their figures are of."""

from typing import Any

import numpy as np
import pytest
from kernel_calls import packed

from qwencli.backends.cpu.backend import kernels_of
from qwencli.backends.cpu.memory import address_of
from qwencli.backends.cpu.team import RUNTIME, Kernel, Team
from qwencli.kernels.arguments import FILL, MULTIPLY, READ, Arguments
from qwencli.kernels.isa import available
from qwencli.machine import peak
from qwencli.machine.peak import Peak, measure_peak


@pytest.fixture(scope="module", params=[isa.name for isa in available()])
def addresses(request: pytest.FixtureRequest) -> dict[str, int]:
    found: dict[str, int] = kernels_of(request.param).load([*RUNTIME, *peak.SPECS])
    return found


def call(
    addresses: dict[str, int], kernel: Arguments, *variant: object, chunk: int, **args: Any
) -> np.ndarray:
    """Run one chunk; what it leaves in scratch memory, 64 bytes."""
    words, scratch = packed(kernel, **args), np.zeros(64, np.uint8)
    Kernel(addresses[kernel.spec(*variant)])(address_of(words), chunk, address_of(scratch))
    return scratch


@pytest.mark.parametrize("n_streams", sorted({n for n, *_ in peak.READS}))
def test_every_byte_of_a_chunk_is_read(addresses: dict[str, int], n_streams: int) -> None:
    data = np.random.default_rng(1).integers(-(2**31), 2**31, 3 * 4096, np.int32)
    whole = {"amount": data.nbytes, "unit": 4 * 4096, "address": data, "ahead": 0}
    for chunk in 0, 2:
        found = call(addresses, READ, n_streams, chunk=chunk, **whole).view(np.int32)
        part = data[4096 * chunk : 4096 * (chunk + 1)].reshape(-1, 16)
        np.testing.assert_array_equal(
            found, part.sum(axis=0, dtype=np.int64).astype(np.int32)
        )  # sums that wrap around


def test_a_chunk_is_filled_and_nothing_beside_it(addresses: dict[str, int]) -> None:
    data = np.zeros((3, 1024), np.int32)
    call(addresses, FILL, chunk=1, amount=data.nbytes, unit=4096, address=data)
    np.testing.assert_array_equal(data.sum(axis=1), [0, 1024, 0])
    assert data[1].all()


def columns_of(data: np.ndarray, turns: int, n_columns: int) -> np.ndarray:
    """The registers that are loaded in each turn: [turns, n_columns, values]."""
    lines = data.reshape(peak.FACTOR_BYTES // 64, -1)
    return np.array([lines[turn % 32 : turn % 32 + n_columns] for turn in range(turns)])


@pytest.mark.parametrize(("rows", "columns"), peak.TILES)
def test_int8_products_are_all_done(addresses: dict[str, int], rows: int, columns: int) -> None:
    data, turns = np.random.default_rng(2).integers(0, 128, peak.FACTOR_BYTES).astype(np.uint8), 70
    work = {"amount": turns, "unit": turns, "address": data}
    found = call(addresses, MULTIPLY, "dot4", rows, columns, chunk=0, **work).view(np.int32)
    xs, ys = data.reshape(-1, 64)[:rows].astype(np.int64), columns_of(data, turns, columns).astype(np.int64)
    expected = np.einsum("rv,tcv->v", xs, ys).reshape(16, 4).sum(axis=1)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("rows", "columns"), peak.TILES)
def test_float_products_are_all_done(addresses: dict[str, int], rows: int, columns: int) -> None:
    data, turns = (
        np.random.default_rng(3).integers(-8, 9, peak.FACTOR_BYTES // 4).astype(np.float32),
        70,
    )  # sums are exact
    work = {"amount": turns, "unit": turns, "address": data}
    found = call(addresses, MULTIPLY, "fma", rows, columns, chunk=0, **work).view(np.float32)
    np.testing.assert_array_equal(
        found, np.einsum("rv,tcv->v", data.reshape(-1, 16)[:rows], columns_of(data, turns, columns))
    )


def test_each_form_is_timed_over_the_whole_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, int]] = []
    monkeypatch.setattr(peak, "buffer_bytes", lambda: 2**24)

    def seconds(self: peak.Loops, kernel: Arguments, *variant: object, amount: int, **args: int) -> float:
        done.append((kernel.spec(*variant), amount))
        return 0.5

    monkeypatch.setattr(peak.Loops, "seconds", seconds)
    loops = peak.Loops(Team(kernels_of(available()[0].name), 1, 64), {})
    assert loops.bandwidth() == 2**24 / 0.5
    assert {amount for _, amount in done} == {2**24}
    assert {spec for spec, _ in done} == {spec for spec in peak.SPECS if "multiply" not in spec}
    assert (
        loops.arithmetic("dot4") == peak.TURNS / 0.5 * 16 * 128
    )  # 4 x 4 registers of 64 products, two operations each
    assert loops.arithmetic("fma") == peak.TURNS / 0.5 * 16 * 32


def test_a_measurement_of_this_machine() -> None:
    found = measure_peak(1)
    assert found.bandwidth > 0
    assert found.products > 0
    assert found.flops > 0
    assert found.best(Peak(1e18, 0, 0)) == Peak(1e18, found.products, found.flops)


def test_the_buffer_is_larger_than_any_cache_and_a_part_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = peak.buffer_bytes()
    assert size >= 2**28
    assert size % max(chunk for *_, chunk in peak.READS) == 0
    monkeypatch.setattr("os.sysconf", lambda name: 2**12 if name == "SC_PAGE_SIZE" else 2**15)  # 128 MB
    assert peak.buffer_bytes() == 2**28
