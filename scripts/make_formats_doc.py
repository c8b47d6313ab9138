#!/usr/bin/env python3
"""Compare every tensor type with llama.cpp, and write docs/formats.md from all measurements so far.

    python scripts/make_formats.py FILES                                       first, once: the files, and llama.cpp's perplexities
    python scripts/make_formats_doc.py --files FILES --speed -t 2              measure everything, then write the document
    python scripts/make_formats_doc.py Q2_K IQ4_XS --speed -t 2                measure the speed of two mixes again
    python scripts/make_formats_doc.py                                         only write the document

Measurements are kept in docs/formats.json. Speeds are measured as in scripts/bench_peers.py: pairs of fresh processes, with llama.cpp in
its best setting, on a file with the shapes of Qwen3-0.6B that is written for this purpose and removed afterwards.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import bench_peers
import click
from make_formats import MODELS, N_CTX, NOTES, TEXTS, file_of
from mixes import TYPES

from qwencli import __version__
from qwencli.backends.cpu.team import physical_cores
from qwencli.backends.numpy.dequantize import DEQUANTIZE
from qwencli.kernels.formats import FORMATS
from qwencli.system.host import Host

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ROOT / "docs" / "formats.json"
DOCUMENT = ROOT / "docs" / "formats.md"
FIGURES = json.loads(NOTES.read_text())
TESTS = "pp512", "tg64"
MIX_OF = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "IQ2_S": "IQ2_M"}
"""The most common mix of llama-quantize for a type, if it isn't named like the type."""
ORDER = (
    "F32",
    "F16",
    "BF16",
    "Q8_0",
    "Q6_K",
    "Q5_K",
    "Q5_1",
    "Q5_0",
    "Q4_K",
    "Q4_1",
    "Q4_0",
    "Q3_K",
    "Q2_K",
    "Q2_0",
    "Q1_0",
    "IQ4_NL",
    "IQ4_XS",
    "IQ3_S",
    "IQ3_XXS",
    "IQ2_S",
    "IQ2_XS",
    "IQ2_XXS",
    "IQ1_M",
    "IQ1_S",
    "TQ2_0",
    "TQ1_0",
    "MXFP4",
    "NVFP4",
)
INTRO = f"""\
# Formats

Written by `scripts/make_formats_doc.py` from its measurements. All GGML types that hold weights run, with compiled kernels{{lacking}}.
Types that are only used for activations (Q8_1, Q8_K), integers, and types that only exist in forks of llama.cpp don't run; the error
names the type where it is known.

A block of weights is stored together with its scales, and is multiplied as it is stored in the file. Activations are quantized to match, as
in llama.cpp: to blocks of 256 (Q8_K) or of 32 (Q8_0); for float weights they stay floats. NVFP4 has one additional scale per tensor
(`blk.0.attn_q.scale`); a file without it is rejected.

How each type is verified: its weights are, bit for bit, those that the `gguf` package computes from the blocks, or, for types that the
package can't read, those of GGML's own library. On every instruction set, products are compared with the products of these weights and the
quantized activations, one token and many give the same bits, and the tensors are placed next to protected pages. Whole files also
reach llama.cpp's perplexity.

## Perplexity

The perplexity of the demo model with `-c {N_CTX}`, when all matrices of its layers have the type: ours / llama.cpp's, and the difference.
The model was not trained for one or two bits, and some of these types leave little of it; what matters here is that both engines agree.
Blocks are llama.cpp's, with an importance matrix, except for NVFP4, to which it cannot quantize: those are from GGML's quantizer.

| type | weights per block | bytes | bits per weight | weights from | activations | {" | | ".join(TEXTS)} | |
|---|---:|---:|---:|---|---|---:|---:|---:|---:|
"""
MIXES_INTRO = f"""
The files that people download mix types. The same model, in llama-quantize's mixes:

| file | {" | | ".join(TEXTS)} | |
|---|---:|---:|---:|---:|
"""
SPEED_INTRO = """
## Speed

Tokens per second with the shapes of Qwen3-0.6B: ours / llama.cpp's, measured in turn, and the ratio; medians of the number of runs given.
pp512 is a prompt of 512 tokens, tg64 is 64 tokens generated one by one.

{cpu}, {threads} threads, qwencli {version}, llama-cpp-python {peer}, {date}.

| mix | MB | runs | pp512 | | tg64 | |
|---|---:|---:|---:|---:|---:|---:|
"""


def published() -> dict[str, dict[str, float]]:
    """llama-perplexity's figures for the files of the demo model, by file and text, from the README next to them."""
    table = (MODELS / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"`(demo-\w+\.gguf)` \| \w+ \| [\d.]+ \| ([\d.]+) ± [\d.]+ \| ([\d.]+)", table)
    return {name: dict(zip(TEXTS, map(float, figures))) for name, *figures in rows}


def our_perplexity(model: Path, text: str, threads: int) -> float:
    options = ["-m", str(model), "-f", str(MODELS / text), "-c", str(N_CTX), "-t", str(threads), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "qwencli", "perplexity", *options], capture_output=True, check=True
    )
    ppl: float = json.loads(done.stdout)["ppl"]
    return ppl


def our_speed(mix: str, threads: int, repeat: int, python: str, tick: Callable[[], object]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, f"{mix}.gguf")
        script = ROOT / "scripts" / "make_model.py"
        subprocess.run(
            [sys.executable, script, model, "--preset", "qwen3-0.6b", "--type", mix],
            check=True,
            capture_output=True,
        )
        found = bench_peers.compare(str(model), TESTS, threads, repeat, python, tick)
        return {"megabytes": model.stat().st_size / 1e6, "repeat": repeat} | {
            name: found["tests"][name] for name in TESTS
        }


def document(measured: dict[str, Any]) -> str:
    lacking = [kind for kind in ORDER if kind not in FORMATS]
    text = INTRO.format(
        lacking=f", except {', '.join(lacking)}, which only run in the slower NumPy backend"
        if lacking
        else ""
    )
    text += "\n".join(type_row(kind, measured["perplexity"].get(kind, {})) for kind in ORDER)
    text += "\n" + MIXES_INTRO
    for name, theirs in published().items():
        text += f"| `{name}` | {' | '.join(pairs(measured['perplexity'].get(name, {}), theirs))} |\n"
    if speeds := measured["speed"]:
        text += SPEED_INTRO.format(**measured["about"])
        mixes = [MIX_OF.get(kind, kind) for kind in ORDER]
        text += "\n".join(speed_row(mix, speeds[mix]) for mix in mixes if mix in speeds) + "\n"
    return text


def type_row(kind: str, ours: dict[str, float]) -> str:
    _, _, block, n_bytes, _ = TYPES[kind]
    activations = (
        {"q8k": "Q8_K", "q8_0": "Q8_0", "float": "F32", "bf16": "BF16"}.get(FORMATS[kind].family, "")
        if kind in FORMATS
        else ""
    )
    oracle = "GGML" if kind in DEQUANTIZE else "`gguf`"
    cells = [
        kind,
        str(block),
        str(n_bytes),
        f"{8 * n_bytes / block:.4g}",
        oracle,
        activations,
        *pairs(ours, FIGURES.get(kind, {})),
    ]
    return f"| {' | '.join(cells)} |"


def pairs(ours: dict[str, float], theirs: dict[str, Any]) -> Iterator[str]:
    """Return, for each text, both figures and by how much ours is larger."""
    for text in TEXTS:
        mine, other = ours.get(text), theirs.get(text)
        yield f"{mine:.4f} / {other:.4f}" if mine and other else ""
        yield f"{mine / other - 1:+.3%}" if mine and other else ""


def speed_row(mix: str, speed: dict[str, Any]) -> str:
    cells = [mix, f"{speed['megabytes']:.0f}", str(speed["repeat"])]
    for name in TESTS:
        ours, theirs = speed[name][bench_peers.US], speed[name][bench_peers.THEM]
        cells += [f"{ours:.1f} / {theirs:.1f}", f"**{speed[name]['ratio']:.2f}**"]
    return f"| {' | '.join(cells)} |"


@click.command()
@click.argument("kinds", nargs=-1, type=click.Choice(ORDER), metavar="[TYPE]...")
@click.option(
    "--files",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Measure perplexities of the files in this folder, which make_formats.py wrote.",
)
@click.option("--speed", is_flag=True, help="Measure the speed of the types that have compiled kernels.")
@click.option(
    "-t", "--threads", type=click.IntRange(1), help="Threads of both engines. Default: one per physical core."
)
@click.option(
    "-r",
    "--repeat",
    type=click.IntRange(1),
    default=bench_peers.PAIRS,
    show_default=True,
    help="Pairs of runs per test.",
)
@click.option(
    "--peer-python", default=sys.executable, help="A Python that has llama-cpp-python, if this one doesn't."
)
def main(
    kinds: tuple[str, ...],
    files: Path | None,
    speed: bool,
    threads: int | None,
    repeat: int,
    peer_python: str,
) -> None:
    """Measure perplexities or speeds of some types (default: all), and write docs/formats.md."""
    from tqdm import tqdm

    chosen, threads = kinds or ORDER, threads or physical_cores()
    measured = (
        json.loads(MEASURED.read_text())
        if MEASURED.exists()
        else {"about": {}, "perplexity": {}, "speed": {}}
    )

    def keep() -> None:
        MEASURED.write_text(json.dumps(measured, indent=1) + "\n")
        DOCUMENT.write_text(document(measured), encoding="utf-8")

    if files:
        models = {kind: file_of(files, kind) for kind in chosen} | (
            {} if kinds else {name: MODELS / name for name in published()}
        )
        for kind, model in tqdm(models.items(), disable=None, leave=False):
            measured["perplexity"][kind] = {text: our_perplexity(model, text, threads) for text in TEXTS}
            keep()
    if speed:
        peer = bench_peers.peer_version(peer_python)
        measured["about"] = {
            "cpu": Host().cpu_name(),
            "threads": threads,
            "version": __version__,
            "peer": peer,
            "date": date.today().isoformat(),
        }
        compiled = [kind for kind in chosen if kind in FORMATS]
        total = len(compiled) * bench_peers.n_runs(TESTS, repeat)
        with tqdm(total=total, unit="process", disable=None, leave=False) as bar:
            for kind in compiled:
                mix = MIX_OF.get(kind, kind)
                measured["speed"][mix] = our_speed(mix, threads, repeat, peer_python, bar.update)
                keep()
    keep()


if __name__ == "__main__":
    main()
