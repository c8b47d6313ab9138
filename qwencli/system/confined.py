"""Processes of our own for what comes from outside and may never end or fill the memory: a template, a grammar.

The first half is for who starts one, the second for the process itself. Standard library only: such a process is to start soon.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import QwenError

if TYPE_CHECKING:
    from subprocess import Popen

KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "TZ")
"""What such a process needs of the environment: to start at all, and to know the local time."""
PROGRAM = "import importlib, sys; sys.path[:] = sys.argv[3:]; importlib.import_module(sys.argv[1]).serve(float(sys.argv[2]))"
CREATE_NO_WINDOW = 0x08000000


def start(module: str, cpu_seconds: float, purpose: str) -> Popen[bytes]:
    """Run `serve(cpu_seconds)` of a module of the package, asked through stdin and stdout. Ctrl-C is ours alone. Raises QwenError."""
    import subprocess

    command = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        PROGRAM,
        module,
        str(cpu_seconds),
        *map(str, sys.path),
        str(Path(__file__).parents[2]),
    ]
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in KEPT if name in os.environ},
            start_new_session=True,
            creationflags=CREATE_NO_WINDOW if sys.platform == "win32" else 0,
        )
    except (OSError, ValueError) as error:
        raise QwenError(f"cannot start {sys.executable} {purpose}: {error}") from None


# Limits. Windows has none of them: there only a clock of the process that asks ends one.


def reset_signals() -> None:
    """The signal that ends a process must be as the system made it, whatever the one that asks did to it."""
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit_time(cpu_seconds: float) -> None:
    """Processor time and not the clock's, so that what is honest is safe on a busy machine. 0: no limit."""
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def limit_resources(extra_memory: int, alone: bool = False) -> None:
    """From here on no file can be written, and no more than `extra_memory` bytes of address space taken. `alone`: no file opened, and
    no process or thread started."""
    if sys.platform == "win32":
        return
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":  # elsewhere the address space has no limit that is kept
        with open("/proc/self/statm", encoding="ascii") as file:
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + extra_memory
    if alone:
        limits |= {resource.RLIMIT_NPROC: 0, resource.RLIMIT_NOFILE: 0}
    for limit, most in limits.items():
        with contextlib.suppress(
            ValueError, OSError
        ):  # a system may not know a limit, or have set a lower one
            resource.setrlimit(limit, (most, most))
