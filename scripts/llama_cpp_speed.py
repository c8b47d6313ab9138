#!/usr/bin/env python3
"""llama.cpp's side of scripts/bench_peers.py: one measurement per process, printed as JSON. Needs only llama-cpp-python.

    python scripts/llama_cpp_speed.py model.gguf THREADS speed N_PROMPT N_GEN N_DEPTH N_SEQ
    python scripts/llama_cpp_speed.py model.gguf THREADS perplexity N_CTX CHUNKS
    python scripts/llama_cpp_speed.py model.gguf THREADS start N_PROMPT N_CTX

Only `llama_decode` and the wait for its end are timed, in batches of 2048 tokens, 512 at a time, as in llama-bench. `--repack 0|1` says
whether weights are repacked for the CPU as they are loaded, `-fa 0|1|auto` whether flash attention is used; the defaults are llama.cpp's.
Tokens are random.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import llama_cpp
from llama_cpp import llama_cpp as lc

N_BATCH, N_UBATCH = 2048, 512
FLASH = {"auto": -1, "0": 0, "1": 1}
"""llama.cpp's enum llama_flash_attn_type."""


@lc.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None:
    pass


class Options(NamedTuple):
    """What all measurements take."""

    path: str
    n_threads: int
    repack: bool
    flash: int


def put(settings: ctypes.Structure, name: str, value: int) -> None:
    """Set a field. A structure without it would take the value as an attribute, without effect."""
    if name not in dict(settings._fields_):
        sys.exit(f"llama-cpp-python {llama_cpp.__version__} has no setting {name}: install a newer one")
    setattr(settings, name, value)


class Peer:
    """A model in llama.cpp, with a context of `n_ctx` tokens for each of `n_seq` sequences."""

    def __init__(self, options: Options, n_ctx: int, n_seq: int = 1) -> None:
        lc.llama_log_set(silent, None)
        lc.llama_backend_init()
        loading = lc.llama_model_default_params()
        put(loading, "use_extra_bufts", options.repack)
        model = lc.llama_model_load_from_file(options.path.encode(), loading)
        if not model:
            sys.exit(f"llama.cpp can't load {options.path}")
        settings = lc.llama_context_default_params()
        settings.n_ctx = n_ctx * n_seq
        settings.n_batch = N_BATCH
        settings.n_ubatch = N_UBATCH
        settings.n_seq_max = n_seq
        settings.n_threads = settings.n_threads_batch = options.n_threads
        put(settings, "flash_attn_type", options.flash)
        self.context = lc.llama_init_from_model(model, settings)
        if not self.context:
            sys.exit(f"llama.cpp can't make a context of {n_ctx} tokens for {n_seq} sequences")
        self.n_vocab = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        self.lengths = [0] * n_seq
        self._random = random.Random(0)

    def decode(self, counts: Sequence[tuple[int, int]], n_outputs: int = 1) -> float:
        """Seconds that a step takes: n more tokens for each pair (sequence, n), with logits for the last `n_outputs` of them."""
        entries = [(s, self.lengths[s] + i, i >= n - n_outputs) for s, n in counts for i in range(n)]
        batch = lc.llama_batch_init(len(entries), 0, 1)
        batch.n_tokens = len(entries)
        for i, (s, position, wanted) in enumerate(entries):
            batch.token[i] = self._random.randrange(self.n_vocab)
            batch.pos[i] = position
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = s
            batch.logits[i] = wanted
        start = time.perf_counter()
        failed = lc.llama_decode(self.context, batch)
        lc.llama_synchronize(self.context)
        seconds = time.perf_counter() - start
        lc.llama_batch_free(batch)
        if failed:
            sys.exit("llama_decode failed")
        for s, n in counts:
            self.lengths[s] += n
        return seconds

    def cut(self, length: int) -> None:
        """Cut all sequences back to their first `length` tokens."""
        for s in range(len(self.lengths)):
            lc.llama_memory_seq_rm(lc.llama_get_memory(self.context), s, length, -1)
            self.lengths[s] = min(self.lengths[s], length)


def speed(options: Options, n_prompt: int, n_gen: int, n_depth: int, n_seq: int) -> dict[str, float]:
    """Tokens per second, all sequences together, as `qwencli bench` counts them."""
    peer = Peer(options, -(-(n_depth + n_prompt + n_gen) // 1024) * 1024, n_seq)
    for s in range(n_seq):
        while missing := n_depth - peer.lengths[s]:
            peer.decode([(s, min(missing, N_BATCH))])

    def test(n_gen: int) -> float:
        """Seconds for the prompts, one after the other, then for one token of each sequence per step."""
        prompts = [
            peer.decode([(s, min(n_prompt - done, N_BATCH))])
            for s in range(n_seq)
            for done in range(0, n_prompt, N_BATCH)
        ]
        return sum(prompts) + sum(peer.decode([(s, 1) for s in range(n_seq)]) for _ in range(n_gen))

    test(min(n_gen, 1))  # a warm-up, as in llama-bench
    peer.cut(n_depth)
    return {"t/s": (n_prompt + n_gen) * n_seq / test(n_gen)}


def perplexity(options: Options, n_ctx: int, n_chunks: int) -> dict[str, float]:
    """Tokens per second of llama-perplexity's steps: as many chunks as fit into a batch, with logits for their second halves.

    Neither tokenizing nor the softmax is counted.
    """
    together = max(1, N_BATCH // n_ctx)
    peer = Peer(options, n_ctx, together)
    peer.decode([(0, 1)])
    seconds = 0.0
    for first in range(0, n_chunks, together):
        peer.cut(0)
        seconds += peer.decode(
            [(s, n_ctx) for s in range(min(together, n_chunks - first))], n_ctx - n_ctx // 2
        )
    return {"t/s": n_chunks * n_ctx / seconds}


def start(options: Options, n_prompt: int, n_ctx: int) -> dict[str, float]:
    """Seconds from before llama.cpp is initialized to the first logits; starting Python and loading the library aren't counted."""
    began = time.perf_counter()
    Peer(options, n_ctx).decode([(0, n_prompt)])
    return {"s": time.perf_counter() - began}


MEASUREMENTS = {"speed": speed, "perplexity": perplexity, "start": start}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("numbers", type=int, nargs="+")
    parser.add_argument("--repack", choices=("0", "1"), default="1")
    parser.add_argument("-fa", "--flash-attn", choices=FLASH, default="auto")
    args = parser.parse_args()
    options = Options(args.model, args.threads, args.repack == "1", FLASH[args.flash_attn])
    found = MEASUREMENTS[args.what](options, *args.numbers)
    print(json.dumps({**found, "version": llama_cpp.__version__}))


if __name__ == "__main__":
    main()
