"""Which buffer holds what, and what of it is in memory."""

import json
import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call, process
from random_models import write_random_model
from shapes import PRESETS

from qwencli.backends.buffers import Buffer, buffer_of, in_layers
from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Backend, Batch, Segment
from qwencli.cli._buffers import aligned, layer_table, table
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.machine.buffers import folded, rest_of
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.system import memory
from qwencli.system.host import Host
from qwencli.system.memory import (
    Area,
    Meter,
    Resident,
    areas,
    in_memory,
    in_page_cache,
    parse_smaps,
    resident,
)

PAGE = mmap.PAGESIZE
linux = pytest.mark.skipif(not Path("/proc/self/pagemap").exists(), reason="Linux's files")

SMAPS = """\
5581a6e00000-5581a6e2d000 r--p 00000000 fd:01 1308172                    /usr/bin/python 3.12 (deleted)
Size:                180 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:                 100 kB
Pss:                  50 kB
Private_Dirty:         8 kB
Anonymous:             8 kB
AnonHugePages:         0 kB
THPeligible:           0
VmFlags: rd mr mw me
7f0000000000-7f0001000000 rw-p 00000000 00:00 0 \n\
Rss:                2052 kB
Anonymous:          2052 kB
AnonHugePages:      2048 kB
VmFlags: rd wr mr mw me ac hg
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Rss:                  24 kB
Anonymous:            24 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Rss:                   0 kB
"""
"""As proc(5) and Documentation/filesystems/proc.rst show it."""


def test_smaps() -> None:
    assert parse_smaps(SMAPS) == [
        Area(0x5581A6E00000, 0x5581A6E2D000, "/usr/bin/python 3.12 (deleted)", 102_400, 8_192, 0),
        Area(0x7F0000000000, 0x7F0001000000, "", 2_101_248, 2_101_248, 2_097_152),
        Area(0x7FFC00000000, 0x7FFC00021000, "[stack]", 24_576, 24_576, 0),
    ]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "nonsense", "Rss: 4 kB", "0-z rw-p 0 0 0", "Rss:\n0-1000 rw-p", "\0" * 99]
)
def test_odd_smaps_have_no_areas(text: str) -> None:
    assert parse_smaps(text) == []


def test_unknown_sizes_are_nothing() -> None:
    text = "1000-2000 rw-p 0 0:0 0 \nRss: many kB\nAnonymous: -4 kB\nAnonHugePages:\n"
    assert parse_smaps(text) == [Area(0x1000, 0x2000, "", 0, 0, 0)]


def test_a_system_without_these_files(tmp_path: Path) -> None:
    places = np.array([[4096, 10]], np.int64)
    assert (areas(tmp_path), resident(tmp_path), in_memory(places, tmp_path)) == (None, None, None)
    for text in "", "1", "a b c", "1 2 x":
        (tmp_path / "statm").write_text(text)
        assert resident(tmp_path) is None
    (tmp_path / "smaps").write_text("")
    assert areas(tmp_path) is None
    for entries in b"", b"\xff" * 8, b"\xff" * 15:  # of pages 0 and 1, one of which is missing
        (tmp_path / "pagemap").write_bytes(entries)
        assert in_memory(places, tmp_path) is None


def test_recorded_files(tmp_path: Path) -> None:
    (tmp_path / "statm").write_text("5000 300 120 1 0 90 0\n")
    assert resident(tmp_path) == Resident(180 * PAGE, 120 * PAGE)
    bit = 1 << 63
    entries = np.array([0, bit, 0, bit | 5, bit | 6, 1 << 62], np.uint64)
    (tmp_path / "pagemap").write_bytes(entries.tobytes())
    places = np.array(
        [
            [0, PAGE],
            [PAGE, PAGE],
            [PAGE + 10, 20],
            [2 * PAGE - 5, 11],
            [2 * PAGE + 7, PAGE],
            [5 * PAGE, PAGE],
            [4, 0],
            [0, 6 * PAGE],
        ],
        np.int64,
    )
    found = in_memory(places, tmp_path)
    assert found is not None
    assert found.tolist() == [0, PAGE, 20, 5, 7, 0, 0, 3 * PAGE]


@linux
def test_pages_that_were_written_are_in_memory() -> None:
    n = 200
    with mmap.mmap(-1, n * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as region:
        region.madvise(mmap.MADV_NOHUGEPAGE)
        data = np.frombuffer(region, np.uint8)
        address = int(data.ctypes.data)
        for page in 3, 4, 150:
            data[page * PAGE] = 1
        places = np.array(
            [[address, n * PAGE], [address + 4 * PAGE + 100, PAGE], [address + 150 * PAGE - 8, 16]], np.int64
        )
        found = in_memory(places)
        del data
    assert found is not None
    assert found.tolist() == [3 * PAGE, PAGE - 100, 8]


@linux
def test_the_page_cache_is_known_to_those_who_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (3 * PAGE))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as region:
        data = np.frombuffer(region, np.uint8)
        places = np.array([[int(data.ctypes.data) + 10, 2 * PAGE]], np.int64)
        found = in_page_cache(places, path)
        nowhere = in_page_cache(np.array([[PAGE, PAGE]], np.int64), path)
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        refused = in_page_cache(places, path)
        del data
    assert found is not None
    assert found.tolist() == [2 * PAGE]  # it has just been written
    assert nowhere is None
    assert refused is None
    assert in_page_cache(places, tmp_path / "none") is None


@linux
def test_a_meter_counts_what_the_process_grows_by() -> None:
    meter = Meter()
    kept = []
    for _ in range(2):
        with meter.during("bytes"):
            # an array might get memory that was freed before
            kept.append(mmap.mmap(-1, 8_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
            np.frombuffer(kept[-1], np.uint8)[:] = 1
    assert meter.start is not None
    assert meter.grown["bytes"] == pytest.approx(16_000_000, rel=0.1)
    assert len(kept) == 2


# Backends' buffers


def places_of(buffers: list[Buffer]) -> np.ndarray[Any, Any]:
    return np.concatenate([buffer.places for buffer in buffers])


def assert_apart(places: np.ndarray[Any, Any]) -> None:
    """No byte is in two places."""
    ordered = places[np.argsort(places[:, 0], kind="stable")]
    assert (ordered[1:, 0] >= ordered[:-1].sum(axis=1)).all()


BACKENDS: dict[str, Callable[[Model], Backend]] = {
    "numpy": lambda model: NumpyBackend(model, 1),
    "cpu": lambda model: CPUBackend(model, 2),
}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen35moe"])
def test_a_backend_knows_its_memory(tmp_path: Path, name: str, preset: str) -> None:
    write_random_model(tmp_path / "m.gguf", PRESETS[preset], "Q4_K_M")
    file = GGUFFile(tmp_path / "m.gguf")
    model = load_model(file)
    backend = BACKENDS[name](model)
    seq = KVSequence()
    backend.step(Batch([Segment(seq, [5] * 70, 1)]))
    backend.step(Batch([Segment(seq, [6], 1)]))
    buffers = backend.buffers()
    rest = rest_of(file)
    assert_apart(places_of([*buffers, rest]))
    weights = [buffer for buffer in buffers if buffer.what == "weights"]
    assert [buffer.layer for buffer in weights] == [None, *range(model.config.n_layer)]
    for buffer in weights:
        prefix = "" if buffer.layer is None else f"blk.{buffer.layer}."
        names = [n for n in file.tensors if (n.startswith(prefix) if prefix else not n.startswith("blk."))]
        assert buffer.n_bytes == sum(file.tensors[n].n_bytes for n in names)
    assert sum(buffer.n_bytes for buffer in weights) + rest.n_bytes == file.size
    kept = {what: [b.layer for b in buffers if b.what == what] for what in ("KV cache", "states")}
    nets = model.config.delta_nets
    assert kept == {
        "KV cache": list(model.config.attention_layers),
        "states": list(nets.layers) if nets else [],
    }
    for layer in model.config.attention_layers:
        (of_layer,) = (b for b in buffers if (b.what, b.layer) == ("KV cache", layer))
        for page in seq.pages:
            part = backend.read_page(page, model.config.attention_layers.index(layer))  # a view
            whole = of_layer.places[of_layer.places[:, 0] == part.ctypes.data]
            assert len(whole) == 1
            assert part.nbytes <= whole[0, 1] < part.nbytes + 512
    assert {buffer.device for buffer in buffers} == {name}


def test_devices_share_the_weights() -> None:
    """The demo's embedding is its output head too: two devices read it, and it counts once."""
    llm = LLM(EMBEDDED, devices="cpu,numpy")
    for _ in llm.stream([5], max_tokens=2):
        pass
    buffers = llm.engine.backend.buffers()
    assert_apart(places_of([*buffers, rest_of(llm.file)]))
    weights = [buffer for buffer in buffers if buffer.what == "weights"]
    assert sum(buffer.n_bytes for buffer in weights) + rest_of(llm.file).n_bytes == llm.file.size
    layers = {
        device: [b.layer for b in buffers if b.device == device and b.what == "KV cache"]
        for device in ("cpu", "numpy")
    }
    assert layers["cpu"] + layers["numpy"] == [0, 1, 2, 3, 4, 5]
    assert min(map(len, layers.values())) > 0
    assert {buffer.device for buffer in buffers} == {"cpu", "numpy"}


def test_units_are_divided_by_layer() -> None:
    array = np.zeros(25, np.uint8)  # two units of 10, and 5 bytes that are no unit
    address = array.ctypes.data
    one, other = in_layers("x", "cpu", [3, 7], [array], 10, 4)
    assert (one.layer, other.layer) == (3, 7)
    assert (one.places - [address, 0]).tolist() == [[0, 4], [10, 4]]
    assert (other.places - [address, 0]).tolist() == [[4, 6], [14, 6]]
    assert in_layers("x", "cpu", [], [array], 10, 4) == []
    assert in_layers("x", "cpu", [1], [], 0, 0) == []
    assert buffer_of("y", None, []).n_bytes == 0


# What is shown


def row(
    what: str, layer: int | None, n: int | None, there: int | None, kind: str = "memory"
) -> dict[str, Any]:
    return {
        "buffer": what,
        "device": "cpu",
        "layer": layer,
        "type": kind,
        "bytes": n,
        "resident": there,
        "cached": there if kind == "mapped file" else None,
    }


def test_rows_of_layers_are_folded() -> None:
    rows = [
        row("weights", None, 7, 7, "mapped file"),
        *(row("weights", layer, 100, 10 * layer, "mapped file") for layer in (0, 1, 2, 5)),
        *(row("KV cache", layer, 50, None) for layer in (0, 1)),
    ]
    assert [(r["buffer"], r["layers"], r["bytes"], r["resident"], r["cached"]) for r in folded(rows)] == [
        ("weights", None, 7, 7, 7),
        ("weights", "0-2,5", 400, 80, 80),
        ("KV cache", "0-1", 100, None, None),
    ]


def test_tables() -> None:
    rows = [
        row("weights", 0, 1000, 500, "mapped file"),
        row("KV cache", 0, 2000, 2000),
        row("weights", 1, 9, 9),
    ]
    assert layer_table(rows) == [
        "layer  device              weights  KV cache",
        "0      cpu     500 bytes of 1.0 kB    2.0 kB",
        "1      cpu                 9 bytes",
    ]
    assert layer_table([row("x", None, 1, 1)]) == []
    assert table({"buffers": rows[:1], "sum": 500, "process": None}) == [
        "buffer   device  layers  type           size  in memory",
        "weights  cpu     0       mapped file  1.0 kB  500 bytes",
        "sum                                           500 bytes",
        "process                                         unknown",
        "page cache: 500 bytes of the mapped file's 1.0 kB",
    ]
    assert aligned([["a", "b"], ["ccc", "dd"]], n_right=1) == ["a     b", "ccc  dd"]


@linux
@pytest.mark.parametrize("options", [[], ["--no-mmap"], ["-ctk", "q8_0"], ["--device", "cpu,numpy"]])
def test_the_sum_is_the_memory_of_the_process(options: list[str]) -> None:
    """The figures are measured one by one. None is what the others leave."""
    done = process("info", EMBEDDED, "--buffers", "--json", *options)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)["memory"]
    rows = report["buffers"]
    assert report["sum"] == sum(each["resident"] for each in rows)
    assert report["sum"] == pytest.approx(report["process"], rel=0.05)
    kinds = {each["type"] for each in rows if each["buffer"] == "weights"}
    assert ("mapped file" in kinds) == ("--no-mmap" not in options)
    assert all(each["resident"] <= each["bytes"] for each in rows)
    weights = sum(each["bytes"] for each in rows if each["buffer"] in ("weights", "rest of the file"))
    assert weights == EMBEDDED.stat().st_size


@linux
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_an_answer_ends_with_what_is_in_memory(backend: str) -> None:
    options = ["-n", "3", "--backend", backend]
    done = process("run", "-m", EMBEDDED, "-p", "hello", "-v", *options)
    lines = done.stderr.decode().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("buffer "))
    names = [line.split("  ")[0] for line in lines[start:]]
    assert {"weights", "KV cache", "tokenizer", "Python and libraries", "sum", "process"} <= set(names)
    assert b"buffer " not in process("run", "-m", EMBEDDED, "-p", "hello", *options).stderr


def test_what_the_system_does_not_say_is_unknown(
    call: Call, story: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "areas", "resident", "in_memory", "in_page_cache":
        monkeypatch.setattr(memory, name, lambda *args: None)
    code, out, _ = call("info", story, "--buffers")
    assert code == 0
    assert out.count("unknown") > 8
    report = json.loads(call("info", story, "--buffers", "--json").out)["memory"]
    assert (report["sum"], report["process"]) == (None, None)
    assert all(each["resident"] is None for each in report["buffers"])


def test_buffers_are_those_of_the_devices(call: Call) -> None:
    one = f"cpus:{min(Host().allowed())}"
    code, out, _ = call("info", EMBEDDED, "--buffers", "--device", f"{one},numpy", "--json")
    assert code == 0
    found = {(row["buffer"], row["device"]) for row in json.loads(out)["memory"]["buffers"]}
    assert {("weights", one), ("weights as float32", "numpy"), ("KV cache", "numpy")} <= found
    code, out, err = call("info", EMBEDDED, "--buffers", "--device", "gpu")
    assert (code, out) == (1, "")
    assert "unknown device 'gpu'; known are cpu, " in err


def test_a_file_that_cannot_run_has_no_buffers(call: Call, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    code, out, err = call("info", tmp_path / "x.gguf", "--buffers")
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
