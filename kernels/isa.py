"""Which instructions kernels are compiled for. `QWENCLI_ISA` overrides the choice, and lowers what LLVM may use accordingly."""
from __future__ import annotations

import os
import platform
from functools import cache
from typing import NamedTuple

VARIABLE = "QWENCLI_ISA"
OLDEST_LLVM = 21
"""In older ones intrinsics take other types. Numba has this or a newer one from 0.66 on."""


class ISA(NamedTuple):
    """`name` is a file's in `simd/`; `needs` are LLVM's names of CPU features; `cpu` is what LLVM compiles for, "" the CPU we run on."""
    name: str
    machines: tuple[str, ...]
    needs: tuple[str, ...]
    cpu: str


ISAS = (  # best first
    ISA("avx512vnni", ("x86_64", "amd64"), ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"), ""),
    ISA("avx2", ("x86_64", "amd64"), ("avx2", "fma", "f16c"), "x86-64-v3"),
    ISA("generic", (), (), "x86-64-v2"),
)


class ISAError(ValueError):
    """The ISA that was asked for doesn't exist, this CPU lacks it, or LLVM is too old for all of them."""


@cache
def cpu_features() -> frozenset[str]:
    import llvmlite.binding as llvm
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


def available() -> list[ISA]:
    """The ISAs of this machine, best first."""
    machine = platform.machine().lower()
    return [isa for isa in ISAS if (not isa.machines or machine in isa.machines) and cpu_features().issuperset(isa.needs)]


def choose(name: str | None = None) -> ISA:
    """The ISA called `name`, by default $QWENCLI_ISA, else the best. Raises ISAError, which lists those that this CPU has."""
    import llvmlite.binding as llvm
    if llvm.llvm_version_info[0] < OLDEST_LLVM:
        version = ".".join(map(str, llvm.llvm_version_info))
        raise ISAError(f"llvmlite brings LLVM {version}, expected {OLDEST_LLVM} or later: pip install 'numba>=0.66'")
    name = name or os.environ.get(VARIABLE)
    for isa in available():
        if name in (None, "", isa.name):
            return isa
    names = ", ".join(isa.name for isa in available())
    raise ISAError(f"the instruction set '{name}' (${VARIABLE}) is not available on this CPU, which has {names}")


def target(isa: ISA) -> tuple[str, str]:
    """LLVM's CPU name and feature string to compile for."""
    import llvmlite.binding as llvm
    if not isa.cpu:
        return llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "generic", ""
    return isa.cpu, ""
