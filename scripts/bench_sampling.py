#!/usr/bin/env python3
"""Time how long it takes to choose one token, with a vocabulary as large as Qwen's: in machine code, in NumPy, and with all samplers on.

python scripts/bench_sampling.py [REPETITIONS]
"""

from __future__ import annotations

import ctypes
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from qwencli.backends.cpu.backend import kernels_of
from qwencli.backends.cpu.inputs import Inputs
from qwencli.kernels import isa
from qwencli.kernels.arguments import CHOOSE
from qwencli.kernels.layout import SAMPLING_SCRATCH
from qwencli.sampling import SamplingParams
from qwencli.sampling.sampler import Sampler

N_VOCAB, N_TOKENS = 151_936, 2000
EVERYTHING: dict[str, Any] = {
    "repeat_penalty": 1.1,
    "frequency_penalty": 0.1,
    "presence_penalty": 0.1,
    "dry_multiplier": 0.8,
    "top_n_sigma": 3.0,
    "typical_p": 0.95,
    "xtc_probability": 0.5,
    "dynatemp_range": 0.3,
    "logit_bias": [[5, 1.0], [7, -2.0]],
    "n_probs": 10,
}
BREAKERS = {3001: [()]}


def main(repetitions: int = 1000) -> None:
    rng, rnd = np.random.default_rng(1), random.Random(1)
    logits = (3 * rng.standard_normal(N_VOCAB)).astype(np.float32)
    tokens = [rnd.randrange(3000) for _ in range(N_TOKENS)]
    plain = Sampler(SamplingParams(seed=1))
    all_on = Sampler(SamplingParams(seed=1, **EVERYTHING), BREAKERS)
    wide = Sampler(SamplingParams(seed=1, top_k=0))
    show("defaults, machine code", compiled(plain, logits, tokens), repetitions)
    show("defaults, NumPy", lambda i: plain.choose(logits, tokens, i), repetitions)
    show("every sampler, NumPy", lambda i: all_on.choose(logits, tokens, i), repetitions)
    show("defaults but top_k 0, NumPy", lambda i: wide.choose(logits, tokens, i), max(1, repetitions // 20))


def compiled(sampler: Sampler, logits: np.ndarray, tokens: list[int]) -> Callable[[int], int]:
    """Return a function that draws as a step does: it fills in the settings, then makes one call."""
    address = kernels_of(isa.choose(None).name).load([CHOOSE.spec()])[CHOOSE.spec()]
    run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
    inputs, scratch = Inputs(1, 2), np.zeros(SAMPLING_SCRATCH, np.uint8)
    args = CHOOSE.pack(
        count=0,
        logits=logits.ctypes.data,
        n_vocab=N_VOCAB,
        draws=inputs.draws.ctypes.data,
        out=inputs.chosen.ctypes.data,
    )

    def draw(i: int) -> int:
        chosen = sampler.draw(tokens, i)
        assert chosen
        keep = inputs.set_draws([chosen])
        run(args.ctypes.data, 0, scratch.ctypes.data)
        del keep
        return int(inputs.chosen[0])

    return draw


def show(name: str, choose: Callable[[int], int], repetitions: int) -> None:
    times = []
    for i in range(repetitions + 3):
        start = time.perf_counter()
        choose(i)
        times.append(time.perf_counter() - start)
    print(
        f"{name:30} {1e3 * statistics.median(times[3:]):8.3f} ms per token, best {1e3 * min(times[3:]):.3f}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
