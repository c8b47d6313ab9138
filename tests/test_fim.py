"""Filling in the middle: which tokens show where a gap is, and the prompt to fill it, as llama.cpp has them."""

from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest
import tiny_vocabulary

from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.text.fim import FimTokens, fim_prompt
from qwencli.text.tokenizer import Tokenizer

QWEN = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"
N_WORDS = len(tiny_vocabulary.words_and_merges()[0])


def tokenizer(path: Path, special: Sequence[str], **named: int) -> Tokenizer:
    """One whose vocabulary ends with some special tokens, and whose file names others by their ids."""
    words, merges = tiny_vocabulary.words_and_merges()
    w = gguf.GGUFWriter(path / "v.gguf", "qwen2")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list([*words, *special])
    w.add_token_merges(merges)
    for name, token in named.items():
        w.add_uint32(f"tokenizer.ggml.{name}_token_id", token)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return Tokenizer(GGUFFile(path / "v.gguf"))


def test_qwens_tokens_are_found_by_their_texts(tmp_path: Path) -> None:
    found = tokenizer(tmp_path, QWEN)
    assert found.fim == FimTokens(*range(N_WORDS, N_WORDS + 6))
    assert found.fim.missing == []
    # llama.cpp: whatever type the file gives them, they are control tokens; and three of them end an answer
    assert found.encode("a<|file_sep|>b") == found.encode("a<|file_sep") + found.encode("|>b")
    assert found.encode(QWEN[4], parse_special=True) == [N_WORDS + 4]
    assert found.eog_ids == {N_WORDS + 3, N_WORDS + 4, N_WORDS + 5}


def test_names_of_a_file_come_first_and_those_outside_the_vocabulary_count_for_nothing(
    tmp_path: Path,
) -> None:
    special = ["<PRE>", *QWEN]
    found = tokenizer(tmp_path, special, fim_pre=N_WORDS, suffix=N_WORDS + 3, fim_mid=2**31)
    assert found.fim[:3] == (N_WORDS, N_WORDS + 3, N_WORDS + 3)


def test_of_two_names_the_older_one_counts_and_what_it_names_stays_what_it_is(tmp_path: Path) -> None:
    """As in llama.cpp, which makes control tokens only of those that it finds by their texts."""
    plain = tokenizer(tmp_path, QWEN).encode("a")
    found = tokenizer(tmp_path, QWEN, prefix=plain[0], fim_pre=N_WORDS)
    assert found.fim.prefix == plain[0]
    assert found.encode("a", parse_special=True) == found.encode("a") == plain
    assert found.encode("<|fim_suffix|>", parse_special=True) == [N_WORDS + 1]


@pytest.mark.parametrize("n", range(3))
def test_a_vocabulary_says_what_it_lacks(tmp_path: Path, n: int) -> None:
    assert tokenizer(tmp_path, QWEN[:n]).fim.missing == ["prefix", "suffix", "middle"][n:]


def test_the_embedded_model_has_none() -> None:
    assert Tokenizer(GGUFFile(EMBEDDED)).fim == FimTokens()


def test_the_prompt_has_both_sides_of_the_gap() -> None:
    """As in the documentation of Qwen2.5-Coder: <|fim_prefix|>..<|fim_suffix|>..<|fim_middle|>."""
    tokens = FimTokens(90, 91, 92)
    assert fim_prompt(tokens, [1, 2], [3]) == [90, 1, 2, 91, 3, 92]
    assert fim_prompt(tokens, [1, 2], [3], suffix_first=True) == [91, 3, 90, 1, 2, 92]
    assert fim_prompt(tokens, [], []) == [90, 91, 92]
