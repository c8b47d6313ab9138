"""`qwencli tokenize`"""

from __future__ import annotations

import json

import click

from ..errors import InputError
from ._models import Wanted, choose_model, model_option
from ._options import example, json_option, mmap_option
from ._streams import read_text, write_text


@click.command(
    epilog=example(
        'qwencli tokenize "Once upon a time"',
        "qwencli tokenize -f text.txt --ids",
        "echo '<|im_end|>' | qwencli tokenize --special --json",
    )
)
@click.argument("text", required=False)
@model_option
@click.option("-f", "--file", metavar="FILE", help="Read the text from a file; - is stdin.")
@click.option("--ids", "only_ids", is_flag=True, help="Print only the ids, as a list.")
@json_option
@click.option("--special", is_flag=True, help="Recognise control tokens such as <|im_end|> in the text.")
@mmap_option
def tokenize(
    text: str | None,
    model: Wanted | None,
    file: str | None,
    only_ids: bool,
    as_json: bool,
    special: bool,
    no_mmap: bool,
) -> None:
    """Show the tokens of a text.

    The text is TEXT, a file or stdin, taken as it is.
    """
    if text is not None and file is not None:
        raise click.UsageError("give TEXT or -f, not both")
    if only_ids and as_json:
        raise click.UsageError("give --ids or --json, not both")
    from ..gguf.file import GGUFFile
    from ..text.tokenizer import Tokenizer

    chosen = choose_model(model, quiet=model is not None)
    tokenizer = Tokenizer(GGUFFile(chosen.path, use_mmap=not no_mmap))
    ids = tokenizer.encode(read_text(file) if text is None else text, parse_special=special)
    if only_ids:
        write_text(f"{ids}\n")
    elif as_json:
        write_text(
            json.dumps({"ids": ids, "pieces": [tokenizer.decode([i]) for i in ids]}, ensure_ascii=False)
            + "\n"
        )
    else:
        write_text("".join(f"{i:6} -> {tokenizer.decode([i])!r}\n" for i in ids))


def parse_ids(text: str) -> list[int]:
    """Ids separated by spaces or commas, with or without brackets. Raises InputError for anything else."""
    words = text.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    for word in words:
        if not (word.isascii() and word.isdecimal() and len(word) < 11):
            raise InputError(
                f"{word[:40]!r} is not a token id, expected whole numbers separated by spaces or commas"
            )
    return [int(word) for word in words]
