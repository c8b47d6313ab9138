#!/usr/bin/env python3
"""A net of two linear layers with biases, computed on one device and divided between two.

    python examples/split_graph.py
    python examples/split_graph.py --first cpus:0 --second numpy -o net.dot

It shows the splits, draws the net if asked to, and compares the results.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from qwencli import Graph, QwenError
from qwencli.drawing import SUFFIXES
from qwencli.drawing.formats import write
from qwencli.drawing.picture import picture
from qwencli.network.graph import Tensor
from qwencli.system.host import Host

N_IN, N_HIDDEN, N_OUT = 400, 128, 10
N_ROWS = 32


def build_net() -> Graph:
    """The net, with random weights: rows x [n, 400] -> fc1 [n, 128] -> fc2 [n, 10]."""
    rng = np.random.default_rng(0)
    g = Graph()

    def linear(name: str, x: Tensor, n_out: int, n_in: int) -> Tensor:
        weight = g.constant(rng.standard_normal((n_out, n_in), np.float32) / n_in**0.5, f"{name}.weight")
        bias = g.constant(rng.standard_normal(n_out, np.float32), f"{name}.bias")
        return g.mul_mat(weight, x, bias, name)

    linear("fc2", linear("fc1", g.input("x", N_IN), N_HIDDEN, N_IN), N_OUT, N_HIDDEN)
    return g


def two_devices() -> tuple[str, str]:
    """A device for each half of the CPUs; with only one CPU, NumPy is the other."""
    cpus = sorted(Host().allowed())
    half = len(cpus) // 2
    if not half:
        return "cpu", "numpy"
    first, second = ("+".join(map(str, part)) for part in (cpus[:half], cpus[half:]))
    return f"cpus:{first}", f"cpus:{second}"


def draw(g: Graph, devices: dict[str, str], file: Path) -> None:
    """Draw the net, a colour for each device, in the format that the file's name ends in."""
    drawn = picture(g.nodes.values(), title="two layers", n_tokens=N_ROWS, placement=g.placement(devices))
    file.write_bytes(write(drawn, file.suffix))


@click.command(epilog="Example: split_graph.py --first cpus:0 --second numpy -o net.dot")
@click.option("--first", default=two_devices()[0], show_default=True, help="The device of the first layer.")
@click.option("--second", default=two_devices()[1], show_default=True, help="The device of the second layer.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Draw the net: .dot, .svg, .png ...")
def main(first: str, second: str, output: Path | None) -> None:
    """Divide a net of two linear layers between two devices, show the splits, and compare with one device."""
    if output and output.suffix not in SUFFIXES:
        raise click.BadParameter(f"{output.name}: expected a name that ends in {', '.join(SUFFIXES)}")
    g = build_net()
    x = np.random.default_rng(1).standard_normal((N_ROWS, N_IN), np.float32)
    try:
        alone = g.compute({"x": x}, first, "fc2")
        devices = {"fc1": first, "fc2": second}
        divided = g.compute({"x": x}, devices, "fc2")
        splits = g.splits(devices, N_ROWS)
        if output:
            draw(g, devices, output)
    except QwenError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror}") from None
    print("\n".join(splits) or f"no splits: everything runs on {first}")
    difference = np.abs(divided - alone).max()
    print(f"{N_ROWS} x {N_OUT} results, largest difference from one device: {difference:.1g}")


if __name__ == "__main__":
    main()
