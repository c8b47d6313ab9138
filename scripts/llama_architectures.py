"""llama.cpp's logits and perplexities for a tiny model of each architecture, made by make_model.py."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from make_model import make_up_vocabulary, write_model
from numpy.typing import NDArray
from shapes import TINIES, Shape

N_TOKENS = 300
ROWS = [0, 1, 5, 64, 255, 299]
"""Positions whose logits are kept. Of the vocabulary every eighth token is kept."""

FLOATS = {"type_k": 0, "type_v": 0}
"""Options for llama.cpp that keep keys and values in F32."""


class Evaluation(NamedTuple):
    """Logits, [n_tokens, n_vocab], and the perplexity of all tokens but the first."""

    logits: NDArray[np.float64]
    perplexity: float

    @property
    def top(self) -> NDArray[np.intp]:
        return self.logits.argmax(-1)


def evaluate(model: Path, tokens: list[int], **options: Any) -> Evaluation:
    """Have llama.cpp compute the logits of all tokens. `options` are those of llama_cpp.Llama."""
    from llama_cpp import Llama

    llama = Llama(
        model_path=str(model),
        n_ctx=512,
        n_batch=512,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        **options,
    )
    llama.eval(tokens)
    logits = llama.scores[: len(tokens)].astype(np.float64)
    llama.close()
    chances = np.logaddexp.reduce(logits[:-1], -1)
    return Evaluation(
        logits, float(np.exp(np.mean(chances - logits[np.arange(len(tokens) - 1), tokens[1:]])))
    )


def write_exact(model: Path, copy: Path) -> None:
    """Write the same weights as F32: llama.cpp rounds activations to F16 if it multiplies them by F16 weights."""
    reader = gguf.GGUFReader(model)
    writer = gguf.GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(
                field.name,
                field.contents(),
                field.types[0],
                sub_type=field.types[-1] if len(field.types) > 1 else None,
            )
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(path: Path, s: Shape, mix: str) -> str:
    """Write the model and return its hash."""
    write_model(path, s.arch, s, mix, make_up_vocabulary(s.n_vocab))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def draw_tokens(seed: int, s: Shape) -> list[int]:
    tokens: list[int] = np.random.RandomState(seed).randint(0, s.n_vocab, N_TOKENS).tolist()
    return tokens


def answers_of(s: Shape, folder: Path) -> dict[str, Any]:
    """Return the first random tokens for which rounding makes no difference, and what llama.cpp computes for them.

    With experts it sometimes does: if two experts are about equally likely, rounding chooses between them, and everything after that
    differs by more than rounding. Raises RuntimeError if there are no such tokens.
    """
    path, small, exact_path = (folder / f"{name}.gguf" for name in ("f16", "q4_k_m", "f32"))
    hashes = [write(path, s, "F16"), write(small, s, "Q4_K_M")]
    write_exact(path, exact_path)
    for seed in range(500):
        tokens = draw_tokens(seed, s)
        exact = evaluate(exact_path, tokens, **FLOATS)
        found = evaluate(path, tokens)
        if all(
            agree(other, exact)
            for other in (found, evaluate(exact_path, tokens), evaluate(path, tokens, flash_attn=True))
        ):
            break
    else:
        raise RuntimeError(f"{s.arch}: rounding decides too much for 500 prompts")
    print(
        f"{s.arch}: seed {seed}, perplexity {found.perplexity:.2f}, exactly {exact.perplexity:.2f}",
        file=sys.stderr,
    )
    return {
        "sha256": hashes,
        "tokens": tokens,
        "perplexity": float(f"{found.perplexity:.8g}"),
        "perplexity_q4_k_m": float(f"{evaluate(small, tokens).perplexity:.8g}"),
        "top": found.top.tolist(),
        "rows": ROWS,
        "exact_logits": [[round(x, 5) for x in row[::8].tolist()] for row in exact.logits[ROWS]],
    }


def agree(a: Evaluation, b: Evaluation) -> bool:
    return bool((a.top != b.top).sum() <= 1 and abs(a.perplexity / b.perplexity - 1) < 3e-4)


def all_answers(folder: Path) -> dict[str, Any]:
    return {s.arch: answers_of(s, folder) for s in TINIES}
