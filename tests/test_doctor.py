"""`qwencli doctor`: what it reads of the system, on machines made of files; its check of the kernels; its advice; the cache it clears."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call

from qwencli import __version__
from qwencli.backends.cpu import backend as cpu
from qwencli.backends.cpu.team import physical_cores
from qwencli.kernels import isa, jit
from qwencli.machine import doctor
from qwencli.machine.advice import advice
from qwencli.machine.kernel_cache import kernel_cache
from qwencli.machine.self_check import check, check_apart
from qwencli.system.host import Host, NumaNode

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX's files and signals")


def machine(root: Path, files: dict[str, str]) -> Host:
    """A system that has these files and no others."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return Host(root)


# What the system says. The formats are those of cgroups(7), proc(5) and the kernel's Documentation: cgroup-v2, sched-bwc, transhuge.

V2, V1 = (
    "0::/a.slice/b.scope\n",
    "12:pids:/docker/c0ffee\n4:memory:/docker/c0ffee\n3:cpu,cpuacct:/docker/c0ffee\n0::/\n",
)
QUOTAS = {
    "v2": (
        V2,
        {"a.slice/b.scope/cpu.max": "150000 100000\n"},
        (1.5, "/sys/fs/cgroup/a.slice/b.scope/cpu.max"),
    ),
    "v2, of a group above": (
        V2,
        {"a.slice/b.scope/cpu.max": "max 100000\n", "a.slice/cpu.max": "400000 100000\n"},
        (4.0, "/sys/fs/cgroup/a.slice/cpu.max"),
    ),
    "v2, both": (
        V2,
        {"a.slice/b.scope/cpu.max": "300000 100000\n", "a.slice/cpu.max": "200000 100000\n"},
        (2.0, "/sys/fs/cgroup/a.slice/cpu.max"),
    ),
    "v2, without limit": (V2, {"a.slice/b.scope/cpu.max": "max 100000\n"}, None),
    "v2, a namespace of its own": ("0::/\n", {"cpu.max": "50000 100000\n"}, (0.5, "/sys/fs/cgroup/cpu.max")),
    "v1 in a container": (
        V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        (2.5, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"),
    ),
    "v1 on the host": (
        "1:cpu:/x\n",
        {
            "cpu/x/cpu.cfs_quota_us": "100000",
            "cpu/x/cpu.cfs_period_us": "50000",
            "cpu/cpu.cfs_quota_us": "-1",
            "cpu/cpu.cfs_period_us": "100000",
        },
        (2.0, "/sys/fs/cgroup/cpu/x/cpu.cfs_quota_us"),
    ),
    "v1, without limit": (
        V1,
        {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "no cgroups": ("", {}, None),
    "a period of 0": (V2, {"cpu.max": "100000 0"}, None),
    "half a line": (V2, {"cpu.max": "100000"}, None),
}


@pytest.mark.parametrize("name", QUOTAS)
def test_quotas(tmp_path: Path, name: str) -> None:
    groups, files, expected = QUOTAS[name]
    host = machine(
        tmp_path,
        {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{file}": text for file, text in files.items()},
    )
    assert host.quota() == expected


@pytest.mark.parametrize(
    ("name", "n_threads"),
    [
        ("v2", 1),
        ("v2, of a group above", 4),
        ("v2, both", 2),
        ("v2, a namespace of its own", 1),
        ("v2, without limit", 8),
        ("v1 in a container", 2),
        ("v1 on the host", 2),
        ("no cgroups", 8),
    ],
)
def test_no_more_threads_than_a_quota_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, n_threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    groups, files, _ = QUOTAS[name]
    files = {"proc/self/cgroup": groups} | {f"sys/fs/cgroup/{file}": text for file, text in files.items()}
    assert physical_cores(machine(tmp_path, files)) == n_threads


@pytest.mark.parametrize(
    ("groups", "file", "text", "expected"),
    [
        (V2, "a.slice/memory.max", "2147483648\n", 2**31),
        (V2, "a.slice/b.scope/memory.max", "max\n", None),
        (V1, "memory/memory.limit_in_bytes", "536870912\n", 2**29),
        (V1, "memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        (V1, "memory/memory.limit_in_bytes", "-1\n", None),
    ],
)
def test_limits_of_memory(tmp_path: Path, groups: str, file: str, text: str, expected: int | None) -> None:
    host = machine(tmp_path, {"proc/self/cgroup": groups, f"sys/fs/cgroup/{file}": text})
    assert host.memory_limit() == (expected and (expected, f"/sys/fs/cgroup/{file}"))


def test_a_server_with_two_nodes(tmp_path: Path) -> None:
    topology = {
        f"sys/devices/system/cpu/cpu{i}/topology/thread_siblings_list": f"{i % 4},{i % 4 + 4}\n"
        for i in range(8)
    }
    nodes = {
        f"sys/devices/system/node/node{i}/{name}": text
        for i in (0, 1)
        for name, text in (
            ("cpulist", f"{2 * i}-{2 * i + 1}\n"),
            ("meminfo", f"Node {i} MemTotal:       {1000 * (i + 1)} kB\nNode {i} MemFree: 5 kB\n"),
        )
    }
    host = machine(
        tmp_path,
        topology
        | nodes
        | {
            "sys/devices/system/node/node2/cpulist": "\n",  # memory without CPUs
            "proc/meminfo": "MemTotal:       16000 kB\nMemFree:         100 kB\nMemAvailable:   9000 kB\n",
            "proc/cpuinfo": "model name\t: X\nflags\t\t: fpu hypervisor avx2\n",
            "proc/stat": "cpu  100 0 50 800 10 0 0 40 5 0\ncpu0 1 2 3\n",
            "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        },
    )
    assert (host.cores(set(range(8))), host.cores({0, 4}), host.cores({1, 2})) == (4, 1, 2)
    assert host.nodes() == [NumaNode(0, "0-1", 1_024_000), NumaNode(1, "2-3", 2_048_000)]
    assert host.memory() == (16_384_000, 9_216_000)
    assert host.virtual() is True
    assert host.cpu_name() == "X"
    assert (
        host.steal() == 40 / 1000
    )  # of user, nice, system, idle, iowait, irq, softirq, steal; guest is part of user
    assert host.huge_pages() == "madvise"


def test_every_cpu_has_a_name_of_one_line(tmp_path: Path) -> None:
    for text in "", "model name\t:\n", "model name\t: \nflags\t\t: fpu\n", "processor : 0\n":
        for host in machine(tmp_path, {"proc/cpuinfo": text}), Host(tmp_path / "none"), Host():
            assert host.cpu_name().strip()
            assert "\n" not in host.cpu_name()


FILES = [
    "proc/cpuinfo",
    "proc/stat",
    "proc/meminfo",
    "proc/self/cgroup",
    "sys/fs/cgroup/cpu.max",
    "sys/fs/cgroup/memory.max",
    "sys/fs/cgroup/cpu/cpu.cfs_quota_us",
    "sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "sys/devices/system/node/node0/cpulist",
    "sys/devices/system/node/node0/meminfo",
    "sys/kernel/mm/transparent_hugepage/enabled",
    "sys/devices/system/cpu/cpu0/topology/thread_siblings_list",
]


def everything(host: Host) -> list[object]:
    return [
        host.quota(),
        host.memory_limit(),
        host.virtual(),
        host.steal(),
        host.huge_pages(),
        host.memory()[1],
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "nonsense",
        "cpu\n",
        "cpu  0 0 0 0 0 0 0 0\n",
        "MemTotal:\n",
        ":::\n/\n",
        "-",
        "9" * 5000,
        "\0\x80é",
        "[",
        "[]",
    ],
)
def test_odd_files_are_as_none(tmp_path: Path, text: str) -> None:
    host = machine(tmp_path, dict.fromkeys(FILES, text))
    assert everything(host) in ([None] * 6, [None, None, False, None, None, None])
    assert host.cores({0, 1}) == 2
    assert all(node.n_bytes is None for node in host.nodes())


def test_no_files_at_all_and_folders_in_their_place(tmp_path: Path) -> None:
    """As on macOS and Windows."""
    assert everything(Host(tmp_path / "none")) == [None] * 6
    for name in FILES:
        (tmp_path / name).mkdir(parents=True)
    assert everything(Host(tmp_path)) == [None] * 6
    assert Host(tmp_path).nodes() == []


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux's files")
def test_this_machine() -> None:
    host = Host()
    total, available = host.memory()
    words = Path("/proc/meminfo").read_text().split()
    assert total == 1024 * int(words[words.index("MemTotal:") + 1])
    assert available is not None
    assert 0 < available <= total
    assert 1 <= host.cores(os.sched_getaffinity(0)) <= len(os.sched_getaffinity(0))


# Advice

SOUND: dict[str, Any] = {
    "isa": {
        "chosen": "avx2",
        "why_not": None,
        "available": ["avx2", "generic"],
        "variable": None,
        "self_check": "ok",
    },
    "cache": {
        "folder": "/c",
        "why_not": None,
        "folders": [{"name": "avx2-0", "isa": "avx2", "kernels": 3, "bytes": 99, "current": True}],
    },
    "threads": {
        "chosen": 8,
        "cpus": 8,
        "cores": 8,
        "allowed": 8,
        "allowed_cores": 8,
        "quota": None,
        "quota_file": None,
    },
    "numa": [{"number": 0, "cpus": "0-7", "n_bytes": 10**10}],
    "memory": {
        "total": 10**10,
        "available": 8 * 10**9,
        "free": 8 * 10**9,
        "limit": None,
        "limit_file": None,
        "huge_pages": "always",
    },
    "model": {"path": "m", "reason": "-m", "size": 7 * 10**9, "slow": [], "error": None},
    "cpu": {
        "name": "X",
        "machine": "x86_64",
        "llvm_name": "x",
        "features": [],
        "virtual": True,
        "steal": 0.001,
    },
}
ADVICE: dict[str, tuple[dict[str, dict[str, Any]], list[str]]] = {
    "a lesser ISA": (
        {"isa": {"chosen": "generic", "variable": "generic"}},
        ["$QWENCLI_ISA chooses generic; avx2, which this CPU supports"],
    ),
    "an ISA that there isn't": (
        {"isa": {"chosen": None, "why_not": "no such thing", "self_check": None}},
        ["no such thing"],
    ),
    "an old CPU": (
        {"isa": {"chosen": "generic", "available": ["generic"]}},
        ["this CPU has none of the instruction sets"],
    ),
    "wrong kernels": (
        {"isa": {"self_check": "they give other logits"}},
        ["the kernels for avx2 fail their check: try QWENCLI_ISA=g"],
    ),
    "no cache": (
        {"cache": {"why_not": "/c: Read-only file system"}},
        ["compiled kernels can't be kept, so each run"],
    ),
    "stale kernels": (
        {
            "cache": {
                "folders": [{"name": "x", "isa": "x", "kernels": 3, "bytes": 2_500_000, "current": False}]
            }
        },
        ["kernels of other versions or CPUs take 2.5 MB"],
    ),
    "affinity": (
        {"threads": {"chosen": 2, "allowed": 2, "allowed_cores": 2}},
        ["this process may use 2 of 8 CPUs"],
    ),
    "hyperthreads": ({"threads": {"chosen": 4, "cores": 4, "allowed_cores": 4}}, ["8 CPUs share 4 cores"]),
    "a quota": (
        {"threads": {"chosen": 2, "quota": 2.5, "quota_file": "/f"}},
        ["/f allows this process 2.5 CPUs' time: -t is 2 by default"],
    ),
    "a quota above": ({"threads": {"quota": 16.0, "quota_file": "/f"}}, []),
    "little memory": ({"model": {"size": 9 * 10**9}}, ["the model has 9.0 GB, but 8.0 GB of memory is free"]),
    "a limit": ({"memory": {"free": 4 * 10**9}}, ["the model has 7.0 GB, but 4.0 GB of memory is free"]),
    "a slow format": ({"model": {"slow": ["Q5_0"]}}, ["there are no compiled kernels for Q5_0"]),
    "neighbours": ({"cpu": {"steal": 0.05}}, ["other virtual machines have taken 5 % of the CPU time"]),
    "nothing known": (
        {"memory": {"free": None}, "cpu": {"steal": None, "virtual": None}, "model": {"size": None}},
        [],
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_advice(name: str) -> None:
    changes, expected = ADVICE[name]
    facts = deepcopy(SOUND)
    assert advice(facts) == []
    for key, change in changes.items():
        facts[key] |= change
    lines = advice(facts)
    assert len(lines) == len(expected)
    assert all(line.startswith(begin) for line, begin in zip(lines, expected))


def test_advice_for_several_nodes() -> None:
    (line,) = advice(SOUND | {"numa": 2 * SOUND["numa"]})
    assert line.startswith("memory is spread over 2 NUMA nodes")


# The kernels' check


def test_the_kernels_give_what_numpy_gives() -> None:
    assert check_apart(isa.choose().name) == "ok"


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: np.roll(x, 1, axis=-1),
        lambda x: x * np.where(np.arange(x.shape[-1]) % 16 == 3, 0.5, 1),
        lambda x: np.where(np.arange(len(x))[:, None] == 5, x[::-1], x),
        lambda x: x * np.nan,
    ],
)
def test_wrong_results_are_noticed(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[Any], Any]) -> None:
    run = cpu.CPUBackend.run
    monkeypatch.setattr(
        cpu.CPUBackend, "run", lambda *args: {name: wrong(x) for name, x in run(*args).items()}
    )
    assert check().startswith("they give other logits than NumPy")


@posix
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("kill -ILL $$", "they ended their process with the signal 4 "),
        ("echo no kernels >&2; exit 3", "the exit code 3: no kernels"),
        ("exit 0", "the exit code 0"),
        ("echo '\"odd\"'", "odd"),
    ],
)
def test_a_check_that_ends_badly_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, expected: str
) -> None:
    """An illegal instruction ends the child, not the doctor."""
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert expected in check_apart("generic")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert check_apart("generic").startswith("they could not be run")


# The cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@posix
def test_clearing_takes_kernels_and_nothing_else(cache: Path, tmp_path: Path, call: Call) -> None:
    current, stale, outside = (
        jit.Kernels(isa.choose()).folder,
        cache / f"avx2-{20 * '0'}",
        tmp_path / "outside",
    )
    kept = {
        current / "notes.txt",
        cache / "other" / "ops-add.o",
        cache / "avx2-0" / "ops-add.o",
        outside / "ops-add.o",
        cache / f"x-{20 * '1'}",
    }
    gone = {current / "ops-add.o", current / "tiles.json", current / "tmpabc", stale / "ops-add.o"}
    for path in kept | gone:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    (cache / f"neon-{20 * '2'}").symlink_to(outside)
    found = {folder["name"]: folder for folder in kernel_cache()["folders"]}
    assert found == {
        current.name: {
            "name": current.name,
            "isa": isa.choose().name,
            "kernels": 1,
            "bytes": 15,
            "current": True,
        },
        stale.name: {"name": stale.name, "isa": "avx2", "kernels": 1, "bytes": 5, "current": False},
    }
    assert call("doctor", "--clear-cache", "--json") == (0, '{"deleted": 4, "bytes": 20}\n', "")
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in gone)
    assert current.is_dir()
    assert not stale.exists()
    assert call("doctor", "--clear-cache") == (0, "deleted 0 files, 0 bytes\n", "")


@posix
def test_why_kernels_are_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_cache() == {"folder": str(cache), "why_not": None, "folders": []}
    assert not cache.exists()
    monkeypatch.setenv("QWENCLI_CACHE", "/dev/null/cache")
    assert kernel_cache()["why_not"] == "/dev/null: Not a directory"
    monkeypatch.setenv("QWENCLI_CACHE", str(cache))
    folder = jit.Kernels(isa.choose()).folder
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    assert kernel_cache()["why_not"] == f"{folder}: others can write to it"


# The command


def test_the_facts_of_this_machine(call: Call) -> None:
    code, out, _ = call("doctor", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["versions"] == {
        "qwencli": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "llvm": facts["versions"]["llvm"],
        **{name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")},
    }
    assert facts["isa"]["chosen"] == isa.choose().name
    assert facts["isa"]["self_check"] == "ok"
    assert facts["threads"]["chosen"] == physical_cores()
    assert set(facts["cpu"]["features"]) <= isa.cpu_features()
    assert facts["limits"].keys() == {"bandwidth", "products", "flops"}
    assert all(value > 0 for value in facts["limits"].values())
    assert facts["model"]["size"] == os.path.getsize(facts["model"]["path"])


def test_the_text_has_each_fact_and_each_advice(
    call: Call, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(
        doctor, "check_apart", lambda name: "they ended their process with the signal 4 (Illegal instruction)"
    )
    monkeypatch.setattr(Host, "steal", lambda host: 0.25)  # which may change from one call to the next
    monkeypatch.setenv(isa.VARIABLE, "generic")
    code, out, err = call("doctor", "-m", "none.gguf")
    assert (code, err) == (
        0,
        "checking the kernels for generic, which have to be compiled first: a few seconds\n",
    )
    assert f"qwencli {__version__}, Python {platform.python_version()}" in out
    assert (
        "generic, $QWENCLI_ISA asks for generic, check failed: they ended their process with the signal 4"
        in out
    )
    assert str(cache) in out
    assert "none.gguf: cannot be read" in out
    facts = json.loads(call("doctor", "-m", "none.gguf", "--json").out)
    assert facts["limits"] is None  # nothing is measured with kernels that fail
    assert len(facts["advice"]) >= 1
    assert all(f"  - {line}\n" in out for line in facts["advice"])


def test_an_unknown_instruction_set_is_advice(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, "nonsense")
    facts = json.loads(call("doctor", "--json").out)
    assert facts["isa"]["chosen"] is None
    assert "the instruction set 'nonsense' ($QWENCLI_ISA) is not available" in facts["advice"][0]
    assert call("doctor").code == 0
