"""Text to token ids and back, as llama.cpp does it for the byte-level BPE vocabularies of the Qwen family."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from typing import Any

from ..errors import InputError, ModelError, shown
from ..gguf.file import GGUFFile
from .fim import TEXTS, fim_tokens

_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_QWEN2 = _CONTRACTION + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN35 = (
    _CONTRACTION
    + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "kormo": _QWEN2,
    "f2llmv2": _QWEN2,
    "megrez": _QWEN2,
    "qwen35": _QWEN35,
}
"""For each `tokenizer.ggml.pre`, the pattern that splits text into words before merging (llama.cpp, llama-vocab.cpp).

The Unicode tables of `tokenizers` decide what a letter, a mark or a digit is. Version 0.23 has those of Unicode 16, llama.cpp of 2026 those
of 15.1, so the two split differently at 4,400 new letters, marks and digits. They agree on all other characters.
"""

EARLY = ("qwen", "qwen2", "qwen2moe")
"""Architectures whose files may be older than the key `tokenizer.ggml.pre`. Qwen's own tokenizers of that time use Qwen2's pattern
(PAT_STR in Qwen/Qwen-7B, tokenization_qwen.py)."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
"""`tokenizer.ggml.token_type` (enum llama_token_type in llama.h)."""

END_OF_GENERATION = ("<|im_end|>", "<|endoftext|>")
"""Control tokens that end an answer, whatever the file says about them."""

SHORT_TEXT, SHORT_WORD = 10_000, 100
"""The most characters of a text, and of a word in it, that are merged in Python. `tokenizers` is several times as fast, but needs 0.2 s to
load Qwen's merges."""
REMEMBERED = 512
"""How many short texts are remembered with their ids: the earlier messages of a chat come again in each turn."""


def _byte_characters() -> dict[str, int]:
    """The printable characters by which GPT-2 represents the 256 bytes (bytes_to_unicode in openai/gpt-2, encoder.py)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


class Tokenizer:
    """The tokenizer of a GGUF file.

    `n_vocab` is the number of tokens; `bos_id` and `eos_id` may be None; `eog_ids` are the tokens that end an answer, and
    `fim` those that show where a gap is. Raises ModelError if the file has no vocabulary of a known kind, or one that contradicts itself.
    """

    def __init__(self, file: GGUFFile) -> None:
        get, path = file.metadata, file.path
        if (kind := get.string("tokenizer.ggml.model")) != "gpt2":
            raise ModelError(
                f"{path}: tokenizer.ggml.model is '{shown(kind)}', expected 'gpt2' (byte-level BPE)"
            )
        is_early = get.get("general.architecture") in EARLY
        pre = get.string("tokenizer.ggml.pre", *(("default",) if is_early else ()))
        if pre == "default" and is_early:
            pre = "qwen2"
        if pre not in PRE_TOKENIZERS:
            raise ModelError(
                f"{path}: tokenizer.ggml.pre is '{shown(pre)}', expected one of {', '.join(PRE_TOKENIZERS)}"
            )
        self._path = path
        self._texts: list[str] = get.array("tokenizer.ggml.tokens", str)
        self.n_vocab = len(self._texts)
        types: list[int] | None = get.array("tokenizer.ggml.token_type", int, None, self.n_vocab)
        self._types = types or [NORMAL] * self.n_vocab
        self._ids = dict(zip(self._texts, range(self.n_vocab)))
        if len(self._ids) != self.n_vocab:
            twice = next(text for i, text in enumerate(self._texts) if self._ids[text] != i)
            raise ModelError(f"{path}: token '{shown(twice)}' appears twice in tokenizer.ggml.tokens")
        self._bytes_of_character = _byte_characters()
        if lost := [
            byte for character, byte in self._bytes_of_character.items() if character not in self._ids
        ]:
            raise ModelError(
                f"{path}: tokenizer.ggml.tokens lacks {len(lost)} of the 256 single bytes, such as {lost[0]:#04x}"
            )

        self.warnings: list[str] = []
        """About tokens that the file names and doesn't have."""
        self.bos_id, self.eos_id = self._special_id(file, "bos"), self._special_id(file, "eos")
        ends = [
            self.eos_id,
            self._special_id(file, "eot"),
            self._special_id(file, "eom"),
            *map(self._ids.get, END_OF_GENERATION),
        ]
        self.fim = fim_tokens(get, self._ids)
        self.eog_ids = frozenset(i for i in ends if i is not None) | self.fim.ends
        for text in (*END_OF_GENERATION, *chain(*TEXTS.values())):
            if (i := self._ids.get(text)) is not None and i in (*ends, *self.fim):
                self._types[i] = CONTROL  # whatever type the file gives them (llama.cpp, llama-vocab.cpp)
        self.add_bos: bool = get.boolean("tokenizer.ggml.add_bos_token", False)
        self.add_eos: bool = get.boolean("tokenizer.ggml.add_eos_token", False)
        for wanted, token, name in (self.add_bos, self.bos_id, "bos"), (self.add_eos, self.eos_id, "eos"):
            if wanted and token is None and f"tokenizer.ggml.{name}_token_id" not in get:
                raise ModelError(
                    f"{path}: tokenizer.ggml.add_{name}_token is true, but tokenizer.ggml.{name}_token_id is missing"
                )

        # llama.cpp looks for longer tokens first, so that a token that contains another one wins
        special = sorted(
            (
                text
                for text, t in zip(self._texts, self._types)
                if t in (CONTROL, USER_DEFINED, UNKNOWN) and text
            ),
            key=lambda text: -len(text.encode()),
        )
        self._special = special
        self._user_defined = [text for text in special if self._types[self._ids[text]] == USER_DEFINED]
        self.control_texts = [text for text in special if self._types[self._ids[text]] != USER_DEFINED]
        self._merges: list[str] = get.array("tokenizer.ggml.merges", str)
        self._check_merges()
        self._pattern = PRE_TOKENIZERS[pre]
        self._encode_short = lru_cache(REMEMBERED)(self._encode_short)  # type: ignore[method-assign]

    def _special_id(self, file: GGUFFile, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}_token_id"
        token: int | None = file.metadata.integer(key, None, -(2**63), 2**64)
        if token is None or 0 <= token < self.n_vocab:
            return token
        self.warnings.append(
            f"metadata key '{key}' is {token}, outside the vocabulary of {self.n_vocab}: there is no such token"
        )
        return None

    def _pairs(self) -> tuple[list[str], list[str]]:
        """The left and the right tokens of the merges."""
        merges = self._merges
        halves = " ".join(merges).split(" ")
        if len(halves) == 2 * len(merges) and "" not in halves and all(" " in merge for merge in merges):
            return halves[::2], halves[1::2]
        cuts = [
            merge.find(" ", 1) for merge in merges
        ]  # as in llama.cpp: the first character may be a space itself
        for i, (merge, cut) in enumerate(zip(merges, cuts)):
            if not 0 < cut < len(merge) - 1:
                raise ModelError(
                    f"{self._path}: merge {i} in tokenizer.ggml.merges is '{shown(merge)}', expected two tokens separated by a space"
                )
        return [merge[:cut] for merge, cut in zip(merges, cuts)], [
            merge[cut + 1 :] for merge, cut in zip(merges, cuts)
        ]

    def _check_merges(self) -> None:
        merges = self._merges
        made = [merge.replace(" ", "") for merge in merges]
        first = self._ids.get(made[0]) if made else None
        if (
            first is not None
            and self._texts[first : first + len(made)] == made
            and " ".join(merges).count(" ") == 2 * len(merges) - 1
        ):
            return  # the tokens are in the order of the merges that make them, as in Qwen's files: a quick check
        left, right = self._pairs()
        if lost := {*left, *right, *map(str.__add__, left, right)} - self._ids.keys():
            raise self._unfit_merges(f"which lack '{shown(min(lost))}'")

    def _unfit_merges(self, why: str) -> ModelError:
        return ModelError(f"{self._path}: tokenizer.ggml.merges don't fit tokenizer.ggml.tokens, {why}")

    @cached_property
    def _words(self) -> Any:
        """Splits text into words, which consist of the characters that represent bytes."""
        from tokenizers import Regex, pre_tokenizers

        return pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(self._pattern), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return dict(zip(self._merges, range(len(self._merges))))

    @cached_property
    def _bpe(self) -> Any:
        from tokenizers import Tokenizer as BPETokenizer
        from tokenizers import models

        pairs = list(zip(*self._pairs()))
        try:
            bpe = BPETokenizer(models.BPE(vocab=self._ids, merges=pairs))
        except (
            Exception
        ) as error:  # the library raises plain Exception for a merge of tokens that aren't in the vocabulary
            raise self._unfit_merges(shown(error)) from None
        bpe.pre_tokenizer = self._words
        return bpe

    def _encode_plain(self, text: str) -> Iterable[int]:
        return self._encode_short(text) if len(text) <= SHORT_TEXT else self._encode_long(text)

    def _encode_short(self, text: str) -> Iterable[int]:
        words = [word for word, _ in self._words.pre_tokenize_str(text)]
        if max(map(len, words)) > SHORT_WORD:  # merging such words in Python takes long
            return self._encode_long(text)
        return [self._ids[token] for word in words for token in self._merge(word)]

    def _encode_long(self, text: str) -> Iterable[int]:
        # unlike `encode`, it lets other threads run
        ids: list[int] = self._bpe.encode_batch_fast([text], add_special_tokens=False)[0].ids
        return ids

    def _merge(self, word: str) -> list[str]:
        """Byte-pair encoding: join the neighbours whose pair comes first in the merges, the leftmost if there are several; then repeat."""
        tokens, ranks, none = list(word), self._ranks, len(self._ranks)
        while len(tokens) > 1:
            rank, i = min(
                (ranks.get(f"{tokens[i]} {tokens[i + 1]}", none), i) for i in range(len(tokens) - 1)
            )
            if rank == none:
                break
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]
        return tokens

    def encode(
        self, text: str, add_special: bool = False, parse_special: bool = False, guard: str = ""
    ) -> list[int]:
        """Token ids of `text`.

        User-defined tokens such as `<think>` are always recognised in the text, control tokens such as `<|im_end|>` only with
        `parse_special`. `add_special` adds the BOS and EOS tokens that the file asks for. The character `guard`, wherever it occurs, keeps
        the text around it from being read as a token, and is dropped. Raises InputError for text that can't be encoded as UTF-8.
        """
        pieces: list[str | int] = [text]
        for special in self._special if parse_special else self._user_defined:
            if special in text:
                pieces = [part for piece in pieces for part in self._split(piece, special)]
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        try:
            for piece in pieces:
                if isinstance(piece, int):
                    ids.append(piece)
                elif plain := piece.replace(guard, "") if guard else piece:
                    ids += self._encode_plain(plain)
        except (UnicodeEncodeError, TypeError):
            raise InputError("the text isn't valid Unicode: it contains a surrogate") from None
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def _split(self, piece: str | int, special: str) -> Iterable[str | int]:
        if isinstance(piece, int) or special not in piece:
            return [piece]
        parts: list[str | int] = []
        for part in piece.split(special):
            parts += [part, self._ids[special]] if part else [self._ids[special]]
        return parts[:-1]

    def token_bytes(self, token: int, special: bool = True) -> bytes:
        """The bytes that a token represents, which may be part of a UTF-8 character. None for unused tokens and, without `special`, for
        control tokens.

        Raises InputError for an id outside the vocabulary.
        """
        if not 0 <= token < self.n_vocab:
            raise InputError(f"token id {token} is outside the vocabulary, expected 0 to {self.n_vocab - 1}")
        text, kind = self._texts[token], self._types[token]
        if kind in (CONTROL, UNKNOWN):
            return text.encode() if special else b""
        if kind == USER_DEFINED:
            return text.encode()
        if kind == UNUSED:
            return b""
        table = self._bytes_of_character
        return b"".join(bytes((table[c],)) if c in table else c.encode() for c in text)

    def all_bytes(self) -> list[bytes]:
        """`token_bytes` of every token in the vocabulary, several times as fast as one by one."""
        table = self._bytes_of_character
        if (
            not set("".join(text for text, kind in zip(self._texts, self._types) if kind == NORMAL))
            <= table.keys()
        ):
            return list(
                map(self.token_bytes, range(self.n_vocab))
            )  # some contain characters that don't represent a byte
        data = (
            "".join(self._texts)
            .translate({ord(c): byte for c, byte in table.items()})
            .encode("latin-1", "replace")
        )
        ends = list(accumulate(map(len, self._texts)))
        return [
            data[start:end] if kind == NORMAL else self.token_bytes(i)
            for i, (start, end, kind) in enumerate(zip([0, *ends], ends, self._types))
        ]

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.all_bytes()))

    def fewest(self, text: str) -> int:
        """A lower bound on the number of tokens of a text, from the length of the longest token. Tokenizing takes a second per megabyte."""
        return -(-len(text) // self._longest)

    def at_most(self, text: str, n_tokens: int) -> str:
        """The start of a text without what `n_tokens` certainly don't reach, so that what is cut off need not be tokenized."""
        return text[: n_tokens * self._longest]

    @property
    def control_ids(self) -> list[int]:
        """The tokens that don't represent text."""
        return [self._ids[text] for text in self.control_texts]

    def decode_bytes(self, ids: Iterable[int], special: bool = True) -> bytes:
        """The bytes of the tokens, joined. Raises InputError for an id outside the vocabulary."""
        return b"".join(self.token_bytes(token, special) for token in ids)

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """The text of the tokens; bytes that aren't valid UTF-8 become U+FFFD. Raises InputError for an id outside the vocabulary."""
        return self.decode_bytes(ids, special).decode("utf-8", "replace")


class StreamDecoder:
    """Turns tokens into text one by one, holding back bytes until their UTF-8 character is complete."""

    def __init__(self, tokenizer: Tokenizer, special: bool = False) -> None:
        self._tokenizer, self._special = tokenizer, special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that `token` completes. Raises InputError for an id outside the vocabulary."""
        return self._utf8.decode(self._tokenizer.token_bytes(token, self._special))

    def end(self) -> str:
        """The rest, when no more tokens follow: U+FFFD for an incomplete character."""
        return self._utf8.decode(b"", final=True)
