"""`qwencli perplexity`"""

from __future__ import annotations

import json
import time

import click

from ._bar import Bar
from ._devices import DeviceOptions, device_options
from ._llama.command import LlamaCommand, llama_option
from ._loading import check_context
from ._machine import MachineOptions, machine_options, ubatch_option
from ._models import Wanted, choose_model, model_option
from ._options import (
    backend_option,
    cache_type_k_option,
    cache_type_v_option,
    example,
    fit_option,
    json_option,
    mmap_option,
    threads_option,
)
from ._streams import read_text, say, write_text


@click.command(
    cls=LlamaCommand,
    epilog=example(
        "qwencli perplexity -f wiki.test.raw",
        "qwencli perplexity -m model.gguf -f text.txt -c 256 --chunks 20 --json",
    ),
)
@model_option
@click.option(
    "-f", "--file", metavar="FILE", required=True, help="The text to measure on, UTF-8; - is stdin."
)
@llama_option(
    "-c", "n_ctx", type=click.IntRange(4, 2**30), default=512, show_default=True, help="Tokens per chunk."
)
@fit_option
@llama_option(
    "-b",
    "n_batch",
    type=click.IntRange(1, 2**20),
    default=2048,
    show_default=True,
    help="Tokens per step: part of a chunk, or several chunks.",
)
@ubatch_option
@click.option("--chunks", type=click.IntRange(1), help="Stop after this many chunks.")
@threads_option
@backend_option
@device_options
@cache_type_k_option
@cache_type_v_option
@json_option
@mmap_option
@machine_options
def perplexity(
    model: Wanted | None,
    file: str,
    n_ctx: int,
    fit: bool | None,
    n_batch: int,
    n_ubatch: int | None,
    chunks: int | None,
    threads: int | None,
    backend: str,
    devices: DeviceOptions,
    cache_type_k: str | None,
    cache_type_v: str | None,
    as_json: bool,
    no_mmap: bool,
    machine: MachineOptions,
) -> None:
    """Measure how well a model predicts a text.

    The algorithm is llama.cpp's, and lower is better. The running value after each chunk goes to stdout, then the final estimate and its
    standard error.
    """
    text = read_text(file)
    chosen = choose_model(model)
    from tqdm import tqdm

    from ..llm import LLM
    from ..measure.perplexity import count_chunks
    from ..measure.perplexity import perplexity as estimates

    start = time.perf_counter()
    n_batch = min(n_batch, n_ubatch or n_batch)
    in_a_step = max(1, n_batch // n_ctx) * n_ctx
    llm = LLM(
        chosen.path,
        in_a_step,
        threads,
        not no_mmap,
        backend,
        say,
        Bar(unit="kernel"),
        cache_type_k=cache_type_k,
        cache_type_v=cache_type_v,
        fit=fit,
        n_batch=n_batch,
        n_ubatch=n_batch,
        devices=devices.wishes(),
        generates=True,
        **machine.arguments(),
    )
    n_ctx = min(n_ctx, llm.engine.n_ctx)
    n_batch = min(n_batch, llm.engine.n_ctx)
    check_context(n_ctx, llm.model.config.n_ctx)
    tokens = llm.tokenizer.encode(text, add_special=True)
    bos = llm.tokenizer.bos_id if llm.tokenizer.add_bos else None
    done = []
    with tqdm(total=count_chunks(len(tokens), n_ctx, chunks), unit="chunk", disable=None, leave=False) as bar:
        for estimate in estimates(llm.engine.backend, tokens, n_ctx, n_batch, bos, chunks):
            done.append(estimate)
            bar.update()
            if not as_json:
                write_text(f"[{estimate.n_chunks}]{estimate.ppl:.4f},")
    last = done[-1]
    if as_json:
        write_text(
            json.dumps(
                {
                    "ppl": last.ppl,
                    "stderr": last.stderr,
                    "n_chunks": last.n_chunks,
                    "n_ctx": n_ctx,
                    "n_tokens": len(tokens),
                    "chunks": [e.ppl for e in done],
                    "seconds": time.perf_counter() - start,
                }
            )
            + "\n"
        )
    else:
        error = f" +/- {last.stderr:.5f}" if last.stderr is not None else ""
        write_text(f"\nFinal estimate: PPL = {last.ppl:.4f}{error}\n")
