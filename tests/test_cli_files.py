"""The commands that look at a model and at texts: info, tokenize, detokenize, perplexity; and which model a command takes."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command_line import TEXT, Call
from gguf_builder import N_CTX, N_EMBD, TOKENS, Gguf, f32, parts, reciter, tiny
from random_models import write_random_model
from shapes import PRESETS

from qwencli.hub.places import EMBEDDED


@pytest.mark.usefixtures("story")
def test_embedded_by_default(call: Call) -> None:
    done = call("run", "-p", "x", "-n", "0")
    assert (done.code, done.err) == (
        0,
        f"model: {EMBEDDED} (embedded: a tiny demo model, choose another with -m)\n",
    )
    assert call("info").err == done.err


def test_order_of_choice(call: Call, story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*args: object) -> str:
        code, _, err = call("run", "-p", "x", "-n", "0", *args)
        assert code == 0
        return err

    Path("models").mkdir()
    Path("models", "notes.txt").touch()
    assert "(embedded: " in chosen()
    shutil.copy(story, "models/one.gguf")
    assert chosen() == f"model: {Path('models/one.gguf')} (the one in ./models)\n"
    other = tmp_path / "folder"
    other.mkdir()
    shutil.copy(story, other / "other.gguf")
    monkeypatch.setenv("QWENCLI_MODEL", str(other))
    assert chosen() == f"model: {other / 'other.gguf'} ($QWENCLI_MODEL)\n"
    assert chosen("-m", story) == f"model: {story} (-m)\n"
    monkeypatch.setenv("QWENCLI_MODEL", "")
    assert "./models" in chosen()


def test_several_models_are_listed(call: Call, story: Path) -> None:
    Path("models").mkdir()
    for name in "b.gguf", "a.gguf":
        shutil.copy(story, Path("models", name))
    for command in (
        ["run", "-p", "x"],
        ["info"],
        ["tokenize", "x"],
        ["run", "-p", "x", "-m", "models"],
        ["info", "models"],
    ):
        assert call(*command) == (
            1,
            "",
            "qwencli: error: models: the folder holds 2 models, choose one with -m: a.gguf, b.gguf\n",
        )


def test_a_split_model_is_one(call: Call) -> None:
    Path("models").mkdir()
    for i, file in enumerate(parts(reciter(), 2)):
        file.write(Path("models", f"m-{i + 1:05}-of-00002.gguf"))
    done = call("run", "-p", "x", "--temp", "0")
    assert (done.out, done.err) == (
        TEXT,
        f"model: {Path('models/m-00001-of-00002.gguf')} (the one in ./models)\n",
    )


def test_models_that_are_not_there(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("models").touch()  # a file of that name is none of our business
    assert call("info").code == 0
    assert call("info", "") == (
        1,
        "",
        "qwencli: error: the model's path is empty, expected a GGUF file or a folder with one\n",
    )
    assert call("run", "-m", "", "-p", "x").code == 1
    monkeypatch.setenv("QWENCLI_MODEL", "nowhere.gguf")
    assert call("run", "-q", "-p", "x") == (
        1,
        "",
        "qwencli: error: nowhere.gguf: cannot be read: No such file or directory\n",
    )


def test_info_as_json(call: Call, story: Path) -> None:
    facts = json.loads(call("info", story, "--json", "--tensors").out)
    n_weights = sum(len(t.data) // 4 for t in reciter().tensors)
    expected = {
        "path": str(story),
        "version": 3,
        "n_kv": len(reciter().metadata),
        "n_tensors": 25,
        "name": "tiny",
        "architecture": "qwen3",
        "n_params": n_weights,
        "size_bytes": story.stat().st_size,
        "bpw": 32.0,
        "file_type": "F32",
        "context_length": N_CTX,
        "n_layer": 2,
        "n_embd": N_EMBD,
        "n_ff": 64,
        "n_head": 4,
        "n_head_kv": 2,
        "n_head_dim": 16,
        "n_vocab": len(TOKENS),
        "chat_template": True,
        "types": {"F32": 25},
        "runs": True,
        "why_not": None,
    }
    assert {key: facts[key] for key in expected} == expected
    assert facts["kv_bytes"].keys() == {"4096", str(N_CTX)}
    assert facts["metadata"]["tokenizer.ggml.tokens"] == f"array of {len(TOKENS)}"
    assert facts["metadata"]["tokenizer.ggml.merges"] == reciter().metadata["tokenizer.ggml.merges"][1]
    assert facts["tensors"][0] == {
        "name": "token_embd.weight",
        "type": "F32",
        "shape": [268, 32],
        "n_bytes": 268 * 32 * 4,
    }


def test_info_as_text(call: Call, story: Path) -> None:
    code, out, err = call("info", story, "--tensors")
    assert (code, err) == (0, "")
    for line in (
        rf"{re.escape(str(story))}\n",
        r"  architecture +qwen3\n",
        r"  runs +yes\n",
        r"  context +128\n",
        r"  tensors +25 F32\n",
        r"  context memory +\S+ .B for 4096 tokens, \S+ .B for 128 tokens\n",
        r"  tokenizer\.ggml\.add_bos_token +bool +False\n",
        r"  blk\.0\.ffn_up\.weight +F32 +64 x 32 +8,192\n",
    ):
        assert re.search(line, out), line


def test_info_on_experts_and_recurrent_layers(call: Call, tmp_path: Path) -> None:
    """The tiny shape of scripts/shapes.py: each fourth layer has attention, four others a convolution's last three inputs, 16 heads of 64
    next to each other, and a matrix for each of eight heads."""
    write_random_model(tmp_path / "m.gguf", PRESETS["tiny-qwen3next"], "F16")
    facts = json.loads(call("info", tmp_path / "m.gguf", "--json").out)
    state = 4 * 4 * (3 * 16 * 64 + 8 * 64 * 64)
    expected = {
        "n_expert": 8,
        "n_expert_used": 2,
        "n_ff_expert": 256,
        "n_ff_shared": 256,
        "n_recurrent_layer": 4,
        "state_bytes": state,
        "kv_bytes": {str(n): n * 2 * 2 * 128 * 2 for n in (1024, 4096)},
    }  # a layer's keys and values: two heads of 128 half floats
    assert {key: facts[key] for key in expected} == expected
    out = call("info", tmp_path / "m.gguf").out
    assert "  experts         8, 2 used, each of 256; one of 256 for all tokens\n" in out
    assert f"  recurrent       4 layers, with a state of {state / 1000:.1f} kB\n" in out
    assert json.loads(call("info", "--json").out)["state_bytes"] is None


@pytest.mark.parametrize(("preset", "n_layer", "n_ff"), [("tiny-qwen", 2, 512), ("tiny-qwen35", 5, 512)])
def test_info_on_what_runs_of_a_file(
    call: Call, tmp_path: Path, preset: str, n_layer: int, n_ff: int
) -> None:
    """Qwen's metadata counts gate and up together, Qwen3.5's a layer that predicts more tokens at once."""
    write_random_model(tmp_path / "m.gguf", PRESETS[preset], "Q4_K_M")
    facts = json.loads(call("info", tmp_path / "m.gguf", "--json").out)
    assert (facts["n_layer"], facts["n_ff"]) == (n_layer, n_ff)


def test_info_on_what_cannot_run(call: Call, tmp_path: Path) -> None:
    path = Gguf({"general.architecture": ("str", "mamba")}, [f32("t", [[1, 2]])]).write(
        tmp_path / "mamba.gguf"
    )
    done = call("info", path)
    assert done.code == 0
    assert (
        "runs            no: the architecture 'mamba' is not supported; known are qwen, qwen2, " in done.out
    )
    assert json.loads(call("info", path, "--json").out)["runs"] is False
    assert call("info", Gguf().write(tmp_path / "nothing.gguf")).code == 0


def test_values_from_a_file_do_not_steer_the_terminal(call: Call, tmp_path: Path) -> None:
    file = tiny()
    evil = "\x1b[2J\x9b31m\r\n\u202e\0"
    file.metadata |= {"general.name": ("str", evil), evil: ("[str]", [evil])}
    file.metadata |= {"nan": ("f32", float("nan")), "nans": ("[f64]", [float("inf")])}
    file.tensors.append(f32(evil, [1.0]))
    path = file.write(tmp_path / "evil.gguf")
    for options in [], ["--json"], ["--tensors"], ["--json", "--tensors"]:
        code, out, err = call("info", path, *options)
        assert (code, err) == (0, "")
        assert out.replace("\n", "").isprintable()
    facts = json.loads(call("info", path, "--json").out, parse_constant=pytest.fail)
    assert facts["name"] == evil
    assert (facts["metadata"]["nan"], facts["metadata"]["nans"]) == ("nan", ["inf"])


def test_overlong_keys_and_nested_arrays_are_not_written_out(call: Call, tmp_path: Path) -> None:
    keys: dict[str, tuple[str, Any]] = {"k" * 60_000: ("u8", 1), "deep": ("[[u8]]", [[1] * 100_000])}
    path = Gguf(keys | {f"k{i}": ("u8", 1) for i in range(1000)}).write(tmp_path / "long.gguf")
    assert len(call("info", path).out) < 200_000
    assert json.loads(call("info", path, "--json").out)["metadata"]["deep"] == "array of 1"


def test_tokenize(call: Call, story: Path) -> None:
    """The ids of "the and" are llama.cpp's for this file."""
    ids, pieces = [83, 257, 220, 260], ["t", "he", " ", "and"]
    command = ("tokenize", "-m", story)
    assert call(*command, "the and") == (
        0,
        "    83 -> 't'\n   257 -> 'he'\n   220 -> ' '\n   260 -> 'and'\n",
        "",
    )
    assert call(*command, "the and", "--ids").out == "[83, 257, 220, 260]\n"
    assert json.loads(call(*command, "the and", "--json").out) == {"ids": ids, "pieces": pieces}
    assert json.loads(call(*command, "--json", stdin=b"the and").out)["ids"] == ids
    Path("text").write_bytes(b"the and\n\\n")
    assert json.loads(call(*command, "--json", "-f", "text").out)["pieces"] == [*pieces, "\n", "\\", "n"]
    assert json.loads(call(*command, "--json", "-f", "-", stdin=b"").out) == {"ids": [], "pieces": []}
    assert len(json.loads(call(*command, "--json", "<|im_end|>").out)["ids"]) == 10
    assert json.loads(call(*command, "--json", "--special", "<|im_end|>").out)["pieces"] == ["<|im_end|>"]
    assert "(embedded" in call("tokenize", "x").err


def test_detokenize(call: Call, story: Path) -> None:
    command = ("detokenize", "-m", story)
    assert call(*command, 83, 257, 220, 260) == (0, "the and", "")
    for form in b"83 257", b"[83, 257]", b"\n83,257,\n":
        assert call(*command, stdin=form).out == "the"
    assert call(*command) == (0, "", "")
    for ids, expected in (
        (("x",), "'x' is not a token id"),
        (("1.5",), "'1.5' is not a token id"),
        (("1", "--", "-1"), "'-1' is not a token id"),
        ((268,), "token id 268 is outside the vocabulary, expected 0 to 267"),
        ((2**64,), "'18446744073709551616' is not a token id"),
        (("٣",), "'٣' is not a token id"),
    ):
        done = call(*command, *ids)
        assert (done.code, done.out) == (1, "")
        assert expected in done.err


def test_any_text_comes_back(call: Call, story: Path) -> None:
    text = "naïve \r\n\t 十二 \U0001f600\u0301 \x00\x7f  \n\n <think></think> 1234567".encode()
    ids = call("tokenize", "-m", story, "--ids", stdin=text).out
    assert call("detokenize", "-m", story, stdin=ids.encode()).out.encode() == text


def test_perplexity_output(call: Call, story: Path) -> None:
    command = ("perplexity", "-m", story, "-f", "-", "-c", "16")
    text = b"the and in a " * 30
    code, out, err = call(*command, "--chunks", "3", stdin=text)
    assert (code, err) == (0, f"model: {story} (-m)\n")
    assert re.fullmatch(
        r"\[1\]\d+\.\d{4},\[2\]\d+\.\d{4},\[3\]\d+\.\d{4},\nFinal estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}\n",
        out,
    )
    done = json.loads(call(*command, "--chunks", "3", "--json", stdin=text).out)
    assert done.keys() == {"ppl", "stderr", "n_chunks", "n_ctx", "n_tokens", "chunks", "seconds"}
    assert (done["n_chunks"], done["n_ctx"], len(done["chunks"]), done["chunks"][-1]) == (
        3,
        16,
        3,
        done["ppl"],
    )
    assert [f"{p:.4f}" for p in done["chunks"]] == re.findall(r"\](\d+\.\d{4}),", out)
    assert f"PPL = {done['ppl']:.4f} +/- {done['stderr']:.5f}\n" in out
    assert "warning: a context of 144 is longer than the 128" in call(*command[:-1], "144", stdin=text).err


def test_perplexity_of_a_text_too_short(call: Call, story: Path) -> None:
    done = call("perplexity", "-m", story, "-f", "-", "-c", "20", stdin=b"x" * 39)
    assert (done.code, done.out) == (1, "")
    assert "the text has 39 tokens, but perplexity with a context of 20 needs at least 40" in done.err
    assert call("perplexity", "-m", story, "-f", "-", "-c", "20", stdin=b"x" * 40).code == 0
