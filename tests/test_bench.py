"""`qwencli bench`: llama-bench's names, figures and formats; what is run and what is counted. Never how fast anything is."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call
from random_models import random_model, write_random_model
from shapes import PRESETS

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.cpu.team import RUNTIME
from qwencli.backends.kv_cache import KVCache, KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.cli._bench_table import print_table
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.machine.peak import Peak
from qwencli.measure import bench
from qwencli.measure.bench import Runner, run_bench
from qwencli.measure.costs import Cost, Costs, Extent, kind_of
from qwencli.measure.figures import Result, deviation
from qwencli.measure.model_names import describe
from qwencli.network.config import DeltaNets, Experts
from qwencli.network.load import load_model
from qwencli.network.model import Model

SAMPLES_NS = [74601900, 71632900, 71745200, 72952700, 70745500]
LLAMA_BENCH_KEYS = {
    "build_commit",
    "cpu_info",
    "backends",
    "model_filename",
    "model_type",
    "model_size",
    "model_n_params",
    "n_batch",
    "n_threads",
    "type_k",
    "type_v",
    "devices",
    "n_prompt",
    "n_gen",
    "n_depth",
    "test_time",
    "avg_ns",
    "stddev_ns",
    "avg_ts",
    "stddev_ts",
    "samples_ns",
    "samples_ts",
}
OUR_KEYS = {
    "isa",
    "n_seq",
    "bandwidth",
    "bandwidth_share",
    "machine_bandwidth",
    "ops",
    "ops_share",
    "machine_ops",
    "machine_products",
    "machine_flops",
}
PEAK = Peak(bandwidth=40e9, products=1000e9, flops=250e9)


@pytest.fixture
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring of the machine, which takes half a second."""
    monkeypatch.setattr(bench, "measure_peak", lambda *arguments: PEAK)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(GGUFFile(EMBEDDED))


def result(
    model: Model, test: bench.Test, samples: Sequence[int] = SAMPLES_NS, cost: Cost | None = None
) -> Result:
    return Result(
        test,
        model,
        "avx2",
        8,
        2048,
        list(samples),
        cost or Cost(1e9, 20e9, 5e9),
        PEAK,
        test_time="2025-04-24T11:58:50Z",
    )


@pytest.mark.parametrize(
    ("test", "name"),
    [
        (bench.Test(512), "pp512"),
        (bench.Test(0, 128), "tg128"),
        (bench.Test(512, 128), "pp512+tg128"),
        (bench.Test(0, 32, 4096), "tg32 @ d4096"),
        (bench.Test(0, 64, 0, 8), "tg64 b8"),
        (bench.Test(16, 64, 128, 2), "pp16+tg64 b2 @ d128"),
    ],
)
def test_names_are_llama_benchs(test: bench.Test, name: str) -> None:
    assert test.name == name


def test_means_and_deviations_are_llama_benchs(demo: Model) -> None:
    facts = result(demo, bench.Test(512)).as_dict()
    assert facts["avg_ns"] == round(sum(SAMPLES_NS) / 5)
    np.testing.assert_allclose(facts["samples_ts"], [512e9 / ns for ns in SAMPLES_NS])
    for key, samples in ("stddev_ns", SAMPLES_NS), ("stddev_ts", [512e9 / ns for ns in SAMPLES_NS]):
        n, mean, squares = len(samples), sum(samples) / len(samples), sum(s * s for s in samples)
        assert facts[key] == pytest.approx(
            (squares / (n - 1) - mean * mean * n / (n - 1)) ** 0.5, rel=1e-6
        )  # stdev() in llama-bench.cpp
    assert deviation([7.0]) == 0


def test_tokens_of_all_sequences_count(demo: Model) -> None:
    assert result(demo, bench.Test(0, 64, 128, 8), [2 * 10**9]).samples_ts == [64 * 8 / 2]
    assert result(demo, bench.Test(512, 128), [10**9]).samples_ts == [640]


def test_shares_are_of_the_limits(demo: Model) -> None:
    facts = result(demo, bench.Test(0, 1), [10**9], Cost(n_bytes=10e9, products=250e9, flops=125e9)).as_dict()
    assert facts["bandwidth"] == 10e9
    assert facts["bandwidth_share"] == 0.25
    assert facts["ops"] == 375e9
    assert facts["ops_share"] == 0.25 + 0.5  # the time that int8 takes at best, and that float32 takes
    assert facts["machine_ops"] == pytest.approx(375e9 / 0.75)
    assert (
        bench.Kind("matmul q8_0", 1, 0.5, Cost(10e9, 100e9)).share(PEAK) == 0.5
    )  # reading takes longer than computing


def test_the_table_is_llama_benchs_with_two_more_columns(
    demo: Model, capfd: pytest.CaptureFixture[str]
) -> None:
    samples = [512 * 10**9 // rate for rate in (100, 125, 128)]
    print_table(
        [result(demo, bench.Test(512, n_depth=512), samples), result(demo, bench.Test(0, 128), [10**9])]
    )
    lines = capfd.readouterr().out.splitlines()
    # printf's "%-30s", "%10s" ... of llama-bench.cpp, written out
    assert lines[0].startswith(
        "| model                          |       size |     params | backend    | threads |            test |                  t/s |"
    )
    assert lines[1].startswith(
        "| ------------------------------ | ---------: | ---------: | ---------- | ------: | --------------: | -------------------: |"
    )
    assert lines[2].startswith(
        "| qwen3 7.4M Q4_K - Medium       |   4.51 MiB |     7.44 M | CPU        |       8 |    pp512 @ d512 |       117.67 ± 15.37 |"
    )
    assert lines[3].endswith("|        128.00 ± 0.00 |      1.0 (2%) |     25.0 (4%) |")
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4] == ""
    assert "8" in lines[5]
    assert "reading 40.0 GB/s, int8 1000 and float32 250 GFLOP/s" in lines[5]
    assert re.fullmatch(r"build: qwencli [\d.]+", lines[6])


@pytest.mark.parametrize(
    ("shape", "file_type", "expected"),
    [
        ((28, 1024), 15, "qwen3 0.6B Q4_K - Medium"),
        ((28, 1024), 1, "qwen3 0.6B F16"),
        ((28, 1024), 7, "qwen3 0.6B Q8_0"),
        ((28, 2048), 14, "qwen3 1.7B Q4_K - Small"),
        ((36, 2560), 2, "qwen3 4B Q4_0"),
        ((36, 4096), 17, "qwen3 8B Q5_K - Medium"),
        ((40, 5120), 18, "qwen3 14B Q6_K"),
        ((64, 5120), 0, "qwen3 32B all F32"),
        ((28, 1024), 10, "qwen3 0.6B Q2_K - Medium"),
        ((28, 1024), 13, "qwen3 0.6B Q3_K - Large"),
        ((28, 1024), 32, "qwen3 0.6B BF16"),
    ],
)
def test_descriptions_are_llama_cpps(
    demo: Model, shape: tuple[int, int], file_type: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama_model_desc: type_name() in llama-model.cpp, llama_model_ftype_name in llama-model-loader.cpp."""
    monkeypatch.setattr(demo.file.metadata, "integer", lambda *args: file_type)
    assert describe(replace(demo, config=replace(demo.config, n_layer=shape[0], n_embd=shape[1]))) == expected


@pytest.mark.parametrize(
    ("arch", "shape", "expected"),
    [
        ("qwen2moe", (24, 2048), "A2.7B"),
        ("qwen2moe", (28, 3584), "57B.A14B"),
        ("qwen3moe", (48, 2048), "30B.A3B"),
        ("qwen3moe", (94, 4096), "235B.A22B"),
        ("qwen3vlmoe", (48, 2048), "30B.A3B"),
        ("qwen3next", (48, 2048), "80B.A3B"),
        ("qwen35moe", (40, 2048), "35B.A3B"),
        ("qwen35", (24, 1024), "0.8B"),
        ("qwen35", (24, 2048), "2B"),
        ("qwen35", (32, 2560), "4B"),
        ("qwen35", (32, 4096), "9B"),
        ("qwen35", (64, 5120), "27B"),
        ("qwen3vl", (28, 2048), "1.7B"),
        ("qwen", (32, 4096), "7B"),
        ("qwen3moe", (24, 2048), "7.4M"),
    ],
)
def test_sizes_are_llama_cpps(demo: Model, arch: str, shape: tuple[int, int], expected: str) -> None:
    """Those of its files src/models/qwen*.cpp; a size that these don't know is the file's label, the demo's here."""
    shared: dict[str, Any] = (
        {"experts": Experts(8, 2, 64, 0, True)} if "moe" in arch or "next" in arch else {}
    )
    shared |= {"delta_nets": DeltaNets((0,), 1, 1, 64, 4, True)} if "next" in arch or "35" in arch else {}
    config = replace(demo.config, architecture=arch, n_layer=shape[0], n_embd=shape[1], **shared)
    assert describe(replace(demo, config=config)) == f"{arch} {expected} Q4_K - Medium"


def naive_counts(
    model: Model, pieces: Sequence[tuple[int, int]], n_outputs: int
) -> tuple[float, float, float]:
    """Bytes of weights, int8 and float32 operations of a qwen3 step, by the names of the tensors and by counting query by query."""
    c, last = model.config, model.config.n_layer - 1
    n_tokens = sum(n for n, _ in pieces)
    n_bytes = products = flops = 0.0
    output = "output.weight" if "output.weight" in model.file.tensors else "token_embd.weight"
    for name, info in model.file.tensors.items():
        if len(info.shape) == 1 or (name == "token_embd.weight" and name != output):
            continue
        of_outputs = name == output or name.startswith(f"blk.{last}.ffn")
        ops = 2 * info.shape[0] * info.shape[1] * (n_outputs if of_outputs else n_tokens)
        n_bytes += info.n_bytes
        if info.type.name in ("F32", "F16", "BF16"):
            flops += ops
        else:
            products += ops
    for n, position in pieces:
        n_bytes += (
            c.n_layer * 2 * 2 * c.n_head_kv * c.head_dim * (position + n)
        )  # keys and values, half floats
        for i in range(n):
            flops += (
                c.n_layer * c.n_head * 2 * 2 * c.head_dim * (position + i + 1)
            )  # a score, and a weighted sum
    return n_bytes, products, flops


@pytest.mark.parametrize("pieces", [[(1, 0)], [(7, 0)], [(5, 300)], [(1, 9), (1, 77), (3, 0)]])
@pytest.mark.parametrize("mix", ["demo", "F16"])
def test_what_a_step_costs(demo: Model, tmp_path: Path, mix: str, pieces: list[tuple[int, int]]) -> None:
    model = demo if mix == "demo" else random_model(tmp_path, mix)
    found = Costs(model).of_step([Extent(*p) for p in pieces], len(pieces))
    np.testing.assert_allclose(
        [sum(values) for values in zip(*found.values())], naive_counts(model, pieces, len(pieces))
    )


# The architectures, on the tiny models of scripts/shapes.py

TINY: dict[str, dict[str, int]] = {
    "qwen": {"attention": 2},
    "qwen2moe": {"attention": 2, "used": 3},
    "qwen3moe": {"attention": 3, "used": 2},
    "qwen35": {"attention": 1, "recurrent": 4},
    "qwen3next": {"attention": 1, "recurrent": 4, "used": 2},
}
"""How many layers are of which kind, and how many of 8 experts a token takes."""
CHANNELS, STATE = (4 + 4 + 8) * 64, 8 * 64 * 64
"""Of their delta nets: four heads of queries and of keys, eight of values."""


def experts_read(n_tokens: int, n_used: int) -> float:
    """How many of 8 experts are read on average: over every way in which the tokens can choose."""
    ways = list(product(combinations(range(8), n_used), repeat=n_tokens))
    return sum(len(set().union(*way)) for way in ways) / len(ways)


def naive_costs(model: Model, pieces: Sequence[tuple[int, int]], n_outputs: int) -> dict[str, list[float]]:
    """Bytes and operations of a tiny model's step by kind, by the names of its tensors."""
    known, c = TINY[model.config.architecture], model.config
    found: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])

    def add(kind: str, n_bytes: float, products: float, flops: float) -> None:
        found[kind] = [x + y for x, y in zip(found[kind], (n_bytes, products, flops))]

    n_tokens = sum(n for n, _ in pieces)
    for name, info in model.file.tensors.items():
        of_outputs = name in ("output.weight", "token_embd.weight") or name.startswith(
            f"blk.{c.n_layer - 1}.ffn"
        )
        n = n_outputs if of_outputs else n_tokens
        operations = 2 * np.prod(info.shape, dtype=float) * n
        if (
            name.endswith("bias")
            or "norm" in name
            or name.startswith(f"blk.{c.n_layer}.")
            or "ssm_a." in f"{name}."
            or "ssm_dt" in name
        ):
            continue
        if name == "token_embd.weight" and "output.weight" in model.file.tensors:
            continue
        is_float = info.type.name in ("F16", "F32")
        if "ssm_conv1d" in name:
            add("delta conv", info.n_bytes + len(pieces) * 2 * 4 * 3 * CHANNELS, 0, operations)
        elif "_exps" in name:
            share, operations = experts_read(n, known["used"]) / 8, operations * known["used"] / 8
            add("matmul experts", info.n_bytes * share, *((0, operations) if is_float else (operations, 0)))
        else:
            add(
                f"matmul {info.type.name.lower()}",
                info.n_bytes,
                *((0, operations) if is_float else (operations, 0)),
            )
    for n, position in pieces:
        for _ in range(known["attention"]):
            add("attention", 2 * 2 * c.n_head_kv * c.head_dim * (position + n), 0, 0)
            for i in range(n):
                add("attention", 0, 0, c.n_head * 2 * 2 * c.head_dim * (position + i + 1))
        for _ in range(known.get("recurrent", 0)):
            add(
                "delta scan", 2 * 4 * STATE, 0, n * STATE * (1 + 2 + 2 + 2)
            )  # S *= g; v - S^T k; S += k d^T; S^T q
    return found


@pytest.mark.parametrize("mix", ["F16", "Q4_K_M"])
@pytest.mark.parametrize("arch", TINY)
def test_what_a_step_of_an_architecture_costs(tmp_path: Path, arch: str, mix: str) -> None:
    path = tmp_path / "tiny.gguf"
    write_random_model(path, PRESETS[f"tiny-{arch}"], mix)
    model = load_model(GGUFFile(path))
    for pieces in [(1, 0)], [(2, 5)], [(1, 9), (1, 70)], [(2, 0), (1, 300)]:
        found, expected = (
            Costs(model).of_step([Extent(*p) for p in pieces], len(pieces)),
            naive_costs(model, pieces, len(pieces)),
        )
        assert found.keys() == expected.keys()
        for kind in found:
            np.testing.assert_allclose(found[kind], expected[kind], err_msg=kind)
    backend = CPUBackend(model, 1)
    for n in 1, 8:
        specs = backend.kernels_for([LOGITS], [], n, 1, "choose")
        assert found.keys() <= {kind_of(spec) for spec in specs if spec not in RUNTIME}


class Recorder:
    """A backend that only writes down what it is asked to run: for each step the tokens and first position of each sequence."""

    def __init__(self, model: Model) -> None:
        self.model, self.cache, self.steps = model, KVCache(), list[list[tuple[int, int]]]()

    def step(self, batch: Batch) -> None:
        assert 0 <= batch.tokens.min() <= batch.tokens.max() < self.model.config.n_vocab
        assert len(batch.outputs) == len(batch.segments)
        self.steps.append([(len(piece.tokens), piece.seq.length) for piece in batch.segments])
        for piece in batch.segments:
            self.cache.reserve(piece.seq, len(piece.tokens))
        batch.commit(self.cache)


def test_what_is_run(demo: Model) -> None:
    backend = Recorder(demo)
    runner = Runner(backend, 4)  # type: ignore[arg-type]

    def steps(test: bench.Test) -> list[list[tuple[int, int]]]:
        backend.steps.clear()
        runner.time(test)
        return list(backend.steps)

    assert steps(bench.Test(0, 2, 5)) == [[(4, 0)], [(1, 4)], [(1, 5)], [(1, 6)]]  # the depth, then the test
    assert steps(bench.Test(3, 1, 5)) == [[(3, 5)], [(1, 8)]]  # the depth is still there
    assert steps(bench.Test(6)) == [[(4, 0)], [(2, 4)]]
    assert steps(bench.Test(0, 1, 2)) == [[(1, 2)]]
    assert steps(bench.Test(3, 1, 2, 3)) == [
        [(2, 0)],
        [(2, 0)],  # the depth of the new ones
        [(3, 2), (1, 2)],
        [(2, 3), (2, 2)],
        [(1, 4)],
        [(1, 5), (1, 5), (1, 5)],
    ]
    assert steps(bench.Test(0, 1)) == [[(1, 0)]]
    assert backend.cache.n_pages == 3  # of three sequences at once
    backend.steps.clear()
    runner.warm_up(bench.Test(5, 9))
    assert backend.steps == [[(4, 0)], [(1, 4)], [(1, 5)]]
    total = runner.costs(bench.Test(3, 1), Costs(demo))
    expected = [naive_counts(demo, [(3, 0)], 1), naive_counts(demo, [(1, 3)], 1)]
    np.testing.assert_allclose([sum(v) for v in zip(*total.values())], np.sum(expected, axis=0))


@pytest.mark.parametrize("mix", ["demo", "Q8_0", "F16"])
def test_a_profile_has_every_kind_and_changes_nothing(demo: Model, tmp_path: Path, mix: str) -> None:
    model = demo if mix == "demo" else random_model(tmp_path, mix)
    backend = CPUBackend(model, 2)
    tokens, sequences, after = np.arange(1, 20), [KVSequence(), KVSequence()], []
    for n in 17, 1:  # many tokens, one token
        plain, profiled = (Batch([Segment(seq, tokens[:n], 1)]) for seq in sequences)
        backend.run([LOGITS], plain)
        rows = backend.profile([LOGITS], profiled)
        assert {kind_of(row.kernel) for row in rows} >= Costs(model).of_step([Extent(n, 0)], 1).keys()
        assert all(0 <= row.seconds < 10 for row in rows)
        assert sum(row.seconds for row in rows) > 0
    for seq in sequences:
        assert seq.length == 18
        after.append(backend.run([LOGITS], Batch([Segment(seq, [5], 1)]))[LOGITS])
    np.testing.assert_array_equal(*after)


def test_as_a_library(demo: Model) -> None:
    done: list[tuple[str, int]] = []
    tests = [bench.Test(8), bench.Test(0, 3, 4, 2)]
    found = list(
        run_bench(
            demo,
            tests,
            2,
            repeat=2,
            n_batch=4,
            profile=True,
            progress=lambda test, n: done.append((test.name, n)),
        )
    )
    assert [r.test for r in found] == tests
    assert done == [
        ("pp8", 0),
        ("pp8", 1),
        ("pp8", 2),
        ("tg3 b2 @ d4", 0),
        ("tg3 b2 @ d4", 1),
        ("tg3 b2 @ d4", 2),
    ]
    for r in found:
        assert len(r.samples_ns) == 2
        assert min(r.samples_ns) > 0
        assert {kind.name for kind in r.profile} > {"attention", "matmul q4_k", "matmul q6_k"}
        assert [kind.seconds for kind in r.profile] == sorted(
            (kind.seconds for kind in r.profile), reverse=True
        )
        assert sum(kind.cost.ops for kind in r.profile) == pytest.approx(r.cost.ops)
    assert found[1].profile[0].calls % 3 == 0  # three steps


@pytest.mark.parametrize(
    "test",
    [
        bench.Test(0, 0, 5),
        bench.Test(1024, 1),
        bench.Test(8, 8, 1020),
        bench.Test(-1, 4),
        bench.Test(1, 0, 0, 0),
    ],
)
def test_tests_that_cannot_be_run(demo: Model, test: bench.Test) -> None:
    with pytest.raises(InputError):
        next(run_bench(demo, [test]))


@pytest.mark.usefixtures("known_limits")
def test_json_has_llama_benchs_keys_and_ours(call: Call) -> None:
    arguments = ["-p", "8,4-5", "-n", "2", "-pg", "4,2", "-d", "3", "-npl", "1-2*2", "-t", "1", "-r", "2"]
    code, out, _ = call("bench", *arguments, "-o", "json", "--profile")
    assert code == 0
    found = json.loads(out)
    tests = [(8, 0), (4, 0), (5, 0), (0, 2), (4, 2)]
    assert [(f["n_prompt"], f["n_gen"], f["n_depth"], f["n_seq"]) for f in found] == [
        (*t, 3, n) for n in (1, 2) for t in tests
    ]
    for facts in found:
        assert facts.keys() == LLAMA_BENCH_KEYS | OUR_KEYS | {"profile"}
        assert len(facts["samples_ns"]) == len(facts["samples_ts"]) == 2
        assert (facts["n_threads"], facts["backends"], facts["model_type"]) == (
            1,
            "CPU",
            "qwen3 7.4M Q4_K - Medium",
        )
        assert (facts["model_size"], facts["model_n_params"]) == (
            4732672,
            7442432,
        )  # llama_model_size and llama_model_n_params
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["test_time"])
        assert {"kind", "calls", "ns"} <= facts["profile"][0].keys()


@pytest.mark.usefixtures("known_limits")
def test_the_other_formats(call: Call) -> None:
    arguments = ["bench", "-m", EMBEDDED, "-m", EMBEDDED, "-p", "4", "-n", "1", "-r", "1"]
    code, out, err = call(*arguments, "-o", "jsonl")
    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, [line["n_prompt"] for line in lines]) == (0, [4, 0, 4, 0])
    assert err.count(f"model: {EMBEDDED} (-m)") == 2
    code, out, _ = call(*arguments, "-o", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows)) == (0, 4)
    assert rows[0].keys() == LLAMA_BENCH_KEYS - {"samples_ns", "samples_ts"} | OUR_KEYS
    assert out.splitlines()[1].startswith('"')
    code, out, _ = call(*arguments, "--profile")
    assert code == 0
    assert (
        len(
            re.findall(r"^\| qwen3 7\.4M Q4_K - Medium +\|.*\| +(?:pp4|tg1) \| +[\d.]+ ± 0\.00 \|", out, re.M)
        )
        == 4
    )
    assert (
        len(re.findall(r"^\| matmul q4_k +\| +\d+ \| +[\d.]+ \| +[\d.]+ \| +[\d.]+ \| +\d+% \|$", out, re.M))
        == 4
    )


@pytest.mark.parametrize(
    "options",
    [
        "-p 0 -n 0",
        "-p",
        "-p x",
        "-p -1",
        "-p 4-2",
        "-p 1-8*1",
        "-p 1-99999",
        "-p 1,,2",
        "-p 99999999",
        "-n 1.5",
        "-pg 4",
        "-pg 4,x",
        "-d x",
        "-npl 0",
        "-npl 65",
        "-b 0",
        "-t 2000",
        "-r 0",
        "-o yaml",
        "x",
    ],
)
def test_wrong_usage(call: Call, options: str) -> None:
    code, out, err = call("bench", "-m", "none.gguf", *options.split())
    assert (code, out) == (2, "")
    assert "none.gguf" not in err
    assert "Traceback" not in err


def test_a_context_that_is_too_small(call: Call) -> None:
    code, out, err = call("bench", "-p", "8,1025")
    assert (code, out) == (1, "")
    assert "pp1025 needs a context of 1025 tokens, more than the model's 1024" in err
