"""Which instruction set is chosen, also on machines that this one isn't, and what it is compiled for."""

import kernel_calls
import other_cpus
import pytest
import test_matmul

from qwencli.kernels import compiler, isa, jit, workers
from qwencli.kernels.isa import ISA, named

X86 = {
    "nehalem": ["generic"],
    "ivybridge": ["generic"],
    "haswell": ["avx2", "generic"],
    "skylake-avx512": ["avx2", "generic"],
    "alderlake": ["avxvnni", "avx2", "generic"],
    "icelake": ["avx512vnni", "avx2", "generic"],
    "zen4": ["avx512vnni", "avx2", "generic"],
    "zen5": ["avx512vnni", "avxvnni", "avx2", "generic"],
}
"""The instruction sets that each of these CPUs has, best first."""


def have_features(monkeypatch: pytest.MonkeyPatch, machine: str, features: set[str]) -> None:
    monkeypatch.setattr(isa, "machine", lambda: machine)
    monkeypatch.setattr(isa, "cpu_features", lambda: frozenset(features))
    monkeypatch.delenv(isa.VARIABLE, raising=False)


ARM = {
    "cortex-a72": ("aarch64", {"neon", "crc"}, ["neon", "generic"]),
    "neoverse-n1": ("aarch64", {"neon", "dotprod", "lse"}, ["neon_dotprod", "neon", "generic"]),
    "m2": ("arm64", {"neon", "dotprod", "i8mm", "lse"}, ["neon_i8mm", "neon_dotprod", "neon", "generic"]),
}


@pytest.mark.parametrize(
    ("machine", "features", "names"),
    [
        *(pytest.param("x86_64", other_cpus.CPUS[cpu], names, id=cpu) for cpu, names in X86.items()),
        *(pytest.param(*row, id=cpu) for cpu, row in ARM.items()),
        pytest.param("riscv64", {"v"}, ["generic"], id="riscv"),
    ],
)
def test_the_best_comes_first(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: set[str], names: list[str]
) -> None:
    have_features(monkeypatch, machine, features)
    assert [one.name for one in isa.available()] == names
    assert isa.choose().name == names[0]
    assert isa.choose(names[-1]).name == names[-1]


@pytest.mark.parametrize(
    ("hwcap", "hwcap2", "features"),
    [
        (0x8FB, 0, {"neon"}),
        (0x119FFB, 0, {"neon", "lse", "dotprod"}),
        (0xECFFFFFB, 0x7F877FFF, {"neon", "lse", "dotprod", "i8mm"}),
    ],
)
def test_arm_features_on_linux(
    monkeypatch: pytest.MonkeyPatch, hwcap: int, hwcap2: int, features: set[str]
) -> None:
    """What qemu 7.2 passes to a program on a cortex-a72, neoverse-n1 and max."""

    def getauxval(kind: int) -> int:
        return {16: hwcap, 26: hwcap2}[kind]

    monkeypatch.setattr(isa.sys, "platform", "linux")
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda name: type("libc", (), {"getauxval": getauxval}))
    assert isa._arm_features() == features


def test_what_is_compiled_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's sets for Linux there; on the machine itself for this system, with its atomic instructions and nothing else."""
    have_features(monkeypatch, "x86_64", other_cpus.CPUS["haswell"])
    assert isa.target(named("neon_i8mm")) == ("aarch64-unknown-linux-gnu", "generic", "+neon,+dotprod,+i8mm")
    have_features(monkeypatch, "aarch64", {"neon", "dotprod", "lse", "sve"})
    monkeypatch.setattr("llvmlite.binding.get_process_triple", lambda: "aarch64-apple-darwin24")
    assert isa.target(named("neon")) == ("aarch64-apple-darwin24", "generic", "+neon,+lse")
    assert isa.target(named("generic")) == ("aarch64-apple-darwin24", "generic", "+lse")
    assert isa.target(named("avx2")) == ("x86_64-unknown-linux-gnu", "x86-64-v3", "+avx2,+fma,+f16c")


@pytest.mark.skipif(
    "avx512vnni" not in [one.name for one in isa.available()], reason="this CPU has no AVX-512 with VNNI"
)
def test_avxvnni_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for this CPU, which has its instructions in the encoding of AVX-512 if not in that of AVX."""
    kernels = jit.Kernels(ISA(*named("avxvnni")[:3], cpu=""))
    monkeypatch.setattr(
        workers,
        "compile_apart",
        lambda one, specs: ((spec, compiler.compile_kernel(one, spec)) for spec in specs),
    )
    monkeypatch.setattr(kernel_calls, "kernels_of", lambda name: kernels)
    for name in "Q8_0", "Q6_K":
        test_matmul.test_products_are_right_and_have_the_same_bits("avxvnni", name)
