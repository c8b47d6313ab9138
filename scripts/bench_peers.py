#!/usr/bin/env python3
"""Compare our speed with llama.cpp's, on the same files, with the same number of threads, in one run.

    python scripts/bench_peers.py model.gguf -t 2 --chart speed.png

llama.cpp's best setting counts, not its default: weights repacked or not (llama-bench's --repack), with and without flash attention (-fa).
First the settings run each test three times in turn, and the setting of the fastest run is the best one there. Then qwencli and llama.cpp
in that setting run in turn, in pairs. The ratio is the median of the pairs' ratios. Every run is a fresh process. Measure on a machine that
does nothing else.

Our figures come from `qwencli bench`, `qwencli perplexity` and `qwencli run`; llama.cpp runs through llama-cpp-python (extra `peers`) with
`llama_decode` timed directly, see llama_cpp_speed.py. A setting in which llama.cpp fails is named, and the others count. Built by gcc 12.2,
it crashes on Intel CPUs with AMX if it repacks: CONTRIBUTING.md says how to build it right.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import click
from peer_report import PAIRS, THEM, US, draw, judge, table
from peer_runs import CHOICES, TESTS, Case, PeerFailed, Setting, ours, peer_version, prepare, theirs

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = [Setting(repack, fa) for repack, fa in product("01", "01")]
TRIALS = 3


def trials(
    measure: Callable[[Setting], float], settings: Sequence[Setting], tick: Callable[[], object]
) -> tuple[dict[Setting, float], dict[Setting, str]]:
    """Return the speed of each setting's fastest run, and the reasons why the others failed.

    The fastest, since other programs only ever make a run slower. A setting that fails once doesn't run again.
    """
    speeds: dict[Setting, float] = {}
    failed: dict[Setting, str] = {}
    for _ in range(TRIALS):
        for setting in settings:
            if setting not in failed:
                try:
                    speeds[setting] = max(measure(setting), speeds.get(setting, 0.0))
                except PeerFailed as error:
                    failed[setting] = error.reason
                    speeds.pop(setting, None)
            tick()
    return speeds, failed


def pairs(
    test: str, case: Case, setting: Setting, repeat: int, tick: Callable[[], object]
) -> dict[str, dict[str, list[float]]]:
    """Return the figures of `repeat` runs of each program, by name and program. Raises PeerFailed if llama.cpp fails."""
    found: dict[str, dict[str, list[float]]] = {}
    for i in range(repeat):
        # each program is first in every other pair, so that neither always meets what the other leaves behind
        for engine in (US, THEM) if i % 2 == 0 else (THEM, US):
            figures = ours(test, case) if engine == US else theirs(test, case, setting)
            for name, value in figures.items():
                found.setdefault(name, {}).setdefault(engine, []).append(value)
            tick()
    return found


def contest(
    test: str, case: Case, settings: Sequence[Setting], repeat: int, tick: Callable[[], object]
) -> dict[str, dict[str, Any]]:
    """Compare with llama.cpp's best setting, or with the next best if it fails after all. Returns the verdicts by name.

    A single setting needs no trial. Raises click.ClickException if llama.cpp fails in all settings.
    """
    speed = TESTS[test].speed
    speeds, failed = dict.fromkeys(settings, 0.0), dict[Setting, str]()
    if len(settings) > 1:
        speeds, failed = trials(lambda setting: speed(theirs(test, case, setting)[test]), settings, tick)
    for setting in sorted(speeds, key=speeds.__getitem__, reverse=True):
        try:
            found = pairs(test, case, setting, repeat, tick)
        except PeerFailed as error:
            failed[setting] = error.reason
            continue
        verdicts = {name: judge(name, found) | {"setting": str(setting)} for name in TESTS if name in found}
        verdicts[test] |= {
            "trials": {str(tried): speed(value) for tried, value in speeds.items() if value},
            "failed": {str(tried): reason for tried, reason in failed.items()},
        }
        return verdicts
    reasons = "; ".join(f"{setting}: {reason}" for setting, reason in failed.items())
    raise click.ClickException(f"{case.model}: llama.cpp failed in {TESTS[test].title} ({reasons})")


def compare(
    model: str,
    tests: Sequence[str],
    threads: int,
    repeat: int,
    python: str,
    tick: Callable[[], object],
    settings: Sequence[Setting] = SETTINGS,
) -> dict[str, Any]:
    """All figures for a model, as --json prints them. `tick` is called as runs end, `n_runs` times."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text((ROOT / "README.md").read_text(encoding="utf-8") * 8, encoding="utf-8")
        case = prepare(Case(model, threads, str(text), python), "perplexity" in tests)
        found: dict[str, Any] = {}
        for test in tests:
            found |= contest(test, case, settings, repeat, tick)
    return {"model": Path(model).name, "tests": {name: found[name] for name in TESTS if name in found}}


def n_runs(tests: Sequence[str], repeat: int, settings: Sequence[Setting] = SETTINGS) -> int:
    """The runs of a comparison in which no setting fails."""
    return len(tests) * (2 * repeat + (TRIALS * len(settings) if len(settings) > 1 else 0))


class Words(click.ParamType):
    """Some of the `known` words, separated by commas."""

    name = "words"

    def __init__(self, *known: str) -> None:
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        words = list(dict.fromkeys(value.split(",")))
        for word in words:
            if word not in self.known:
                self.fail(f"'{word}' is unknown, expected some of {', '.join(self.known)}", param, ctx)
        return words


@click.command(
    epilog="Example:  python scripts/bench_peers.py q4_k_m.gguf q8_0.gguf -t 2 --tests pp512,tg64 --json"
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
    default=PAIRS,
    show_default=True,
    help=f"Pairs of runs per test. Fewer than {PAIRS} are marked as too few.",
)
@click.option(
    "--tests",
    type=Words(*CHOICES),
    default=",".join(CHOICES),
    show_default=True,
    metavar="NAME,...",
    help="Tests to run; `start` also measures memory.",
)
@click.option(
    "--repack",
    type=Words("0", "1"),
    default="0,1",
    show_default=True,
    metavar="0|1,...",
    help="Settings of llama.cpp to choose from: weights repacked as they are loaded.",
)
@click.option(
    "-fa",
    "--flash-attn",
    type=Words("0", "1", "auto"),
    default="0,1",
    show_default=True,
    metavar="0|1|auto,...",
    help="Settings of llama.cpp to choose from: flash attention.",
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
    tests: list[str],
    repack: list[str],
    flash_attn: list[str],
    peer_python: str,
    as_json: bool,
    chart: str | None,
) -> None:
    """Compare our speed with llama.cpp's in its best setting: medians of pairs of runs.

    Trials show which setting is the best in each test; one value each of --repack and -fa fixes it. A ratio above 1 means that ours is
    better, also for seconds and memory.
    """
    from tqdm import tqdm

    from qwencli import __version__
    from qwencli.backends.cpu.team import physical_cores
    from qwencli.system.host import Host

    threads = threads or physical_cores()
    peer = peer_version(peer_python)
    settings = [Setting(*words) for words in product(repack, flash_attn)]
    total = len(models) * n_runs(tests, repeat, settings)
    with tqdm(total=total, unit="process", disable=None, leave=False) as bar:
        compared = [
            compare(model, tests, threads, repeat, peer_python, bar.update, settings) for model in models
        ]
    report = {
        "cpu": Host().cpu_name(),
        "n_threads": threads,
        "date": date.today().isoformat(),
        "pairs": repeat,
        "enough_pairs": repeat >= PAIRS,
        "versions": {US: __version__, "llama-cpp-python": peer},
        "models": compared,
    }
    if chart:
        draw(report, chart)
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    click.echo("\n\n".join(table(model) for model in compared))
    few = "" if repeat >= PAIRS else f": too few, at least {PAIRS} count"
    click.echo(
        f"\n{report['cpu']}, {threads} threads, {US} {__version__}, llama-cpp-python {peer}, {report['date']}, "
        f"medians of {repeat} pairs{few}"
    )


if __name__ == "__main__":
    main()
