"""`qwencli info`"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from ..backends.kv_cache import DEFAULT_TYPES, CacheTypes
from ..errors import ModelError, shown
from ..gguf.file import GGUFFile
from ..gguf.metadata import ARRAY, LazyArray
from ..gguf.types import FILE_TYPES
from ..network.graph import Weight
from ..units import ranges, size
from ._buffers import layer_table, table
from ._devices import DeviceOptions, device_options
from ._models import Wanted, choose_model, model_argument
from ._options import cache_type_k_option, cache_type_v_option, example, json_option, mmap_option
from ._streams import printable, say, write_text

if TYPE_CHECKING:
    from pathlib import Path

    from ..backends.scheduler.wishes import Wishes
    from ..network.model import Model

SHOWN_ELEMENTS = 64  # of an array in JSON; longer ones are described
OF_MODELS_THAT_RUN = (
    "n_expert",
    "n_expert_used",
    "n_ff_expert",
    "n_ff_shared",
    "n_recurrent_layer",
    "state_bytes",
    "kv_bytes",
    "free_bytes",
    "fitting_context",
)
"""Facts that are None for a model that can't run here."""


@click.command(
    epilog=example(
        "qwencli info",
        "qwencli info model.gguf --tensors",
        "qwencli info model.gguf --json",
        "qwencli info --buffers",
        "qwencli info --buffers --device cpu,numpy",
    )
)
@model_argument
@click.option("--tensors", is_flag=True, help="List every tensor: name, type, shape (rows first), bytes.")
@click.option(
    "--buffers", is_flag=True, help="Run one token, and list what is in memory then: by buffer and by layer."
)
@device_options
@cache_type_k_option
@cache_type_v_option
@json_option
@mmap_option
def info(
    model: Wanted | None,
    tensors: bool,
    buffers: bool,
    devices: DeviceOptions,
    cache_type_k: str | None,
    cache_type_v: str | None,
    as_json: bool,
    no_mmap: bool,
) -> None:
    """Show what a model file holds.

    That is its architecture, size, types and metadata, and the memory that a context takes.
    """
    chosen = choose_model(model, quiet=model is not None)
    memory = memory_of(chosen.path, devices, cache_type_k, cache_type_v, no_mmap) if buffers else None
    file = GGUFFile(chosen.path, use_mmap=not no_mmap)
    facts = describe(file, CacheTypes(cache_type_k, cache_type_v), devices.wishes())
    if tensors:
        facts["tensors"] = [
            {"name": t.name, "type": t.type.name, "shape": list(t.shape), "n_bytes": t.n_bytes}
            for t in file.tensors.values()
        ]
    if memory:
        facts["memory"] = memory
    write_text(json.dumps(facts) + "\n" if as_json else as_text(facts, file))


def describe(
    file: GGUFFile, cache_types: CacheTypes = DEFAULT_TYPES, wishes: Wishes | None = None
) -> dict[str, Any]:
    """The facts, as `--json` prints them; None where the file doesn't say. With `wishes`, also how these divide the model.

    Raises FormatError for a damaged file, InputError for wishes that don't fit the model.
    """
    from ..network.load import load_model

    facts = in_the_file(file)
    try:
        model = load_model(file)
    except ModelError as error:
        facts |= {"runs": False, "why_not": str(error).removeprefix(f"{file.path}: ")}
    else:
        facts |= of_the_model(model, cache_types)
        if wishes:
            facts["devices"] = of_the_devices(model, wishes)
    return facts | {"metadata": {key: plain(value) for key, value in file.metadata.items()}}


def memory_of(
    path: Path, devices: DeviceOptions, cache_type_k: str | None, cache_type_v: str | None, no_mmap: bool
) -> dict[str, Any]:
    """What this process has in memory after it has run one token. Raises QwenError if the model can't be run."""
    from ..llm import LLM
    from ..machine.buffers import memory_report

    llm = LLM(
        path,
        devices=devices.wishes(),
        report=say,
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        use_mmap=not no_mmap,
    )
    if not llm.model.config.causal:
        llm.embed([0], "last")
    else:
        for _ in llm.stream([0], max_tokens=1):
            pass
    return memory_report(llm)


def in_the_file(file: GGUFFile) -> dict[str, Any]:
    """What a file says of itself, whether or not it can run."""
    get = file.metadata
    arch = file.metadata.string("general.architecture", None)

    def number(key: str) -> Any:
        value = get.get(f"{arch}.{key}")
        return value if type(value) is int else None

    tensors = file.tensors.values()
    n_params = sum(t.n_weights for t in tensors)
    n_bytes = sum(t.n_bytes for t in tensors)
    return {
        "path": str(file.path),
        "version": file.version,
        "n_kv": len(get),
        "n_tensors": len(tensors),
        "name": get.string("general.name", None),
        "architecture": arch,
        "n_params": n_params,
        "size_bytes": file.size,
        "bpw": 8 * n_bytes / n_params if n_params else None,
        "file_type": FILE_TYPES.get(get.integer("general.file_type", -1, -(2**31))),
        "context_length": number("context_length"),
        "n_layer": number("block_count"),
        "n_embd": number("embedding_length"),
        "n_ff": number("feed_forward_length"),
        "n_head": number("attention.head_count"),
        "n_head_kv": number("attention.head_count_kv"),
        "n_head_dim": number("attention.key_length"),
        "n_vocab": vocabulary_size(file),
        "chat_template": "tokenizer.chat_template" in get,
        "types": dict(Counter(t.type.name for t in tensors)),
        "runs": True,
        "why_not": None,
        **dict.fromkeys(OF_MODELS_THAT_RUN),
    }


def vocabulary_size(file: GGUFFile) -> int | None:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, LazyArray):
        return len(tokens)
    embedding = file.tensors.get("token_embd.weight")
    return embedding.shape[0] if embedding else None


def of_the_model(model: Model, cache_types: CacheTypes) -> dict[str, Any]:
    """What is known only of a model that runs: its layers as they run, and the memory that it needs."""
    from ..engine.fit import measure

    c = model.config
    types = cache_types.chosen("f16", c.head_dim)
    fit = measure(model, cache_types)
    facts: dict[str, Any] = {
        "n_layer": c.n_layer,
        "n_ff": c.n_ff,
        "n_head_kv": c.n_head_kv,
        "n_head_dim": c.head_dim,
        "kv_bytes": {str(n): types.n_bytes(n * c.n_kv_values // 2) for n in (4096, c.n_ctx)},
        "free_bytes": fit.free,
        "fitting_context": fit.longest(c.n_ctx),
    }
    if e := c.experts:
        facts |= {
            "n_expert": e.n_expert,
            "n_expert_used": e.n_used,
            "n_ff_expert": e.n_ff,
            "n_ff_shared": e.n_ff_shared or None,
        }
    if c.delta_nets:
        facts |= {"n_recurrent_layer": len(c.delta_nets.layers), "state_bytes": 4 * c.n_state_values}
    return facts


def of_the_devices(model: Model, wishes: Wishes) -> list[dict[str, Any]]:
    """What each device gets if the model is divided. A layer of which it gets a part counts."""
    from ..backends.scheduler.placement import layers_of, place

    placement, layer_of = place(model, wishes), layers_of(model)
    found = []
    for number, device in enumerate(placement.devices):
        nodes = [node for name, node in model.graph.nodes.items() if placement.of[name] == number]
        weights = {s.op.info.name: s.op.info for node in nodes for s in node.src if isinstance(s.op, Weight)}
        found.append(
            {
                "name": device.name,
                "layers": sorted(
                    {layer_of[node.name] for node in nodes if node.src} - {model.config.n_layer}
                ),
                "n_tensors": len(weights),
                "weight_bytes": sum(info.n_bytes for info in weights.values()),
            }
        )
    return found


def plain(value: Any) -> Any:
    """A value of the metadata for JSON, which has no NaN; arrays that are long or contain arrays are only described."""
    if not isinstance(value, LazyArray):
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value
    return (
        [plain(v) for v in value.read()]
        if len(value) <= SHOWN_ELEMENTS and value.elem_type != ARRAY
        else f"array of {len(value)}"
    )


def column(names: Iterable[str]) -> int:
    """The width of a column of names, which a few overlong ones don't widen."""
    return min(max(map(len, names), default=0), 60)


def as_text(facts: dict[str, Any], file: GGUFFile) -> str:
    """The facts in rows, then the metadata, then the tensors if they are among the facts."""
    lines = [*about_file(facts), *about_network(facts), *about_memory(facts), *about_devices(facts)]
    lines += ["", f"metadata ({facts['n_kv']})"]
    width = column(file.metadata)
    for key, value in facts["metadata"].items():
        kind = file.metadata.typed[key].type_name
        lines.append(f"  {shown(key):<{width}} {kind:<10} {shown(value, 80)}")
    if "tensors" in facts:
        lines += ["", f"tensors ({facts['n_tensors']})"]
        width = column(file.tensors)
        for t in facts["tensors"]:
            shape = " x ".join(map(str, t["shape"]))
            lines.append(f"  {shown(t['name'], 64):<{width}} {t['type']:<8} {shape:>15} {t['n_bytes']:>12,}")
    if "memory" in facts:
        buffers = facts["memory"]["buffers"]
        lines += ["", "memory after a token", *(f"  {line}" for line in table(facts["memory"]))]
        lines += ["", "by layer", *(f"  {line}" for line in layer_table(buffers))]
    return "\n".join(lines) + "\n"


def row(name: str, value: Any) -> str:
    return f"  {name:<15} {printable(str(value))}"


def about_file(facts: dict[str, Any]) -> list[str]:
    bpw = f", {facts['bpw']:.2f} bits per weight" if facts["bpw"] else ""
    return [
        printable(facts["path"]),
        row("name", shown(facts["name"], 80)),
        row("architecture", shown(facts["architecture"])),
        row("runs", "yes" if facts["runs"] else f"no: {facts['why_not']}"),
        row("parameters", f"{facts['n_params']:,}"),
        row(
            "file", f"{size(facts['size_bytes'])}, GGUF version {facts['version']}, {facts['file_type']}{bpw}"
        ),
    ]


def about_network(facts: dict[str, Any]) -> list[str]:
    n_ff = f", feed-forward {facts['n_ff']}" if facts["n_ff"] and not facts["n_expert"] else ""
    lines = [
        row("context", facts["context_length"]),
        row("layers", facts["n_layer"]),
        row("embedding", f"{facts['n_embd']}{n_ff}"),
        row("heads", f"{facts['n_head']}, key-value {facts['n_head_kv']}, each of {facts['n_head_dim']}"),
    ]
    if facts["n_expert"]:
        used = f"{facts['n_expert']}, {facts['n_expert_used']} used, each of {facts['n_ff_expert']}"
        shared = f"; one of {facts['n_ff_shared']} for all tokens" if facts["n_ff_shared"] else ""
        lines.append(row("experts", used + shared))
    if facts["n_recurrent_layer"]:
        state = size(facts["state_bytes"])
        lines.append(row("recurrent", f"{facts['n_recurrent_layer']} layers, with a state of {state}"))
    types = ", ".join(f"{n} {kind}" for kind, n in facts["types"].items())
    return [
        *lines,
        row("vocabulary", facts["n_vocab"]),
        row("chat template", "yes" if facts["chat_template"] else "no"),
        row("tensors", types or "none"),
    ]


def about_memory(facts: dict[str, Any]) -> list[str]:
    lines = []
    if facts["kv_bytes"]:
        sizes = (f"{size(n)} for {length} tokens" for length, n in facts["kv_bytes"].items())
        lines.append(row("context memory", ", ".join(sizes)))
    if facts["free_bytes"] is not None:
        fitting = f"{facts['fitting_context']} of {facts['context_length']} tokens"
        lines.append(row("fits", f"{fitting} in {size(facts['free_bytes'])} free"))
    return lines


def about_devices(facts: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for device in facts.get("devices", []):
        layers = ranges(set(device["layers"])) or "none"
        held = f"layers {layers}, {device['n_tensors']} tensors, {size(device['weight_bytes'])}"
        lines.append(row("" if lines else "devices", f"{device['name']}: {held}"))
    return lines
