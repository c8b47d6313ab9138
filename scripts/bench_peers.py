#!/usr/bin/env python3
"""Our speed beside llama.cpp's, on the same file, with the same threads, in one run.

    python scripts/bench_peers.py model.gguf -t 2

Both programs are timed in turn, several times, each in a fresh process; the figures are medians. llama.cpp runs through
llama-cpp-python (extra `oracle`) with `llama_decode` timed directly. Tokens are random: speed doesn't depend on them. Measure on a
machine that does nothing else.
"""
from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

N_PROMPT, N_GENERATED, N_SEQUENCES = 512, 64, 4
TESTS = {f"pp{N_PROMPT}": "prompt", f"tg{N_GENERATED}": "generation", f"tg{N_GENERATED // 2} b{N_SEQUENCES}": "generation, all sequences"}
Decode = Callable[[Sequence[int], Sequence[Sequence[int]]], None]
"""Run one step: the numbers of some sequences, and the tokens that continue each of them."""


def measure(n_vocab: int, decode: Decode, clear: Callable[[], None]) -> dict[str, float]:
    """Tokens a second for each of TESTS."""
    rng = random.Random(0)

    def tokens(n: int) -> list[int]:
        return [rng.randrange(n_vocab) for _ in range(n)]

    def timed(n_steps: int, sequences: Sequence[int], n: int) -> float:
        clear()
        decode(sequences, [tokens(1) for _ in sequences])
        start = time.perf_counter()
        for _ in range(n_steps):
            decode(sequences, [tokens(n) for _ in sequences])
        return n_steps * n * len(sequences) / (time.perf_counter() - start)

    timed(1, [0], N_PROMPT), timed(1, range(N_SEQUENCES), 1)  # what is made when first needed
    steps = (1, [0], N_PROMPT), (N_GENERATED, [0], 1), (N_GENERATED // 2, range(N_SEQUENCES), 1)
    return dict(zip(TESTS, (timed(*s) for s in steps)))


def measure_ours(path: str, n_threads: int) -> dict[str, float]:
    from qwencli.backends import LOGITS, Batch, Piece
    from qwencli.backends.cpu import CPUBackend
    from qwencli.gguf_file import GGUFFile
    from qwencli.kv_cache import KVSequence
    from qwencli.model import load_model
    model = load_model(GGUFFile(path))
    backend = CPUBackend(model, n_threads)
    kept = [KVSequence() for _ in range(N_SEQUENCES)]

    def decode(sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        backend.run([LOGITS], Batch([Piece(kept[s], t, 1) for s, t in zip(sequences, tokens)]))

    def clear() -> None:
        for seq in kept:
            backend.cache.release(seq)

    return measure(model.config.n_vocab, decode, clear)


def measure_llama_cpp(path: str, n_threads: int) -> dict[str, float]:
    from llama_cpp import llama_cpp as lc  # type: ignore[import-not-found]

    @lc.llama_log_callback  # type: ignore[untyped-decorator]
    def silent(level: int, text: bytes, data: Any) -> None:
        pass

    lc.llama_log_set(silent, None)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(path.encode(), lc.llama_model_default_params())
    settings = lc.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch, settings.n_seq_max = 1024 * N_SEQUENCES, 2048, 512, N_SEQUENCES
    settings.n_threads = settings.n_threads_batch = n_threads
    context = lc.llama_init_from_model(model, settings)
    positions = [0] * N_SEQUENCES

    def decode(sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        entries = [(s, token, i == len(row) - 1) for s, row in zip(sequences, tokens) for i, token in enumerate(row)]
        batch = lc.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (s, token, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, positions[s], 1, s, wanted
            positions[s] += 1
        if lc.llama_decode(context, batch):
            raise click.ClickException("llama_decode failed")
        lc.llama_synchronize(context)
        lc.llama_batch_free(batch)

    def clear() -> None:
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        positions[:] = [0] * N_SEQUENCES

    return measure(lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model)), decode, clear)


ENGINES = {"qwencli": measure_ours, "llama.cpp": measure_llama_cpp}


@click.command(epilog="Example:  python scripts/bench_peers.py model.gguf -t 2 -r 5 --json")
@click.argument("model", type=click.Path(exists=True, dir_okay=False))
@click.option("-t", "--threads", type=click.IntRange(1), help="Threads of both. Default: one for each physical core.")
@click.option("-r", "--repeat", type=click.IntRange(1), default=5, show_default=True, help="Processes of each.")
@click.option("--peer-python", default=sys.executable, help="A Python that has llama-cpp-python, if this one has not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--engine", type=click.Choice(list(ENGINES)), hidden=True, help="Measure one engine in this process.")
def main(model: str, threads: int | None, repeat: int, peer_python: str, as_json: bool, engine: str | None) -> None:
    """Compare prefill and generation with llama.cpp: medians and their ratio."""
    if threads is None:
        from qwencli.backends.team import physical_cores
        threads = physical_cores()
    if engine:
        click.echo(json.dumps(ENGINES[engine](model, threads)))
        return
    from tqdm import tqdm
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ENGINES}
    for name in tqdm([name for _ in range(repeat) for name in ENGINES], disable=None, leave=False):
        python = sys.executable if name == "qwencli" else peer_python
        command = [python, __file__, model, "-t", str(threads), "--engine", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            hint = ": install the extra `oracle`, or name a Python that has it with --peer-python" if "llama_cpp" in done.stderr else ""
            raise click.ClickException(f"{name} failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}{hint}")
        found[name].append(json.loads(done.stdout))
    medians = {name: {test: statistics.median(run[test] for run in runs) for test in TESTS} for name, runs in found.items()}
    if as_json:
        click.echo(json.dumps({"model": Path(model).name, "n_threads": threads, "repeat": repeat, "t/s": medians, "runs": found}))
        return
    click.echo(f"| {Path(model).name}, {threads} threads | qwencli t/s | llama.cpp t/s | ratio |\n|---|---|---|---|")
    for test in TESTS:
        ours, theirs = medians["qwencli"][test], medians["llama.cpp"][test]
        click.echo(f"| {test} | {ours:.1f} | {theirs:.1f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
