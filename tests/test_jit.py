"""The cache of compiled kernels: warm without Numba, sound whatever happens to it; and the choice of the instruction set."""

import ctypes
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call, allow_ctrl_c
from kernel_calls import packed

from qwencli.kernels import isa, jit
from qwencli.kernels.arguments import ADD
from qwencli.kernels.workers import CLAIMED, compile_apart, n_workers_for

SPEC = "ops:add"
OTHERS = ["ops:gather", "heads:rotate"]
CHILD = """
import ctypes, json, sys
from qwencli.kernels import isa, jit
from qwencli.kernels.arguments import ADD
kernels, reports = jit.Kernels(isa.choose()), []
kernels.report = lambda message: (reports.append(message), print(message, file=sys.stderr, flush=True))
address = kernels.load(sys.argv[1:])["ops:add"]
x, out = (ctypes.c_float * 3)(1, 2, 3), (ctypes.c_float * 3)()
count = ctypes.c_int64(1)
at = ctypes.addressof
args = ADD.pack(count=at(count), unit=1, x=at(x), y=at(x), n_cols=3, out=at(out))
ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)(args.ctypes.data, 0, 0)
print(json.dumps({"numba": "numba" in sys.modules, "reports": reports, "out": list(out)}))
"""
"""Loads kernels and runs one of them."""


def start(folder: Path, *specs: str, **environment: str) -> subprocess.Popen[str]:
    env = (
        os.environ
        | {"QWENCLI_CACHE": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        | environment
    )
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, SPEC, *specs],
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=allow_ctrl_c if os.name == "posix" else None,
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    assert answer["out"] == [2, 4, 6]
    return answer


def works(kernels: jit.Kernels) -> bool:
    x, out, count = np.arange(5, dtype=np.float32), np.zeros(5, np.float32), np.array([1])
    args = packed(ADD, count=count, unit=1, x=x, y=x, n_cols=5, out=out)
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 3)(kernels.load([SPEC])[SPEC])(args.ctypes.data, 0, 0)
    return np.array_equal(out, 2 * x)


@pytest.fixture(scope="module")
def code() -> bytes:
    """The kernel's object file."""
    return dict(compile_apart(isa.choose(), [SPEC]))[SPEC]


class Cache:
    """A cache in a folder of its own, and what compiling does to it; compiling itself is skipped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiled: list[str] = []
        self.reports: list[str] = []

    def kernels(self) -> jit.Kernels:
        kernels = jit.Kernels(isa.choose())
        kernels.report = self.reports.append
        return kernels

    @property
    def file(self) -> Path:
        return self.kernels()._path(SPEC)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: bytes) -> Cache:
    found = Cache(tmp_path / "cache")
    monkeypatch.setenv("QWENCLI_CACHE", str(found.folder))

    def compile_apart(isa: isa.ISA, specs: list[str]) -> Iterator[tuple[str, bytes]]:
        found.compiled += specs
        yield from ((spec, code) for spec in specs)

    monkeypatch.setattr("qwencli.kernels.workers.compile_apart", compile_apart)
    return found


def test_what_was_compiled_is_kept(cache: Cache) -> None:
    assert works(cache.kernels())
    assert works(cache.kernels())
    assert cache.compiled == [SPEC]
    assert [re.sub(r"[\d.]+ s$", "N s", report) for report in cache.reports] == [
        f"compiling 1 kernel for this CPU ({isa.choose().name}), once: about N s",
        "compiled in N s",
    ]
    assert [path.name for path in cache.file.parent.iterdir()] == ["ops-add.o"]


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place:][1:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:60],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: flip(data, 0),
        lambda data: flip(data, 20),
        lambda data: flip(data, 60),
        lambda data: flip(data, len(data) - 1),
        lambda data: bytes(len(data)),
    ],
)
def test_a_damaged_object_is_compiled_again(cache: Cache, damage: Callable[[bytes], bytes]) -> None:
    assert works(cache.kernels())
    whole = cache.file.read_bytes()
    cache.file.write_bytes(damage(whole))
    assert works(cache.kernels())
    assert cache.compiled == [SPEC, SPEC]
    assert cache.file.read_bytes() == whole


def test_a_folder_in_the_place_of_an_object(cache: Cache) -> None:
    cache.file.mkdir(parents=True)
    assert works(cache.kernels())
    assert ["can't be kept" in report for report in cache.reports] == [False, True, False]


@pytest.mark.parametrize("folder", ["/dev/null", "/dev/null/below", "/proc/none", "x" * 5000])
def test_a_cache_that_cannot_be_written(cache: Cache, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setenv("QWENCLI_CACHE", folder)
    for _ in range(2):
        assert works(cache.kernels())
    assert cache.compiled == [SPEC, SPEC]
    assert sum("can't be kept" in report for report in cache.reports) == 2


@pytest.mark.parametrize("function", ["mkstemp", "replace"])
def test_a_full_disk(cache: Cache, monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    module = jit.os if function == "replace" else jit.tempfile
    monkeypatch.setattr(module, function, full)
    assert works(cache.kernels())
    assert "can't be kept" in cache.reports[1]
    assert "No space left on device" in cache.reports[1]
    assert list(cache.file.parent.iterdir()) == []


def test_without_a_home(cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a container whose user has no entry: nothing is written into the folder where the program happens to run."""
    for name in "QWENCLI_CACHE", "XDG_CACHE_HOME":
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert works(cache.kernels())
    assert list((tmp_path / "here").iterdir()) == []


def test_the_key_names_all_that_decides_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(Path(jit.__file__).parent, tmp_path / "kernels")
    hashed = jit._sources.__wrapped__
    original = hashed()
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "kernels" / "jit.py"))
    assert hashed() == original
    with open(tmp_path / "kernels" / "simd" / "generic.py", "a") as f:
        f.write("\n")
    edited = hashed()
    (tmp_path / "kernels" / "quants" / "q9_9.py").touch()
    added = hashed()
    monkeypatch.setattr(jit, "_version", lambda package: "99")
    assert len({original, edited, added, hashed()}) == 4
    folders = {jit.Kernels(each).folder for each in isa.available()}
    assert len(folders) == len(isa.available())
    monkeypatch.setattr(jit, "target", lambda isa: ("another-cpu", ""))
    assert jit.Kernels(isa.choose()).folder not in folders


@pytest.mark.parametrize("package", ["numba", "llvmlite", "numpy"])
def test_versions_are_what_the_packages_say(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.import_module(package).__version__
    assert jit._version(package) == version
    monkeypatch.setattr(
        Path, "glob", lambda self, pattern: []
    )  # an installer that writes no such folder, or two
    assert jit._version(package) == version


# In processes of their own


def test_a_warm_start_does_not_import_numba(tmp_path: Path) -> None:
    first = result(start(tmp_path))
    assert len(first["reports"]) == 2
    second = result(start(tmp_path))
    assert not second["numba"]
    assert second["reports"] == []


def test_a_warm_answer_does_not_import_numba() -> None:
    script = (
        "import sys; from qwencli.llm import LLM; from qwencli.hub.choice import find_model\n"
        "print(len(list(LLM(find_model(None).path).stream([1, 2, 3], max_tokens=3))), 'numba' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    env.pop("QWENCLI_MODEL", None)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120, check=True
        )
    assert done.stdout.split()[1] == "False"


def test_several_processes_at_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, *OTHERS) for _ in range(3)]
    for process in processes:
        result(process)
    names = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert names == sorted(spec.replace(":", "-") + ".o" for spec in [SPEC, *OTHERS])
    assert result(start(tmp_path, *OTHERS))["reports"] == []


def test_workers_share_the_kernels_and_each_is_known_when_it_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The long ones are begun first, and each kernel is kept and counted once."""
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path))
    kernels, done = jit.Kernels(isa.choose()), []
    kernels.progress = lambda n, total: done.append((n, total))
    written: list[str] = []
    write = kernels._write
    monkeypatch.setattr(kernels, "_write", lambda spec, code: (written.append(spec), write(spec, code)))
    specs = [SPEC, *OTHERS, "sampling:choose"]
    commands = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda command, **options: (commands.append(command), popen(command, **options))[1],
    )
    kernels.load(specs)
    assert done == [(n, len(specs)) for n in range(len(specs) + 1)]
    assert sorted(written) == sorted(specs)
    assert len(commands) == n_workers_for(len(specs))
    assert all(command[-len(specs)] == "sampling:choose" for command in commands)


def workers(folder: Path) -> list[str]:
    """The processes that have `folder` in their environment or command line: one that was just forked has its parent's line still."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            command = (path / "cmdline").read_bytes()
            if str(folder).encode() in command + (path / "environ").read_bytes():
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


LOOKS = 5
"""In how many looks, one after the other, there has to be no process: one that is just being started can't be seen for a moment, since
the system has taken its parent's command line away and not given it its own yet."""


def check_nothing_is_left(folder: Path) -> None:
    """No processes, and in the cache only what was compiled to the end, which is not all; it works."""
    deadline = time.monotonic() + 60
    n_without = 0
    while n_without < LOOKS:
        found = workers(folder)
        assert not found or time.monotonic() < deadline, found
        n_without = 0 if found else n_without + 1
        time.sleep(0.05)
    kept = [path.name for path in (folder / "cache").rglob("*") if path.is_file()]
    assert set(kept) < {spec.replace(":", "-") + ".o" for spec in LONG}
    assert len(result(start(folder / "cache"))["reports"]) == 2
    assert (
        result(start(folder / "cache", *(name.removesuffix(".o").replace("-", ":") for name in kept)))[
            "reports"
        ]
        == []
    )


LONG = ["sampling:choose", *(f"attention:attend:{16 * n}:f16:f16" for n in range(1, 33))]


@pytest.fixture
def compiling(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that compiles for a minute: its cache is tmp_path / "cache", its temporary files are in tmp_path / "tmp"."""
    (tmp_path / "tmp").mkdir()
    process = start(tmp_path / "cache", *LONG, TMPDIR=str(tmp_path / "tmp"))
    assert process.stderr is not None
    assert "compiling" in process.stderr.readline()
    yield process
    process.kill()
    process.communicate()


def wait_for_workers(folder: Path) -> None:
    """Until one has begun a kernel."""
    deadline = time.monotonic() + 60
    while not list(folder.rglob(f"*{CLAIMED}")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("when", ["at once", "soon", "amid it"])
def test_ctrl_c_while_compiling(compiling: subprocess.Popen[str], tmp_path: Path, when: str) -> None:
    """It ends before all is compiled, with the processes that it started, and leaves neither temporary files nor half an object."""
    if when == "soon":
        time.sleep(0.01)
    elif when == "amid it":
        wait_for_workers(tmp_path / "tmp")
    compiling.send_signal(signal.SIGINT)
    compiling.communicate(timeout=60)
    assert compiling.returncode == -signal.SIGINT
    check_nothing_is_left(tmp_path)
    left = list((tmp_path / "tmp").rglob("*"))
    early = (
        when != "amid it"
    )  # it may come while `tempfile` tries TMPDIR by a file, or makes the folder, which then stays, empty
    assert len(left) <= early, left


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("when", ["at once", "amid it"])
def test_a_process_that_is_killed_while_compiling(
    compiling: subprocess.Popen[str], tmp_path: Path, when: str
) -> None:
    if when == "amid it":
        wait_for_workers(tmp_path / "tmp")
    compiling.kill()
    compiling.communicate(timeout=60)
    check_nothing_is_left(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script as the interpreter")
def test_a_worker_that_the_system_kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For want of memory, say: then the kernel is compiled in this process."""
    (tmp_path / "python").write_text("#!/bin/sh\nkill -KILL $$\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "cache"))
    assert works(jit.Kernels(isa.choose()))


# Instruction sets


@pytest.mark.parametrize("command", [("run", "-p", "hi", "-n", "1"), ("perplexity", "-f", "-", "-c", "16")])
def test_an_unknown_instruction_set(
    call: Call, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    monkeypatch.setenv(isa.VARIABLE, "nonsense")
    done = call(*command, stdin=b"the and in a " * 30)
    assert done.code == 1
    last = done.err.splitlines()[-1]
    assert "the instruction set 'nonsense' ($QWENCLI_ISA) is not available" in last
    assert last.endswith(", ".join(each.name for each in isa.available()))
    assert "Traceback" not in done.err


def test_an_instruction_set_that_this_cpu_lacks(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isa, "cpu_features", lambda: frozenset({"sse4.2", "ssse3"}))
    monkeypatch.delenv(isa.VARIABLE, raising=False)
    assert isa.choose().name == "generic"
    monkeypatch.setenv(isa.VARIABLE, "avx2")
    done = call("run", "-p", "hi", "-n", "1")
    assert done.code == 1
    assert done.err.splitlines()[-1].endswith(
        "the instruction set 'avx2' ($QWENCLI_ISA) is not available on this CPU, which has generic"
    )


def test_the_best_instruction_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(isa.VARIABLE, raising=False)
    assert isa.choose() == isa.available()[0]
    monkeypatch.setenv(isa.VARIABLE, "")
    assert isa.choose() == isa.available()[0]
    for each in isa.available():
        monkeypatch.setenv(isa.VARIABLE, each.name)
        assert isa.choose() == each
