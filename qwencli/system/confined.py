"""Separate processes for input from outside that may never end or may fill the memory: templates, grammars.

The first half is for the process that starts one, the second for that one itself. Standard library only, so that it starts fast.
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
"""What such a process needs from the environment: to start at all, and to know the local time."""
PROGRAM = "import importlib, sys; sys.path[:] = sys.argv[3:]; importlib.import_module(sys.argv[1]).serve(float(sys.argv[2]))"
CREATE_NO_WINDOW = 0x08000000


def start(module: str, cpu_seconds: float, purpose: str) -> Popen[bytes]:
    """Run `serve(cpu_seconds)` of one of our modules, which talks over stdin and stdout. Ctrl-C doesn't reach it. Raises QwenError."""
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


# Limits. Windows has none of them: there, only the clock of the process that started it ends one.


def reset_signals() -> None:
    """The signal that ends the process must act as the system made it, whatever the parent did to it."""
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit_time(cpu_seconds: float) -> None:
    """CPU time and not the clock's, so that honest input is safe on a busy machine. 0: no limit."""
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def limit_resources(extra_memory: int, alone: bool = False) -> None:
    """From here on no file can be written, and at most `extra_memory` more bytes of address space taken. `alone`: no file can be opened
    either, and no process or thread started."""
    if sys.platform == "win32":
        return
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":  # elsewhere a limit of the address space isn't kept
        with open("/proc/self/statm", encoding="ascii") as file:
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + extra_memory
    if alone:
        limits |= {resource.RLIMIT_NPROC: 0, resource.RLIMIT_NOFILE: 0}
    for limit, most in limits.items():
        with contextlib.suppress(ValueError, OSError):  # a system may lack a limit, or have set a lower one
            resource.setrlimit(limit, (most, most))
