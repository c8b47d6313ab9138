"""How long it takes to save and load a session: `python scripts/bench_session.py MODEL [TOKENS]`. The file is in the page cache."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.engine.session import load, save
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model

REPEATS = 9


def median(what: str, action: Callable[[], object]) -> None:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - start)
    print(f"{what:12} median {1000 * statistics.median(seconds):6.1f} ms, best {1000 * min(seconds):6.1f} ms")


def main(path: str, n_tokens: int) -> None:
    model = load_model(GGUFFile(path))
    median("fingerprint", model.file.fingerprint)
    backend = CPUBackend(model)
    kv = KVSequence()
    draw = np.random.default_rng(0)
    backend.cache.fill(kv, n_tokens, [])
    for page in kv.pages:
        for layer in range(len(model.config.attention_layers)):
            n_bytes = len(backend.read_page(page, layer))
            backend.write_page(page, layer, draw.integers(0, 256, n_bytes, np.uint8))
    tokens = draw.integers(0, model.config.n_vocab, n_tokens).tolist()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "session"
        median("save", lambda: save(file, backend, tokens, kv))
        print(f"{file.stat().st_size:,} bytes")
        # a new backend each time, so that its memory hasn't been touched before
        median("load", lambda: load(file, CPUBackend(model), n_tokens))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
