"""Weights that stay in memory: mlock, and what is said where it isn't allowed."""

import ctypes
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_builder import f32, tiny

from qwencli.gguf.file import GGUFFile
from qwencli.system import locked
from qwencli.system.locked import lock

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
CHILD = """
import ctypes, resource, sys
from qwencli.llm import LLM

def locked():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck"))

path, limit, may = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "may"
if not may:  # CAP_IPC_LOCK, capability 14, of capset(2): with it there is no limit
    class Head(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]
    libc, head, data = ctypes.CDLL(None, use_errno=True), Head(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(head), data) == 0
    data[0] &= ~(1 << 14)
    assert libc.capset(ctypes.byref(head), data) == 0
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
said = []
llm = LLM(path, mlock=True, use_mmap=sys.argv[4] == "map", report=said.append)
print(locked(), *[line for line in said if "kept in memory" in line], sep="|")
print(len("".join(llm.stream([1, 2, 3], max_tokens=2))) > 0)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of about 3 MB, which is more than tests set as the limit."""
    model = tiny()
    model.metadata["padding"] = "[u8]", [0] * (3 << 20)
    return model.write(tmp_path / "m.gguf")


def child(*args: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, args)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    first, answered = done.stdout.splitlines()
    assert answered == "True"
    return first.split("|")


@LINUX
@pytest.mark.parametrize("how", ["map", "read"])
def test_all_of_the_file_is_locked(path: Path, how: str) -> None:
    kilobytes, *said = child(path, 0, "may", how)
    if said:
        pytest.skip(f"not allowed here: {said}")
    assert int(kilobytes) >= path.stat().st_size // 1024


@LINUX
def test_the_limit_is_named(path: Path) -> None:
    """The model runs all the same, as with llama.cpp."""
    kilobytes, said = child(path, 1 << 20, "may not", "map")
    assert kilobytes == "0"
    assert said == "the weights aren't kept in memory: a process may lock 1.0 MB, raise that with `ulimit -l`"


@LINUX
def test_without_mlock_nothing_is_locked(path: Path) -> None:
    from qwencli.llm import LLM

    llm = LLM(path)
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    assert re.search(r"^VmLck:\s+0 kB$", status, re.M)
    del llm


class Mlock:
    """Fails after a number of calls with an errno."""

    def __init__(self, allowed: int, code: int) -> None:
        self.left, self.code, self.pieces = allowed, code, []

    def __call__(self, address: int, size: int) -> int:
        self.left -= 1
        if self.left < 0:
            ctypes.set_errno(self.code)
            return -1
        self.pieces.append((address, size))
        return 0


@pytest.mark.parametrize(
    ("allowed", "code", "limit", "said"),
    [
        (9, 0, None, None),
        (
            2,
            errno.ENOMEM,
            2 << 20,
            "only 2.1 MB of the file's {} are kept in memory: a process may lock 2.1 MB, raise that with `ulimit -l`",
        ),
        (
            0,
            errno.EPERM,
            0,
            "the weights aren't kept in memory: a process may lock 0 bytes, raise that with `ulimit -l`",
        ),
        (0, errno.ENOMEM, None, f"the weights aren't kept in memory: {os.strerror(errno.ENOMEM)}"),
        (
            1,
            errno.EAGAIN,
            2**40,
            "only 1.0 MB of the file's {} are kept in memory: " + os.strerror(errno.EAGAIN),
        ),
    ],
)
def test_what_is_said(
    path: Path, monkeypatch: pytest.MonkeyPatch, allowed: int, code: int, limit: int | None, said: str | None
) -> None:
    mlock = Mlock(allowed, code)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: type("Lib", (), {"mlock": mlock}))
    monkeypatch.setattr(locked, "PIECE", 1 << 20)
    monkeypatch.setattr(locked, "_limit", lambda: limit)
    file = GGUFFile(path)
    assert lock(file.buffers) == (said and said.format(f"{file.size / 1e6:.1f} MB"))
    if said is None:
        ends = [address + size for address, size in mlock.pieces]
        assert [address for address, _ in mlock.pieces[1:]] == ends[:-1]
        assert sum(size for _, size in mlock.pieces) == file.size


def test_a_system_without_mlock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert lock(GGUFFile(path).buffers) == "the weights aren't kept in memory: this system has no mlock"


def test_parts_are_all_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf_builder import parts

    model = tiny()
    model.tensors.append(f32("unused", [1.0]))
    for i, part in enumerate(parts(model, 3)):
        part.write(tmp_path / f"m-{i + 1:05}-of-00003.gguf")
    mlock = Mlock(9, 0)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: type("Lib", (), {"mlock": mlock}))
    file = GGUFFile(tmp_path / "m-00001-of-00003.gguf")
    assert lock(file.buffers) is None
    assert [size for _, size in mlock.pieces] == list(map(len, file.buffers))
