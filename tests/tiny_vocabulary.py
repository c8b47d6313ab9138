"""A vocabulary for the tests: the embedded model's words with special tokens that overlap, in a GGUF file without tensors."""

from __future__ import annotations

from functools import cache
from os import PathLike

import gguf
from gguf import TokenType

from qwencli.hub.places import EMBEDDED

SPECIAL = {
    "<|endoftext|>": TokenType.CONTROL,
    "<|im_start|>": TokenType.CONTROL,
    "<think>": TokenType.USER_DEFINED,
    "<|im_end|>": TokenType.USER_DEFINED,
    "<|fim_prefix|>": TokenType.USER_DEFINED,  # llama.cpp takes both for control tokens all the same
    "<a>": TokenType.CONTROL,
    "<a><b>": TokenType.USER_DEFINED,
    "<b>": TokenType.USER_DEFINED,
    "b><c": TokenType.CONTROL,
    "<a": TokenType.USER_DEFINED,
    "<unk>": TokenType.UNKNOWN,
    "= =": TokenType.USER_DEFINED,
    "ß€": TokenType.CONTROL,
    "unused": TokenType.UNUSED,
}
"""Token texts and their types. No two of the same length overlap: llama.cpp leaves open which of them goes first."""

ACROSS = ["e Ì", "eÌ ģ", "n Ì", "nÌ ĥ", "¿ s", "3 3"]
"""Merges across places where a pattern may cut, so that ids show whether it does: e and n with the two bytes of an accent, the last byte
of ſ (which some take for the s of a contraction) with an s, two digits."""


@cache
def words_and_merges() -> tuple[list[str], list[str]]:
    """The embedded model's ordinary tokens and its merges, read by the `gguf` package, followed by those of ACROSS."""
    fields = gguf.GGUFReader(EMBEDDED).fields
    tokens, types, merges = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")
    )
    words = [token for token, kind in zip(tokens, types) if kind == TokenType.NORMAL]
    return words + [merge.replace(" ", "") for merge in ACROSS], merges + ACROSS


def write_gguf(
    path: str | PathLike[str],
    pre: str = "qwen2",
    bos: str | None = None,
    eos: str | None = None,
    add: bool | None = None,
) -> None:
    """Write the vocabulary; `bos` and `eos` name the tokens that `add` says are to be added to a text."""
    words, merges = words_and_merges()
    tokens = [*words, *SPECIAL]
    w = gguf.GGUFWriter(path, "qwen2")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([TokenType.NORMAL] * len(words) + list(SPECIAL.values()))
    w.add_token_merges(merges)
    if bos:
        w.add_bos_token_id(tokens.index(bos))
    if eos:
        w.add_eos_token_id(tokens.index(eos))
    if add is not None:
        w.add_add_bos_token(add)
        w.add_add_eos_token(add)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
