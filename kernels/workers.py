"""Compile kernels in child processes. Run as a program, this file is such a worker.

Processes are used because Numba holds a single lock and LLVM can't be interrupted. Also, the memory that Numba takes is then freed.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from .isa import ISA, named
from .specs import KernelError, symbol

MAX_WORKERS = 4
SLOW = ("many", "attend", "choose", "worker", "step")
"""Words in the specs of kernels that take long to compile, the slowest first."""
CRASHES = {-signal.SIGABRT, -signal.SIGILL, -signal.SIGSEGV}
"""Exit codes of a worker in which LLVM gave up, as it does if it lacks an instruction. In this process that would end everything."""
CLAIMED = ".claimed"
"""The suffix of the file with which a worker claims a kernel."""


def n_workers_for(n_kernels: int) -> int:
    """Return the number of processes to compile that many kernels; 0 if none can be started."""
    if not sys.executable or getattr(sys, "frozen", False):  # an application that contains Python
        return 0
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MAX_WORKERS, n_cpus, n_kernels)


def _slowest_first(spec: str) -> int:
    return next((i for i, word in enumerate(SLOW) if word in spec.split(":")), len(SLOW))


def compile_apart(isa: ISA, specs: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Compile kernels in child processes and yield the spec and the object file of each as soon as it is done.

    If no process can be started, or one fails, the remaining kernels are compiled in this process. Raises KernelError.
    """
    left = sorted(specs, key=_slowest_first)  # so that no worker starts a slow one at the end
    with tempfile.TemporaryDirectory(prefix="qwencli-") as folder:
        command = [
            sys.executable,
            *(["-I"] if sys.flags.isolated else []),
            "-m",
            f"{__package__}.workers",
            isa.name,
            folder,
            *left,
        ]
        # stdin is a pipe: when it closes, the worker ends, even if we don't know of it because Ctrl-C came while it was being started
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
                    # in a new session: Ctrl-C at the terminal is meant for us, and we end the worker
                    processes.append(subprocess.Popen(command, start_new_session=True, **options))
            for spec in _finished(processes, folder, left):
                left.remove(spec)
                yield spec, Path(folder, symbol(spec)).read_bytes()
        finally:
            for process in processes:
                process.kill()
                process.communicate()  # closes the pipe and waits: Windows can't remove a folder that is a process's current one
        if left and any(process.returncode in CRASHES for process in processes):
            claimed = [spec for spec in left if Path(folder, symbol(spec)).with_suffix(CLAIMED).exists()]
            raise KernelError(f"the compiler crashed on the kernel '{(claimed or left)[0]}' for {isa.name}")
    for spec in left:
        yield spec, _compile_here(isa, spec)


def _finished(processes: list[subprocess.Popen[bytes]], folder: str, specs: Iterable[str]) -> Iterator[str]:
    """Yield the kernels as they appear in the folder, until all are there or no process runs any more."""
    waiting = list(specs)
    works = True
    while waiting and works:
        # ask before looking into the folder: otherwise the last kernel of the last process could be missed
        works = any(process.poll() is None for process in processes)
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


def main() -> None:
    """A worker: python -m qwencli.kernels.workers ISA FOLDER SPEC...

    Each worker is given all kernels and compiles those that no other one has claimed.
    """
    name, folder, *specs = sys.argv[1:]
    threading.Thread(target=_end_with_parent, args=(folder,), daemon=True).start()
    from .compiler import compile_kernel

    for spec in specs:
        path = Path(folder, symbol(spec))
        try:
            path.with_suffix(CLAIMED).touch(exist_ok=False)
        except FileExistsError:  # another worker has claimed it
            continue
        part = path.with_suffix(".part")
        part.write_bytes(compile_kernel(named(name), spec))
        part.replace(path)


def _end_with_parent(folder: str) -> None:
    """Wait for the end of stdin, a pipe: then the process that started this one has ended, and nobody will read the folder."""
    os.read(0, 1)
    os.chdir(Path(folder).parent)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    main()
