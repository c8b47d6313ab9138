"""`qwencli doctor`"""

from __future__ import annotations

import json
from typing import Any

import click

from ..units import size
from ._facts import about_limits, row
from ._models import Wanted, fetched, model_option
from ._options import example, json_option
from ._streams import printable, say, write_text


@click.command(epilog=example("qwencli doctor", "qwencli doctor -m model.gguf --json"))
@model_option
@json_option
@click.option(
    "--clear-cache",
    is_flag=True,
    help="Delete all compiled kernels, those of other versions too, and do nothing else.",
)
def doctor(model: Wanted | None, as_json: bool, clear_cache: bool) -> None:
    """Examine this machine, and say what would make it faster.

    What was found is shown, and how much of it is used. The kernels are checked in a process of their own, and the speed of memory and
    cores is measured; the first call compiles kernels.
    """
    from ..machine.doctor import examine
    from ..machine.kernel_cache import clear_cache as clear

    if clear_cache:
        n_files, n_bytes = clear()
        facts: dict[str, Any] = {"deleted": n_files, "bytes": n_bytes}
        write_text(json.dumps(facts) + "\n" if as_json else f"deleted {n_files} files, {size(n_bytes)}\n")
        return
    facts = examine(fetched(model), say)
    write_text(json.dumps(facts) + "\n" if as_json else as_text(facts))


def as_text(facts: dict[str, Any]) -> str:
    """The facts in rows, then the advice."""
    lines = [
        *about_software(facts["versions"]),
        *about_cpu(facts["cpu"], facts["isa"]),
        *about_threads(facts["threads"], facts["numa"]),
        *about_memory(facts["memory"]),
        *about_limits(facts["limits"]),
        *about_cache(facts["cache"]),
        about_model(facts["model"]),
        "",
        "advice" if facts["advice"] else "no advice",
        *(f"  - {printable(line)}" for line in facts["advice"]),
    ]
    return "\n".join(lines) + "\n"


def about_software(versions: dict[str, Any]) -> list[str]:
    names = {"qwencli": "qwencli", "python": "Python", "numpy": "NumPy", "numba": "Numba"}
    names |= {"llvmlite": "llvmlite", "llvm": "LLVM"}
    return [
        row("version", *(f"{name} {versions[key]}" for key, name in names.items())),
        row("system", versions["system"]),
    ]


def about_cpu(cpu: dict[str, Any], isa: dict[str, Any]) -> list[str]:
    check = {None: None, "ok": "checked"}.get(isa["self_check"], f"check failed: {isa['self_check']}")
    return [
        row(
            "CPU",
            cpu["name"],
            cpu["machine"],
            f"{cpu['llvm_name']} to LLVM",
            "virtual machine" if cpu["virtual"] else None,
            f"{100 * cpu['steal']:.1f} % of its time taken by others" if cpu["steal"] else None,
        ),
        row("features", " ".join(cpu["features"])),
        row(
            "kernels for",
            isa["chosen"] or "none",
            f"$QWENCLI_ISA asks for {isa['variable']}" if isa["variable"] else None,
            check,
            f"available: {' '.join(isa['available'])}",
        ),
    ]


def about_threads(threads: dict[str, Any], nodes: list[dict[str, Any]]) -> list[str]:
    quota = "no quota"
    if threads["quota"] is not None:
        quota = f"quota {threads['quota']:g} ({threads['quota_file']})"
    lines = [
        row(
            "CPUs",
            f"{threads['cpus']} on {threads['cores']} cores",
            f"{threads['allowed']} allowed on {threads['allowed_cores']} cores",
            quota,
        ),
        row("threads", threads["chosen"]),
    ]
    for node in nodes:
        n_bytes = node["n_bytes"] and size(node["n_bytes"])
        lines.append(row(f"NUMA node {node['number']}", f"CPUs {node['cpus']}", n_bytes))
    return lines


def about_memory(memory: dict[str, Any]) -> list[str]:
    limit = "no limit"
    if memory["limit"] is not None:
        limit = f"limit {size(memory['limit'])} ({memory['limit_file']})"
    total = memory["total"] and size(memory["total"])
    free = memory["free"] and f"{size(memory['free'])} free"
    return [row("memory", total, free, limit), row("huge pages", memory["huge_pages"] or "unknown")]


def about_cache(cache: dict[str, Any]) -> list[str]:
    why_not = f"can't be written: {cache['why_not']}" if cache["why_not"] else "can be written"
    lines = [row("cache", cache["folder"], why_not)]
    current = [folder for folder in cache["folders"] if folder["current"]]
    stale = [folder for folder in cache["folders"] if not folder["current"]]
    lines += [row("", f["name"], f"{f['kernels']} kernels", size(f["bytes"])) for f in current]
    if stale:
        n_kernels = sum(f["kernels"] for f in stale)
        n_bytes = sum(f["bytes"] for f in stale)
        lines.append(
            row("", f"{len(stale)} of other versions or CPUs", f"{n_kernels} kernels", size(n_bytes))
        )
    return lines


def about_model(model: dict[str, Any]) -> str:
    return row("model", model["path"], model["reason"], model["size"] and size(model["size"]), model["error"])
