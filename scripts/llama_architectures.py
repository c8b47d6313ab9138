"""What llama.cpp answers for a tiny model of each architecture, made by make_model.py."""
from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from make_model import make_up_vocabulary, write_model
from numpy.typing import NDArray
from shapes import TINIES, Shape

N_TOKENS = 300
ROWS = [0, 1, 5, 64, 255, 299]
"""Positions whose logits are kept, of every eighth token."""


class Answer(NamedTuple):
    logits: NDArray[np.float64]
    perplexity: float


def ask(model: Path, tokens: list[int], **options: Any) -> Answer:
    """The logits of each position, and the perplexity of all tokens but the first. `options` are those of llama_cpp.Llama."""
    from llama_cpp import Llama
    llama = Llama(model_path=str(model), n_ctx=512, n_batch=512, logits_all=True, n_threads=1, n_threads_batch=1, verbose=False, **options)
    llama.eval(tokens)
    logits = llama.scores[:len(tokens)].astype(np.float64)
    llama.close()
    chances = np.logaddexp.reduce(logits[:-1], -1)
    return Answer(logits, float(np.exp(np.mean(chances - logits[np.arange(len(tokens) - 1), tokens[1:]]))))


def write(path: Path, s: Shape, mix: str) -> str:
    """Write the model and return its hash."""
    write_model(path, s.arch, s, mix, make_up_vocabulary(s.n_vocab))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_tokens(seed: int, s: Shape) -> list[int]:
    return np.random.RandomState(seed).randint(0, s.n_vocab, N_TOKENS).tolist()  # type: ignore[no-any-return]


def agrees_with_itself(model: Path, tokens: list[int], found: Answer) -> bool:
    """Whether llama.cpp answers the same with keys and values that it doesn't round, and with another attention.

    With experts it need not: where two are wanted as much as each other, rounding chooses, and what follows differs by more than rounding.
    """
    for options in {"type_k": 0, "type_v": 0}, {"flash_attn": True}:
        other = ask(model, tokens, **options)
        if (other.logits.argmax(-1) != found.logits.argmax(-1)).sum() > 1 or abs(other.perplexity / found.perplexity - 1) > 2e-4:
            return False
    return True


def answers_of(s: Shape, folder: Path) -> dict[str, Any]:
    """The first random tokens for which rounding decides nothing, and what llama.cpp makes of them."""
    path, small = folder / "f16.gguf", folder / "q4_k_m.gguf"
    hashes = [write(path, s, "F16"), write(small, s, "Q4_K_M")]
    for seed in range(100):
        tokens = draw_tokens(seed, s)
        found = ask(path, tokens)
        if agrees_with_itself(path, tokens, found):
            break
    else:
        raise RuntimeError(f"{s.arch}: rounding decides too much for 100 prompts")
    print(f"{s.arch}: seed {seed}, perplexity {found.perplexity:.2f}", file=sys.stderr)
    return {"sha256": hashes, "seed": seed, "tokens": tokens, "perplexity": float(f"{found.perplexity:.8g}"),
            "perplexity_q4_k_m": float(f"{ask(small, tokens).perplexity:.8g}"), "top": found.logits.argmax(-1).tolist(),
            "rows": ROWS, "logits": [[round(x, 4) for x in row[::8].tolist()] for row in found.logits[ROWS]]}


def all_answers(folder: Path) -> dict[str, Any]:
    return {s.arch: answers_of(s, folder) for s in TINIES}
