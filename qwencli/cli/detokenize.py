"""`qwencli detokenize`"""

from __future__ import annotations

import sys

import click

from ._models import Wanted, choose_model, model_option
from ._options import example, mmap_option
from ._streams import read_text, write_bytes
from .tokenize import parse_ids


@click.command(
    epilog=example(
        "qwencli detokenize 1925 346 5193 264 882", "qwencli tokenize --ids hello | qwencli detokenize"
    )
)
@click.argument("ids", nargs=-1)
@model_option
@mmap_option
def detokenize(ids: tuple[str, ...], model: Wanted | None, no_mmap: bool) -> None:
    """Turn token ids back into text.

    The bytes that IDS, or the ids on stdin, stand for are written as they are.
    """
    from ..gguf.file import GGUFFile
    from ..text.tokenizer import Tokenizer

    numbers = parse_ids(" ".join(ids) if ids else read_text(None))
    chosen = choose_model(model, quiet=model is not None)
    tokenizer = Tokenizer(GGUFFile(chosen.path, use_mmap=not no_mmap))
    write_bytes(tokenizer.decode_bytes(numbers) + (b"\n" if sys.stdout.isatty() else b""))
