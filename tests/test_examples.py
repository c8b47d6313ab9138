"""The programs in examples/: each runs as a user runs it, and wrong options are one line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwencli.kernels.formats import FORMATS
from qwencli.system.host import Host

FOLDER = Path(__file__).resolve().parents[1] / "examples"
Done = subprocess.CompletedProcess[str]
Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run("name.py", options ...) in an empty folder."""

    def run(name: str, *options: object) -> Done:
        command = [sys.executable, str(FOLDER / name), *map(str, options)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)

    return run


def printed(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.py")))
def test_every_example_has_help(name: str, run: Run) -> None:
    assert printed(run(name, "--help")).startswith(f"Usage: {name} ")


@pytest.mark.parametrize("device", ["cpu", "numpy"])
def test_sgemm_prints_the_matrix(device: str, run: Run) -> None:
    out = printed(run("sgemm.py", "--device", device))
    a, b = np.array([[2, 8], [5, 1], [4, 2], [8, 6]]), np.array([[10, 5], [9, 9], [5, 4]])
    numbers = re.findall(r"-?[0-9.]+", out[out.index("\n[") :])
    assert np.array(numbers, float).reshape(3, 4).tolist() == (a @ b.T + 1).T.tolist()
    assert re.search(rf"^device: {device} \(.+\)$", out, re.M)
    assert [line.split(":")[0] for line in out.splitlines()[1:4]] == ["buffer size", "threads", "time"]
    assert re.search(r"^time: [0-9]+\.[0-9]{2} ms$", out, re.M)


@pytest.mark.parametrize(
    ("kind", "shape", "most"),
    [
        ("q4_k", (70, 33, 512), 0.02),  # activations are rounded to 8 bits
        ("Q8_0", (1, 1, 32), 0.02),
        ("f32", (7, 3, 5), 1e-6),
    ],
)
def test_sgemm_of_random_blocks(kind: str, shape: tuple[int, int, int], most: float, run: Run) -> None:
    m, n, k = shape
    out = printed(run("sgemm.py", "--type", kind, "--m", m, "--n", n, "--k", k))
    assert f"A: {m} x {k} {kind.upper()}, " in out
    assert re.search(
        rf"; B: {n} x {k}; [0-9.]+ GOP/s, [0-9]+% of this machine's [0-9]+ in (int8|float32)\n", out
    )
    (error,) = re.findall(r"error against float64: (\S+) of the result", out)
    assert 0 < float(error) < most


@pytest.mark.parametrize("kind", FORMATS)
def test_sgemm_has_blocks_of_every_type(kind: str, run: Run) -> None:
    """On NumPy, which multiplies what the blocks stand for: with float32's error."""
    out = printed(run("sgemm.py", "--type", kind, "--m", 3, "--n", 2, "--k", 256, "--device", "numpy"))
    (error,) = re.findall(r"error against float64: (\S+) of the result", out)
    assert 0 < float(error) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "code", "message"),
    [
        (
            "sgemm.py",
            ("--type", "q4_k", "--k", 100),
            2,
            "k is 100, expected a multiple of Q4_K's block of 256",
        ),
        ("sgemm.py", ("--type", "q9"), 2, "there is no type 'q9', known are f32, f16,"),
        ("sgemm.py", ("--m", 0), 2, "0 is not in the range"),
        ("sgemm.py", ("--m",), 2, "requires an argument"),
        ("sgemm.py", ("--device", "gpu"), 1, "unknown device 'gpu'; known are cpu"),
        ("sgemm.py", ("B.npy",), 2, "unexpected extra argument"),
        ("split_graph.py", ("--second", "gpu"), 1, "unknown device 'gpu'; known are cpu"),
        (
            "split_graph.py",
            ("--first", "cpu", "--second", "cpus:0"),
            1,
            "the devices cpu and cpus:0 share CPU 0",
        ),
        ("split_graph.py", ("-o", "net.txt"), 2, "net.txt: expected a name that ends in .svg, .dot, .png"),
        ("split_graph.py", ("-o", "none/net.dot"), 1, "net.dot: No such file or directory"),
        ("devices.py", ("--all",), 2, "No such option"),
    ],
)
def test_wrong_options(name: str, options: tuple[object, ...], code: int, message: str, run: Run) -> None:
    if "cpus:0" in options and 0 not in Host().allowed():
        pytest.skip("may not use CPU 0")
    done = run(name, *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_a_net_on_two_devices(run: Run) -> None:
    if len(cpus := sorted(Host().allowed())) < 2:
        pytest.skip("needs two CPUs")
    first, second = f"cpus:{cpus[0]}", f"cpus:{cpus[1]}"
    out = printed(run("split_graph.py", "--first", first, "--second", second))
    assert out.splitlines() == [
        f"## SPLIT #0: {first} # 1 inputs: [x (51.2 kB)]",  # 32 x 400 floats
        f"## SPLIT #1: {second} # 1 inputs: [fc1 (16.4 kB)]",  # 32 x 128
        "32 x 10 results, largest difference from one device: 0",
    ]


def test_a_net_is_drawn(run: Run, tmp_path: Path) -> None:
    """With a colour for each device, and the edge between them bold. Inputs that nothing reads aren't drawn."""
    printed(run("split_graph.py", "--first", "cpu", "--second", "numpy", "-o", "net.dot"))
    dot = (tmp_path / "net.dot").read_text(encoding="utf-8")
    names = dict(re.findall(r'^  (n[0-9]+) \[.*label="(\S+)\\n', dot, re.M))
    assert [*names.values()] == ["x", "fc1.weight", "fc1.bias", "fc1", "fc2.weight", "fc2.bias", "fc2"]
    bold = re.findall(r"(n[0-9]+) -> (n[0-9]+) \[penwidth", dot)
    assert [tuple(names[end] for end in edge) for edge in bold] == [("fc1", "fc2")]
    colours = {
        names[node]: colour for node, colour in re.findall(r'^  (n[0-9]+) \[.* color="(#\w+)"', dot, re.M)
    }
    assert colours["x"] == colours["fc1"] == colours["fc1.bias"]
    assert colours["fc2"] == colours["fc2.weight"] != colours["fc1"]


def test_a_net_partly_on_numpy(run: Run) -> None:
    out = printed(run("split_graph.py", "--first", "cpu", "--second", "numpy"))
    assert "## SPLIT #1: numpy # 1 inputs: [fc1 " in out
    assert float(out.split()[-1]) < 1e-5


def test_devices_are_those_of_the_command(run: Run) -> None:
    out = printed(run("devices.py"))
    command = [sys.executable, "-m", "qwencli", "devices", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert out.startswith(f"devices: {found['n_devices']}\n")
    names = re.findall(r"^(\S+): ", out.split("\n", 1)[1], re.M)
    assert names == [device["name"] for device in found["devices"]]
    assert all(f": {device['description']}\n" in out for device in found["devices"])
