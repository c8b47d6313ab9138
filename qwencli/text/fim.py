"""Filling in the middle: the tokens that show a model where a gap in a text is, and the prompt to fill it.

The prompt is that of the model's training: what precedes the gap, what follows it, and then its content, each after its token
("Efficient Training of Language Models to Fill in the Middle", https://arxiv.org/abs/2207.14255; Qwen2.5-Coder's technical report has
the form of a repository, https://arxiv.org/abs/2409.12186).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..gguf.metadata import Metadata

KEYS = {
    "prefix": ("prefix", "fim_pre"),
    "suffix": ("suffix", "fim_suf"),
    "middle": ("middle", "fim_mid"),
    "pad": ("fim_pad",),
    "repo": ("fim_rep",),
    "separator": ("fim_sep",),
}
"""How files name each token, in `tokenizer.ggml.<name>_token_id`. Of two names the first is that of older files, and counts."""
TEXTS = {
    "prefix": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<PRE>", "<|code_prefix|>", "<|prefix|>"),
    "suffix": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<SUF>", "<|code_suffix|>", "<|suffix|>"),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<MID>", "<|code_middle|>", "<|middle|>"),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>"),
    "repo": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "separator": ("<|file_sep|>",),
}
"""The texts of the tokens where a file doesn't name them, Qwen's first (llama.cpp, llama-vocab.cpp)."""


class FimTokens(NamedTuple):
    """Token ids, None for those that the vocabulary lacks."""

    prefix: int | None = None
    suffix: int | None = None
    middle: int | None = None
    pad: int | None = None
    repo: int | None = None
    """Stands before the name of a repository."""
    separator: int | None = None
    """Stands before the name of a file in it."""

    @property
    def missing(self) -> list[str]:
        """Which of the three are missing that a prompt needs."""
        return [name for name in ("prefix", "suffix", "middle") if getattr(self, name) is None]

    @property
    def ends(self) -> set[int]:
        """Those that end an answer: a model that writes them has filled the gap (llama.cpp, llama-vocab.cpp)."""
        return {token for token in (self.pad, self.repo, self.separator) if token is not None}


def fim_tokens(metadata: Metadata, ids: Mapping[str, int]) -> FimTokens:
    """What a file names, else what the vocabulary `ids` has by its texts. Ids outside the vocabulary name nothing, as in llama.cpp."""

    def found(name: str) -> int | None:
        for key in KEYS[name]:
            token = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if type(token) is int and 0 <= token < len(ids):
                return token
        return next((ids[text] for text in TEXTS[name] if text in ids), None)

    return FimTokens(*map(found, FimTokens._fields))


def fim_prompt(
    tokens: FimTokens, before: Sequence[int], after: Sequence[int], suffix_first: bool = False
) -> list[int]:
    """The prompt for a gap between two texts, as token ids; the answer fills it. None of the tokens that it needs may be missing.

    Some models were trained with what follows the gap first: `suffix_first`.
    """
    assert tokens.prefix is not None
    assert tokens.suffix is not None
    assert tokens.middle is not None
    start, end = [tokens.prefix, *before], [tokens.suffix, *after]
    return [*end, *start, tokens.middle] if suffix_first else [*start, *end, tokens.middle]
