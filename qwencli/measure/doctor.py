"""What qwencli finds on this machine and makes of it, and what would make it faster."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import QwenError
from ..gguf.file import GGUFFile
from ..hub.choice import find_model
from ..hub.places import EMBEDDED
from ..kernels import isa, jit
from ..network.model import load_model
from ..system.host import Host
from ..units import size
from .machine import cpu_name, measure_limits, physical_cores

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
"""LLVM's names of what kernels use, or might one day."""
FOLDER_NAME = re.compile(r"([a-z0-9_]+)-[0-9a-f]{20}")
"""Folders of compiled kernels, see Kernels.folder."""
STEAL = 0.02
"""The share of CPU time from which on it is worth a line that others take it."""
TEXT, CHECK_SECONDS = (
    "Once upon a time there was a little girl named Lily. She loved to play in the park with her friends.",
    300,
)


def examine(model: str | None = None, report: Callable[[str], None] | None = None) -> dict[str, Any]:
    """All facts, as `qwencli doctor --json` prints them; what can't be found is None.

    It takes some seconds: a check of the kernels in a process of its own, and a measurement. `report` is told what is compiled.
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
        report(f"checking the kernels for {facts['isa']['chosen']}, which are compiled first: some seconds")
    facts["isa"]["self_check"] = check_apart(facts["isa"]["chosen"]) if facts["isa"]["chosen"] else None
    facts["limits"] = measured(report) if facts["isa"]["self_check"] == "ok" else None
    facts["cache"] = cache()
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
        "name": cpu_name(),
        "machine": isa.machine(),
        "llvm_name": jit.llvm()[1],
        "features": [name for name in FEATURES if name in present],
        "virtual": host.virtual(),
        "steal": host.steal(),
    }


def instruction_set() -> dict[str, Any]:
    try:
        chosen, why_not = isa.choose().name, None
    except isa.ISAError as error:
        chosen, why_not = None, str(error)
    return {
        "chosen": chosen,
        "why_not": why_not,
        "available": [each.name for each in isa.available()],
        "variable": os.environ.get(isa.VARIABLE) or None,
    }


def threads(host: Host) -> dict[str, Any]:
    """CPUs are hardware threads. `allowed` are those of this process's affinity, `quota` what a cgroup leaves of their time."""
    n_cpus = os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(n_cpus))
    quota = host.quota()
    return {
        "chosen": physical_cores(host),
        "cpus": n_cpus,
        "cores": host.cores(set(range(n_cpus))),
        "allowed": len(allowed),
        "allowed_cores": host.cores(allowed),
        "quota": quota and quota[0],
        "quota_file": quota and quota[1],
    }


def memory(host: Host) -> dict[str, Any]:
    (total, available), limit = host.memory(), host.memory_limit()
    return {
        "total": total,
        "available": available,
        "free": host.free(),
        "limit": limit and limit[0],
        "limit_file": limit and limit[1],
        "huge_pages": host.huge_pages(),
    }


def which_model(chosen: str | None) -> dict[str, Any]:
    """The model that a command would take, and why it can't be run, if so."""
    found: dict[str, Any] = {"path": None, "reason": None, "size": None, "slow": [], "error": None}
    try:
        path, reason = find_model(chosen)
        found |= {"path": str(path), "reason": reason}
        file = GGUFFile(path)
        from ..backends.cpu.lower import what_has_no_kernels

        found |= {"size": file.size, "slow": what_has_no_kernels(load_model(file))}
    except QwenError as error:
        found["error"] = str(error)
    return found


def measured(report: Callable[[str], None] | None) -> dict[str, float] | None:
    """Bytes a second from memory, operations a second on int8 and on float32, by as many threads as are used."""
    try:
        limits = measure_limits(None, report)
    except QwenError:
        return None
    return {"bandwidth": limits.bandwidth, "products": limits.products, "flops": limits.flops}


# -- The kernels' check -------------------------------------------------------------------------------------------------


def check_apart(name: str) -> str:
    """Run the kernels of an ISA in a process of their own, which an illegal instruction may end. "ok", or what is wrong with them."""
    command = [sys.executable, *(["-I"] if sys.flags.isolated else []), "-m", __name__]
    env = os.environ | {isa.VARIABLE: name, "QWENCLI_CACHE": str(jit.cache_folder().absolute())}
    try:
        with tempfile.TemporaryDirectory() as empty:  # python -m would import what lies in the current folder
            done = subprocess.run(
                command,
                env=env,
                cwd=empty,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=CHECK_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"they could not be run: {error}"
    if done.returncode < 0:
        return f"they ended their process with the signal {-done.returncode} ({signal.strsignal(-done.returncode)})"
    try:
        return str(json.loads(done.stdout))
    except ValueError:
        return f"they ended their process with the exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-200:]}"


def check() -> str:
    """Compare the logits of compiled kernels with the NumPy backend's: many tokens, then one more, of the embedded model's kind of text."""
    import numpy as np

    from ..backends.cpu.backend import CPUBackend
    from ..backends.kv_cache import KVSequence
    from ..backends.numpy.backend import NumpyBackend
    from ..backends.protocol import LOGITS, Batch, Segment
    from ..text.tokenizer import Tokenizer

    model = load_model(GGUFFile(EMBEDDED))
    *tokens, last = Tokenizer(model.file).encode(TEXT)
    found = []
    for backend in CPUBackend(model), NumpyBackend(model):
        seq = KVSequence()
        found.append(
            np.concatenate(
                [
                    backend.run([LOGITS], Batch([Segment(seq, step, len(step))]))[LOGITS]
                    for step in (tokens, [last])
                ]
            )
        )
    kernels, numpy = (logits / np.linalg.norm(logits, axis=-1, keepdims=True) for logits in found)
    likeness = float((kernels * numpy).sum(axis=-1).min())  # 1 but for the quantized activations
    return "ok" if likeness > 0.999 else f"they give other logits than NumPy: a cosine of {likeness:.4f}"


# -- The cache ----------------------------------------------------------------------------------------------------------


def cache() -> dict[str, Any]:
    """Folders of compiled kernels. `current` are those that this version uses on this machine."""
    folder = jit.cache_folder()
    current = {jit.Kernels(each).folder.name for each in isa.available()}
    folders = []
    for path in kernel_folders():
        files = kernel_files(path)
        folders.append(
            {
                "name": path.name,
                "isa": path.name.rpartition("-")[0],
                "kernels": sum(file.suffix == ".o" for file in files),
                "bytes": sum(file.stat().st_size for file in files),
                "current": path.name in current,
            }
        )
    return {"folder": str(folder), "why_not": why_not_kept(folder), "folders": folders}


def kernel_folders() -> list[Path]:
    try:
        return sorted(
            path
            for path in jit.cache_folder().iterdir()
            if FOLDER_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
        )
    except OSError:
        return []


def kernel_files(folder: Path) -> list[Path]:
    """The kernels in a folder, what was noted of them, and what a killed process left of one."""
    try:
        return [
            path
            for path in folder.iterdir()
            if (path.suffix in (".o", ".json") or path.name.startswith("tmp")) and path.is_file()
        ]
    except OSError:
        return []


def why_not_kept(folder: Path) -> str | None:
    """Why compiled kernels can't be kept in the cache's folder, None if they can."""
    place = folder
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return f"{place}: {error.strerror or error}"
    untrusted = [each for each in kernel_folders() if not jit.trusted(each.stat())]
    return f"{untrusted[0]}: others can write to it" if untrusted else None


def clear_cache() -> tuple[int, int]:
    """Delete all compiled kernels, also those of other versions. Returns how many files, and their bytes. Those of others stay."""
    n_files = n_bytes = 0
    for folder in kernel_folders():
        for file in kernel_files(folder):
            with suppress(OSError):
                size = file.stat().st_size
                file.unlink()
                n_files, n_bytes = n_files + 1, n_bytes + size
        with suppress(OSError):  # something else is in it
            folder.rmdir()
    return n_files, n_bytes


# -- Advice -------------------------------------------------------------------------------------------------------------


def advice(facts: dict[str, Any]) -> list[str]:
    """A line for each thing that could be better."""
    return [
        *about_kernels(facts["isa"], facts["cache"]),
        *about_threads(facts["threads"], facts["numa"]),
        *about_memory(facts["memory"], facts["model"]),
        *about_figures(facts["cpu"]),
    ]


def about_kernels(found: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    lines = []
    if found["why_not"]:
        lines.append(found["why_not"])
    elif found["chosen"] != found["available"][0]:
        lines.append(
            f"${isa.VARIABLE} chooses {found['chosen']}; {found['available'][0]}, which this CPU has, is faster"
        )
    elif found["chosen"] == "generic":
        lines.append(
            "this CPU has none of the instruction sets that there are fast kernels for: the generic ones are many times slower"
        )
    if found["self_check"] not in (None, "ok"):
        others = [name for name in found["available"] if name != found["chosen"]]
        instead = f"try {isa.VARIABLE}={others[0]}" if others else "use --backend numpy"
        lines.append(f"the kernels for {found['chosen']} fail their check: {instead}, and please report it")
    if kept["why_not"]:
        lines.append(
            f"compiled kernels can't be kept, so that each run compiles them again: {kept['why_not']}; "
            "choose another folder with $QWENCLI_CACHE"
        )
    if stale := [folder for folder in kept["folders"] if not folder["current"]]:
        n_bytes = sum(folder["bytes"] for folder in stale)
        lines.append(
            f"kernels of other versions or CPUs take {n_bytes / 1e6:.1f} MB: qwencli doctor --clear-cache deletes all"
        )
    return lines


def about_threads(found: dict[str, Any], nodes: list[dict[str, Any]]) -> list[str]:
    lines = []
    if found["allowed"] < found["cpus"]:
        lines.append(
            f"this process may use {found['allowed']} of {found['cpus']} CPUs (taskset, a cpuset of its container, or the like)"
        )
    if found["allowed_cores"] < found["allowed"]:
        lines.append(
            f"{found['allowed']} CPUs share {found['allowed_cores']} cores: one thread a core is used, since more seldom help"
        )
    if found["quota"] is not None and found["quota"] < found["allowed_cores"]:
        lines.append(
            f"{found['quota_file']} leaves {found['quota']:g} CPUs' time to this process: -t is {found['chosen']} by default, "
            "since more threads would be stopped again and again"
        )
    if len(nodes) > 1:
        lines.append(
            f"memory is spread over {len(nodes)} NUMA nodes: compare `numactl --interleave=all qwencli bench` and "
            "`numactl --cpunodebind=0 --membind=0 qwencli bench`"
        )
    return lines


def about_memory(found: dict[str, Any], model: dict[str, Any]) -> list[str]:
    if model["size"] and found["free"] is not None and model["size"] > found["free"]:
        return [
            f"the model has {size(model['size'])}, but {size(found['free'])} of memory are free: what doesn't fit is read from the disk"
            " for each token; take a smaller model or quantization"
        ]
    if model["slow"]:
        return [
            f"there are no compiled kernels for {', '.join(model['slow'])}, which the model has: it runs on the slow NumPy backend"
        ]
    return []


def about_figures(found: dict[str, Any]) -> list[str]:
    if found["steal"] is not None and found["steal"] > STEAL:
        return [
            f"other virtual machines took {100 * found['steal']:.0f} % of the CPU time since this one was started: speeds will vary"
        ]
    return []


if __name__ == "__main__":
    try:
        print(json.dumps(check()))
    except QwenError as failure:
        print(json.dumps(str(failure)))
