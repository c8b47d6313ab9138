"""The tests on other CPUs: those that look at instruction sets are collected and run as on CPUs that this machine may not have."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import other_cpus
import pytest

from qwencli.kernels import isa

HERE = Path(__file__).parent
CHOSEN = "test_isa or test_the_key_names_all or instruction_set and not test_warmup"
"""Tests that run no kernel: this CPU may lack the best set of the other one."""
TESTS = {"nehalem": CHOSEN, "alderlake": f"{CHOSEN} or test_assembly and avxvnni"}


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="the CPUs are x86's")
@pytest.mark.parametrize("cpu", TESTS)
def test_tests_do_not_depend_on_what_the_cpu_has(cpu: str) -> None:
    """No file expects an instruction set to be there, or all that are there to be in its tables."""
    files = [path for path in sorted(HERE.glob("test_*.py")) if re.search(r"\bisa\b", path.read_text())]
    files.remove(Path(__file__))
    env = os.environ | {other_cpus.VARIABLE: cpu}
    env.pop(isa.VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", TESTS[cpu], *files],
        env=env,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > 20


def test_the_processes_of_a_test_run_have_the_same_cpu() -> None:
    script = "from qwencli.kernels import isa; print(*(one.name for one in isa.available()))"
    env = os.environ | {other_cpus.VARIABLE: "ivybridge", "PYTHONPATH": other_cpus.SITE}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "generic\n"
