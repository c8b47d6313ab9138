"""`qwencli list`"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import QwenError
from ..hub.installed import Installed, installed
from ..units import size
from ._options import example, json_option
from ._streams import printable, write_text


@click.command("list", epilog=example("qwencli list", "qwencli list --json"))
@json_option
def list_models(as_json: bool) -> None:
    """List the models on this machine.

    They are listed by the names that -m takes, and come from ./models, the cache of the Hugging Face hub (see `qwencli pull`) and
    Ollama's store; $QWENCLI_MODEL and the embedded demo are listed too.
    """
    facts = [describe(model) for model in installed()]
    write_text(json.dumps({"models": facts}) + "\n" if as_json else as_table(facts))


def describe(model: Installed) -> dict[str, Any]:
    """What `--json` prints about a model; if it is damaged or can't run here, why."""
    from ..gguf.file import GGUFFile
    from ..gguf.types import FILE_TYPES
    from ..network.load import load_model

    facts: dict[str, Any] = {
        "name": model.name,
        "architecture": None,
        "quant": None,
        "size_bytes": model.size,
        "path": str(model.paths[0]),
        "n_files": len(model.paths),
        "owner": model.owner,
        "runs": False,
        "why_not": None,
    }
    try:
        file = GGUFFile(model.paths[0])
        types = Counter(t.type.name for t in file.tensors.values())
        common = types.most_common(1)[0][0] if types else None
        facts |= {
            "architecture": file.metadata.string("general.architecture", None),
            "quant": FILE_TYPES.get(file.metadata.integer("general.file_type", -1, -(2**31)), common),
        }
        load_model(file)
        facts["runs"] = True
    except QwenError as error:
        facts["why_not"] = str(error).removeprefix(f"{model.paths[0]}: ")
    return facts


def as_table(facts: Sequence[dict[str, Any]]) -> str:
    """A line for each model. At a terminal, paths are shortened at the front to fit; names never are, since they have to be typed."""
    rows = [
        [
            f["name"],
            f["architecture"] or "-",
            f["quant"] or "-",
            size(f["size_bytes"]),
            short(f["path"]) if f["runs"] else f"can't run: {f['why_not']}",
        ]
        for f in facts
    ]
    rows = [["name", "arch", "quant", "size", "path"]] + [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    room = max(16, shutil.get_terminal_size().columns - sum(widths) - 8) if sys.stdout.isatty() else None
    return "".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                row[1].ljust(widths[1]),
                row[2].ljust(widths[2]),
                row[3].rjust(widths[3]),
                cut(row[4], room),
            ]
        ).rstrip()
        + "\n"
        for row in rows
    )


def short(path: str) -> str:
    home = str(Path.home())
    return "~" + path.removeprefix(home) if path.startswith(home + os.sep) else path


def cut(text: str, room: int | None) -> str:
    """Paths keep their end, reasons their beginning."""
    if room is None or len(text) <= room:
        return text
    return text[: room - 1] + "…" if text.startswith("can't run") else "…" + text[1 - room :]


list = list_models
