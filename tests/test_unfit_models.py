"""Valid files that describe no model that can be run: the error is one line with the file and the value; exit code 1."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_builder import BYTES, F32, MERGES, N_EMBD, N_HEAD, SPECIAL, TOKENS, Gguf, Tensor, f32, tiny

from qwencli import LLM
from qwencli.cli import main as run_cli

Change = Callable[[Gguf], object]


def setting(key: str, kind: str, content: Any) -> Change:
    return lambda file: file.metadata.__setitem__(key, (kind, content))


def hyper(key: str, kind: str, content: Any) -> Change:
    return setting(f"qwen3.{key}", kind, content)


def vocab(key: str, kind: str, content: Any) -> Change:
    return setting(f"tokenizer.ggml.{key}", kind, content)


def without(key: str) -> Change:
    return lambda file: file.metadata.pop(key)


def tokens(changed: list[Any], types: list[int] | None = None) -> Change:
    def change(file: Gguf) -> None:
        file.metadata["tokenizer.ggml.tokens"] = ("[str]", changed)
        if types is not None:
            file.metadata["tokenizer.ggml.token_type"] = ("[i32]", types)

    return change


def shaped(name: str, *dims: int, type_id: int = F32) -> Change:
    """The tensor with other dimensions, in the file's order, and zeros for data."""
    n_weights, (block_size, block_bytes) = 1, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(type_id)]
    for d in dims:
        n_weights *= d
    return lambda file: file.replace(
        Tensor(name, dims, type_id, bytes(n_weights // block_size * block_bytes))
    )


def dropping(name: str) -> Change:
    return lambda file: setattr(file, "tensors", [t for t in file.tensors if t.name != name])


def adding(name: str, n: int) -> Change:
    return lambda file: file.tensors.append(f32(name, [0.0] * n))


UNFIT: dict[str, tuple[Change, str]] = {
    "no architecture": (
        without("general.architecture"),
        "metadata key 'general.architecture' is missing, expected a string",
    ),
    "architecture a number": (
        setting("general.architecture", "u32", 3),
        "'general.architecture' is an integer, expected a string",
    ),
    "unknown architecture": (
        setting("general.architecture", "str", "llama"),
        "'llama' is not supported; known are qwen, qwen2, ",
    ),
    "a module's name": (
        setting("general.architecture", "str", "__init__"),
        "architecture '__init__' is not supported",
    ),
    "a path": (
        setting("general.architecture", "str", "../model"),
        "architecture '../model' is not supported",
    ),
    "another's keys": (
        setting("general.architecture", "str", "qwen2"),
        "'qwen2.embedding_length' is missing, expected an integer",
    ),
    "block_count missing": (without("qwen3.block_count"), "'qwen3.block_count' is missing"),
    "block_count huge": (
        hyper("block_count", "u32", 2**31 - 1),
        "block_count is 2147483647, but the file has only ",
    ),
    "block_count too large": (
        hyper("block_count", "u64", 2**63),
        "'qwen3.block_count' is 9223372036854775808, expected a value from 1",
    ),
    "block_count 0": (
        hyper("block_count", "u32", 0),
        "'qwen3.block_count' is 0, expected a value from 1 to 2147483647",
    ),
    "block_count -1": (hyper("block_count", "i32", -1), "'qwen3.block_count' is -1, expected a value from 1"),
    "block_count too small": (
        hyper("block_count", "u32", 1),
        "11 tensors have no place in this architecture, such as 'blk.1.attn_k",
    ),
    "block_count a float": (
        hyper("block_count", "f32", 2.0),
        "'qwen3.block_count' is a number, expected an integer",
    ),
    "block_count a boolean": (
        hyper("block_count", "bool", True),
        "'qwen3.block_count' is a boolean, expected an integer",
    ),
    "block_count an array": (
        hyper("block_count", "[u32]", [2]),
        "'qwen3.block_count' is an array, expected an integer",
    ),
    "n_embd 0": (
        hyper("embedding_length", "u32", 0),
        "'qwen3.embedding_length' is 0, expected a value from 1",
    ),
    "n_embd wrong": (
        hyper("embedding_length", "u32", 64),
        "'token_embd.weight' has the shape [268, 32], expected [268, 64]",
    ),
    "n_ff wrong": (
        hyper("feed_forward_length", "u32", 65),
        "'blk.0.ffn_gate.weight' has the shape [64, 32], expected [65, 32]",
    ),
    "n_ff a string": (
        hyper("feed_forward_length", "str", "64"),
        "'qwen3.feed_forward_length' is a string, expected an integer",
    ),
    "head_count 0": (
        hyper("attention.head_count", "u32", 0),
        "'qwen3.attention.head_count' is 0, expected a value from 1",
    ),
    "head_count no multiple": (
        hyper("attention.head_count", "u32", 5),
        "5 heads, expected a multiple of the 2 key-value heads",
    ),
    "head_count per layer": (
        hyper("attention.head_count", "[u32]", [4, 2]),
        "head_count' differs from layer to layer, from 2 to 4, expected the same in all",
    ),
    "head_count_kv 0": (
        hyper("attention.head_count_kv", "u32", 0),
        "'qwen3.attention.head_count_kv' is 0, expected a value from 1",
    ),
    "head_count_kv more": (
        hyper("attention.head_count_kv", "u32", 8),
        "4 heads, expected a multiple of the 8 key-value heads",
    ),
    "key_length odd": (
        hyper("attention.key_length", "u32", 15),
        "value_length is 16, expected the key_length 15",
    ),
    "key and value odd": (
        lambda f: (
            hyper("attention.key_length", "u32", 15)(f),
            hyper("attention.value_length", "u32", 15)(f),
        ),
        "qwen3.rope.dimension_count is 15, expected an even number",
    ),
    "key_length huge": (
        hyper("attention.key_length", "u32", 2**16),
        "'qwen3.attention.key_length' is 65536, expected a value from 2 to",
    ),
    "rope more than a head": (
        hyper("rope.dimension_count", "u32", 18),
        "rope.dimension_count' is 18, expected a value from 2 to 16",
    ),
    "rope of odd width": (
        hyper("rope.dimension_count", "u32", 7),
        "dimension_count is 7, expected an even number",
    ),
    "eps NaN": (
        hyper("attention.layer_norm_rms_epsilon", "f32", float("nan")),
        "rms_epsilon' is nan, expected a finite number",
    ),
    "eps negative": (
        hyper("attention.layer_norm_rms_epsilon", "f32", -1.0),
        "rms_epsilon' is -1.0, expected a value from 0.0 to 1.0",
    ),
    "eps missing": (
        without("qwen3.attention.layer_norm_rms_epsilon"),
        "rms_epsilon' is missing, expected a number",
    ),
    "freq_base 0": (
        hyper("rope.freq_base", "f32", 0.0),
        "'qwen3.rope.freq_base' is 0.0, expected a value from 2.0",
    ),
    "freq_base 1": (
        hyper("rope.freq_base", "f32", 1.0),
        "'qwen3.rope.freq_base' is 1.0, expected a value from 2.0",
    ),
    "freq_base infinite": (
        hyper("rope.freq_base", "f32", float("inf")),
        "'qwen3.rope.freq_base' is inf, expected a finite number",
    ),
    "context_length 0": (
        hyper("context_length", "u32", 0),
        "'qwen3.context_length' is 0, expected a value from 1",
    ),
    "context_length missing": (without("qwen3.context_length"), "'qwen3.context_length' is missing"),
    "unknown scaling": (
        hyper("rope.scaling.type", "str", "longrope"),
        "scaling.type is 'longrope', expected none, linear or yarn",
    ),
    "scaling by NaN": (
        hyper("rope.scaling.factor", "f32", float("nan")),
        "'qwen3.rope.scaling.factor' is nan, expected a finite number",
    ),
    "scaling by less than 0": (
        hyper("rope.scaling.factor", "f32", -4.0),
        "'qwen3.rope.scaling.factor' is -4.0",
    ),
    "a tensor missing": (
        dropping("blk.1.ffn_up.weight"),
        "tensor 'blk.1.ffn_up.weight' is missing, expected one of shape [64, 32]",
    ),
    "no embedding": (dropping("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
    "a tensor more": (
        adding("blk.0.attn_output.bias", 32),
        "1 tensors have no place in this architecture, such as 'blk.0.attn_output.bias'",
    ),
    "a layer more": (
        adding("blk.2.attn_norm.weight", 32),
        "tensors have no place in this architecture, such as 'blk.2.attn_norm.weight'",
    ),
    "a transposed tensor": (
        shaped("blk.0.ffn_up.weight", 64, 32),
        "'blk.0.ffn_up.weight' has the shape [32, 64], expected [64, 32]",
    ),
    "a tensor of rank 3": (
        shaped("blk.0.ffn_up.weight", 32, 64, 1),
        "has the shape [1, 64, 32], expected [64, 32]",
    ),
    "a norm of rank 2": (
        shaped("output_norm.weight", 32, 1),
        "'output_norm.weight' has the shape [1, 32], expected [32]",
    ),
    "weights that are integers": (
        shaped("blk.0.ffn_up.weight", 32, 64, type_id=26),
        "'blk.0.ffn_up.weight' has the type I32, ",
    ),
    "an unquantizable type": (
        shaped("output_norm.weight", 32, type_id=9),
        "'output_norm.weight' has the type Q8_1, ",
    ),
    "NVFP4 without its scale": (
        shaped("blk.1.ffn_down.weight", 64, 32, type_id=40),
        "'blk.1.ffn_down.weight' is NVFP4, which needs its scale, the tensor 'blk.1.ffn_down.scale', but the",
    ),
    "NVFP4 with a scale for each row": (
        lambda f: (
            shaped("blk.1.ffn_down.weight", 64, 32, type_id=40)(f),
            adding("blk.1.ffn_down.scale", 32)(f),
        ),
        "ffn_down.scale' is F32 [32], expected F32 [1]",
    ),
    "a scale of no NVFP4": (
        adding("blk.0.attn_q.scale", 1),
        "1 tensors have no place in this architecture, such as 'blk.0.attn_q.scale'",
    ),
    "fewer rows than tokens": (
        shaped("token_embd.weight", 32, 267),
        "'token_embd.weight' has 267 rows, expected one for each token",
    ),
    "tokens not an array": (
        vocab("tokens", "str", "abc"),
        "expected one for each token of the vocabulary (abc)",
    ),
    "tokens not strings": (
        vocab("tokens", "[u32]", [7] * len(TOKENS)),
        "elements are each an integer, expected a string",
    ),
    "tokens missing": (
        without("tokenizer.ggml.tokens"),
        "'tokenizer.ggml.tokens' is missing, expected an array",
    ),
    "a token that isn't UTF-8": (
        tokens([*TOKENS[:-1], b"\xc3("]),
        r"'tokenizer.ggml.tokens': string 267 isn't UTF-8: b'\xc3('",
    ),
    "a token twice": (tokens([*TOKENS[:-1], "Ġthe"]), "token 'Ġthe' appears twice in tokenizer.ggml.tokens"),
    "a byte missing": (
        tokens([*TOKENS[:33], "xx", *TOKENS[34:]]),
        "tokens lacks 1 of the 256 single bytes, such as 0x42",
    ),
    "tokenizer model missing": (
        without("tokenizer.ggml.model"),
        "'tokenizer.ggml.model' is missing, expected a string",
    ),
    "another tokenizer model": (
        vocab("model", "str", "llama"),
        "model is 'llama', expected 'gpt2' (byte-level BPE)",
    ),
    "pre missing": (without("tokenizer.ggml.pre"), "'tokenizer.ggml.pre' is missing"),
    "unknown pre": (vocab("pre", "str", "gpt-4o"), "tokenizer.ggml.pre is 'gpt-4o', expected one of qwen2, "),
    "token_type too short": (
        vocab("token_type", "[i32]", [1] * 267),
        "'tokenizer.ggml.token_type' is an array of 267, expected 268",
    ),
    "token_type empty": (
        vocab("token_type", "[i32]", []),
        "'tokenizer.ggml.token_type' is an array of 0, expected 268 elements",
    ),
    "token_type of floats": (
        vocab("token_type", "[f32]", [1.0] * 268),
        "elements are each a number, expected an integer",
    ),
    "eot a string": (
        vocab("eot_token_id", "str", "<|im_end|>"),
        "'tokenizer.ggml.eot_token_id' is a string, expected an integer",
    ),
    "bos wanted, not given": (
        lambda f: (without("tokenizer.ggml.bos_token_id")(f), vocab("add_bos_token", "bool", True)(f)),
        "add_bos_token is true, but tokenizer.ggml.bos_token_id is missing",
    ),
    "add_bos a number": (
        vocab("add_bos_token", "u8", 1),
        "'tokenizer.ggml.add_bos_token' is an integer, expected a boolean",
    ),
    "merges missing": (
        without("tokenizer.ggml.merges"),
        "'tokenizer.ggml.merges' is missing, expected an array",
    ),
    "a merge of one": (
        vocab("merges", "[str]", [*MERGES, "in"]),
        "merge 8 in tokenizer.ggml.merges is 'in', expected two tokens",
    ),
    "an empty merge": (
        vocab("merges", "[str]", ["", *MERGES]),
        "merge 0 in tokenizer.ggml.merges is '', expected two tokens",
    ),
    "a merge of unknown tokens": (
        vocab("merges", "[str]", [*MERGES, "zz top"]),
        "merges don't fit tokenizer.ggml.tokens",
    ),
    "a merge into none": (vocab("merges", "[str]", ["x y"]), "merges don't fit tokenizer.ggml.tokens"),
    "merges of numbers": (
        vocab("merges", "[u8]", [1, 2]),
        "'tokenizer.ggml.merges' is an array whose elements are each an integer",
    ),
    "sampling out of range": (
        setting("general.sampling.temp", "f32", -1.0),
        "'general.sampling.temp' is -1.0, expected a value from 0.0",
    ),
    "sampling a string": (
        setting("general.sampling.top_k", "str", "40"),
        "'general.sampling.top_k' is a string, expected an integer",
    ),
    "template a number": (
        setting("tokenizer.chat_template", "u8", 1),
        "'tokenizer.chat_template' is an integer, expected a string",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_model(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    change, expected = UNFIT[name]
    file = tiny()
    change(file)
    path = file.write(tmp_path / "unfit.gguf")
    assert run_cli(["run", "-q", "-m", str(path), "-p", "x", "-n", "1"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"qwencli: error: {path}: ")
    assert expected in err
    assert (out, err.count("\n")) == ("", 1)
    assert run_cli(["info", str(path)]) in (0, 1)  # also shows files that can't be run
    out, err = capfd.readouterr()
    assert (out == "") == (err != "")


def test_what_the_changes_start_from_runs(tmp_path: Path) -> None:
    llm = LLM(tiny().write(tmp_path / "sound.gguf"))
    assert llm.tokenizer.n_vocab == len(BYTES) + len(MERGES) + len(SPECIAL)
    assert (llm.model.config.n_embd, llm.model.config.n_head) == (N_EMBD, N_HEAD)


def test_narrow_token_types_are_read_as_numbers(tmp_path: Path) -> None:
    """A reader that takes every array for 32-bit integers reads past the end of this one."""
    file = tiny()
    file.metadata["tokenizer.ggml.token_type"] = ("[u8]", file.metadata["tokenizer.ggml.token_type"][1])
    llm = LLM(file.write(tmp_path / "narrow.gguf"))
    assert set(llm.tokenizer.control_texts) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


TEMPLATES = {
    "open block": ("{% if %}", "isn't valid Jinja"),
    "unknown tag": ("{% frobnicate %}", "isn't valid Jinja"),
    "brackets without end": ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "isn't valid Jinja"),
    "more loops than Python nests": ("{% for a in 'x' %}" * 30 + "{% endfor %}" * 30, "isn't valid Jinja"),
    "a number of 5000 digits": ("{{" + "1" * 5000 + "}}", "isn't valid Jinja"),
    "raises": ("{{ raise_exception('only\nrobots') }}", "refuses this conversation: only\\nrobots"),
    "unknown variable": ("{{ nobody.name }}", "fails on this conversation: UndefinedError"),
    "divides by zero": (
        "{{ 1 // messages[0].content.find('t') }}",
        "fails on this conversation: ZeroDivisionError",
    ),
    "calls itself": (
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "fails on this conversation: RecursionError",
    ),
    "reaches for Python": ("{{ ''.__class__.__mro__ }}", "fails on this conversation: SecurityError"),
    "imports": ("{% include '/etc/passwd' %}", "fails on this conversation"),
    "half a surrogate pair": (r"{{ '\ud800' }}", "the text isn't valid Unicode"),
    "nothing": ("{# #}", "the prompt is empty"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_bad_chat_template(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    source, expected = TEMPLATES[name]
    file = tiny()
    file.metadata["tokenizer.chat_template"] = ("str", source)
    path = file.write(tmp_path / "template.gguf")
    assert run_cli(["run", "-m", str(path), "-p", "the", "-n", "1"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"model: {path} (-m)\nqwencli: error: ")
    assert expected in err
    assert (out, err.count("\n")) == ("", 2)
    assert run_cli(["run", "-q", "-m", str(path), "-p", "the", "-n", "1", "--raw"]) == 0


@pytest.mark.usefixtures("story")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_not_finite(tmp_path: Path, capfd: pytest.CaptureFixture[str], bad: float) -> None:
    """3e38 is finite, but the sums of its products are not."""
    file = tiny()
    file.replace(f32("output_norm.weight", [bad] * N_EMBD))
    path, text = file.write(tmp_path / "nan.gguf"), tmp_path / "text"
    text.write_text("the and " * 40)
    run, perplexity = (
        ["run", "-p", "the", "-m", str(path)],
        ["perplexity", "-f", str(text), "-c", "16", "-m", str(path)],
    )
    for command in ([*run, "--raw"], [*run, "--temp", "0", "--json"], perplexity, [*perplexity, "--json"]):
        assert run_cli(command) == 1
        out, err = capfd.readouterr()
        assert out == ""
        assert err.startswith(f"model: {path} (-m)\nqwencli: error: ")
        assert "not finite" in err
        assert err.count("\n") == 2


@pytest.mark.usefixtures("story")
def test_perplexity_of_a_model_that_is_always_wrong_is_infinite(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tiny()
    file.replace(f32("output_norm.weight", [1e6] * N_EMBD))
    path, text = file.write(tmp_path / "wrong.gguf"), tmp_path / "text"
    text.write_text("the and " * 40)
    assert run_cli(["perplexity", "-m", str(path), "-f", str(text), "-c", "16", "--chunks", "1"]) == 0
    assert capfd.readouterr() == ("[1]inf,\nFinal estimate: PPL = inf +/- inf\n", f"model: {path} (-m)\n")


def test_long_and_ugly_values_make_one_short_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tiny()
    file.metadata["general.architecture"] = ("str", "\x1b[2J\n\u202e" + "x" * 100_000)
    path = file.write(tmp_path / "ugly.gguf")
    assert run_cli(["run", "-q", "-m", str(path), "-p", "x"]) == 1
    err = capfd.readouterr().err
    assert len(err) < 1200
    assert err.startswith(f"qwencli: error: {path}: the architecture '\\x1b[2J\\n\\u202exxx")
    assert err.endswith("how to add one: CONTRIBUTING.md\n")
    assert err.rstrip("\n").isprintable()
