"""Write a GGUF model with random weights: the shapes, types and size of a real Qwen file, without downloading or training one.

Speed depends on shapes and types, not on values, so such a file is good enough for measurements, and with a few small layers for tests.
Nothing is quantized: blocks are random bits with sane scales (random_blocks.py). Types are mixed as llama-quantize mixes them (mixes.py).
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import gguf
import numpy as np
from gguf import GGUFWriter, TokenType
from mixes import MIXES
from numpy.typing import NDArray
from random_blocks import random_blocks
from shapes import PRESETS, Shape, TensorPlan, add_hyperparameters, plan_tensors
from tokenizers.pre_tokenizers import ByteLevel
from tqdm import tqdm

from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.types import FILE_TYPES
from qwencli.text.tokenizer import Tokenizer

QWEN_VOCAB = Path(__file__).resolve().parents[2] / "shared" / "data" / "ggml-vocab-qwen2.gguf"
"""Qwen's own vocabulary, used for models with as many tokens if the file exists."""


# --- random weights ---

PIECE_BYTES = 16 << 20  # how much is generated at a time
CYCLE = 64  # how many tokens --repeating goes through
INTO_RESIDUAL = tuple(
    f"{name}.weight" for name in ("attn_output", "ssm_out", "ffn_down", "ffn_down_exps", "ffn_down_shexp")
)


def random_tensor(t: TensorPlan, seed: int, repeating: bool = False) -> Iterator[NDArray[np.uint8]]:
    """The tensor's bytes, in pieces of about PIECE_BYTES. They depend only on its name, shape and type, and on the seed.

    Norms and scales are around 1. With `repeating`, the layers add nothing to the residual stream, and row t of the output matrix is the
    embedding of t's predecessor, in cycles of CYCLE tokens. So the likeliest token after t is its successor.
    """
    name = "token_embd.weight" if repeating and t.name == "output.weight" else t.name
    rng = np.random.Generator(np.random.SFC64((seed, zlib.crc32(name.encode()))))
    if t.spread is not None:
        values = rng.uniform(-t.spread, t.spread, t.shape) + t.mean
        yield values.astype("<f4").reshape(-1).view(np.uint8)
        return
    n_rows = int(np.prod(t.shape[:-1]))
    row_blocks = t.shape[-1] // t.kind.block_size
    step = max(1, PIECE_BYTES // (row_blocks * t.kind.block_bytes) // CYCLE) * CYCLE
    for row in range(0, n_rows, step):
        n = min(step, n_rows - row)
        if repeating and t.name.endswith(INTO_RESIDUAL):
            yield np.zeros(n * row_blocks * t.kind.block_bytes, np.uint8)
            continue
        rows = random_blocks(rng, t.kind, n * row_blocks).reshape(n, -1)
        yield (
            rows
            if name == t.name
            else np.concatenate([np.roll(rows[i : i + CYCLE], 1, axis=0) for i in range(0, n, CYCLE)])
        )


# --- vocabulary ---

SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
]
"""Qwen3's, in the order of their ids, from 151643 on (tokenizer_config.json). With bars: control tokens, others are user-defined."""
N_QWEN_BASE = 151643
CHAT_TEMPLATE = """\
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"""


class Vocabulary(NamedTuple):
    """Tokens with their types, merges in order of rank, and the name of the pre-tokenizer."""

    texts: list[str]
    types: list[int]  # gguf.TokenType
    merges: list[str]
    pre: str = "qwen2"

    def pad(self, n_vocab: int) -> Vocabulary:
        """The vocabulary padded to `n_vocab` tokens; the new ones are unused, with the names that llama.cpp's converter gives them."""
        more = range(len(self.texts), n_vocab)
        return self._replace(
            texts=self.texts + [f"[PAD{i}]" for i in more], types=self.types + [TokenType.UNUSED] * len(more)
        )


def make_up_vocabulary(n_vocab: int) -> Vocabulary:
    """A byte-level BPE vocabulary: the bytes, syllables, words of two syllables, then Qwen3's special tokens.

    A syllable is a consonant and a vowel, so no merge gets in the way of another, and each token's text is encoded as that token. With
    151,936 tokens, the special tokens have Qwen3's ids. Raises InputError if the bytes, one merge and the special tokens don't fit.
    """
    alphabet = sorted(ByteLevel.alphabet())  # in the order of their code points, as in Qwen's vocabulary
    n_base = min(N_QWEN_BASE, n_vocab - len(SPECIAL_TOKENS))
    if n_base <= len(alphabet):
        least = len(alphabet) + 1 + len(SPECIAL_TOKENS)
        raise InputError(
            f"--n-vocab is {n_vocab}, expected {least} or more: bytes, one merge and special tokens"
        )
    vowels = "aeiouAEIOU"
    syllables = [(c, v) for c in alphabet if c.isascii() and c.isalpha() and c not in vowels for v in vowels]
    pairs = (syllables + [(a + b, c + d) for a, b in syllables for c, d in syllables])[
        : n_base - len(alphabet)
    ]
    texts = alphabet + [left + right for left, right in pairs]
    types: list[int] = [TokenType.NORMAL] * len(texts)
    types += [
        TokenType.CONTROL if text.startswith("<|") else TokenType.USER_DEFINED for text in SPECIAL_TOKENS
    ]
    return Vocabulary(texts + SPECIAL_TOKENS, types, [f"{a} {b}" for a, b in pairs]).pad(n_vocab)


def read_vocabulary(path: str | os.PathLike[str]) -> Vocabulary:
    """The vocabulary of a GGUF file. Raises QwenError if the file can't be read or its vocabulary isn't of Qwen's kind."""
    file = GGUFFile(path)
    Tokenizer(file)  # raises ModelError for a vocabulary that contradicts itself
    texts = file.metadata.array("tokenizer.ggml.tokens", str)
    types = file.metadata.array("tokenizer.ggml.token_type", int)
    for text in ("<|im_end|>", "<|endoftext|>"):
        if text not in texts:
            raise InputError(f"{path}: its vocabulary has no token {text}, expected one of Qwen's")
    # old converters made padding tokens user-defined, and a tokenizer would look for them in every text
    types = [
        TokenType.UNUSED if text == f"[PAD{i}]" else kind for i, (text, kind) in enumerate(zip(texts, types))
    ]
    return Vocabulary(
        texts,
        types,
        file.metadata.array("tokenizer.ggml.merges", str),
        file.metadata.string("tokenizer.ggml.pre"),
    )


# --- the file ---


def write_model(
    path: Path,
    name: str,
    s: Shape,
    mix: str,
    vocab: Vocabulary,
    seed: int = 0,
    repeating: bool = False,
    on_bytes: Callable[[int], object] = lambda n: None,
) -> None:
    """Write the file, completely or not at all. `on_bytes` is called with the number of bytes of each piece that is written."""
    plans = plan_tensors(s, mix, same_output=repeating)
    with whole_file(path) as temporary, closing(GGUFWriter(temporary, s.arch)) as writer:
        for t in plans:
            writer.add_tensor_info(
                t.name, t.shape, np.dtype(np.float32), t.n_bytes, t.kind.id
            )  # the type by its number, since the writer may not know it
        add_metadata(writer, name, s, mix, vocab)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        assert writer.fout is not None
        out = writer.fout[0]
        writer.write_padding(out, out.tell())
        for t in plans:
            for piece in random_tensor(t, seed, repeating):
                out.write(piece.data)
                on_bytes(piece.nbytes)
            writer.write_padding(out, t.n_bytes)


def add_metadata(w: GGUFWriter, name: str, s: Shape, mix: str, vocab: Vocabulary) -> None:
    """Add the keys of a real Qwen file, in their order. The writer must know the tensors already: the size label counts them."""
    w.add_type("model")
    w.add_name(name)
    w.add_size_label(gguf.size_label(*w.get_total_parameter_count()))
    add_hyperparameters(w, s)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(vocab.pre)
    w.add_token_list(vocab.texts)
    w.add_token_types(vocab.types)
    w.add_token_merges(vocab.merges)
    end = vocab.texts.index("<|endoftext|>")
    w.add_eos_token_id(vocab.texts.index("<|im_end|>"))
    w.add_pad_token_id(end)
    w.add_bos_token_id(end)
    w.add_add_bos_token(False)
    w.add_chat_template(CHAT_TEMPLATE)
    w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_file_type({label.removesuffix("_MOE"): number for number, label in FILE_TYPES.items()}[mix])


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it at the end; after an error or Ctrl-C it is removed, and `path` is as before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


# --- the command line ---


def shape_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add an option for each number of a Shape; its value is None if it isn't given."""
    for field in reversed(fields(Shape)):
        if field.type in ("int", "float"):
            kind = click.IntRange(1, 2**24) if field.type == "int" else click.FloatRange(0, min_open=True)
            command = click.option(
                "--" + field.name.replace("_", "-"), type=kind, help=f"Replaces the preset's {field.name}."
            )(command)
    return command


@click.command(
    context_settings={"max_content_width": 110},
    epilog="\b\nExample:\n  python scripts/make_model.py model.gguf --preset qwen3-0.6b --type Q4_K_M",
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="tiny",
    show_default=True,
    help="The shape of a real model; -24l-16e in the name: cut to 24 layers and 16 experts.",
)
@click.option(
    "--type",
    "mix",
    type=click.Choice(list(MIXES)),
    default="Q4_K_M",
    show_default=True,
    help="The mix of tensor types, as chosen by llama-quantize.",
)
@click.option(
    "--repeating", is_flag=True, help=f"Weights for which greedy decoding repeats a cycle of {CYCLE} tokens."
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="The same seed writes the same file.",
)
@click.option(
    "--vocab",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Use the vocabulary of this GGUF file. Default: Qwen's from ../shared if it exists and fits, else a made-up one.",
)
@click.option(
    "--tied/--untied",
    default=None,
    help="Whether the embedding is also the output matrix. Default: the preset's; untied with --repeating.",
)
@shape_options
def make_model(
    out: Path,
    preset: str,
    mix: str,
    repeating: bool,
    seed: int,
    vocab: Path | None,
    tied: bool | None,
    **numbers: Any,
) -> None:
    """Write a GGUF model with random weights to OUT."""
    if repeating and tied:
        raise click.UsageError(
            "--repeating needs a separate output matrix, so it can't be combined with --tied"
        )
    given = {
        key: value
        for key, value in (numbers | {"tied": False if repeating else tied}).items()
        if value is not None
    }
    shape = replace(PRESETS[preset], **given)
    name = f"Random {preset}" + (" (repeating)" if repeating else "")
    try:
        shape.check()
        if vocab is None and shape.n_vocab >= PRESETS["qwen3-0.6b"].n_vocab and QWEN_VOCAB.is_file():
            vocab = QWEN_VOCAB
        words = read_vocabulary(vocab) if vocab else make_up_vocabulary(shape.n_vocab)
        if len(words.texts) > shape.n_vocab:
            if "n_vocab" in given:
                raise InputError(
                    f"{vocab}: has {len(words.texts)} tokens, more than --n-vocab {shape.n_vocab}"
                )
            shape = replace(shape, n_vocab=len(words.texts))
        n_bytes = sum(t.n_bytes for t in plan_tensors(shape, mix, same_output=repeating))
        with tqdm(total=n_bytes, unit="B", unit_scale=True, desc=out.name, disable=None) as bar:
            write_model(out, name, shape, mix, words.pad(shape.n_vocab), seed, repeating, bar.update)
        click.echo(
            f"{out}: {out.stat().st_size / 1e6:.1f} MB, vocabulary {f'of {vocab}' if vocab else 'made up'}",
            err=True,
        )
    except KeyboardInterrupt:
        sys.exit(130)
    except QwenError as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{out}: cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    make_model()
