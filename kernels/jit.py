"""Kernels as machine code: compiled by Numba when first needed, kept in a cache of our own, loaded with llvmlite alone.

Kernels are named by specs (see specs.py). Only compiling one imports its module, and with it Numba: a warm start needs neither.

Numba's own cache isn't used: it notices changes only in the function's own file, and its folder can be set only for the whole process. The
key of our cache is everything that decides the code: the sources of this package, the ISA, the CPU, and the versions of Numba and llvmlite.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
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
from .specs import KernelError as KernelError
from .specs import symbol

Report = Callable[[str], None]
Progress = Callable[[int, int], None]
SECONDS_PER_KERNEL = 0.4
SECONDS_TO_START = 0.7
"""How long compiling takes on a CPU from 2022, on average."""
_MAGIC = b"qwencli kernel 1\n"


def cache_folder() -> Path:
    """Return where compiled kernels are kept: $QWENCLI_CACHE, or else the user's cache folder."""
    if chosen := os.environ.get("QWENCLI_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or os.path.expanduser("~/AppData/Local")
    elif sys.platform == "darwin":
        base = os.path.expanduser("~/Library/Caches")
    else:
        chosen = os.environ.get("XDG_CACHE_HOME", "")
        base = chosen if os.path.isabs(chosen) else os.path.expanduser("~/.cache")
    # there may be no home, as in a container; never use the current folder, which may be anybody's
    if not os.path.isabs(base):
        base = os.path.join(tempfile.gettempdir(), f"cache-{os.getuid() if hasattr(os, 'getuid') else ''}")
    return Path(base) / "qwencli"


def trusted(found: os.stat_result) -> bool:
    """Whether a file or folder belongs to the user or root, and nobody else may write to it: we run the code in the cache."""
    return os.name != "posix" or (found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022)


@cache
def _sources() -> str:
    """Return a hash of every file of this package: a change to a primitive changes every kernel."""
    here, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + b"\0" + path.read_bytes())
    for package in "numba", "llvmlite", "numpy", "gguf":
        digest.update(f"{package} {_version(package)}\0".encode())
    return digest.hexdigest()


def _version(package: str) -> str:
    """Return a package's version, read from the name of its metadata folder: importing importlib.metadata takes 25 ms, the package even
    more."""
    spec = importlib.util.find_spec(package)
    if spec and spec.origin:
        found = list(Path(spec.origin).parents[1].glob(f"{package}-*.dist-info"))
        if len(found) == 1:
            return found[0].name.removeprefix(f"{package}-").removesuffix(".dist-info")
    from importlib.metadata import version

    return version(package)


def llvm() -> tuple[str, str]:
    """Return LLVM's version and its name for this CPU."""
    import llvmlite.binding as llvm

    return ".".join(map(str, llvm.llvm_version_info)), str(llvm.get_host_cpu_name())


class Kernels:
    """The kernels of one ISA, loaded into this process. They stay loaded until it ends."""

    def __init__(self, isa: ISA) -> None:
        self.isa = isa
        self.report: Report | None = None
        self.progress: Progress | None = None
        """Called with the number of kernels that are compiled, and the number to compile."""
        self._addresses: dict[str, int] = {}
        self._engine: Any = None
        self._keeps = True
        self._lock = threading.Lock()

    def _say(self, message: str) -> None:
        if self.report:
            self.report(message)

    @property
    def folder(self) -> Path:
        """The folder of these kernels. Its name changes with everything that decides their code."""
        key = hashlib.sha256(
            repr((_sources(), self.isa.name, target(self.isa), sys.version_info[:2])).encode()
        ).hexdigest()[:20]
        return cache_folder() / f"{self.isa.name}-{key}"

    def load(self, specs: Iterable[str]) -> dict[str, int]:
        """Return the addresses of kernels. Those that aren't in the cache are compiled now. Raises KernelError."""
        with self._lock:
            missing = [spec for spec in dict.fromkeys(specs) if spec not in self._addresses]
            for spec, code in self._read_or_compile(missing).items():
                self._addresses[spec] = self._link(spec, code)
            return {spec: self._addresses[spec] for spec in specs}

    def missing(self, specs: Iterable[str]) -> list[str]:
        """Return the kernels that would have to be compiled."""
        return [
            spec for spec in dict.fromkeys(specs) if spec not in self._addresses and self._read(spec) is None
        ]

    def check_folder(self) -> None:
        """Make the folder for kernels. Raises OSError if they can't be kept there, or would not be used from there."""
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
        from . import workers  # with subprocess, 7 ms that a warm start doesn't need

        n, start = len(specs), time.perf_counter()
        seconds = SECONDS_TO_START + SECONDS_PER_KERNEL * n / max(1, workers.n_workers_for(n))
        self._say(
            f"compiling {n} kernel{'s' * (n > 1)} for this CPU ({self.isa.name}), once: about {seconds:.0f} s"
        )
        progress = self.progress or (lambda done, total: None)
        progress(0, n)
        with closing(workers.compile_apart(self.isa, specs)) as compiled:
            for done, (spec, code) in enumerate(compiled, 1):
                self._write(spec, code)
                progress(done, n)
                yield spec, code
        self._say(f"compiled in {time.perf_counter() - start:.1f} s")

    def _path(self, spec: str) -> Path:
        return self.folder / (spec.replace(":", "-") + ".o")

    def _read(self, spec: str) -> bytes | None:
        """Return the object file from the cache; None if it is missing or damaged, or if others could have written it."""
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
        """Return a text that was kept next to the kernels, or None."""
        with suppress(OSError, ValueError):
            return (self.folder / name).read_text(encoding="utf-8")
        return None

    def keep_note(self, name: str, text: str) -> None:
        """Keep a text next to the kernels. If that fails, `report` is called once."""
        self._store(self.folder / name, text.encode())

    def _write(self, spec: str, code: bytes) -> None:
        self._store(self._path(spec), _MAGIC + hashlib.sha256(code).digest() + code)

    def _store(self, path: Path, data: bytes) -> None:
        """Write a file completely or not at all. A cache that can't be written only costs time."""
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
        """Say once that the cache can't be used."""
        if self._keeps:
            self._say(why)
        self._keeps = False

    def _link(self, spec: str, code: bytes) -> int:
        import llvmlite.binding as llvm

        if self._engine is None:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            machine = llvm.Target.from_default_triple().create_target_machine()
            # llvmlite's memory manager keeps a kernel's code and constants together. In the small code model code reaches only 2 GB, and
            # LLVM aborts the process if they are further apart
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine, use_lmm=True)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self._engine.finalize_object()
        address: int = self._engine.get_function_address(symbol(spec))
        if not address:
            raise KernelError(f"the compiled kernel '{spec}' has no entry point")
        return address
