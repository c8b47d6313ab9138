"""Choose the instruction set that kernels are compiled for. `QWENCLI_ISA` overrides the choice and limits what LLVM may use."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import NamedTuple

VARIABLE = "QWENCLI_ISA"
OLDEST_LLVM = 21
"""In older versions intrinsics take other types. Numba since 0.66 brings this version or a newer one."""


X86, ARM = ("x86_64", "amd64"), ("aarch64", "arm64")


class ISA(NamedTuple):
    """An instruction set, with a file `name` in `simd/`.

    `machines` are the kinds of processor that may have it, () for any kind; `needs` are the CPU features that it needs, by LLVM's names.
    LLVM compiles for `cpu` with these features, or for the CPU we run on if it is "". `tuning` are further names, which tell LLVM what is
    fast.
    """

    name: str
    machines: tuple[str, ...]
    needs: tuple[str, ...]
    cpu: str
    tuning: tuple[str, ...] = ()


# for Intel's CPUs LLVM would replace one vpdpwssd by two instructions: a chain of them gets shorter, but ports are busier
ONE_DOT = ("fast-dpwssd",)

ISAS = (  # best first
    ISA(
        "avx512vnni",
        X86,
        ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni", "f16c", "fma"),
        "",
        ONE_DOT,
    ),
    ISA("avxvnni", X86, ("avx2", "fma", "f16c", "avxvnni"), "x86-64-v3", ONE_DOT),
    ISA("avx2", X86, ("avx2", "fma", "f16c"), "x86-64-v3"),
    # "generic" and not the name of the CPU: that would imply features, such as SVE, that the system may not have enabled
    ISA("neon_i8mm", ARM, ("neon", "dotprod", "i8mm"), "generic"),
    ISA("neon_dotprod", ARM, ("neon", "dotprod"), "generic"),
    ISA("neon", ARM, ("neon",), "generic"),
    ISA("generic", (), (), "x86-64-v2"),
)


class Target(NamedTuple):
    """What LLVM compiles for: a triple, the name of a CPU, and features beyond those of that CPU."""

    triple: str
    cpu: str
    features: str


class ISAError(ValueError):
    """The requested ISA doesn't exist, this CPU lacks it, or LLVM is too old for any ISA."""


def machine() -> str:
    """Return the kind of processor that this process runs on, as far as it can tell: "x86_64", "aarch64", on macOS "arm64"."""
    import llvmlite.binding as llvm

    return str(llvm.get_process_triple()).partition("-")[0].lower()


@cache
def cpu_features() -> frozenset[str]:
    """Return the features of this CPU, by LLVM's names."""
    import llvmlite.binding as llvm

    found = {name for name, present in llvm.get_host_cpu_features().items() if present}
    return frozenset(found | _arm_features() if machine() in ARM else found)


def _arm_features() -> set[str]:
    """Return the features that LLVM doesn't look for: on Linux `dotprod` and `i8mm` are among them, on macOS it looks for none."""
    if sys.platform == "linux":  # bits of AT_HWCAP and AT_HWCAP2, from the kernel's uapi/asm/hwcap.h
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        bits = {"neon": (16, 1), "lse": (16, 8), "dotprod": (16, 20), "i8mm": (26, 13)}
        return {name for name, (word, bit) in bits.items() if getauxval(word) >> bit & 1}
    found = {"neon"}  # macOS and Windows require it
    if sys.platform == "darwin":
        read = ctypes.CDLL(None).sysctlbyname
        value = ctypes.c_int(0)
        size = ctypes.c_size_t(4)
        for name, key in {"lse": "FEAT_LSE", "dotprod": "FEAT_DotProd", "i8mm": "FEAT_I8MM"}.items():
            failed = read(
                f"hw.optional.arm.{key}".encode(),
                ctypes.byref(value),
                ctypes.byref(size),
                None,
                ctypes.c_size_t(0),
            )
            if not failed and value.value:
                found.add(name)
    return found


def available() -> list[ISA]:
    """Return the ISAs of this machine, best first."""
    return [
        isa
        for isa in ISAS
        if (not isa.machines or machine() in isa.machines) and cpu_features().issuperset(isa.needs)
    ]


def choose(name: str | None = None) -> ISA:
    """Return the ISA called `name`, by default $QWENCLI_ISA, or else the best one. Raises ISAError, which lists those that this CPU has."""
    import llvmlite.binding as llvm

    if llvm.llvm_version_info[0] < OLDEST_LLVM:
        version = ".".join(map(str, llvm.llvm_version_info))
        raise ISAError(
            f"llvmlite brings LLVM {version}, expected {OLDEST_LLVM} or later: pip install 'numba>=0.66'"
        )
    name = name or os.environ.get(VARIABLE)
    for isa in available():
        if name in (None, "", isa.name):
            return isa
    names = ", ".join(isa.name for isa in available())
    raise ISAError(
        f"the instruction set '{name}' (${VARIABLE}) is not available on this CPU, which has {names}"
    )


def named(name: str) -> ISA:
    """Return an ISA of any machine, to compile for. Raises StopIteration for an unknown name."""
    return next(isa for isa in ISAS if isa.name == name)


def target(isa: ISA) -> Target:
    """Return what LLVM compiles for. Code for another machine is compiled for Linux, so that it can be inspected here."""
    import llvmlite.binding as llvm

    native = not isa.machines or machine() in isa.machines
    triple = llvm.get_process_triple() if native else f"{isa.machines[0]}-unknown-linux-gnu"
    tuning = [f"+{name}" for name in isa.tuning]
    if not isa.cpu:
        features = ",".join([llvm.get_host_cpu_features().flatten(), *tuning])
        return Target(triple, llvm.get_host_cpu_name(), features)
    cpu = isa.cpu if isa.machines or machine() in X86 else "generic"
    # no ISA needs these atomics, but they matter when many cores claim chunks
    atomics = cpu_features() & {"lse"} if native else set()
    return Target(triple, cpu, ",".join([*(f"+{name}" for name in (*isa.needs, *atomics)), *tuning]))
