"""Values of metadata that replace a file's: llama.cpp's --override-kv."""

from pathlib import Path

import pytest
from gguf_builder import tiny

from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.overrides import Scalar, read_overrides
from qwencli.llm import LLM
from qwencli.network.rope_options import RopeOptions


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=int:3", {"a.b": 3}),
        ("a=int:-9223372036854775808,b=int:9223372036854775807", {"a": -(2**63), "b": 2**63 - 1}),
        ("a=float:1e-6,b=float:.5,c=float:-2", {"a": 1e-6, "b": 0.5, "c": -2.0}),
        ("a=bool:true,b=bool:false", {"a": True, "b": False}),
        ("a=str:", {"a": ""}),
        ("a=str:x=y:z", {"a": "x=y:z"}),
        ('"a=str:one, two",b=int:1', {"a": "one, two", "b": 1}),
        ('"a=str:say ""hi"""', {"a": 'say "hi"'}),
        ('a=str:5" wide', {"a": '5" wide'}),
        ("a=int:1,a=int:2", {"a": 1}),
        (f"a=str:{'x' * 127}", {"a": "x" * 127}),
        (f"{'k' * 127}=int:0", {"k" * 127: 0}),
    ],
)
def test_what_llama_cpp_reads(text: str, expected: dict[str, Scalar]) -> None:
    """string_parse_kv_override in common.cpp, parse_csv_row in arg.cpp; the loader inserts into a map, so the first of a key stays."""
    found = read_overrides(text)
    assert found == expected
    assert [type(value) for value in found.values()] == [type(value) for value in expected.values()]


FORM = ": expected KEY=TYPE:VALUE with the type int, float, bool or str"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", f"''{FORM}"),
        ("a=int:1,", f"''{FORM}"),
        ("a", f"'a'{FORM}"),
        ("a=3", f"'a=3'{FORM}"),
        ("a=u32:3", f"'a=u32:3'{FORM}"),
        ("a=INT:3", f"'a=INT:3'{FORM}"),
        ("a\x1b[31m", f"'a\\x1b[31m'{FORM}"),
        ("x" * 5000, f"'{'x' * 60}'{FORM}"),
        ("=int:3", "'=int:3': the key has 0 bytes, expected 1 to 127"),
        (f"{'ä' * 64}=int:0", f"'{('ä' * 64 + '=int:0')[:60]}': the key has 128 bytes, expected 1 to 127"),
        ("a=int:", "'a=int:': expected an integer of 64 bits"),
        ("a=int:x", "'a=int:x': expected an integer of 64 bits"),
        ("a=int:1.5", "'a=int:1.5': expected an integer of 64 bits"),
        ("a=int:٣", "'a=int:٣': expected an integer of 64 bits"),
        ("a=int:9223372036854775808", "'a=int:9223372036854775808': expected an integer of 64 bits"),
        (f"a=int:{'9' * 5000}", f"'a=int:{'9' * 54}': expected an integer of 64 bits"),
        ("a=float:", "'a=float:': expected a number"),
        ("a=float:nan", "'a=float:nan': expected a number"),
        ("a=float:1e999", "'a=float:1e999': expected a number"),
        ("a=float:1.2.3", "'a=float:1.2.3': expected a number"),
        ("a=bool:1", "'a=bool:1': expected true or false"),
        (f"a=str:{'x' * 128}", f"'a=str:{'x' * 54}': the string has 128 bytes, expected at most 127"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(text: str, error: str) -> None:
    with pytest.raises(InputError) as raised:
        read_overrides(text)
    assert str(raised.value) == f"the override {error}"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny().write(tmp_path / "m.gguf")


def test_everything_sees_the_other_values(path: Path) -> None:
    llm = LLM(
        path,
        overrides=read_overrides(
            "qwen3.context_length=int:64,tokenizer.ggml.add_bos_token=bool:true,general.name=str:other,new.key=float:2"
        ),
    )
    assert llm.model.config.n_ctx == llm.engine.n_ctx == 64
    assert (
        llm.tokenizer.encode("the", add_special=True)[0] == llm.file.metadata["tokenizer.ggml.bos_token_id"]
    )
    assert llm.file.metadata.typed["general.name"].type_name == "str"
    assert llm.file.metadata.typed["qwen3.context_length"].type_name == "u32"
    assert llm.file.metadata.typed["new.key"] == (12, 2.0)
    assert llm.tokenizer.encode("the") == LLM(path).tokenizer.encode("the")


def test_they_hold_for_a_file_that_is_read_too(path: Path) -> None:
    llm = LLM(path, use_mmap=False, overrides={"qwen3.context_length": 64})
    assert not llm.file.mapped
    assert llm.engine.n_ctx == llm.file.metadata["qwen3.context_length"] == 64


def test_they_hold_while_a_model_sleeps_and_when_it_is_loaded_again(path: Path) -> None:
    llm = LLM(path, overrides={"qwen3.context_length": 64}, rope=RopeOptions(scale=2))
    fingerprint = llm.file.fingerprint()
    llm.unload()
    for one in llm, llm.again():
        assert one.file.fingerprint() == fingerprint
        assert one.model.config.n_ctx == 64
        assert one.model.config.rope.freq_scale == 0.5


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("qwen3.context_length=float:64", "the file has a value of type u32, expected int:VALUE, not float"),
        ("qwen3.rope.freq_base=int:64", "the file has a value of type f32, expected float:VALUE, not int"),
        ("general.name=int:64", "the file has a value of type str, expected str:VALUE, not int"),
        (
            "tokenizer.ggml.add_bos_token=int:1",
            "the file has a value of type bool, expected bool:VALUE, not int",
        ),
        ("tokenizer.ggml.tokens=str:a", "the file has a value of type arr[str,268], which can't be replaced"),
    ],
)
def test_a_value_of_another_type_is_refused(path: Path, text: str, error: str) -> None:
    """llama.cpp warns and uses the file's value: a user who gave it wants something else."""
    with pytest.raises(InputError) as raised:
        LLM(path, overrides=read_overrides(text))
    assert str(raised.value) == f"the override {text.partition('=')[0]!r}: {error}"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("general.architecture=str:llama", "the architecture 'llama' is not supported"),
        (
            "qwen3.context_length=int:-1",
            "'qwen3.context_length' is -1, expected a value from 1 to 2147483647",
        ),
        ("qwen3.block_count=int:9000000000", "'qwen3.block_count' is 9000000000, expected a value from 1 to"),
        ("qwen3.attention.head_count=int:3", "3 heads, expected a multiple of the 2 key-value heads"),
        ("qwen3.rope.freq_base=float:0", "'qwen3.rope.freq_base' is 0.0, expected a value from 2.0 to"),
        ("qwen3.embedding_length=int:64", "token_embd.weight"),
    ],
)
def test_values_that_no_model_can_have(path: Path, text: str, error: str) -> None:
    """They are checked as the file's are: memory that kernels touch depends on them."""
    with pytest.raises(ModelError) as raised:
        LLM(path, overrides=read_overrides(text))
    assert error in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_fingerprint_is_of_what_is_used(path: Path) -> None:
    prints = set()
    for values in ({}, {"a": 1}, {"a": 1.0}, {"a": "1"}, {"a": True}, {"b": 1}, {"a": 1, "b": 1}):
        file = GGUFFile(path)
        file.override(values)
        prints.add(file.fingerprint())
    assert len(prints) == 7
    one, two = GGUFFile(path), GGUFFile(path)
    one.override({"a": 1, "b": 2})
    two.override({"b": 2})
    two.override({"a": 1})
    assert one.fingerprint() == two.fingerprint()
