"""When kernels can't be compiled: one line for the user, and never the end of the process."""

import sys
from pathlib import Path

import llvmlite.binding as llvm
import pytest

from qwencli.backends.cpu import backend as cpu
from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.choice import find_model
from qwencli.kernels import compiler, isa, jit, specs, workers
from qwencli.kernels.isa import ISA
from qwencli.llm import LLM
from qwencli.network.load import load_model


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiled kernels, neither in this process nor in the cache."""
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu, "kernels_of", lambda name: jit.Kernels(isa.choose(name)))


def test_a_kernel_that_does_not_compile_is_an_error_of_one_line(
    cold: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(isa: ISA, spec: str) -> bytes:
        raise TypeError("Failed in nopython mode pipeline\n\nhundreds of lines\nno match for add(i8, str)\n")

    monkeypatch.setattr(compiler, "compile_kernel", fail)
    monkeypatch.setattr(sys, "executable", "/no/interpreter")  # so that it is compiled in this process
    llm = LLM(find_model(None).path, backend="cpu")
    with pytest.raises(
        QwenError,
        match=r"'.+' doesn't compile for \w+: TypeError: no match for add\(i8, str\).*please report",
    ) as caught:
        list(llm.stream([1, 2, 3], max_tokens=1))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script as the interpreter")
def test_a_crash_of_the_compiler_is_an_error(
    cold: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -ABRT $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(jit.KernelError, match="the compiler crashed on the kernel 'ops:add'"):
        jit.Kernels(isa.choose()).load(["ops:add"])


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell script as the interpreter")
def test_a_crash_is_blamed_on_the_kernel_that_was_begun(
    cold: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The worker's arguments are -m, the module, the instruction set, the folder and the kernels."""
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n: > "$4/{specs.symbol("ops:gather")}{workers.CLAIMED}"\nkill -ILL $$\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(jit.KernelError, match="the compiler crashed on the kernel 'ops:gather'"):
        jit.Kernels(isa.choose()).load(["ops:add", "ops:gather", "heads:rotate"])


def test_an_unknown_kernel_is_an_error() -> None:
    with pytest.raises(jit.KernelError, match=r"'nothing:one' doesn't compile for \w+: ModuleNotFoundError"):
        jit.Kernels(isa.choose()).load(["nothing:one"])


def test_an_llvm_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm, "llvm_version_info", (20, 1, 8))
    with pytest.raises(InputError, match=r"LLVM 20\.1\.8, expected 21 or later: pip install 'numba>=0\.66'"):
        cpu.CPUBackend(load_model(GGUFFile(find_model(None).path)))
