"""The commands on a CPU of x86-64-v2, as qemu emulates one. Memory is laid out otherwise there: code and constants may be far apart."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QEMU = shutil.which("qemu-x86_64")


@pytest.mark.skipif(
    QEMU is None or platform.machine() != "x86_64", reason="needs qemu-x86_64 (Debian's qemu-user) on x86-64"
)
def test_a_cpu_without_avx_gets_the_generic_kernels_and_the_same_text(tmp_path: Path) -> None:
    """Nehalem has nothing beyond x86-64-v2: another instruction would end the process."""
    command = [
        sys.executable,
        "-m",
        "qwencli",
        "run",
        "-p",
        "Once upon a time",
        "--raw",
        "-n",
        "8",
        "--temp",
        "0",
    ]
    generic = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env={**os.environ, "QWENCLI_ISA": "generic"}, check=True
    )
    env = {name: value for name, value in os.environ.items() if name != "QWENCLI_ISA"}
    emulated = subprocess.run(
        [str(QEMU), "-cpu", "Nehalem", *command], capture_output=True, cwd=tmp_path, env=env, check=False
    )
    assert emulated.returncode == 0, emulated.stderr.decode()[-500:]
    assert emulated.stdout == generic.stdout
    assert b"compiling" not in emulated.stderr  # the same kernels, from the cache
