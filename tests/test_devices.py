"""Devices by name, on machines that tests make up."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import Call

from qwencli.backends.devices import Device, known_devices, n_threads, parse_devices
from qwencli.errors import InputError, QwenError
from qwencli.kernels import isa
from qwencli.machine.devices import list_devices
from qwencli.machine.peak import Peak, on_cpus
from qwencli.system.host import Host, read_cpus
from qwencli.units import ranges

NODE, CPU = "sys/devices/system/node", "sys/devices/system/cpu"


def machine(root: Path, files: dict[str, str]) -> Host:
    """A system that has these files and no others."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return Host(root)


def allow(monkeypatch: pytest.MonkeyPatch, cpus: set[int]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus, raising=False)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """Two nodes of four cores with two hardware threads each: node 0 has cores 0-3 and their second threads 8-11. CPU 15 is offline."""
    allow(monkeypatch, set(range(15)))
    siblings = {
        f"{CPU}/cpu{i}/topology/thread_siblings_list": "7\n" if i == 7 else f"{i % 8},{i % 8 + 8}\n"
        for i in range(15)
    }
    return machine(
        tmp_path,
        {
            **siblings,
            f"{NODE}/node0/cpulist": "0-3,8-11\n",
            f"{NODE}/node1/cpulist": "4-7,12-14\n",
            f"{NODE}/node2/cpulist": "\n",  # memory without CPUs
        },
    )


@pytest.fixture
def unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A system that says nothing but its number of CPUs, as macOS and Windows do."""
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    return Host(tmp_path / "none")


NODE_0, NODE_1 = frozenset({0, 1, 2, 3, 8, 9, 10, 11}), frozenset({4, 5, 6, 7, 12, 13, 14})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", [Device("cpu", "cpu")]),
        ("numpy", [Device("numpy", "numpy")]),
        ("cpu:0,cpu:1", [Device("cpu:0", "cpu", NODE_0, 0), Device("cpu:1", "cpu", NODE_1, 1)]),
        ("cpus:0-3", [Device("cpus:0-3", "cpu", frozenset({0, 1, 2, 3}), 0)]),
        ("cpus:8-11+0-3", [Device("cpus:0-3+8-11", "cpu", NODE_0, 0)]),
        ("cpus:3-4", [Device("cpus:3-4", "cpu", frozenset({3, 4}), None)]),
        (
            "cpus:5,cpus:6",
            [Device("cpus:5", "cpu", frozenset({5}), 1), Device("cpus:6", "cpu", frozenset({6}), 1)],
        ),
        (" CPU:01 , NumPy ", [Device("cpu:1", "cpu", NODE_1, 1), Device("numpy", "numpy")]),
        ("numpy,cpu", [Device("numpy", "numpy"), Device("cpu", "cpu")]),
    ],
)
def test_names(server: Host, text: str, expected: list[Device]) -> None:
    assert parse_devices(text, server) == expected


KNOWN = "; known are cpu, cpu:0, cpu:1, cpus:LIST (0-14), numpy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no device is named" + KNOWN),
        (" , ,", "no device is named" + KNOWN),
        ("cpu,", "unknown device ''" + KNOWN),
        ("gpu", "unknown device 'gpu'" + KNOWN),
        ("cpu:", "unknown device 'cpu:'" + KNOWN),
        ("cpu:-1", "unknown device 'cpu:-1'" + KNOWN),
        ("cpu:١", "unknown device 'cpu:١'" + KNOWN),
        ("cpu\x1b[31m", r"unknown device 'cpu\x1b[31m'" + KNOWN),
        ("x" * 500, f"unknown device {'x' * 40!r}" + KNOWN),
        ("cpu:2", "there is no NUMA node 2" + KNOWN),
        ("cpu:7", "there is no NUMA node 7" + KNOWN),
        ("cpus:", "device 'cpus:': '' is not a CPU or a range of CPUs" + KNOWN),
        ("cpus:a", "device 'cpus:a': 'a' is not a CPU or a range of CPUs" + KNOWN),
        ("cpus:1++2", "device 'cpus:1++2': '' is not a CPU or a range of CPUs" + KNOWN),
        ("cpus:3-0", "device 'cpus:3-0': '3-0' is not a range of CPUs" + KNOWN),
        ("cpus:0-999999999", "device 'cpus:0-999999999': '0-999999999' is not a range of CPUs" + KNOWN),
        ("cpus:15", "device 'cpus:15': this process has no CPU 15" + KNOWN),
        ("cpus:14-17+20", "device 'cpus:14-17+20': this process has no CPUs 15-17,20" + KNOWN),
        ("cpu:0,CPU:00", "the device cpu:0 is named twice"),
        ("numpy,numpy", "the device numpy is named twice"),
        ("cpus:0+1,cpus:0-1", "the device cpus:0-1 is named twice"),
        ("cpu,cpus:0", "the devices cpu and cpus:0 share CPU 0"),
        ("cpu:1,numpy,cpus:3-5", "the devices cpu:1 and cpus:3-5 share CPUs 4-5"),
    ],
)
def test_what_is_refused(server: Host, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_devices(text, server)
    assert str(caught.value) == message


def test_long_lists_are_shortened(server: Host) -> None:
    with pytest.raises(InputError) as caught:
        parse_devices("cpus:" + "+".join(str(2 * i) for i in range(5000)), server)
    assert len(str(caught.value)) < 250


def test_only_what_the_affinity_allows(server: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 1, 8})
    assert parse_devices("cpu:0", server) == [Device("cpu:0", "cpu", frozenset({0, 1, 8}), 0)]
    with pytest.raises(InputError, match=r"may not use any CPU of NUMA node 1; known are cpu, cpu:0, cpus:"):
        parse_devices("cpu:1", server)
    with pytest.raises(InputError, match=r"has no CPUs 2-3; known are .* \(0-1\+8\)"):
        parse_devices("cpus:0-3", server)
    assert [device.name for device in known_devices(server)] == ["cpu", "cpu:0", "numpy"]
    assert [n_threads(device, server) for device in known_devices(server)] == [2, 2, 2]


def test_known_devices(server: Host) -> None:
    assert known_devices(server) == [
        Device("cpu", "cpu"),
        Device("cpu:0", "cpu", NODE_0, 0),
        Device("cpu:1", "cpu", NODE_1, 1),
        Device("numpy", "numpy"),
    ]


@pytest.mark.parametrize(
    ("name", "n"), [("cpu", 8), ("cpu:0", 4), ("cpus:0-3", 4), ("cpus:0+8", 1), ("cpus:0-1+8", 2)]
)
def test_threads_are_cores(server: Host, name: str, n: int) -> None:
    (device,) = parse_devices(name, server)
    assert n_threads(device, server) == n


def test_threads_are_limited_by_the_quota(server: Host, tmp_path: Path) -> None:
    machine(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"})
    assert [n_threads(device, server) for device in known_devices(server)] == [2, 2, 2, 2]
    (one,) = parse_devices("cpus:4", server)
    assert n_threads(one, server) == 1


def test_a_system_without_nodes_has_node_0(unknown: Host) -> None:
    assert [device.name for device in known_devices(unknown)] == ["cpu", "numpy"]
    assert parse_devices("cpu:0", unknown) == [Device("cpu:0", "cpu", frozenset(range(4)), 0)]
    with pytest.raises(InputError, match=r"no NUMA node 1; known are cpu, cpu:0, cpus:LIST \(0-3\), numpy$"):
        parse_devices("cpu:1", unknown)
    assert n_threads(known_devices(unknown)[0], unknown) == 4


def test_odd_lists_of_cpus_are_no_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, {0, 1})
    host = machine(tmp_path, {f"{NODE}/node{i}/cpulist": text for i, text in enumerate(("x", "9-0", "\0"))})
    assert parse_devices("cpu:0", host) == [Device("cpu:0", "cpu", frozenset({0, 1}), 0)]


def test_this_machine() -> None:
    names = [device.name for device in known_devices()]
    assert names[0] == "cpu"
    assert names[-1] == "numpy"
    for name in names:
        (device,) = parse_devices(name)
        assert device.name == name
        assert n_threads(device) >= 1


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), (" 5 , 7-7\n", {5, 7}), ("65535", {65535})]
)
def test_lists_of_cpus(text: str, cpus: set[int]) -> None:
    assert read_cpus(text) == cpus
    assert ranges(cpus) == re.sub(r"\s|-7", "", text)


@pytest.mark.parametrize("text", ["", ",", "0,", "-1", "1-", "65536", "2-1", "0x1", "1.5", "٣"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(ValueError, match="is not a"):
        read_cpus(text)


# qwencli devices


def cache(cpu: int, index: int, level: int, kind: str, size: str, shared: str) -> dict[str, str]:
    folder = f"{CPU}/cpu{cpu}/cache/index{index}"
    names = {"level": level, "type": kind, "size": size, "shared_cpu_list": shared}
    return {f"{folder}/{name}": f"{value}\n" for name, value in names.items()}


@pytest.fixture
def filled(server: Host, tmp_path: Path) -> Host:
    """The server, with caches and memory: the formats are those of the kernel's Documentation/ABI (sysfs-devices-system-cpu, -node)."""
    files = {
        "proc/cpuinfo": "model name\t: EPYC 9\n",
        "proc/meminfo": "MemTotal:       3000 kB\nMemFree:         100 kB\nMemAvailable:   2000 kB\n",
        f"{NODE}/node0/meminfo": (
            "Node 0 MemTotal:       1000 kB\nNode 0 MemFree:         300 kB\nNode 0 Active:  90 kB\n"
            "Node 0 Active(file):     40 kB\nNode 0 Inactive(file):     2 kB\nNode 0 FilePages:     50 kB\n"
        ),
        f"{NODE}/node1/meminfo": "Node 1 MemTotal:       2000 kB\n",
    }
    for i in range(15):
        core = "7" if i == 7 else f"{i % 8},{i % 8 + 8}"
        own = "0-3,8-11" if i % 8 < 4 else "4-7,12-14"
        files |= cache(i, 0, 1, "Data", "48K", core) | cache(i, 1, 1, "Instruction", "32K", core)
        files |= cache(i, 2, 2, "Unified", "2048K", core) | cache(i, 3, 3, "Unified", "65536K", own)
    files |= cache(0, 4, 4, "Unified", "many", "0") | cache(0, 5, 4, "Unified", "1K", "x")
    return machine(tmp_path, files)


def test_the_facts_of_each_device(filled: Host) -> None:
    found = list_devices(host=filled)
    devices = {device["name"]: device for device in found["devices"]}
    assert found["n_devices"] == len(devices) == 4
    assert list(devices) == ["cpu", "cpu:0", "cpu:1", "numpy"]
    node_0 = devices["cpu:0"]
    assert node_0 == {
        "name": "cpu:0",
        "description": "EPYC 9",
        "backend": "cpu",
        "type": "CPU",
        "node": 0,
        "cpus": "0-3,8-11",
        "n_cpus": 8,
        "cores": 4,
        "threads": 4,
        "isa": isa.choose().name,
        "caches": [
            {"name": "L1d", "bytes": 48 * 1024, "count": 4},
            {"name": "L1i", "bytes": 32 * 1024, "count": 4},
            {"name": "L2", "bytes": 2**21, "count": 4},
            {"name": "L3", "bytes": 2**26, "count": 1},
        ],
        "buffer_types": ["mapped file", "memory"],
        "memory": 1_024_000,
        "free": 342 * 1024,
        "limits": None,
    }
    assert [d["memory"] for d in devices.values()] == [3_072_000, 1_024_000, 2_048_000, 3_072_000]
    assert [d["free"] for d in devices.values()] == [2_048_000, 342 * 1024, 2_048_000, 2_048_000]
    assert [d["cores"] for d in devices.values()] == [8, 4, 4, 8]
    assert [d["caches"][3]["count"] for d in devices.values()] == [2, 1, 1, 2]
    assert devices["numpy"]["isa"] is None


def test_what_is_unknown_is_none(unknown: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    for facts in list_devices(host=unknown)["devices"]:
        assert (facts["memory"], facts["free"], facts["caches"]) == (None, None, [])
        assert (facts["cpus"], facts["cores"]) == ("0-3", 4)


def test_memory_is_what_the_cgroup_allows(filled: Host, tmp_path: Path) -> None:
    machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/memory.max": "500000\n",
            "sys/fs/cgroup/memory.current": "400000\n",
        },
    )
    devices = list_devices(host=filled)["devices"]
    assert [d["memory"] for d in devices] == [500_000, 1_024_000, 2_048_000, 500_000]
    assert [d["free"] for d in devices] == [100_000, 100_000, 100_000, 100_000]


def test_huge_pages_are_a_type_of_buffer_where_the_system_has_them(filled: Host, tmp_path: Path) -> None:
    file = "sys/kernel/mm/transparent_hugepage/enabled"
    for text, there in (
        ("always [madvise] never", True),
        ("[always] madvise never", True),
        ("always madvise [never]", False),
    ):
        machine(tmp_path, {file: text + "\n"})
        for facts in list_devices(host=filled)["devices"]:
            assert ("huge pages" in facts["buffer_types"]) == there


def test_the_command_in_text(call: Call, filled: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwencli.machine.devices.Host", lambda: filled)
    code, out, err = call("devices")
    assert (code, err) == (0, "")
    assert out.startswith("4 devices\n\ncpu: EPYC 9\n")
    assert "\ncpu:1: EPYC 9\n" in out
    assert "CPUs          4-7,12-14, 4 cores, 4 threads, NUMA node 1\n" in out
    assert "caches        L1d 4 x 48 KiB, L1i 4 x 32 KiB, L2 4 x 2 MiB, L3 64 MiB\n" in out
    assert "memory        1.0 MB, 350.2 kB free\n" in out
    assert "measured" not in out


def test_the_command_in_json(call: Call) -> None:
    code, out, err = call("devices", "--json")
    facts = json.loads(out)
    assert (code, err) == (0, "")
    assert [device["name"] for device in facts["devices"]] == [device.name for device in known_devices()]
    assert facts["devices"][0]["isa"] == isa.choose().name
    assert facts["devices"][0]["cores"] == Host().cores(Host().allowed())


def test_what_is_measured(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwencli.machine.peak.buffer_bytes", lambda: 2**26)
    devices = json.loads(call("devices", "--measure", "--json").out)["devices"]
    for facts in devices:
        limits = facts["limits"]
        assert limits.keys() == {"bandwidth", "products", "flops"}
        assert limits["bandwidth"] > 0
        assert limits["flops"] > 0
        assert (limits["products"] is None) == (facts["backend"] == "numpy")
    assert call("devices", "--measure").out.count("  measured      ") == len(devices)


def test_an_instruction_set_that_is_not_there(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(isa.VARIABLE, "nonsense")
    facts = json.loads(call("devices", "--measure", "--json").out)["devices"][0]
    assert (facts["isa"], facts["limits"]) == (None, None)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's")
def test_a_measurement_stays_on_its_cpus() -> None:
    """So do the threads that it starts; the caller goes anywhere as before."""
    before = os.sched_getaffinity(0)
    one = frozenset([max(before)])
    found = []

    def measure() -> Peak:
        found.append(os.sched_getaffinity(0))
        other = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
        other.start()
        other.join()
        return Peak(1, 2, 3)

    assert on_cpus(one, measure) == Peak(1, 2, 3)
    assert found == [one, one]
    assert os.sched_getaffinity(0) == before
    with pytest.raises(QwenError, match="no thread may stay on the CPUs 65000: "):
        on_cpus(frozenset([65000]), measure)


def test_the_command_needs_no_numba(tmp_path: Path) -> None:
    """Which instructions the CPU has is LLVM's to say, so that kernels are compiled for what is shown."""
    code = """
import sys
from qwencli.cli import main
assert main(["devices", "--json"]) == 0
print(sorted({"numba", "tokenizers", "gguf", "jinja2"} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stderr == "[]\n"


def test_names_need_no_compiler() -> None:
    code = "import sys, qwencli.backends.devices; print({'numba', 'llvmlite'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
