"""What `qwencli doctor` finds: this machine, what qwencli uses of it, and what would make it faster."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .. import __version__
from ..backends.cpu.lower import without_kernels
from ..backends.cpu.team import physical_cores
from ..errors import QwenError
from ..gguf.file import GGUFFile
from ..hub.choice import find_model
from ..kernels import isa, jit
from ..network.load import load_model
from ..system.host import Host
from .advice import advice
from .facts import instruction_set, measured, memory
from .kernel_cache import kernel_cache
from .self_check import check_apart

FEATURES = (
    "sse4.2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avxvnni",
    "avxvnniint8",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512vnni",
    "avx512bf16",
    "avx512fp16",
    "amx-tile",
    "amx-int8",
    "amx-bf16",
    "neon",
    "dotprod",
    "i8mm",
    "bf16",
    "sve",
    "sve2",
    "lse",
)
"""LLVM's names of the CPU features that kernels use, or might one day."""


def examine(model: str | None = None, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """All facts, as `qwencli doctor --json` prints them; what can't be found is None.

    This takes a few seconds: a check of the kernels in a process of its own, and a measurement. `report` is told what is compiled.
    """
    host = Host()
    facts: dict[str, Any] = {
        "versions": versions(),
        "cpu": cpu(host),
        "isa": instruction_set(),
        "threads": threads(host),
        "numa": [node._asdict() for node in host.nodes()],
        "memory": memory(host),
        "model": which_model(model),
    }
    if report and facts["isa"]["chosen"] and not jit.Kernels(isa.choose()).folder.exists():
        report(
            f"checking the kernels for {facts['isa']['chosen']}, which have to be compiled first: a few seconds"
        )
    facts["isa"]["self_check"] = check_apart(facts["isa"]["chosen"]) if facts["isa"]["chosen"] else None
    facts["limits"] = measured(report) if facts["isa"]["self_check"] == "ok" else None
    facts["cache"] = kernel_cache()
    return facts | {"advice": advice(facts)}


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {
        "qwencli": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    for package in "numpy", "numba", "llvmlite":
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"llvm": jit.llvm()[0]}


def cpu(host: Host) -> dict[str, Any]:
    present = isa.cpu_features()
    return {
        "name": host.cpu_name(),
        "machine": isa.machine(),
        "llvm_name": jit.llvm()[1],
        "features": [name for name in FEATURES if name in present],
        "virtual": host.virtual(),
        "steal": host.steal(),
    }


def threads(host: Host) -> dict[str, Any]:
    """CPUs are hardware threads. `allowed` is the process's affinity, `quota` how many CPUs' time a cgroup allows it."""
    n_cpus = os.cpu_count() or 1
    allowed = host.allowed()
    quota = host.quota()
    return {
        "chosen": physical_cores(host),
        "cpus": n_cpus,
        "cores": host.cores(range(n_cpus)),
        "allowed": len(allowed),
        "allowed_cores": host.cores(allowed),
        "quota": quota and quota[0],
        "quota_file": quota and quota[1],
    }


def which_model(chosen: str | None) -> dict[str, Any]:
    """The model that a command would use, or why it can't be run."""
    found: dict[str, Any] = {"path": None, "reason": None, "size": None, "slow": [], "error": None}
    try:
        path, reason = find_model(chosen)
        found |= {"path": str(path), "reason": reason}
        file = GGUFFile(path)
        found |= {"size": file.size, "slow": without_kernels(load_model(file))}
    except QwenError as error:
        found["error"] = str(error)
    return found
