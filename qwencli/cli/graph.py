"""`qwencli graph`"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..drawing import SUFFIXES
from ._bar import Bar
from ._devices import DeviceOptions, device_options
from ._models import Wanted, choose_model, model_option
from ._options import example
from ._streams import say, write_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..backends.scheduler.placement import Placement
    from ..measure.node_times import NodeTime
    from ..network.model import Model


def read_output(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and Path(value).suffix.lower() not in SUFFIXES:
        raise click.BadParameter(f"'{value}' ends with none of {', '.join(SUFFIXES)}.")
    return value


def read_layers(ctx: click.Context, param: click.Parameter, value: str | None) -> list[range] | None:
    if value is None:
        return None
    found = []
    for part in value.split(","):
        match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part.strip())
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise click.BadParameter(f"'{part}' is neither a layer's number nor a range such as 0-3.")
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


@click.command(
    epilog=example(
        "qwencli graph",
        "qwencli graph -m model.gguf -o model.svg",
        "qwencli graph -m model.gguf --layers 0,1 -o layers.svg",
        "qwencli graph -m model.gguf --tokens 512 --profile -o times.svg",
    )
)
@model_option
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    callback=read_output,
    help="Where to, and by its suffix which format: .svg, .dot (for graphviz), .png (needs graphviz), .json, .mmd (Mermaid)."
    " Default: text on stdout.",
)
@click.option(
    "--layers", metavar="N,N-N", callback=read_layers, help="Only these layers, in full; the first is 0."
)
@click.option(
    "--tokens",
    "n_tokens",
    type=click.IntRange(1, 2**24),
    default=1,
    show_default=True,
    help="Tokens in the step that is shown; one of them has logits.",
)
@device_options
@click.option("--profile", is_flag=True, help="Run such a step, and show how long each node takes.")
@click.option("--full", is_flag=True, help="Show every layer, also those that are alike.")
def graph(
    model: Wanted | None,
    output: str | None,
    layers: list[range] | None,
    n_tokens: int,
    devices: DeviceOptions,
    profile: bool,
    full: bool,
) -> None:
    """Show a model's graph: what is computed from what, of which type, shape and size.

    Layers that differ at most in the types of their weights are shown once, with all these types. In text, > marks an input, - a weight,
    < a result, and ^ a node of a layer that isn't shown. With --profile, a node that is computed together with a later one says so: its
    time is a part of the other's. JSON always has every node.
    """
    suffix = Path(output).suffix.lower() if output else ""
    if output:
        prepare(output, suffix)
    chosen = choose_model(model, quiet=model is not None)
    from ..drawing.picture import picture_of_model
    from ..gguf.file import GGUFFile
    from ..network.load import load_model

    loaded = load_model(GGUFFile(chosen.path))
    placement = placed(loaded, devices)
    n_layers = len(loaded.layers) - 1
    shown = None if layers is None else [n for part in layers for n in part[: n_layers + 1]]
    picture = picture_of_model(
        loaded,
        chosen.path.name,
        n_tokens,
        placement.names() if placement else None,
        shown,
        full or suffix == ".json",
        measured(loaded, n_tokens, placement) if profile else None,
    )
    if not output:
        from ..drawing.text import as_text

        write_text(as_text(picture))
        return
    from ..drawing.formats import write
    from ..system.files import replacing

    contents = write(picture, suffix)
    with replacing(output, private=False) as file:
        file.write(contents)


def prepare(output: str, suffix: str) -> None:
    """Raise now what would be raised after the work: QwenError."""
    from ..drawing.dot import find_program
    from ..system.files import check_replaceable

    check_replaceable(output)
    if suffix == ".png":
        find_program()


def placed(model: Model, devices: DeviceOptions) -> Placement | None:
    """Where each node runs, None if no devices are named. Raises InputError."""
    if not (wishes := devices.wishes()):
        return None
    from ..backends.scheduler.placement import place

    placement = place(model, wishes)
    for line in placement.said:
        say(line)
    return placement


def measured(model: Model, n_tokens: int, placement: Placement | None) -> Mapping[str, NodeTime]:
    """Each node's time, with a bar for what takes longer than a second. Raises QwenError."""
    from ..measure.node_times import node_times

    kernels, steps = Bar(delay=1, unit="kernel"), Bar(delay=1, unit="step")
    return node_times(model, n_tokens, report=say, progress=kernels, stepped=steps, placement=placement)
