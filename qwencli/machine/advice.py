"""What would make qwencli faster on this machine, from the facts that `doctor` found."""

from __future__ import annotations

from typing import Any

from ..kernels import isa
from ..units import size

STEAL = 0.02
"""The share of CPU time taken by others that is worth a line."""


def advice(facts: dict[str, Any]) -> list[str]:
    """A line for each thing that could be better; `facts` are those of `examine`."""
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
            f"${isa.VARIABLE} chooses {found['chosen']}; {found['available'][0]}, which this CPU supports, is faster"
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
            f"compiled kernels can't be kept, so each run compiles them again: {kept['why_not']}; "
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
            f"{found['allowed']} CPUs share {found['allowed_cores']} cores: one thread per core is used, since more rarely help"
        )
    if found["quota"] is not None and found["quota"] < found["allowed_cores"]:
        lines.append(
            f"{found['quota_file']} allows this process {found['quota']:g} CPUs' time: -t is {found['chosen']} by default, "
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
            f"the model has {size(model['size'])}, but {size(found['free'])} of memory is free: what doesn't fit is read from disk"
            " for each token; take a smaller model or quantization"
        ]
    if model["slow"]:
        return [
            f"there are no compiled kernels for {', '.join(model['slow'])}, which the model uses: it runs on the slow NumPy backend"
        ]
    return []


def about_figures(found: dict[str, Any]) -> list[str]:
    if found["steal"] is not None and found["steal"] > STEAL:
        return [
            f"other virtual machines have taken {100 * found['steal']:.0f} % of the CPU time since this one started: speeds will vary"
        ]
    return []
