"""Instruction sets of CPUs and machines that this one isn't: every family of products compiles, in any process, and what can't be assembled
is an error, not the end of the process."""

import os
import platform
import subprocess
import sys

import other_cpus
import pytest
from blocks import columns

from qwencli.kernels import compiler, isa, workers
from qwencli.kernels.specs import KernelError
from qwencli.kernels.tiles import Tiles

IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
HERE = [*(["avx2", "avxvnni"] if IS_X86 else []), "neon_dotprod", "neon_i8mm"]
"""Those of which test_assembly and test_aarch64 don't compile all families."""
COMPILE = """
import sys
from qwencli.kernels import compiler, isa
for name, *specs in (words.split() for words in sys.argv[1:]):
    for spec in specs:
        assert len(compiler.compile_kernel(isa.named(name), spec)) > 1000
    print(name)
"""
"""A process that has done nothing else: no child has compiled before, and nobody has set LLVM up."""


def products(isa_name: str) -> list[str]:
    """One of floats, one of halves of floats and one of bytes."""
    return [Tiles(isa_name).one(name, columns(name)) for name in ("F32", "BF16", "TQ2_0")]


def test_products_compile_in_a_fresh_process() -> None:
    env = {name: value for name, value in os.environ.items() if name != other_cpus.VARIABLE}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    jobs = [" ".join([name, *products(name)]) for name in HERE]
    done = subprocess.run([sys.executable, "-c", COMPILE, *jobs], env=env, check=False, capture_output=True)
    assert done.stdout.decode().split() == HERE, done.stderr.decode()


@pytest.mark.parametrize("isa_name", ["avx2", "avxvnni"])
def test_x86_on_another_machine_is_an_error_of_one_line(
    monkeypatch: pytest.MonkeyPatch, isa_name: str
) -> None:
    monkeypatch.setattr(isa, "machine", lambda: "riscv64")
    message = (
        rf"^the kernel 'matmul:.*' doesn't compile for {isa_name}: KernelError: "
        r"kernels for x86 can't be assembled on riscv64$"
    )
    for spec in products(isa_name):
        with pytest.raises(KernelError, match=message):
            workers._compile_here(isa.named(isa_name), spec)


def test_the_generic_set_needs_no_assembler(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines of other kinds its prefetches are LLVM's."""
    monkeypatch.setattr(isa, "machine", lambda: "riscv64")
    text = compiler.lower(isa.named("generic"), products("generic")[0]).get_llvm_str()
    assert "llvm.prefetch" in text
    assert "prefetcht1" not in text
