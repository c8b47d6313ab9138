"""Kernels as machine code: compiled by Numba when first needed, kept in a cache of our own, loaded with llvmlite alone.

A kernel is a Python function `kernel(args, chunk, scratch)` of three int64 (the address of its arguments, the number of the chunk to do,
the address of the thread's scratch memory). It is named by a spec "module:variant:..." where `qwencli.kernels.module.build(variant, ...)`
gives the function. Only compiling imports the module, and with it Numba: a warm start needs neither.

Numba's own cache isn't used: it stamps only the function's own file and would have to be moved for the whole process. Ours is keyed by
everything that decides the code: the sources of this package, the ISA, the CPU, and the versions of Numba and llvmlite.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from .isa import ISA, target

Report = Callable[[str], None]
Progress = Callable[[int, int], None]
MAX_WORKERS = 4
SLOW = ("many", "attend", "choose", "worker", "step")
"""What is in the names of kernels that take long to compile, the longest first."""
SECONDS_A_KERNEL, SECONDS_TO_START = 0.4, 0.7
"""What compiling takes on a CPU of 2022, on average."""
CRASHES = {-signal.SIGABRT, -signal.SIGILL, -signal.SIGSEGV}
"""Exit codes of a worker in which LLVM gave up, as it does where an instruction is missing: here it would end this process."""
CLAIMED = ".claimed"
"""Ends the name of the file by which a worker takes a kernel for itself."""
_MAGIC = b"qwencli kernel 1\n"


class KernelError(RuntimeError):
    """A kernel can't be compiled or loaded: a bug, ours or the compiler's. One line."""


def cache_folder() -> Path:
    """Where compiled kernels are kept: $QWENCLI_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("QWENCLI_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        chosen = os.environ.get("XDG_CACHE_HOME", "")
        base = chosen if os.path.isabs(chosen) else os.path.expanduser("~/.cache")
    if not os.path.isabs(
        base
    ):  # no home, as users of a container may have none; never the current folder, which may be anybody's
        base = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid() if hasattr(os, 'getuid') else ''}")
    return Path(base) / "qwencli"


def trusted(found: os.stat_result) -> bool:
    """Whether a file or folder is the user's own, or root's, and nobody else may write to it: the cache is code that we run."""
    return os.name != "posix" or (found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022)


@cache
def _sources() -> str:
    """A hash of every file of this package: an edited primitive changes every kernel."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    for package in "numba", "llvmlite", "numpy", "gguf":
        digest.update(f"{package} {_version(package)}\0".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    """A package's version, from the name of the folder that says it: importing importlib.metadata takes 25 ms, the package more."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin:
        found = list(Path(spec.origin).parents[1].glob(f"{package}-*.dist-info"))
        if len(found) == 1:
            return found[0].name.removeprefix(f"{package}-").removesuffix(".dist-info")
    from importlib.metadata import version

    return version(package)


def llvm() -> tuple[str, str]:
    """LLVM's version, and what it calls this CPU."""
    import llvmlite.binding as llvm

    return ".".join(map(str, llvm.llvm_version_info)), str(llvm.get_host_cpu_name())


class Kernels:
    """The kernels of one ISA, loaded into this process. They live as long as it does."""

    def __init__(self, isa: ISA) -> None:
        self.isa = isa
        self.report: Report | None = None
        self.progress: Progress | None = None
        """Told how many kernels of how many are compiled."""
        self._addresses: dict[str, int] = {}
        self._engine: Any = None
        self._keeps = True
        self._lock = threading.Lock()

    def _say(self, message: str) -> None:
        if self.report:
            self.report(message)

    @property
    def folder(self) -> Path:
        key = hashlib.sha256(
            repr((_sources(), self.isa.name, target(self.isa), sys.version_info[:2])).encode()
        ).hexdigest()[:20]
        return cache_folder() / f"{self.isa.name}-{key}"

    def load(self, specs: Iterable[str]) -> dict[str, int]:
        """The addresses of kernels, from the cache where it has them, else compiled now."""
        with self._lock:
            missing = [spec for spec in dict.fromkeys(specs) if spec not in self._addresses]
            for spec, code in self._read_or_compile(missing).items():
                self._addresses[spec] = self._link(spec, code)
            return {spec: self._addresses[spec] for spec in specs}

    def missing(self, specs: Iterable[str]) -> list[str]:
        """Those that would have to be compiled."""
        return [
            spec for spec in dict.fromkeys(specs) if spec not in self._addresses and self._read(spec) is None
        ]

    def check_folder(self) -> None:
        """Make the folder where kernels are kept. Raises OSError if they can't be, or would not be used."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.folder):
            pass
        if not trusted(os.stat(self.folder)):
            raise PermissionError(errno.EPERM, "others can write to it", str(self.folder))

    def _read_or_compile(self, specs: list[str]) -> dict[str, bytes]:
        codes = {}
        for spec in specs:
            if (code := self._read(spec)) is not None:
                codes[spec] = code
        if todo := [spec for spec in specs if spec not in codes]:
            codes.update(self._compile(todo))
        return codes

    def _compile(self, specs: list[str]) -> Iterator[tuple[str, bytes]]:
        n, start = len(specs), time.perf_counter()
        seconds = SECONDS_TO_START + SECONDS_A_KERNEL * n / max(1, n_workers_for(n))
        self._say(
            f"compiling {n} kernel{'s' * (n > 1)} for this CPU ({self.isa.name}), once: about {seconds:.0f} s"
        )
        progress = self.progress or (lambda done, total: None)
        progress(0, n)
        with closing(compile_apart(self.isa, specs)) as compiled:
            for done, (spec, code) in enumerate(compiled, 1):
                self._write(spec, code)
                progress(done, n)
                yield spec, code
        self._say(f"compiled in {time.perf_counter() - start:.1f} s")

    def _path(self, spec: str) -> Path:
        return self.folder / (spec.replace(":", "-") + ".o")

    def _read(self, spec: str) -> bytes | None:
        """The object file from the cache; None if it isn't there, not whole, or might be somebody else's."""
        path = self._path(spec)
        try:
            with open(path, "rb") as f:
                if not (trusted(os.fstat(f.fileno())) and trusted(os.stat(path.parent))):
                    self._keep_nothing(
                        f"compiled kernels in {path.parent} are not used, since others can write to them"
                    )
                    return None
                data = f.read()
        except OSError:
            return None
        head = len(_MAGIC) + 32
        if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(data[head:]).digest() != data[len(_MAGIC) : head]:
            return None
        return data[head:]

    def note(self, name: str) -> str | None:
        """A text that was kept beside the kernels; None if there is none."""
        with suppress(OSError, ValueError):
            return (self.folder / name).read_text(encoding="utf-8")
        return None

    def keep_note(self, name: str, text: str) -> None:
        self._store(self.folder / name, text.encode())

    def _write(self, spec: str, code: bytes) -> None:
        self._store(self._path(spec), _MAGIC + hashlib.sha256(code).digest() + code)

    def _store(self, path: Path, data: bytes) -> None:
        """Write a file whole or not at all. A cache that can't be written costs time, nothing else."""
        if not self._keeps:
            return
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, part = tempfile.mkstemp(dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as f:
                    f.write(data)
                os.replace(part, path)
            except BaseException:
                os.unlink(part)
                raise
        except OSError as error:
            self._keep_nothing(f"compiled kernels can't be kept in {path.parent}: {error.strerror or error}")

    def _keep_nothing(self, why: str) -> None:
        """Say once that the cache is of no use."""
        if self._keeps:
            self._say(why)
        self._keeps = False

    def _link(self, spec: str, code: bytes) -> int:
        import llvmlite.binding as llvm

        if self._engine is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            machine = llvm.Target.from_default_triple().create_target_machine()
            # its own memory manager keeps a kernel's code and constants together: code for the small model reaches 2 GB, and LLVM
            # aborts the process where it doesn't
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        address: int = self._engine.get_function_address(symbol(spec))
        if not address:
            raise KernelError(f"the compiled kernel '{spec}' has no entry point")
        return address


def n_workers_for(n_kernels: int) -> int:
    """How many processes compile so many kernels; 0 where none can be started."""
    if not sys.executable or getattr(
        sys, "frozen", False
    ):  # then it isn't Python, but an application that holds one
        return 0
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, n_cpus, n_kernels)


def _slowest_first(spec: str) -> int:
    return next((i for i, word in enumerate(SLOW) if word in spec.split(":")), len(SLOW))


def compile_apart(isa: ISA, specs: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Compile kernels in processes of their own and yield each when it is done.

    In processes since Numba holds one lock, and LLVM can't be interrupted; nor has this process Numba's memory then. Where none can be
    started, or one fails, kernels are compiled here. Raises KernelError.
    """
    left = sorted(specs, key=_slowest_first)  # so that no worker is left with a long one at the end
    with tempfile.TemporaryDirectory(prefix="qwencli-") as folder:
        command = [
            sys.executable,
            *(["-I"] if sys.flags.isolated else []),
            "-m",
            f"{__package__}.compiler",
            isa.name,
            folder,
            *left,
        ]
        # a pipe as stdin: its end tells a worker to end, also one that we don't know of because Ctrl-C came while it was being started
        options: dict[str, Any] = {
            "stdin": subprocess.PIPE,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
            "cwd": folder,
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            with suppress(OSError):  # no interpreter to start, or no more processes
                for _ in range(n_workers_for(len(left))):
                    # a session of its own: Ctrl-C at the terminal is for us, and we end it
                    processes.append(subprocess.Popen(command, start_new_session=True, **options))
            for spec in _finished(processes, folder, left):
                left.remove(spec)
                yield spec, Path(folder, symbol(spec)).read_bytes()
        finally:
            for process in processes:
                process.kill()
                process.communicate()  # closes the pipe and waits: Windows doesn't remove a folder that a process is in
        if left and any(process.returncode in CRASHES for process in processes):
            begun = [spec for spec in left if Path(folder, symbol(spec)).with_suffix(CLAIMED).exists()]
            raise KernelError(f"the compiler crashed on the kernel '{(begun or left)[0]}' for {isa.name}")
    for spec in left:
        yield spec, _compile_here(isa, spec)


def _finished(processes: list[subprocess.Popen[bytes]], folder: str, specs: Iterable[str]) -> Iterator[str]:
    """The kernels that appear in the folder, as long as a process works on them."""
    waiting, works = list(specs), True
    while waiting and works:
        works = any(
            process.poll() is None for process in processes
        )  # before looking, so that the last one's last is seen
        done = [spec for spec in waiting if Path(folder, symbol(spec)).exists()]
        waiting = [spec for spec in waiting if spec not in done]
        yield from done
        if works and not done:
            time.sleep(0.01)


def _compile_here(isa: ISA, spec: str) -> bytes:
    try:
        from .compiler import compile_kernel

        code: bytes = compile_kernel(isa, spec)
    except Exception as error:  # Numba's messages have hundreds of lines
        cause = str(error).strip().rpartition("\n")[2]
        raise KernelError(
            f"the kernel '{spec}' doesn't compile for {isa.name}: {type(error).__name__}: {cause}"
        ) from error
    return code


def symbol(spec: str) -> str:
    """The name of a kernel's entry point: unique, so that any number of them live in one process."""
    return "qwencli_" + "".join(c if c.isalnum() else "_" for c in spec)


def find(spec: str) -> Any:
    """The Python function that a spec names. Imports Numba."""
    module, *variant = spec.split(":")
    return importlib.import_module(f".{module}", __package__).build(*variant)
