"""scripts/bench_peers.py: llama.cpp's best setting, what is asked of both programs, ratios, table and chart. llama.cpp is played by a
script."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peer_runs
import pytest
from click.testing import CliRunner

from qwencli.hub.places import EMBEDDED

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
FAKE_PEER = """#!/bin/sh
if [ "$1" = -c ]; then echo 9.9.9; exit; fi
shift
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in
*"--repack 1 -fa 1") kill -SEGV $$;;
*" start "*"--repack 0 -fa 0") echo '{"s": 0.5}';;
*" start "*) echo '{"s": 2.0}';;
*"--repack 0 -fa 1") echo '{"t/s": 20.0}';;
*"-fa auto") echo 'no such luck' >&2; exit 3;;
*) echo '{"t/s": 10.0}';;
esac
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


def test_the_ratio_is_the_median_of_the_pairs_and_above_1_where_ours_is_better(script: Any) -> None:
    runs = {"qwencli": [100.0, 200.0, 300.0], "llama.cpp": [100.0, 100.0, 600.0]}
    verdict = script.judge("pp512", {"pp512": runs})
    assert (verdict["qwencli"], verdict["llama.cpp"]) == (200, 100)
    assert (verdict["least_ratio"], verdict["ratio"], verdict["greatest_ratio"]) == (0.5, 1, 2)
    assert verdict["runs"] == runs
    assert "bandwidth" not in verdict
    for name in "start", "memory":
        assert script.judge(name, {name: {"qwencli": [0.5], "llama.cpp": [2.0]}})["ratio"] == 4


def test_the_setting_of_the_fastest_run_is_the_best(script: Any) -> None:
    """Also if its other runs were disturbed."""
    runs = {"a": [1.0, 9.0, 2.0], "b": [8.0, 8.0, 8.0]}
    asked = []

    def measure(setting: str) -> float:
        asked.append(setting)
        return runs[setting][asked.count(setting) - 1]

    assert script.trials(measure, ["a", "b"], list) == ({"a": 9.0, "b": 8.0}, {})
    assert asked == ["a", "b"] * 3


def test_a_setting_that_fails_does_not_count(script: Any) -> None:
    asked = []

    def measure(setting: str) -> float:
        asked.append(setting)
        if setting == "crashes" or (setting == "crashes later" and len(asked) > 3):
            raise script.PeerFailed(["python"], "killed by SIGSEGV")
        return 5.0 if setting == "crashes later" else 1.0

    speeds, failed = script.trials(measure, ["crashes", "crashes later", "works"], list)
    assert speeds == {"works": 1.0}
    assert failed == {"crashes": "killed by SIGSEGV", "crashes later": "killed by SIGSEGV"}
    assert [asked.count(setting) for setting in ("crashes", "crashes later", "works")] == [1, 2, 3]


def test_the_next_best_setting_counts_if_the_best_one_fails_in_the_pairs(
    script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, slow = script.Setting("1", "0"), script.Setting("0", "0")
    asked: list[Any] = []

    def theirs(test: str, case: Any, setting: Any) -> dict[str, float]:
        asked.append(setting)
        if setting == fast and asked.count(fast) > 4:  # the trials and the first pair
            raise script.PeerFailed(["python"], "killed by SIGSEGV")
        return {test: 20.0 if setting == fast else 10.0}

    def ours(test: str, case: Any) -> dict[str, float]:
        asked.append("ours")
        return {test: 40.0}

    monkeypatch.setattr(script, "theirs", theirs)
    monkeypatch.setattr(script, "ours", ours)
    case = script.Case("m.gguf", 1, "", "python")
    verdict = script.contest("pp512", case, [slow, fast], 3, list)["pp512"]
    assert verdict["setting"] == "repack 0, fa 0"
    assert verdict["trials"] == {"repack 0, fa 0": 10.0, "repack 1, fa 0": 20.0}
    assert verdict["failed"] == {"repack 1, fa 0": "killed by SIGSEGV"}
    assert verdict["ratio"] == 4
    assert verdict["runs"] == {"qwencli": [40.0] * 3, "llama.cpp": [10.0] * 3}
    assert asked[-6:] == ["ours", slow, slow, "ours", "ours", slow]


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
        f"import sys; sys.path[0:0] = [{str(SCRIPTS)!r}]; import json, peer_runs; "
        f"print(json.dumps(peer_runs.run([sys.executable, '-c', {CHILD!r}])))"
    )
    done = subprocess.run([sys.executable, "-c", measured], capture_output=True, text=True, check=True)
    output, first, memory = json.loads(done.stdout)
    assert output == "done\n"
    assert first > 0
    assert 300 < memory < 400  # MB
    failing = {
        "raise ValueError('so')": "ValueError: so",
        "import os; os.kill(os.getpid(), 11)": "killed by SIGSEGV",
        "import os; os._exit(7)": "exit code 7",
    }
    for code, reason in failing.items():
        with pytest.raises(script.PeerFailed) as error:
            peer_runs.run([sys.executable, "-c", code], script.PeerFailed)
        assert error.value.reason == reason


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
    assert (report["pairs"], report["enough_pairs"]) == (1, False)
    (model,) = report["models"]
    assert model["model"] == EMBEDDED.name
    assert list(model["tests"]) == ["pp512", "b8", "perplexity", "start", "memory"]
    for name, verdict in model["tests"].items():
        assert len(verdict["runs"]["qwencli"]) == len(verdict["runs"]["llama.cpp"]) == 1
        assert verdict["qwencli"] > 0
        assert verdict["llama.cpp"] == {"start": 0.5}.get(name, 20.0) or name == "memory"
        of_start = name in ("start", "memory")
        assert verdict["setting"] == ("repack 0, fa 0" if of_start else "repack 0, fa 1")
        if name == "memory":  # is measured along with "start"
            assert verdict.keys().isdisjoint({"trials", "failed"})
            continue
        assert verdict["failed"] == {"repack 1, fa 1": "killed by SIGSEGV"}
        other, best = (2.0, 0.5) if of_start else (10.0, 20.0)
        assert verdict["trials"] == {
            "repack 0, fa 0": best if of_start else other,
            "repack 0, fa 1": other if of_start else best,
            "repack 1, fa 0": other,
        }
    calls = [line.removeprefix(f"{EMBEDDED} 1 ") for line in peer.with_name("calls").read_text().splitlines()]
    of_test = [calls[first : first + 11] for first in range(0, 44, 11)]
    assert len(calls) == 44
    for test, best in zip(of_test, ["--repack 0 -fa 1"] * 3 + ["--repack 0 -fa 0"]):
        working = ["--repack 0 -fa 0", "--repack 0 -fa 1", "--repack 1 -fa 0"]
        asked, settings = zip(*(call.split(" --", 1) for call in test))
        assert len(set(asked)) == 1
        assert ["--" + setting for setting in settings] == [*working, "--repack 1 -fa 1", *working * 2, best]
    assert [test[0].split(" --")[0] for test in of_test[:3]] == [
        "speed 512 0 0 1",
        "speed 0 64 128 8",
        "perplexity 512 8",
    ]
    what, n_prompt, n_ctx, *_ = of_test[3][0].split()
    assert (what, n_ctx) == ("start", "4096")
    assert int(n_prompt) > 1  # the prompt in the chat template


def test_a_single_setting_needs_no_trial(script: Any, peer: Path) -> None:
    options = ["-t", "1", "-r", "2", "--peer-python", str(peer), "--tests", "pp512"]
    done = CliRunner().invoke(script.main, [str(EMBEDDED), *options, "--repack", "1", "-fa", "0"])
    assert done.exit_code == 0, done.output
    assert "| repack 1, fa 0 |" in done.stdout
    assert "medians of 2 pairs: too few, at least 5 count" in done.stdout
    calls = peer.with_name("calls").read_text().splitlines()
    assert calls == [f"{EMBEDDED} 1 speed 512 0 0 1 --repack 1 -fa 0"] * 2


def test_if_all_settings_fail_the_reasons_are_named(script: Any, peer: Path) -> None:
    options = ["-t", "1", "--peer-python", str(peer), "--tests", "pp512", "--repack", "1", "-fa", "1,auto"]
    done = CliRunner().invoke(script.main, [str(EMBEDDED), *options])
    assert done.exit_code == 1
    reasons = "repack 1, fa 1: killed by SIGSEGV; repack 1, fa auto: no such luck"
    assert done.output == f"Error: {EMBEDDED}: llama.cpp failed in pp512 ({reasons})\n"


def test_five_pairs_are_enough(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "peer_version", lambda python: "9.9.9")
    monkeypatch.setattr(script, "compare", lambda model, *_: {"model": model, "tests": {}})
    for options, enough in ([], True), (["-r", "6"], True), (["-r", "4"], False):
        text = CliRunner().invoke(script.main, [str(EMBEDDED), *options]).stdout
        assert ("too few" not in text) == enough
        done = CliRunner().invoke(script.main, [str(EMBEDDED), *options, "--json"])
        assert json.loads(done.stdout)["enough_pairs"] == enough


def test_table_and_chart(script: Any, tmp_path: Path) -> None:
    found = {
        "tg64 bandwidth": {"qwencli": [20e9]},
        "tg64 limit": {"qwencli": [25e9]},
        "tg64": {"qwencli": [50.0, 50.0, 60.0], "llama.cpp": [40.0, 50.0, 40.0]},
        "start": {"qwencli": [0.512], "llama.cpp": [1.024]},
        "memory": {"qwencli": [600.4], "llama.cpp": [1200.8]},
    }
    compared = {
        "model": "m.gguf",
        "tests": {
            name: script.judge(name, found) | {"setting": "repack 0, fa 1"}
            for name in script.TESTS
            if name in found
        },
    }
    compared["tests"]["tg64"]["failed"] = {"repack 1, fa 0": "killed by SIGSEGV"}
    assert script.table(compared).splitlines() == [
        "| m.gguf | qwencli | llama.cpp | ratio | least to greatest | llama.cpp's best setting | weights and KV read |",
        "|---|---:|---:|---:|---:|---|---:|",
        "| tg64 | 50.0 t/s | 40.0 t/s | 1.25 | 1.00 to 1.50 | repack 0, fa 1 | 20.0 GB/s, 80% |",
        "| first token, context 4096 | 0.51 s | 1.02 s | 2.00 | 2.00 to 2.00 | repack 0, fa 1 |  |",
        "| peak memory, context 4096 | 600 MB | 1201 MB | 2.00 | 2.00 to 2.00 | repack 0, fa 1 |  |",
        "",
        "llama.cpp failed in tg64 with repack 1, fa 0: killed by SIGSEGV",
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
        (["--tests", "pp512,pp1"], "'pp1' is unknown, expected some of pp512,"),
        (["--tests", "memory"], "'memory' is unknown, expected some of pp512,"),
        (["--repack", "0,2"], "'2' is unknown, expected some of 0, 1"),
        (["-fa", "on"], "'on' is unknown, expected some of 0, 1, auto"),
        (["-fa", ""], "'' is unknown"),
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


def test_a_python_that_does_not_exist(script: Any) -> None:
    done = CliRunner().invoke(script.main, [str(EMBEDDED), "--peer-python", "/no/python"])
    assert done.exit_code == 1
    assert done.output.startswith("Error: /no/python: No such file or directory: install the extra `peers`")


@pytest.mark.parametrize(
    "what",
    [
        "speed 4 2 8 2",
        "speed 4 2 8 2 --repack 0 -fa 0",
        "speed 600 0 0 1 --repack 1 -fa 1",
        "perplexity 16 3",
        "start 3 64",
    ],
)
def test_llama_cpp_itself(what: str) -> None:
    pytest.importorskip("llama_cpp", reason="needs the extra `peers`")
    command = [sys.executable, str(SCRIPTS / "llama_cpp_speed.py"), str(EMBEDDED), "1", *what.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    facts = json.loads(done.stdout)
    assert facts["s" if what.startswith("start") else "t/s"] > 0
