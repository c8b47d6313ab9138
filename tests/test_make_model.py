"""scripts/make_model.py: what it writes is what llama-quantize would have written, apart from the values."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from mixes import MIXES as ALL_MIXES
from mixes import TYPES
from random_blocks import WEIGHT_STD, random_blocks
from shapes import PRESETS, Shape, plan_tensors
from tokenizers.pre_tokenizers import ByteLevel

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.numpy.dequantize import to_float32
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.text.tokenizer import Tokenizer

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_model.py"


def load_script() -> Any:
    spec = importlib.util.spec_from_file_location("make_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_model"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


mm = load_script()
MIXES = list(ALL_MIXES)
FILE_TYPES = {mix: f"MOSTLY_{mix}" for mix in MIXES} | {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
DEMOS = ["F16", "BF16", "Q8_0", "Q4_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS"]
OTHERS = {"F32", "F16", "BF16", "MXFP4", "NVFP4"}
"""Types that llama-quantize doesn't mix with others."""
IMPORTANCE = ("IQ1", "IQ2", "IQ3_X", "Q2_K_S")
"""How the names of mixes begin that need an importance matrix."""


def make(out: Path, *args: str) -> Path:
    result = call(str(out), *args)
    assert result.exit_code == 0, result.output
    return out


def call(*args: str) -> Result:
    return CliRunner().invoke(mm.make_model, args)


def arrays(path: Path) -> dict[str, Any]:
    """The metadata as the gguf package reads it."""
    return {
        key: field.contents()
        for key, field in gguf.GGUFReader(path).fields.items()
        if not key.startswith("GGUF.")
    }


def weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The weights as the gguf package dequantizes them."""
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


# --- shapes and types ---


@pytest.mark.parametrize(
    ("preset", "whole", "n_params"),
    [  # model.safetensors on huggingface.co/Qwen; for Qwen2-VL, those of its text model
        ("qwen3-0.6b", {}, 751_632_384),
        ("qwen3-1.7b", {}, 2_031_739_904),
        ("qwen3-4b", {}, 4_022_468_096),
        ("qwen2.5-0.5b", {}, 494_032_768),
        ("qwen-1.8b", {}, 1_836_828_672),
        ("qwen2-vl-2b", {}, 1_543_714_304),
        ("qwen3-vl-2b", {}, 1_720_574_976),
        ("qwen1.5-moe-a2.7b-12l-16e", {"n_layer": 24, "n_expert": 60}, 14_315_784_192),
        ("qwen3-30b-a3b-24l-24e", {"n_layer": 48, "n_expert": 128}, 30_532_122_624),
        ("qwen3-next-80b-a3b-24l-32e", {"n_layer": 48, "n_expert": 512, "n_nextn": 1}, 81_324_862_720),
    ],
)
def test_presets_have_the_published_numbers_of_parameters(
    preset: str, whole: dict[str, int], n_params: int
) -> None:
    assert (
        sum(int(np.prod(t.shape)) for t in plan_tensors(replace(PRESETS[preset], **whole), "F16")) == n_params
    )


@pytest.mark.parametrize(
    ("preset", "n_layer", "n_expert", "billions"),
    [  # parameters in all, and active ones
        ("qwen3.5-35b-a3b-20l-32e", 40, 256, (35, 3)),
        ("qwen3-vl-30b-a3b-24l-24e", 48, 128, (30, 3)),
        ("qwen3moe-3b-a0.6b", 28, 56, (3, 0.6)),
        ("qwen3.5-0.8b", 24, 0, (0.8, 0.8)),
    ],
)
def test_presets_are_as_large_as_their_names_say(
    preset: str, n_layer: int, n_expert: int, billions: tuple[float, float]
) -> None:
    s = replace(PRESETS[preset], n_layer=n_layer, n_expert=n_expert)
    sizes = {t.name: float(np.prod(t.shape)) for t in plan_tensors(s, "F16")}
    idle = sum(n * (1 - s.n_expert_used / s.n_expert) for name, n in sizes.items() if "_exps" in name)
    idle += 0 if s.tied else sizes["token_embd.weight"]
    assert (sum(sizes.values()) / 1e9, (sum(sizes.values()) - idle) / 1e9) == pytest.approx(billions, rel=0.1)


@pytest.mark.parametrize(
    ("mix", "megabytes"),
    [("F16", 1509), ("Q8_0", 805), ("Q6_K", 623), ("Q5_K_M", 551), ("Q4_K_M", 484), ("Q4_0", 469)],
)
def test_qwen3_06b_is_as_large_as_what_llama_quantize_writes(mix: str, megabytes: int) -> None:
    plans = plan_tensors(PRESETS["qwen3-0.6b"], mix)
    assert len(plans) == 311
    assert (sum(t.n_bytes for t in plans) + 5.93e6) / 1e6 == pytest.approx(
        megabytes, abs=0.6
    )  # 5.93 MB: the vocabulary


@pytest.mark.parametrize("mix", DEMOS)
def test_types_are_those_of_the_demo_models_that_llama_quantize_wrote(mix: str, shared: Path) -> None:
    shape = Shape("qwen3", n_layer=6, n_embd=256, n_ff=768, n_head=8, n_head_kv=4, head_dim=64, n_vocab=6016)
    found = {t.name: (t.shape, t.kind.id) for t in plan_tensors(shape, mix)}
    expected = {
        t.name: (tuple(map(int, t.shape[::-1])), int(t.tensor_type))
        for t in gguf.GGUFReader(shared / "models" / f"demo-{mix.lower()}.gguf").tensors
    }
    assert found == expected
    assert mix == "F16" or list(found) == list(
        expected
    )  # the F16 file is from the converter, which uses another order


@pytest.mark.parametrize("mix", [mix for mix in MIXES if mix not in OTHERS])
@pytest.mark.parametrize(
    ("preset", "numbers"),
    [
        (
            "qwen2.5-0.5b",
            {"n_layer": 11, "n_embd": 96, "n_ff": 512, "n_head": 3, "n_head_kv": 1, "head_dim": 32},
        ),  # rows of 96: other types
        ("tiny", {"n_layer": 17, "n_ff": 256, "tied": False}),
        ("tiny", {"n_layer": 1, "n_ff": 256, "n_head_kv": 1}),
    ],
)
def test_types_are_those_that_llama_quantize_chooses(
    preset: str, numbers: dict[str, Any], mix: str, tmp_path: Path
) -> None:
    compare_with_llama_quantize(replace(PRESETS[preset], n_vocab=512, **numbers), mix, tmp_path)


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q3_K_L", "Q2_K", "IQ3_M"])
@pytest.mark.parametrize(
    ("arch", "numbers"),
    [
        ("qwen", {}),
        ("qwen2vl", {}),
        ("qwen3moe", {"n_layer": 9}),
        ("qwen2moe", {"n_layer": 9, "n_expert": 4}),
        ("qwen3next", {}),
        ("qwen35", {}),
    ],
)
def test_types_of_each_architecture(arch: str, numbers: dict[str, Any], mix: str, tmp_path: Path) -> None:
    compare_with_llama_quantize(replace(PRESETS[f"tiny-{arch}"], **numbers), mix, tmp_path)


def test_types_of_few_bits_with_two_networks_a_layer(tmp_path: Path) -> None:
    shape = replace(PRESETS["tiny-qwen2moe"], n_layer=16, n_expert=2, n_expert_used=1, n_ff_shexp=256)
    compare_with_llama_quantize(shape, "IQ2_M", tmp_path)


def compare_with_llama_quantize(shape: Shape, mix: str, tmp_path: Path) -> None:
    lc = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (extra `oracle`)")
    if mix == "Q1_0" and shape.n_embd == 96:
        pytest.skip("llama-quantize refuses rows of no multiple of 128")
    mm.write_model(tmp_path / "f16.gguf", "test", shape, "F16", mm.make_up_vocabulary(512))
    params = lc.llama_model_quantize_default_params()
    params.ftype, params.nthread = getattr(lc, f"LLAMA_FTYPE_{FILE_TYPES[mix]}"), 1
    entries, ones = (lc.llama_model_imatrix_data * 1000)(), np.ones(512 * max(1, shape.n_expert), np.float32)
    if mix.startswith(IMPORTANCE):
        matrices = [t for t in plan_tensors(shape, "F16") if len(t.shape) > 1]
        for entry, t in zip(entries, matrices):
            n_columns = t.shape[-1] * int(np.prod(t.shape[:-2]))
            entry.name, entry.size, entry.data = (
                t.name.encode(),
                n_columns,
                ones.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            )
        params.imatrix = ctypes.cast(entries, type(params.imatrix))
    names = [str(tmp_path / name).encode() for name in ("f16.gguf", "quantized.gguf")]
    assert lc.llama_model_quantize(*names, ctypes.byref(params)) == 0
    expected = [
        (t.name, t.shape, t.type.name) for t in GGUFFile(tmp_path / "quantized.gguf").tensors.values()
    ]
    assert [(t.name, t.shape, t.kind.name) for t in plan_tensors(shape, mix)] == expected


# --- weights ---


@pytest.mark.parametrize("kind", sorted({mix.usual for mix in ALL_MIXES.values()}))
def test_blocks_are_sane(kind: str) -> None:
    n_weights = 1 << 20
    blocks = random_blocks(np.random.default_rng(1), TYPES[kind], n_weights // TYPES[kind].block_size)
    w = to_float32(blocks.reshape(16, -1), TYPES[kind])
    assert w.shape == (16, n_weights // 16)
    assert np.isfinite(w).all()
    assert abs(w.mean()) < 0.02 * WEIGHT_STD
    assert w.std() == pytest.approx(WEIGHT_STD, rel=0.03)
    assert (
        np.unique(blocks).size > 120
    )  # the bits are random, except exponents of floats and the last bits of Q8_0


def test_q8_0_has_no_step_of_minus_128() -> None:
    blocks = random_blocks(np.random.default_rng(1), TYPES["Q8_0"], 10_000)
    steps = blocks[:, 2:].view(np.int8)
    assert (steps.min(), steps.max()) == (-127, 127)


@pytest.mark.parametrize(
    "mix", [mix for mix in MIXES if mix not in ("Q1_0", "Q2_0")]
)  # blocks that the gguf package can't read
def test_both_readers_find_what_was_planned(mix: str, tmp_path: Path) -> None:
    path = make(tmp_path / "m.gguf", "--type", mix)
    theirs, ours = gguf.GGUFReader(path), GGUFFile(path)
    plans = plan_tensors(PRESETS["tiny"], mix)
    assert [t.name for t in theirs.tensors] == list(ours.tensors) == [t.name for t in plans]
    for t, plan in zip(theirs.tensors, plans):
        mine = ours.tensors[t.name]
        assert tuple(t.shape[::-1]) == mine.shape == plan.shape
        assert t.tensor_type == mine.type.id == plan.kind.id
        assert (
            t.data.tobytes()
            == ours.data(mine).tobytes()
            == b"".join(p.tobytes() for p in mm.random_tensor(plan, 0))
        )
    for name, w in weights(path).items():
        assert np.isfinite(w).all()
        assert abs(w.mean() - name.endswith(("norm.weight", "scale"))) < (0.05 if w.size > 1 else 0.1)
    assert arrays(path)["general.file_type"] == gguf.LlamaFileType[FILE_TYPES[mix]]


def test_metadata_is_that_of_a_real_file(tmp_path: Path, shared: Path) -> None:
    def types(path: Path) -> dict[str, list[Any]]:
        return {key: field.types for key, field in gguf.GGUFReader(path).fields.items()}

    found, expected = types(make(tmp_path / "m.gguf")), types(shared / "models" / "demo-q4_k_m.gguf")
    described = {f"general.{key}" for key in ("basename", "version", "description", "languages", "tags")}
    assert found == {key: value for key, value in expected.items() if key not in described}


def test_shape_flags_replace_the_presets_numbers(tmp_path: Path) -> None:
    numbers = {
        "n-layer": 3,
        "n-embd": 64,
        "n-ff": 96,
        "n-head": 6,
        "n-head-kv": 3,
        "head-dim": 16,
        "n-vocab": 300,
        "n-ctx": 77,
    }
    path = make(
        tmp_path / "m.gguf",
        *(f"--{key}={value}" for key, value in numbers.items()),
        "--rope-theta",
        "5e5",
        "--untied",
    )
    found = arrays(path)
    assert [
        found[f"qwen3.{key}"]
        for key in (
            "block_count",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "context_length",
            "rope.freq_base",
        )
    ] == [3, 64, 96, 6, 3, 16, 16, 77, 5e5]
    assert GGUFFile(path).tensors["output.weight"].shape == (300, 64)
    assert len(found["tokenizer.ggml.tokens"]) == 300


def test_the_same_seed_writes_the_same_file(tmp_path: Path) -> None:
    first, same, other = (
        make(tmp_path / f"{i}.gguf", "--seed", seed).read_bytes() for i, seed in enumerate("556")
    )
    assert first == same
    assert first != other
    assert len(first) == len(other)


@pytest.mark.parametrize(
    "args",
    [
        ["--preset", "tiny"],
        ["--preset", "qwen2.5-0.5b", "--n-layer", "2", "--n-ff", "256", "--n-vocab", "400"],
    ],
)
def test_llama_cpp_decodes_with_finite_logits(args: list[str], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python (extra `oracle`)")
    llm = llama_cpp.Llama(
        str(make(tmp_path / "m.gguf", *args)), n_ctx=64, n_threads=2, logits_all=True, verbose=False
    )
    llm.eval(range(10, 50))
    assert np.isfinite(llm.scores[:40]).all()
    assert llm.scores[:40].std() > 0.1


# --- vocabularies ---


def test_made_up_vocabulary_of_qwens_size_has_qwen3s_special_tokens() -> None:
    vocab = mm.make_up_vocabulary(151936)
    assert (len(vocab.texts), len(vocab.types), len(vocab.merges)) == (151936, 151936, 151387)
    published = {
        151643: ("<|endoftext|>", 3),
        151644: ("<|im_start|>", 3),
        151645: ("<|im_end|>", 3),
        151653: ("<|vision_end|>", 3),
        151657: ("<tool_call>", 4),
        151658: ("</tool_call>", 4),
        151659: ("<|fim_prefix|>", 3),
        151664: ("<|file_sep|>", 3),
        151665: ("<tool_response>", 4),
        151666: ("</tool_response>", 4),
        151667: ("<think>", 4),
        151668: ("</think>", 4),
        151669: ("[PAD151669]", 5),
        151935: ("[PAD151935]", 5),
    }
    assert {i: (vocab.texts[i], vocab.types[i]) for i in published} == published
    seen = set(vocab.texts[:256])
    for merge, text in zip(vocab.merges, vocab.texts[256:]):  # each joins two earlier tokens into a new one
        left, right = merge.split(" ")
        assert {left, right} <= seen
        assert left + right == text
        assert text not in seen
        seen.add(text)


def test_bytes_come_first_and_in_qwens_order(shared: Path) -> None:
    real = arrays(shared / "models" / "demo-q4_k_m.gguf")["tokenizer.ggml.tokens"]
    assert mm.make_up_vocabulary(283).texts[:256] == real[:256]


@pytest.mark.parametrize("n_vocab", [283, 512, 5000, 152064])
def test_each_made_up_token_is_encoded_as_itself(n_vocab: int, tmp_path: Path) -> None:
    path = make(
        tmp_path / "m.gguf",
        "--n-vocab",
        str(n_vocab),
        "--n-embd",
        "32",
        "--n-layer",
        "1",
        "--vocab",
        str(made_up(tmp_path, n_vocab)),
    )
    tokenizer, vocab = Tokenizer(GGUFFile(path)), mm.make_up_vocabulary(n_vocab)
    assert tokenizer.n_vocab == len(vocab.texts) == n_vocab
    for i in [*range(256, n_vocab, max(1, n_vocab // 2000)), n_vocab - 1]:
        if vocab.types[i] in (1, 4):
            assert tokenizer.encode(vocab.texts[i]) == [i]
        elif vocab.types[i] == 3:
            assert tokenizer.encode(vocab.texts[i], parse_special=True) == [i]
    text = "Some bAce, \u00e9\u4e2d <|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == vocab.texts.index("<|im_end|>")


def made_up(folder: Path, n_vocab: int) -> Path:
    """A file with the made-up vocabulary, even where Qwen's own would be used."""
    shape = replace(PRESETS["tiny"], n_layer=1, n_embd=32, n_vocab=n_vocab)
    mm.write_model(folder / "vocab.gguf", "vocabulary", shape, "Q8_0", mm.make_up_vocabulary(n_vocab))
    return folder / "vocab.gguf"


def test_a_files_vocabulary_is_copied_and_padded(tmp_path: Path, shared: Path) -> None:
    source = shared / "models" / "demo-q4_k_m.gguf"
    exact = make(tmp_path / "exact.gguf", "--vocab", str(source))
    padded = make(tmp_path / "padded.gguf", "--vocab", str(source), "--n-vocab", "6100")
    found, more, expected = (arrays(path) for path in (exact, padded, source))
    for key in (
        f"tokenizer.ggml.{name}"
        for name in ("model", "pre", "merges", "eos_token_id", "bos_token_id", "padding_token_id")
    ):
        assert found[key] == more[key] == expected[key]
    for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type"):
        assert found[key] == more[key][:6016] == expected[key]
    assert more["tokenizer.ggml.tokens"][6016:] == [f"[PAD{i}]" for i in range(6016, 6100)]
    assert more["tokenizer.ggml.token_type"][6016:] == [5] * 84
    assert GGUFFile(padded).tensors["token_embd.weight"].shape[0] == 6100


def test_qwens_own_vocabulary_is_the_default_of_its_size(tmp_path: Path, shared: Path) -> None:
    path = make(
        tmp_path / "m.gguf",
        "--preset",
        "qwen3-0.6b",
        "--n-layer",
        "1",
        "--n-embd",
        "32",
        "--n-ff",
        "32",
        "--tied",
    )
    file = GGUFFile(path)
    found, expected = Tokenizer(file), Tokenizer(GGUFFile(shared / "data" / "ggml-vocab-qwen2.gguf"))
    text = (shared / "models" / "wiki-excerpt.txt").read_text(encoding="utf-8")[:5000]
    assert found.encode(text) == expected.encode(text)
    assert found.n_vocab == 151936
    assert (
        file.metadata["tokenizer.ggml.token_type"].read()[151643:] == [3, 3, 3] + [5] * 290
    )  # its padding says 4


# --- repeating ---


def successor(token: int, n_vocab: int) -> int:
    """The next token in a cycle of 64, whose first follows its last; the last cycle may be shorter."""
    first = token // 64 * 64
    return token + 1 if token + 1 < min(first + 64, n_vocab) else first


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0", "F16"])
@pytest.mark.parametrize(("prompt", "start", "n_vocab"), [("A", 32, 512), ("</think>", 611, 612)])
def test_repeating_goes_round_the_cycle(
    mix: str, prompt: str, start: int, n_vocab: int, tmp_path: Path
) -> None:
    path = make(tmp_path / "m.gguf", "--repeating", "--type", mix, "--n-vocab", str(n_vocab))
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "qwencli",
            "run",
            "-m",
            path,
            "--raw",
            "--temp",
            "0",
            "--ignore-eos",
            "--json",
            "-q",
            "-p",
            prompt,
            "-n",
            "70",
        ],
        capture_output=True,
        check=True,
    )
    expected = [start]
    for _ in range(70):
        expected.append(successor(expected[-1], n_vocab))
    assert json.loads(result.stdout)["tokens"] == expected[1:]


@pytest.mark.parametrize("preset", ["tiny-qwen", "tiny-qwen2moe", "tiny-qwen35moe"])
def test_repeating_with_each_kind_of_layer(preset: str, tmp_path: Path) -> None:
    backend = NumpyBackend(load_model(GGUFFile(make(tmp_path / "m.gguf", "--preset", preset, "--repeating"))))
    logits = backend.run([LOGITS], Batch([Segment(KVSequence(), range(20, 90), 70)]))[LOGITS]
    assert logits.argmax(-1).tolist() == [successor(token, 512) for token in range(20, 90)]


def test_repeating_has_the_embeddings_rows_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mm, "PIECE_BYTES", 30_000)  # several pieces per matrix
    path = make(tmp_path / "m.gguf", "--repeating", "--n-vocab", "700")
    file = GGUFFile(path)
    embedding, output = (file.data(file.tensors[f"{name}.weight"]) for name in ("token_embd", "output"))
    for token in range(700):
        assert bytes(output[successor(token, 700)]) == bytes(embedding[token])
    assert np.unique(embedding, axis=0).shape[0] == 700
    zero = {name for name, w in weights(path).items() if not w.any()}
    assert zero == {f"blk.{i}.{name}.weight" for i in range(2) for name in ("attn_output", "ffn_down")}


# --- the command ---


def test_the_script_runs_by_itself(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, SCRIPT, "model.gguf"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert result.stdout == ""
    assert (
        result.stderr
        == f"model.gguf: {(tmp_path / 'model.gguf').stat().st_size / 1e6:.1f} MB, vocabulary made up\n"
    )
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["m.gguf", "--n-head", "4", "--n-head-kv", "3"],
            "--n-head is 4, expected a multiple of --n-head-kv 3",
        ),
        (["m.gguf", "--head-dim", "33"], "--head-dim is 33, expected an even number"),
        (["m.gguf", "--n-vocab", "282"], "--n-vocab is 282, expected 283 or more"),
        (["m.gguf", "--vocab", "missing.gguf"], "missing.gguf: cannot be read"),
        (["m.gguf", "--vocab", "text.gguf"], "text.gguf: not a GGUF file"),
        (
            ["m.gguf", "--vocab", "small.gguf", "--n-vocab", "511"],
            "small.gguf: has 512 tokens, more than --n-vocab 511",
        ),
        (["m.gguf", "--vocab", "other.gguf"], "other.gguf: its vocabulary has no token <|im_end|>"),
        (["missing/m.gguf"], "missing/m.gguf: cannot be written: No such file or directory"),
        (["folder"], "folder: cannot be written: Is a directory"),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("small.gguf"))
    write_other_vocabulary(Path("other.gguf"))
    Path("text.gguf").write_text("some text")
    Path("folder").mkdir()
    result = call(*args)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: " + message)
    assert result.stderr.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "other.gguf", "small.gguf", "text.gguf"]
    assert not any(Path("folder").iterdir())


def write_other_vocabulary(path: Path) -> None:
    """A vocabulary of the same kind, but not Qwen's."""
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*sorted(ByteLevel.alphabet()), "ab"])
    writer.add_token_types([1] * 257)
    writer.add_token_merges(["a b"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()


@pytest.mark.parametrize(
    "args",
    [
        ["m.gguf", "--preset", "qwen9"],
        ["m.gguf", "--type", "Q9"],
        ["m.gguf", "--n-layer", "0"],
        ["m.gguf", "--repeating", "--tied"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*args).exit_code == 2
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "exit_code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)]
)
def test_an_interrupted_file_is_not_there(
    error: BaseException, exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(t: Any, *args: Any) -> Any:
        if t.name.startswith("blk.1"):
            assert len(list(tmp_path.iterdir())) == 2  # half of it is written
            raise error
        return [np.zeros(t.n_bytes, np.uint8)]

    out = tmp_path / "m.gguf"
    out.write_text("what was there before")
    monkeypatch.setattr(mm, "random_tensor", fail)
    assert call(str(out)).exit_code == exit_code
    assert out.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [out]
