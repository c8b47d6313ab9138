"""Child processes with limits, for input that may never end or may fill the memory: a template, a grammar.

The first half is for the parent, the second for the child itself. Only the standard library is used, so that the child starts fast.
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
"""The environment variables that such a process needs to start at all, and to know the local time."""
PROGRAM = "import importlib, sys; sys.path[:] = sys.argv[3:]; importlib.import_module(sys.argv[1]).serve(float(sys.argv[2]))"
CREATE_NO_WINDOW = 0x08000000


def start(module: str, cpu_seconds: float, purpose: str) -> Popen[bytes]:
    """Run `serve(cpu_seconds)` of a module of this package in a child process, to be talked to through stdin and stdout.

    Ctrl-C doesn't reach the child. `purpose` says what it is for, in the error. Raises QwenError if the process can't be started.
    """
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


# Limits. Windows has none of them: there, only a timeout in the parent ends a child.


def reset_signals() -> None:
    """Give the signal that ends the process its default meaning, whatever the parent did to it, and ignore Ctrl-C."""
    if sys.platform != "win32":
        import signal

        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])


def limit_time(cpu_seconds: float) -> None:
    """End the process after this much processor time; 0 for no limit.

    Processor time and not clock time, so that harmless input isn't cut off on a busy machine.
    """
    if sys.platform != "win32":
        import signal

        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)


def limit_resources(extra_memory: int, alone: bool = False) -> None:
    """From here on, no file can be written, and no more than `extra_memory` bytes of address space can be allocated.

    `alone`: nor can a file be opened, or a process or thread be started.
    """
    if sys.platform == "win32":
        return
    import resource

    limits = {resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    if sys.platform == "linux":  # elsewhere a limit on the address space is not enforced
        with open("/proc/self/statm", encoding="ascii") as file:
            limits[resource.RLIMIT_AS] = int(file.read().split()[0]) * resource.getpagesize() + extra_memory
    if alone:
        limits |= {resource.RLIMIT_NPROC: 0, resource.RLIMIT_NOFILE: 0}
    for limit, most in limits.items():
        with contextlib.suppress(
            ValueError, OSError
        ):  # the system may not know the limit, or may already have set a lower one
            resource.setrlimit(limit, (most, most))
