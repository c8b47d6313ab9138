"""The tokenizer compared with llama.cpp's: its own conformance cases, and ids stored by scripts/make_oracles.py."""

import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_vocabulary
from conftest import SHARED
from gguf import TokenType

from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.text import tokenizer as tokenizer_module
from qwencli.text.tokenizer import StreamDecoder, Tokenizer

ORACLE = json.loads(Path(__file__).with_name("oracles").joinpath("tokenizer.json").read_text())
VOCABULARY = SHARED / "data" / "ggml-vocab-qwen2.gguf"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the shared test data in {SHARED}")


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    def tokenizer(**settings: Any) -> Tokenizer:
        path = tmp_path_factory.mktemp("vocabulary") / "v.gguf"
        tiny_vocabulary.write_gguf(path, **settings)
        return Tokenizer(GGUFFile(path))

    return tokenizer


@pytest.fixture(scope="session")
def tiny(write: Callable[..., Tokenizer]) -> Tokenizer:
    return write()


@pytest.fixture(scope="session")
def qwen2() -> Tokenizer:
    return Tokenizer(GGUFFile(VOCABULARY))


@pytest.fixture(params=["here", "by tokenizers"])
def merging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that merges texts of any length in one of the two ways that there are."""
    for name in "SHORT_TEXT", "SHORT_WORD":
        monkeypatch.setattr(tokenizer_module, name, 10**9 if request.param == "here" else -1)


def conformance_cases() -> list[tuple[str, list[int]]]:
    if not SHARED.is_dir():
        return []
    texts = Path(f"{VOCABULARY}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")[:-1]
    lines = Path(f"{VOCABULARY}.out").read_text().splitlines()
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines, strict=True)]


@needs_shared
def test_there_are_46_conformance_cases() -> None:
    assert len(conformance_cases()) == 46


@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize(("text", "ids"), conformance_cases(), ids=lambda value: repr(value)[:30])
def test_conformance_cases_of_llama_cpp(qwen2: Tokenizer, text: str, ids: list[int]) -> None:
    assert qwen2.encode(text) == ids
    assert qwen2.decode(ids) == text


def test_long_texts_and_long_words_have_the_ids_of_short_ones(tiny: Tokenizer) -> None:
    limit = tokenizer_module.SHORT_WORD
    words = " ".join("abcd"[i % 4] * (1 + i % (limit + 2)) for i in range(3 * limit))
    assert len(words) > tokenizer_module.SHORT_TEXT
    for text in words, "a" * limit, "a" * (limit + 1), "ab" * limit:
        assert tiny.encode(text) == [i for word in re.findall(" ?[a-z]+", text) for i in tiny.encode(word)]


def test_other_threads_run_while_a_long_text_is_encoded(tiny: Tokenizer) -> None:
    """So a server's other requests don't wait for it."""
    done, turns, meanwhile = threading.Event(), 0, [0]

    def encode() -> None:
        while (
            max(meanwhile) <= 10 and len(meanwhile) < 50
        ):  # again if the machine didn't let other threads run
            before = turns
            tiny.encode("one two three. " * 50_000)
            meanwhile.append(turns - before)
        done.set()

    threading.Thread(target=encode).start()
    while not done.wait(0.001):
        turns += 1
    assert max(meanwhile) > 10


@needs_shared
def test_a_long_text_there_and_back(qwen2: Tokenizer) -> None:
    raw = (SHARED / "data" / "wiki.test.raw").read_bytes()
    ids = qwen2.encode(raw.decode())
    assert len(ids) == 298_938
    assert qwen2.decode_bytes(ids) == raw


@pytest.mark.usefixtures("merging")
@pytest.mark.parametrize("vocabulary", ["tiny", "tiny-qwen35", pytest.param("qwen2", marks=needs_shared)])
def test_ids_are_those_of_llama_cpp(
    vocabulary: str, request: pytest.FixtureRequest, write: Callable[..., Tokenizer]
) -> None:
    tokenizer = write(pre="qwen35") if vocabulary == "tiny-qwen35" else request.getfixturevalue(vocabulary)
    for text, answers in ORACLE["encode"]:
        for parse_special, expected in zip((False, True), answers[vocabulary]):
            assert tokenizer.encode(text, parse_special=parse_special) == expected, (text, parse_special)
            assert tokenizer.decode(expected) == text


def test_the_stored_answers_cover_what_they_should() -> None:
    """If both patterns gave the same ids everywhere, or parsing and not parsing special tokens, the answers would prove nothing."""
    answers = [answer for _, answer in ORACLE["encode"]]
    assert sum(a["tiny"] != a["tiny-qwen35"] for a in answers) >= 5
    assert sum(a["tiny"][0] != a["tiny"][1] for a in answers) >= 10


def test_bytes_of_tokens_are_those_of_llama_cpp(tiny: Tokenizer) -> None:
    for token, plain, special in ORACLE["pieces"]:
        assert tiny.token_bytes(token, special=False).hex() == plain, token
        assert tiny.token_bytes(token, special=True).hex() == special, token


@pytest.mark.parametrize("add", [True, False, None])
def test_bos_and_eos_are_added_as_the_file_says(add: bool | None, write: Callable[..., Tokenizer]) -> None:
    tokenizer = write(bos="<|im_start|>", eos="<|endoftext|>", add=add)
    expected = ORACLE["add_special"][str(add)]
    assert tokenizer.encode("Hello<a>", add_special=True, parse_special=True) == expected
    assert tokenizer.add_bos == bool(add)
    plain = tokenizer.encode("Hello<a>", parse_special=True)
    assert plain == (expected[1:-1] if add else expected)


def test_a_token_to_add_that_the_file_does_not_name(write: Callable[..., Tokenizer]) -> None:
    with pytest.raises(ModelError, match="bos_token_id is missing"):
        write(eos="<|endoftext|>", add=True)


def test_ends_of_an_answer(write: Callable[..., Tokenizer]) -> None:
    tokenizer = write(eos="<a>")
    n_words = len(tiny_vocabulary.words_and_merges()[0])
    special = [*tiny_vocabulary.SPECIAL]
    assert tokenizer.eog_ids == {
        n_words + special.index(text) for text in ("<a>", "<|im_end|>", "<|endoftext|>")
    }
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, n_words + special.index("<a>"))


def test_user_defined_tokens_are_always_recognised_control_tokens_on_request(tiny: Tokenizer) -> None:
    n_words = len(tiny_vocabulary.words_and_merges()[0])
    for i, (text, kind) in enumerate(tiny_vocabulary.SPECIAL.items()):
        if text == "unused":
            continue
        always = kind == TokenType.USER_DEFINED and text not in ("<|im_end|>", "<|fim_prefix|>")
        assert (n_words + i in tiny.encode(f"x{text}y")) == always, text
        assert n_words + i in tiny.encode(f"x{text}y", parse_special=True), text


def test_a_guard_keeps_text_from_being_a_token_and_is_dropped(tiny: Tokenizer) -> None:
    text, guard = "a<|im_start|> b", "\ufdd0"
    assert tiny.encode(text.replace("|im", f"|{guard}im"), parse_special=True, guard=guard) == tiny.encode(
        text
    )
    assert tiny.encode(f"<think>{guard}", guard=guard) == tiny.encode("<think>")


def test_a_surrogate_is_an_error(tiny: Tokenizer) -> None:
    with pytest.raises(InputError, match="surrogate"):
        tiny.encode("a\ud800b")


@pytest.mark.parametrize("token", [-1, 6020, 2**40])
def test_ids_outside_the_vocabulary(tiny: Tokenizer, token: int) -> None:
    assert tiny.n_vocab == 6020
    with pytest.raises(InputError, match=rf"{token} is outside the vocabulary, expected 0 to 6019"):
        tiny.decode([1, token])


def test_unfinished_characters_become_replacement_characters(tiny: Tokenizer) -> None:
    assert tiny.decode(tiny.encode("a🦙")[:-1]) == "a\ufffd"


@pytest.mark.parametrize("seed", range(20))
def test_a_stream_gives_the_text_and_never_half_a_character(tiny: Tokenizer, seed: int) -> None:
    rs = np.random.RandomState(seed)
    some_text = "".join(rs.choice([text for text, _ in ORACLE["encode"]], 8))
    random_ids = rs.choice(
        [rs.randint(0, 256, 40), rs.randint(0, tiny.n_vocab, 40)][seed % 2], 40
    )  # single bytes make invalid UTF-8
    for ids in tiny.encode(some_text), random_ids.tolist():
        decoder = StreamDecoder(tiny, special=True)
        pieces = [decoder.add(token) for token in ids] + [decoder.end()]
        assert "".join(pieces) == tiny.decode(ids)
        if "\ufffd" not in tiny.decode(ids):
            assert not any("\ufffd" in piece for piece in pieces)


def test_a_stream_passes_each_character_on_with_its_last_byte(tiny: Tokenizer) -> None:
    decoder, byte = StreamDecoder(tiny), {tiny.token_bytes(i): i for i in range(256)}
    for character in "aé€🦙":
        *begin, last = (byte[bytes([b])] for b in character.encode())
        assert [decoder.add(token) for token in begin] == [""] * len(begin)
        assert decoder.add(last) == character
    assert decoder.end() == ""


def test_a_stream_shows_control_tokens_only_on_request(tiny: Tokenizer) -> None:
    ids = tiny.encode("a<|im_start|><think>", parse_special=True)
    for special, expected in (False, "a<think>"), (True, "a<|im_start|><think>"):
        decoder = StreamDecoder(tiny, special)
        assert "".join(map(decoder.add, ids)) == expected


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", "llama", "tokenizer.ggml.model is 'llama', expected 'gpt2'"),
        ("pre", "gpt-4o", "tokenizer.ggml.pre is 'gpt-4o', expected one of qwen2"),
        ("merges", ["a b", "ab"], "merge 1 in tokenizer.ggml.merges is 'ab'"),
        ("merges", ["a \u0416"], "merges don't fit"),
    ],
)
def test_vocabularies_that_cannot_be_used(tmp_path: Path, key: str, value: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        Tokenizer(changed(tmp_path / "v.gguf", key, value))


@pytest.mark.parametrize("arch", ["qwen", "qwen2", "qwen2moe"])
@pytest.mark.parametrize("pre", ["default", None])
def test_files_that_name_no_pattern_use_qwens(tmp_path: Path, arch: str, pre: str | None) -> None:
    text = "don't 1234 \n\n  x\u0301y, !!\n 'RE"
    early, plain = (
        Tokenizer(changed(tmp_path / "v.gguf", "pre", pre, arch)),
        Tokenizer(changed(tmp_path / "w.gguf", "pre", "qwen2")),
    )
    assert early.encode(text) == plain.encode(text)
    with pytest.raises(ModelError, match=r"tokenizer\.ggml\.pre"):
        Tokenizer(changed(tmp_path / "x.gguf", "pre", pre, "qwen3"))


def changed(path: Path, key: str, value: Any, arch: str = "qwen2") -> GGUFFile:
    """The tiny vocabulary with another value for a key, or without the key if the value is None."""
    words, merges = tiny_vocabulary.words_and_merges()
    facts: dict[str, Any] = {"model": "gpt2", "pre": "qwen2", "tokens": words, "merges": merges} | {
        key: value
    }
    w = gguf.GGUFWriter(path, arch)
    for name, fact in facts.items():
        if fact is None:
            continue
        add = (
            w.add_string if isinstance(fact, str) else w.add_uint32 if isinstance(fact, int) else w.add_array
        )
        add(f"tokenizer.ggml.{name}", fact)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return GGUFFile(path)


def test_a_merge_of_unknown_tokens_among_tokens_in_order(tmp_path: Path) -> None:
    """It is never applied, as in llama.cpp; the library that merges long texts rejects it."""
    words, merges = tiny_vocabulary.words_and_merges()
    first = words.index(merges[0].replace(" ", ""))
    assert words[first : first + len(merges)] == [merge.replace(" ", "") for merge in merges]
    i = next(
        i
        for i, merge in enumerate(merges)
        if len(merge) == 5 and merge[3] == " " and merge[1:3] + merge[4] not in words
    )
    moved = [*merges[:i], f"{merges[i][0]} {merges[i][1:3]}{merges[i][4]}", *merges[i + 1 :]]
    tokenizer = Tokenizer(changed(tmp_path / "v.gguf", "merges", moved))
    assert tokenizer.encode("a") == [words.index("a")]
    assert first + i not in tokenizer.encode(words[first + i].replace("Ġ", " "))
    with pytest.raises(ModelError, match="merges don't fit"):
        tokenizer.encode("a" * (tokenizer_module.SHORT_WORD + 1))


def test_the_embedded_model_knows_its_own_special_tokens() -> None:
    tokenizer = Tokenizer(GGUFFile(EMBEDDED))
    fields = gguf.GGUFReader(EMBEDDED).fields
    ids = {text: i for i, text in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    assert tokenizer.encode("<|im_start|><think>", parse_special=True) == [
        ids["<|im_start|>"],
        ids["<think>"],
    ]
    assert tokenizer.eos_id == fields["tokenizer.ggml.eos_token_id"].contents()
    assert {ids["<|im_end|>"], ids["<|endoftext|>"]} == tokenizer.eog_ids


def test_no_text_has_fewer_tokens_than_the_lower_bound() -> None:
    tokenizer = Tokenizer(GGUFFile(EMBEDDED))
    longest = max(len(tokenizer.token_bytes(i)) for i in range(tokenizer.n_vocab))
    for text in "", "a", " " * longest, "the end of a story " * 300, "漢字" * 50, "\n" * 5000:
        assert tokenizer.fewest(text) == math.ceil(len(text) / longest) <= len(tokenizer.encode(text))
