"""How threads run: on which CPUs, how many, how urgently; and that nothing of it reaches the threads of the caller."""

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import tiny
from random_models import random_model
from test_devices import NODE_0, NODE_1, allow, machine, server

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.cpu.team import PATIENCE
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.backends.threads import Threads
from qwencli.errors import InputError
from qwencli.llm import LLM
from qwencli.sampling import SamplingParams
from qwencli.system.cpu_masks import chosen_cpus, cpus_of_mask, cpus_of_range
from qwencli.system.host import Host
from qwencli.system.threads import why_no_priority

__all__ = ["server"]
LINUX = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux's")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", {0}),
        ("0x3", {0, 1}),
        ("f0", {4, 5, 6, 7}),
        ("0xFf", set(range(8))),
        ("8001", {0, 15}),
        ("0", set()),
        ("", set()),
        ("0x", set()),
        ("1" + "0" * 127, {508}),
        ("f" * 128, set(range(512))),
    ],
)
def test_masks(text: str, expected: set[int]) -> None:
    """llama.cpp's parse_cpu_mask: the last digit is that of CPUs 0 to 3."""
    assert cpus_of_mask(text) == expected


@pytest.mark.parametrize("text", ["g", "0X3", "0xx", "3 ", "-1", "٣", "1" * 129, "0x1_0", "1\x1b[0m"])
def test_masks_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as raised:
        cpus_of_mask(text)
    assert str(raised.value) == f"the CPU mask is {text[:40]!r}, expected up to 128 hexadecimal digits"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3", range(4)),
        ("5-5", range(5, 6)),
        ("-2", range(3)),
        ("510-", range(510, 512)),
        ("-", range(512)),
        ("007-8", range(7, 9)),
    ],
)
def test_ranges(text: str, expected: range) -> None:
    """llama.cpp's parse_cpu_range: an end that is missing is the first or the last of 512 CPUs."""
    assert cpus_of_range(text) == set(expected)


@pytest.mark.parametrize(
    "text", ["", "3", "a-b", "0-512", "3-1", "0-3-5", "0,1", " 0-1", "1-2x", "-٣", "9" * 500 + "-"]
)
def test_ranges_that_are_none(text: str) -> None:
    with pytest.raises(InputError) as raised:
        cpus_of_range(text)
    assert str(raised.value).startswith(
        f"the CPU range is {text[:40]!r}, expected the first and the last CPU"
    )


def test_mask_and_range_complement_each_other() -> None:
    assert chosen_cpus("0x11", "1-2") == {0, 1, 2, 4}
    assert chosen_cpus(None, "1-2") == {1, 2}
    assert chosen_cpus("3", None) == {0, 1}
    assert chosen_cpus(None, None) is None
    assert chosen_cpus("0", None) is None  # as in llama.cpp, where an empty mask changes nothing


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"batch": 0}, "0 threads for prompts, expected at least 1"),
        ({"priority": 4}, "the priority is 4, expected one from -1 to 3"),
        ({"priority": -2}, "the priority is -2, expected one from -1 to 3"),
        ({"poll": 101}, "poll is 101, expected a value from 0 to 100"),
        ({"poll": -1}, "poll is -1, expected a value from 0 to 100"),
        (
            {"numa": "mirror\x1b"},
            r"unknown NUMA strategy 'mirror\x1b', expected distribute, isolate, numactl",
        ),
    ],
)
def test_values_out_of_range(wrong: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        Threads(**wrong)
    assert str(raised.value) == error


# On machines that tests make up


def cpus(*numbers: int) -> frozenset[int]:
    return frozenset(numbers)


def on_cpu(server: Host, root: Path, cpu: int) -> Host:
    """The same machine, with the calling thread on a CPU: the 39th field of its stat file."""
    fields = ["1", "(a b) c)", "R", *["0"] * 35, str(cpu), "0", "0"]
    assert fields[38] == str(cpu)
    return machine(root, {"proc/thread-self/stat": " ".join(fields) + "\n"})


def test_cpus_that_the_process_may_not_use_dont_count(server: Host) -> None:
    """A mask for a larger machine still works, as the system's own call ignores what isn't there."""
    assert Threads(cpus=cpus_of_range("13-")).chosen_cpus(server) == {13, 14}
    with pytest.raises(InputError, match=r"^this process may not use CPU 15-16, but 0-14$"):
        Threads(cpus=cpus(15, 16)).chosen_cpus(server)


def test_isolate_keeps_to_the_node_on_which_the_process_runs(server: Host, tmp_path: Path) -> None:
    there = on_cpu(server, tmp_path, 12)
    assert Threads(numa="isolate").chosen_cpus(there) == NODE_1
    assert Threads(numa="isolate", cpus=cpus(3, 4, 12)).chosen_cpus(there) == {4, 12}
    with pytest.raises(
        InputError, match=r"no CPU of 0-3 is on the NUMA node that this process runs on, which has 4-7,12-14"
    ):
        Threads(numa="isolate", cpus=cpus(0, 1, 2, 3)).chosen_cpus(there)
    assert Threads(numa="isolate").chosen_cpus(on_cpu(server, tmp_path, 1)) == NODE_0


def test_distribute_puts_threads_on_the_nodes_in_turn(server: Host) -> None:
    assert Threads(numa="distribute").places(5, None, server) == [NODE_0, NODE_1, NODE_0, NODE_1, NODE_0]
    some = cpus(1, 2, 5)
    assert Threads(numa="distribute", cpus=some).places(3, some, server) == [{1, 2}, {5}, {1, 2}]
    assert Threads(numa="distribute", cpus=some, strict=True).places(5, some, server) == [
        {1},
        {5},
        {2},
        {5},
        {1},
    ]
    one = cpus(4, 5)
    assert Threads(numa="distribute", cpus=one).places(2, one, server) == [one, one]


@pytest.mark.parametrize("numa", [None, "numactl", "isolate", "distribute"])
def test_with_one_node_a_strategy_means_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numa: str | None
) -> None:
    allow(monkeypatch, {0, 1})
    plain = machine(tmp_path, {"sys/devices/system/node/node0/cpulist": "0-1\n"})
    assert Threads(numa=numa).chosen_cpus(plain) is None
    assert Threads(numa=numa).places(3, None, plain) is None
    assert list(Threads(numa=numa).warnings(8, plain)) == []


def test_strict_gives_each_thread_a_cpu_in_turn(server: Host) -> None:
    """ggml_thread_cpumask_next: the next CPU of the mask, and from the start again after the last."""
    some = cpus(2, 5, 14)
    assert Threads(cpus=some, strict=True).places(5, some, server) == [{2}, {5}, {14}, {2}, {5}]
    assert Threads(cpus=some).places(2, some, server) == [some, some]
    assert Threads(strict=True).places(2, None, server) is None


def test_warnings(server: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = Threads(cpus=cpus(0, 1))
    assert list(two.warnings(None, server)) == list(two.warnings(2, server)) == []
    assert list(two.warnings(3, server)) == [
        "3 threads share CPU 0-1, which is slow: give fewer threads or more CPUs"
    ]
    assert len(list(Threads(cpus=cpus(0, 1), batch=9).warnings(2, server))) == 1
    machine(tmp_path, {"proc/sys/kernel/numa_balancing": "1\n"})
    (line,) = Threads(numa="distribute").warnings(2, server)
    assert line.startswith("/proc/sys/kernel/numa_balancing is on")
    monkeypatch.delattr(os, "sched_setaffinity", raising=False)
    assert "threads run on any CPU: this system doesn't let a program choose" in list(two.warnings(2, server))


# On this machine


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny().write(tmp_path / "m.gguf")


@pytest.fixture
def started() -> Callable[[], dict[str, int]]:
    """A function that returns the native ids of the threads that teams and drivers have started since, by name."""
    before = set(threading.enumerate())

    def since() -> dict[str, int]:
        new = set(threading.enumerate()) - before
        return {t.name: t.native_id for t in new if t.name.startswith("qwencli-") and t.native_id}

    return since


GREEDY = SamplingParams(temp=0.0)


def answer(llm: LLM) -> list[str]:
    return list(llm.stream([1, 2, 3], 3, GREEDY))


@LINUX
def test_threads_stay_on_their_cpus_and_the_callers_where_it_was(
    path: Path, started: Callable[[], dict[str, int]]
) -> None:
    own = os.sched_getaffinity(0)
    first = min(own)
    llm = LLM(path, n_threads=3, threads=Threads(cpus=cpus(first), strict=True))
    answer(llm)
    found = {name: os.sched_getaffinity(number) for name, number in started().items()}
    assert found == {f"qwencli-{which}": {first} for which in (1, 2, "driver")}
    assert os.sched_getaffinity(0) == own
    later: list[set[int]] = []
    thread = threading.Thread(target=lambda: later.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"],
        capture_output=True,
        check=True,
    )
    assert later == [own]
    assert int(child.stdout) == len(own)


@LINUX
def test_a_low_priority_is_the_threads_own(path: Path, started: Callable[[], dict[str, int]]) -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)
    llm = LLM(path, n_threads=2, threads=Threads(priority=-1))
    answer(llm)
    found = started()
    assert set(found) == {"qwencli-1", "qwencli-driver"}
    for number in found.values():
        assert os.sched_getscheduler(number) & ~os.SCHED_RESET_ON_FORK == os.SCHED_BATCH
        assert os.getpriority(os.PRIO_PROCESS, number) == max(5, before[0])
    assert (os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0)) == before


@LINUX
@pytest.mark.parametrize(("priority", "level"), [(1, 40), (2, 80), (3, 90)])
def test_a_high_priority_or_one_line_that_says_why_not(
    path: Path, started: Callable[[], dict[str, int]], priority: int, level: int
) -> None:
    """SCHED_FIFO at 40, 80 and 90, as in ggml; without the permission threads run as usual."""
    said: list[str] = []
    llm = LLM(path, n_threads=2, threads=Threads(priority=priority), report=said.append)
    found = answer(llm)
    why = why_no_priority(priority)
    assert [line for line in said if "priority" in line] == (
        [f"threads don't get the priority {priority}: {why}, it takes root or CAP_SYS_NICE"] if why else []
    )
    for number in started().values():
        policy = os.sched_getscheduler(number) & ~os.SCHED_RESET_ON_FORK
        expected = (os.SCHED_OTHER, 0) if why else (os.SCHED_FIFO, level)
        assert (policy, os.sched_getparam(number).sched_priority) == expected
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    assert found == answer(LLM(path, n_threads=2))


@LINUX
def test_a_priority_that_is_not_allowed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "setpriority", refuse)
    said: list[str] = []
    llm = LLM(path, n_threads=2, threads=Threads(priority=2), report=said.append)
    assert "threads don't get the priority 2: Operation not permitted, it takes root or CAP_SYS_NICE" in said
    assert answer(llm) == answer(LLM(path, n_threads=2))


@pytest.mark.parametrize(("n_threads", "batch", "most"), [(1, 3, 3), (3, 1, 3), (2, None, 2)])
def test_prompts_have_their_own_number_of_threads(
    path: Path, started: Callable[[], dict[str, int]], n_threads: int, batch: int | None, most: int
) -> None:
    llm = LLM(path, n_threads=n_threads, threads=Threads(batch=batch))
    backend = llm.engine.backend
    assert isinstance(backend, CPUBackend)
    asked: list[int | None] = []
    run = backend._team.run
    backend._team.run = lambda rows, budget, n=None: (asked.append(n), run(rows, budget, n))[1]  # type: ignore[method-assign]
    answer(llm)
    assert asked == [batch or n_threads, n_threads, n_threads]
    assert backend.n_threads == n_threads
    assert len(started()) == most - 1


@pytest.mark.parametrize(
    ("poll", "patience"), [(None, PATIENCE), (50, PATIENCE), (0, 0), (100, 2 * PATIENCE)]
)
def test_poll_is_how_long_threads_wait_awake(tmp_path: Path, poll: int | None, patience: int) -> None:
    backend = CPUBackend(random_model(tmp_path, "F32"), 2, threads=Threads(poll=poll))
    assert backend._team._state["patience"] == patience
    seq = KVSequence()
    for token in range(3):
        backend.run([LOGITS], Batch([Segment(seq, [token], 1)]))


def test_numpys_threads_know_nothing_of_it(path: Path) -> None:
    said: list[str] = []
    LLM(path, backend="numpy", threads=Threads(batch=1, poll=0), report=said.append)
    assert "NumPy's own threads run this model, and know nothing of batch, poll" in said


def test_devices_name_their_cpus_themselves(path: Path) -> None:
    with pytest.raises(
        InputError, match="devices and a list of CPUs or a NUMA strategy are given: name the CPUs as devices"
    ):
        LLM(path, devices="cpu", threads=Threads(cpus=cpus(0)))
