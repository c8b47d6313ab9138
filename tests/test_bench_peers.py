"""scripts/bench_peers.py: what is asked of both programs, medians and ratios, table and chart. llama.cpp is played by a script."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qwencli.hub.places import EMBEDDED

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FAKE_PEER = """#!/bin/sh
if [ "$1" = -c ]; then echo 9.9.9; exit; fi
shift
echo "$@" >> "$(dirname "$0")/calls"
case "$3" in start) echo '{"s": 2.0}';; *) echo '{"t/s": 10.0}';; esac
"""


CHILD = "x = bytes([1]) * 300_000_000; print('done')"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("bench_peers", SCRIPTS / "bench_peers.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["bench_peers"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    """Stands in for a Python that runs llama_cpp_speed.py, and writes down its arguments."""
    if os.name != "posix":
        pytest.skip("the stand-in is a POSIX shell script")
    path = tmp_path / "python"
    path.write_text(FAKE_PEER)
    path.chmod(0o755)
    return path


def test_ratios_are_of_medians_and_above_1_where_ours_is_better(script: Any) -> None:
    faster = script.judge(
        "pp512", {"pp512": {"qwencli": [300.0, 100.0, 200.0], "llama.cpp": [50.0, 1000.0, 80.0]}}
    )
    assert (faster["qwencli"], faster["llama.cpp"], faster["ratio"]) == (200, 80, 2.5)
    assert "bandwidth" not in faster
    for name in "start", "memory":
        assert script.judge(name, {name: {"qwencli": [0.5], "llama.cpp": [2.0]}})["ratio"] == 4


def test_the_machine_is_never_slower_than_a_rival(script: Any) -> None:
    found = {"tg64 bandwidth": {"qwencli": [20e9]}, "tg64 limit": {"qwencli": [25e9]}}
    assert (
        script.judge("tg64", found | {"tg64": {"qwencli": [50.0], "llama.cpp": [40.0]}})["bandwidth_share"]
        == 0.8
    )
    assert (
        script.judge("tg64", found | {"tg64": {"qwencli": [50.0], "llama.cpp": [100.0]}})["bandwidth_share"]
        == 0.5
    )


def test_a_process_is_measured(script: Any) -> None:
    """From a process of its own: a child's peak counts what its parent had when it was forked, and this one may have much."""
    measured = (
        f"import sys; sys.path[0:0] = [{str(SCRIPTS)!r}]; import json, bench_peers; "
        f"print(json.dumps(bench_peers.run([sys.executable, '-c', {CHILD!r}])))"
    )
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
    output, first, memory = json.loads(done.stdout)
    assert output == "done\n"
    assert first > 0
    assert 300 < memory < 400  # MB
    with pytest.raises(script.click.ClickException, match=r"ValueError: so$"):
        script.run([sys.executable, "-c", "raise ValueError('so')"])


def test_both_are_asked_for_the_same(script: Any, peer: Path) -> None:
    options = [
        "-t",
        "1",
        "-r",
        "1",
        "--peer-python",
        str(peer),
        "--json",
        "--tests",
        "pp512,b8,perplexity,start",
    ]
    done = CliRunner().invoke(script.main, [str(EMBEDDED), *options])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["versions"]["llama-cpp-python"] == "9.9.9"
    (model,) = report["models"]
    assert model["model"] == EMBEDDED.name
    assert list(model["tests"]) == ["pp512", "b8", "perplexity", "start", "memory"]
    for name, verdict in model["tests"].items():
        assert len(verdict["runs"]["qwencli"]) == len(verdict["runs"]["llama.cpp"]) == 1
        assert verdict["qwencli"] > 0
        assert verdict["llama.cpp"] == {"start": 2.0}.get(name, 10.0) or name == "memory"
    prefix = f"{EMBEDDED} 1 "
    asked = [line.removeprefix(prefix) for line in peer.with_name("calls").read_text().splitlines()]
    assert asked[:3] == ["speed 512 0 0 1", "speed 0 64 128 8", "perplexity 512 8"]
    assert asked[3].startswith("start ")
    assert int(asked[3].split()[1]) > 1  # the prompt in the chat template
    assert asked[3].split()[2] == "4096"


def test_table_and_chart(script: Any, tmp_path: Path) -> None:
    found = {
        "tg64 bandwidth": {"qwencli": [20e9]},
        "tg64 limit": {"qwencli": [25e9]},
        "tg64": {"qwencli": [50.0], "llama.cpp": [40.0]},
        "start": {"qwencli": [0.512], "llama.cpp": [1.024]},
        "memory": {"qwencli": [600.4], "llama.cpp": [1200.8]},
    }
    compared = {
        "model": "m.gguf",
        "tests": {name: script.judge(name, found) for name in script.TESTS if name in found},
    }
    assert script.table(compared).splitlines() == [
        "| m.gguf | qwencli | llama.cpp | ratio | weights and KV read |",
        "|---|---:|---:|---:|---:|",
        "| tg64 | 50.0 t/s | 40.0 t/s | 1.25 | 20.0 GB/s, 80% |",
        "| first token, context 4096 | 0.51 s | 1.02 s | 2.00 |  |",
        "| peak memory, context 4096 | 600 MB | 1201 MB | 2.00 |  |",
    ]
    pytest.importorskip("matplotlib", reason="needs the extra `peers`")
    report = {"cpu": "a CPU", "n_threads": 2, "date": "2026-01-01", "models": [compared, compared]}
    script.draw(report, str(tmp_path / "chart.png"))
    data = (tmp_path / "chart.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert 1000 < int.from_bytes(data[16:20], "big") < 2000  # pixels wide


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tests", "pp512,pp1"], "no test is called 'pp1', expected some of pp512,"),
        (["--tests", "memory"], "no test is called 'memory'"),
        (["-r", "0"], "-r"),
        (["-t", "0"], "-t"),
    ],
)
def test_wrong_usage(script: Any, options: list[str], message: str) -> None:
    done = CliRunner().invoke(script.main, [str(EMBEDDED), *options])
    assert done.exit_code == 2
    assert message in done.output


def test_without_llama_cpp_the_extra_is_named(script: Any) -> None:
    if importlib.util.find_spec("llama_cpp"):
        pytest.skip("llama-cpp-python is installed")
    done = CliRunner().invoke(script.main, [str(EMBEDDED)])
    assert done.exit_code == 1
    assert "No module named 'llama_cpp': install the extra `peers`" in done.output


@pytest.mark.parametrize("what", ["speed 4 2 8 2", "speed 600 0 0 1", "perplexity 16 3", "start 3 64"])
def test_llama_cpp_itself(what: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
    command = [sys.executable, str(SCRIPTS / "llama_cpp_speed.py"), str(EMBEDDED), "1", *what.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    facts = json.loads(done.stdout)
    assert facts["s" if what.startswith("start") else "t/s"] > 0
