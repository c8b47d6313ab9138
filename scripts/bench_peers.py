#!/usr/bin/env python3
"""Compare our speed with llama.cpp's, on the same files, with the same number of threads, in one run.

    python scripts/bench_peers.py model.gguf -t 2 --chart speed.png

The two are measured in turn, several times, each in a fresh process; the figures are medians. Ours come from `qwencli bench`, `qwencli
perplexity` and `qwencli run`; llama.cpp runs through llama-cpp-python (extra `peers`) with `llama_decode` timed directly, see
llama_cpp_speed.py. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import click

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("llama_cpp_speed.py")
US, THEM = "qwencli", "llama.cpp"
N_CTX = 512
CHUNKS = 8
START_CTX = 4096


class Test(NamedTuple):
    """A row of the table. For tests of `qwencli bench`, `shape` is prompt, generated tokens, depth and sequences; otherwise None."""

    title: str
    unit: str
    shape: tuple[int, int, int, int] | None = None


TESTS = {
    "pp512": Test("pp512", "t/s", (512, 0, 0, 1)),
    "tg64": Test("tg64", "t/s", (0, 64, 0, 1)),
    "d4096": Test("tg32 @ d4096", "t/s", (0, 32, 4096, 1)),
    "b8": Test("tg64 b8 @ d128", "t/s", (0, 64, 128, 8)),
    "perplexity": Test(f"perplexity -c {N_CTX}", "t/s"),
    "start": Test(f"first token, context {START_CTX}", "s"),
    "memory": Test(f"peak memory, context {START_CTX}", "MB"),
}
CHOICES = [name for name in TESTS if name != "memory"]
"""The tests that can be chosen. Memory is measured together with "start"."""
Figures = dict[str, float]


class Run(NamedTuple):
    """A process that has ended: its output, the seconds until its first output, and its peak resident memory in MB."""

    output: str
    first: float
    memory: float


def run(command: list[str]) -> Run:
    """Run a command to its end. Raises click.ClickException with its last message if it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL)
        assert process.stdout
        first = process.stdout.read(1)
        seconds = time.perf_counter() - start
        output = first + process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            errors.seek(0)
            message = (errors.read().strip() or f"exit code {process.returncode}").splitlines()[-1]
            hint = (
                ": install the extra `peers`, or name a Python that has it with --peer-python"
                if "'llama_cpp'" in message
                else ""
            )
            raise click.ClickException(f"{' '.join(command)}: {message}{hint}")
    return Run(output.decode(), seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6)


def ours(test: str, model: str, threads: int, text: str) -> Figures:
    qwencli = [sys.executable, "-m", "qwencli"]
    common = ["-m", model, "-t", str(threads)]
    if shape := TESTS[test].shape:
        options = [word for flag, n in zip(("-p", "-n", "-d", "-npl"), shape) for word in (flag, str(n))]
        facts = json.loads(run([*qwencli, "bench", *common, *options, "-r", "1", "-o", "json"]).output)[0]
        return {
            test: facts["avg_ts"],
            f"{test} bandwidth": facts["bandwidth"],
            f"{test} limit": facts["machine_bandwidth"],
        }
    if test == "perplexity":
        facts = json.loads(
            run(
                [*qwencli, test, *common, "-f", text, "-c", str(N_CTX), "--chunks", str(CHUNKS), "--json"]
            ).output
        )
        return {test: N_CTX * CHUNKS / facts["seconds"]}
    done = run([*qwencli, "run", *common, "-p", "Hi", "-n", "1", "--temp", "0", "-c", str(START_CTX)])
    return {"start": done.first, "memory": done.memory}


def theirs(test: str, model: str, threads: int, python: str, n_prompt: int) -> Figures:
    """`n_prompt` is the number of tokens of the prompt that `ours` uses for "start"."""
    shape = TESTS[test].shape
    what = (
        ("speed", *shape)
        if shape
        else (test, N_CTX, CHUNKS)
        if test == "perplexity"
        else (test, n_prompt, START_CTX)
    )
    done = run([python, str(PEER), model, str(threads), *map(str, what)])
    facts = json.loads(done.output)
    return {"start": facts["s"], "memory": done.memory} if test == "start" else {test: facts["t/s"]}


def compare(
    model: str, tests: Sequence[str], threads: int, repeat: int, python: str, tick: Callable[[], object]
) -> dict[str, Any]:
    """All figures for a model, as --json prints them."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text((ROOT / "README.md").read_text(encoding="utf-8") * 8, encoding="utf-8")
        n_prompt = first_run(model, threads, str(text), "perplexity" in tests)
        found: dict[str, dict[str, list[float]]] = {}
        for _ in range(repeat):
            for test in tests:
                for engine in US, THEM:
                    figures = (
                        ours(test, model, threads, str(text))
                        if engine == US
                        else theirs(test, model, threads, python, n_prompt)
                    )
                    for name, value in figures.items():
                        found.setdefault(name, {}).setdefault(engine, []).append(value)
                    tick()
    return {"model": Path(model).name, "tests": {name: judge(name, found) for name in TESTS if name in found}}


def first_run(model: str, threads: int, text: str, perplexity: bool) -> int:
    """Compile missing kernels, which isn't measured. Returns the number of tokens of the prompt "Hi" in the model's chat template."""
    command = [sys.executable, "-m", "qwencli"]
    if perplexity:
        run(
            [
                *command,
                "perplexity",
                "-m",
                model,
                "-t",
                str(threads),
                "-f",
                text,
                "-c",
                str(N_CTX),
                "--chunks",
                "1",
            ]
        )
    done = run(
        [*command, "run", "-m", model, "-t", str(threads), "-p", "Hi", "-n", "2", "--temp", "0", "--json"]
    )
    n_prompt: int = json.loads(done.output)["prompt_tokens"]
    return n_prompt


def judge(name: str, found: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Any]:
    """Return the medians and their ratio, above 1 if ours is better; for generation also our bandwidth and its share of the highest one
    seen."""
    medians = {engine: statistics.median(values) for engine, values in found[name].items()}
    ratio = medians[US] / medians[THEM] if TESTS[name].unit == "t/s" else medians[THEM] / medians[US]
    verdict: dict[str, Any] = {"unit": TESTS[name].unit, **medians, "ratio": ratio, "runs": found[name]}
    if (shape := TESTS[name].shape) and shape[1]:
        bandwidth, limit = (statistics.median(found[f"{name} {what}"][US]) for what in ("bandwidth", "limit"))
        limit = max(limit, bandwidth / ratio)  # the machine can read at least as fast as llama.cpp does
        verdict |= {"bandwidth": bandwidth, "bandwidth_share": bandwidth / limit}
    return verdict


def shown(verdict: Mapping[str, Any], engine: str) -> str:
    value = verdict[engine]
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {verdict['unit']}"


def table(compared: Mapping[str, Any]) -> str:
    lines = [
        f"| {compared['model']} | {US} | {THEM} | ratio | weights and KV read |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, verdict in compared["tests"].items():
        read = (
            f"{verdict['bandwidth'] / 1e9:.1f} GB/s, {verdict['bandwidth_share']:.0%}"
            if "bandwidth" in verdict
            else ""
        )
        lines.append(
            f"| {TESTS[name].title} | {shown(verdict, US)} | {shown(verdict, THEM)} | {verdict['ratio']:.2f} | {read} |"
        )
    return "\n".join(lines)


def draw(report: Mapping[str, Any], path: str) -> None:
    """Draw a panel for each model: llama.cpp's bars are 1, ours say how many times as fast we are, with the figures above them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = report["models"]
    figure, panels = plt.subplots(
        len(models), 1, figsize=(9, 0.6 + 3.2 * len(models)), squeeze=False, layout="constrained"
    )
    for panel, compared in zip(panels[:, 0], models):
        verdicts = {TESTS[name].title: verdict for name, verdict in compared["tests"].items()}
        places = range(len(verdicts))
        tallest = max(1.0, *(verdict["ratio"] for verdict in verdicts.values()))
        for shift, engine, colour in (-0.2, US, "#2563a8"), (0.2, THEM, "#b9bec6"):
            heights = [verdict["ratio"] if engine == US else 1.0 for verdict in verdicts.values()]
            panel.bar([place + shift for place in places], heights, 0.38, color=colour, label=engine)
            for place, height, verdict in zip(places, heights, verdicts.values()):
                panel.text(
                    place + shift, height + 0.02 * tallest, shown(verdict, engine), ha="center", fontsize=8
                )
                if engine == US:
                    panel.text(
                        place + shift,
                        height + 0.09 * tallest,
                        f"{height:.1f} x",
                        ha="center",
                        fontweight="bold",
                    )
        panel.set_xticks(
            list(places), [title.replace(", ", ",\n").replace(" @", "\n@") for title in verdicts], fontsize=9
        )
        panel.set_ylim(0, 1.2 * tallest)
        panel.set_yticks([])
        panel.set_title(compared["model"], loc="left", fontsize=11)
        panel.spines[["top", "right", "left"]].set_visible(False)
    panels[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0)
    figure.text(
        0.01,
        -0.02,
        f"{report['cpu']}, {report['n_threads']} threads, {report['date']}; higher bars are better",
        fontsize=8,
    )
    figure.savefig(path, dpi=160, facecolor="white", bbox_inches="tight")


@click.command(
    epilog="Example:  python scripts/bench_peers.py q4_k_m.gguf q8_0.gguf -t 2 -r 3 --tests pp512,tg64 --json"
)
@click.argument(
    "models", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, resolve_path=True)
)
@click.option(
    "-t",
    "--threads",
    type=click.IntRange(1),
    help="Threads of both programs. Default: one per physical core.",
)
@click.option(
    "-r",
    "--repeat",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Processes of each program per test.",
)
@click.option(
    "--tests",
    default=",".join(CHOICES),
    show_default=True,
    metavar="NAME,...",
    help="Tests to run; `start` also measures memory.",
)
@click.option(
    "--peer-python", default=sys.executable, help="A Python that has llama-cpp-python, if this one doesn't."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--chart",
    metavar="FILE",
    type=click.Path(dir_okay=False, writable=True),
    help="Write a chart of the ratios to a PNG file.",
)
def main(
    models: tuple[str, ...],
    threads: int | None,
    repeat: int,
    tests: str,
    peer_python: str,
    as_json: bool,
    chart: str | None,
) -> None:
    """Compare our speed with llama.cpp's: medians and ratios. A ratio above 1 means that ours is better, also for seconds and memory."""
    from tqdm import tqdm

    from qwencli import __version__
    from qwencli.backends.cpu.team import physical_cores
    from qwencli.system.host import Host

    chosen = tests.split(",")
    if unknown := sorted(set(chosen) - set(CHOICES)):
        raise click.BadParameter(
            f"no test is called '{unknown[0]}', expected some of {', '.join(CHOICES)}", param_hint="--tests"
        )
    threads = threads or physical_cores()
    peer = run([peer_python, "-c", "import llama_cpp; print(llama_cpp.__version__)"]).output.strip()
    with tqdm(total=len(models) * repeat * len(chosen) * 2, unit="process", disable=None, leave=False) as bar:
        compared = [compare(model, chosen, threads, repeat, peer_python, bar.update) for model in models]
    report = {
        "cpu": Host().cpu_name(),
        "n_threads": threads,
        "date": date.today().isoformat(),
        "repeat": repeat,
        "versions": {US: __version__, "llama-cpp-python": peer},
        "models": compared,
    }
    if chart:
        draw(report, chart)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo("\n\n".join(table(model) for model in compared))
    click.echo(
        f"\n{report['cpu']}, {threads} threads, {US} {__version__}, llama-cpp-python {peer}, {report['date']}, medians of {repeat}"
    )


if __name__ == "__main__":
    main()
