"""`qwencli bench`"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import click

from ..backends.kv_cache import TYPES, CacheTypes
from ._bench_table import print_table
from ._devices import DeviceOptions, device_options
from ._llama.command import LlamaCommand
from ._machine import ThreadOptions, thread_options
from ._models import Wanted, choose_model, models_option
from ._options import example
from ._streams import say, write_text

if TYPE_CHECKING:
    from ..backends.scheduler.wishes import Wishes
    from ..backends.threads import Threads
    from ..measure.figures import Result, Test

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

MOST_VALUES = 1000  # of an option: more is a mistake


def numbers(*names: str, low: int, high: int, default: str | None, text: str) -> Option:
    """An option that takes lists such as 128,512 or 1-4 or 1-9+2 or 64-512*2, as llama-bench does; given several times, they are joined."""

    def read(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[int]:
        found: list[int] = []
        for part in (part for value in values for part in value.split(",")):
            match = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9})(?:([+*])(\d{1,9}))?)?", part)
            if not match:
                raise click.BadParameter(f"'{part}' is neither a number nor a range such as 1-4 or 64-512*2.")
            number = int(match[1])
            last = int(match[2] or match[1])
            step = int(match[4] or 1)
            if not low <= number <= last <= high:
                raise click.BadParameter(f"{part} is not in the range {low}<=x<={high}.")
            while number <= last:
                found.append(number)
                following = number * step if match[3] == "*" else number + step
                if following <= number or len(found) > MOST_VALUES:
                    raise click.BadParameter(f"{part} gives too many values.")
                number = following
        return found

    given, shown = ([default], f"{text} Default: {default}.") if default else ([], text)
    return click.option(*names, metavar="N,...", multiple=True, callback=read, default=given, help=shown)


def cache_types(letter: str) -> Option:
    """An option that takes a list of types, as llama-bench does; given several times, they are joined."""

    def read(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[str]:
        found = [name for value in values for name in value.split(",")]
        for name in found:
            if name not in TYPES:
                raise click.BadParameter(f"'{name}' is not one of {', '.join(TYPES)}.")
        return found

    return click.option(
        f"-ct{letter}",
        f"--cache-type-{letter}",
        f"types_{letter}",
        metavar="TYPE,...",
        multiple=True,
        callback=read,
        help=f"The type of the {'keys' if letter == 'k' else 'values'} in the KV cache: {', '.join(TYPES)}. Default: f16.",
    )


def read_pairs(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[int, int]]:
    matches = [(value, re.fullmatch(r"(\d{1,8}),(\d{1,8})", value)) for value in values]
    for value, match in matches:
        if not match:
            raise click.BadParameter(f"'{value}' isn't a pair of numbers such as 512,128.")
    return [(int(match[1]), int(match[2])) for _, match in matches if match]


@click.command(
    cls=LlamaCommand,
    epilog=example(
        "qwencli bench",
        "qwencli bench -m model.gguf -p 512 -n 64 -d 0,4096 -t 1,2",
        "qwencli bench -m model.gguf -p 0 -n 32 -npl 1,2,4,8 -o jsonl",
        "qwencli bench -m model.gguf -r 1 --profile",
    ),
)
@models_option
@numbers(
    "-p",
    "--n-prompt",
    low=0,
    high=2**24,
    default="512",
    text="Prompt tokens to process (pp); 0 = no such test.",
)
@numbers("-n", "--n-gen", low=0, high=2**24, default="128", text="Tokens to generate (tg); 0 = no such test.")
@click.option(
    "-pg",
    "n_pg",
    metavar="P,N",
    multiple=True,
    callback=read_pairs,
    help="Time a prompt and a generation together (pp+tg).",
)
@numbers("-d", "--n-depth", low=0, high=2**24, default="0", text="Tokens that are in the context already.")
@numbers(
    "-npl",
    "--n-parallel",
    "n_seq",
    low=1,
    high=64,
    default="1",
    text="Sequences at once; t/s counts all of them.",
)
@numbers("-b", "--batch-size", "n_batch", low=1, high=2**20, default="512", text="Most tokens in one step.")
@numbers(
    "-ub",
    "--ubatch-size",
    "n_ubatch",
    low=1,
    high=2**20,
    default=None,
    text="The same, where it is less than -b.",
)
@numbers(
    "-t",
    "--threads",
    "n_threads",
    low=1,
    high=1024,
    default=None,
    text="Threads to use. Default: one per core.",
)
@thread_options
@device_options
@cache_types("k")
@cache_types("v")
@click.option("--no-fit", is_flag=True, help="Don't check whether the tests fit into free memory.")
@click.option(
    "-r",
    "--repetitions",
    "repeat",
    type=click.IntRange(1, 10000),
    default=5,
    show_default=True,
    help="How often each test is run.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["md", "json", "csv", "jsonl"]),
    default="md",
    show_default=True,
    help="Output format.",
)
@click.option(
    "--profile",
    is_flag=True,
    help="Show where the time goes, by kind of operation (with -o md, json and jsonl).",
)
def bench(
    models: list[Wanted | None],
    n_prompt: list[int],
    n_gen: list[int],
    n_pg: list[tuple[int, int]],
    n_depth: list[int],
    n_seq: list[int],
    n_batch: list[int],
    n_ubatch: list[int],
    n_threads: list[int],
    cpus: ThreadOptions,
    devices: DeviceOptions,
    types_k: list[str],
    types_v: list[str],
    no_fit: bool,
    repeat: int,
    output: str,
    profile: bool,
) -> None:
    """Measure a model's speed with llama-bench's tests.

    The tokens are random. Besides tokens per second, the table shows how much was read of the weights and the KV cache and how much was
    computed, each with its share of what loops that do nothing else reach on the same threads in the same run.
    """
    pairs = [*((p, 0) for p in n_prompt), *((0, n) for n in n_gen), *n_pg]
    tests = [(*pair, depth, seqs) for seqs, depth, pair in product(n_seq, n_depth, pairs) if any(pair)]
    if not tests:
        raise click.UsageError("nothing to measure: give -p, -n or -pg above 0")
    nothing: list[str | None] = [None]
    types = [CacheTypes(k, v) for k, v in product(types_k or nothing, types_v or nothing)]
    batches = list(dict.fromkeys(map(min, product(n_batch, n_ubatch))))
    found = run(
        models,
        tests,
        batches or n_batch,
        n_threads or [None],
        types,
        repeat,
        profile,
        not no_fit,
        devices.wishes(),
        cpus.threads(),
    )
    if output == "md":
        print_table(found, with_types=bool(types_k or types_v))
    else:
        {"json": print_json, "jsonl": print_json_lines, "csv": print_csv}[output](found)


def run(
    models: Sequence[Wanted | None],
    tests: Sequence[tuple[int, ...]],
    n_batches: Sequence[int],
    n_threads: Sequence[int | None],
    types: Sequence[CacheTypes],
    repeat: int,
    profile: bool,
    fit: bool,
    devices: Wishes | None,
    cpus: Threads,
) -> Iterator[Result]:
    """The results as they come, with a bar on stderr. Raises QwenError."""
    paths = [choose_model(wanted).path for wanted in models]
    from tqdm import tqdm

    from ..backends.choose import choose_backend
    from ..backends.scheduler.placement import place
    from ..engine.fit import measure, measure_devices
    from ..gguf.file import GGUFFile
    from ..measure.bench import check, run_bench
    from ..measure.figures import Test
    from ..network.load import load_model

    loaded = [load_model(GGUFFile(path)) for path in paths]
    for model in loaded:
        model.check_generates()
    wanted = [Test(*test) for test in tests]
    for model, test in product(loaded, wanted):
        check(model, test)  # before anything takes time
    for model, chosen, n_batch in product(loaded, types, n_batches):
        if devices:
            room, _ = measure_devices(model, place(model, devices), chosen, n_batch)
        else:
            room = measure(model, chosen, choose_backend("auto", model, None), n_batch)
        for test in wanted if fit else ():
            room.check(test.name, test.n_prompt + test.n_gen + test.n_depth, test.n_seq)
    total = len(loaded) * len(n_batches) * len(n_threads) * len(types) * len(tests) * repeat
    with tqdm(total=total, unit="run", disable=None, leave=False) as bar:

        def progress(test: Test, done: int) -> None:
            bar.set_description(test.name, refresh=False)
            bar.update(done > 0)

        for model, n_batch, threads, chosen in product(loaded, n_batches, n_threads, types):
            for result in run_bench(
                model, wanted, threads, repeat, n_batch, profile, say, progress, chosen, devices, cpus
            ):
                bar.clear()
                yield result


def print_json(results: Iterable[Result]) -> None:
    write_text(json.dumps([result.as_dict() for result in results], indent=2) + "\n")


def print_json_lines(results: Iterable[Result]) -> None:
    for result in results:
        write_text(json.dumps(result.as_dict()) + "\n")


def print_csv(results: Iterable[Result]) -> None:
    """A line of names, then a line per test with every value in quotes; lists are left out."""
    for i, result in enumerate(results):
        facts = {name: value for name, value in result.as_dict().items() if not isinstance(value, list)}
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(facts.values())
        write_text((",".join(facts) + "\n" if i == 0 else "") + line.getvalue())
