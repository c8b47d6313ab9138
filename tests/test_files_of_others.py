"""Files as other programs write them: arrays in place of numbers, optional biases, Ollama's names, keys that change what is computed.

That a file runs as llama.cpp runs it follows from equality with one that has the usual form; biases of Qwen3 are in test_embeddings.py.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call
from gguf_builder import N_EMBD, N_FF, TOKENS, Gguf, f32, tiny
from rewritten import rewrite
from test_unfit_architectures import folder as folder
from test_unfit_architectures import small

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.errors import ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.names import HubName, choose, models_among
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.network.keys import HARMLESS, NEUTRAL, READ, WARNED
from qwencli.network.load import load_model
from qwencli.text.tokenizer import Tokenizer

IDS = [5, 17, 200, 3, 99, 5, 42, 250, 7, 8]
Backend = Callable[..., Any]


def logits(made: Gguf, path: Path, backend: Backend = NumpyBackend) -> np.ndarray[Any, Any]:
    """The logits of all tokens of a text, [n, n_vocab]."""
    running = backend(load_model(GGUFFile(made.write(path))))
    found: np.ndarray[Any, Any] = running.run([LOGITS], Batch([Segment(KVSequence(), IDS, len(IDS))]))[LOGITS]
    assert np.isfinite(found).all()
    return found


def refusal(made: Gguf, path: Path) -> str:
    """What is said about a file that isn't run: one line, with its path."""
    with pytest.raises(ModelError) as raised:
        load_model(GGUFFile(made.write(path)))
    message = str(raised.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "is_model"),
    [
        ("Qwen3.6-27B-MTP-Q4_K_M.gguf", True),
        ("MTP/Qwen3.6-27B-MTP-Q8_0.gguf", True),
        ("Mtp-Qwen-Q8_0.gguf", True),
        ("mtp-Qwen3.6-27B-Q8_0.gguf", False),
        ("mtp/mtp-Qwen3.6-27B-Q8_0.gguf", False),
        ("EAGLE3-notes-Q8_0.gguf", True),
        ("eagle3-Qwen3-8B-Q8_0.gguf", False),
        ("mmproj-Qwen3.6-F16.gguf", False),
        ("MMPROJ-Qwen3.6-F16.gguf", False),
        ("Qwen3.6-imatrix.gguf", False),
    ],
)
def test_models_among_files(name: str, is_model: bool) -> None:
    assert list(models_among([name])) == [name] * is_model


def test_a_model_with_mtp_in_its_name_is_found_by_its_tag() -> None:
    files = ["Qwen3.6-27B-MTP-Q4_K_M.gguf", "Qwen3.6-27B-MTP-Q8_0.gguf", "mtp-Qwen3.6-27B-Q8_0.gguf"]
    sizes = dict.fromkeys(models_among(files), 1)
    assert list(sizes) == files[:2]
    for tag, file in ("Q4_K_M", files[0]), ("Q8_0", files[1]):
        assert choose(HubName("acme/Qwen3.6-27B-MTP-GGUF", tag), sizes) == file
    assert choose(HubName("acme/Qwen3.6-27B-MTP-GGUF", None, files[0]), sizes) == files[0]


# -- biases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["qkv", "q", "kv"])
def test_qwen2_without_biases_has_none(tmp_path: Path, which: str) -> None:
    zeros, none = tiny("qwen2"), tiny("qwen2")
    for i, tensor in enumerate(zeros.tensors):
        if any(tensor.name == f"blk.{layer}.attn_{w}.bias" for layer in range(2) for w in which):
            zeros.tensors[i] = f32(str(tensor.name), np.zeros(tensor.dims[::-1]))
            none.tensors = [t for t in none.tensors if t.name != tensor.name]
    path = tmp_path / "model.gguf"
    assert len(none.tensors) == len(zeros.tensors) - 2 * len(which)
    assert np.array_equal(logits(none, path), logits(zeros, path))


def test_a_single_matrix_may_have_three_biases(tmp_path: Path) -> None:
    """As llama.cpp takes them (create_tensor_qkv)."""
    split, joined = tiny("qwen2"), tiny("qwen2")
    arrays = {str(t.name): np.frombuffer(t.data, np.float32).reshape(t.dims[::-1]) for t in split.tensors}
    for i in range(2):
        names = [f"blk.{i}.attn_{which}.weight" for which in "qkv"]
        joined.tensors = [t for t in joined.tensors if t.name not in names]
        joined.tensors.append(
            f32(f"blk.{i}.attn_qkv.weight", np.concatenate([arrays[name] for name in names]))
        )
    assert np.allclose(logits(joined, tmp_path / "a.gguf"), logits(split, tmp_path / "b.gguf"), atol=1e-5)


def test_biases_of_another_shape_are_refused(tmp_path: Path) -> None:
    made = tiny("qwen3")
    made.tensors.append(f32("blk.0.attn_q.bias", np.zeros(7)))
    assert "tensor 'blk.0.attn_q.bias' has the shape [7], expected [64]" in refusal(made, tmp_path / "m.gguf")


# -- arrays -------------------------------------------------------------------------------------------------------------

ARRAYS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


@pytest.mark.parametrize("kind", ["[u32]", "[i32]", "[u64]"])
@pytest.mark.parametrize("names", [ARRAYS, *((name,) for name in ARRAYS)])
def test_equal_numbers_may_be_an_array(tmp_path: Path, names: tuple[str, ...], kind: str) -> None:
    made = tiny()
    for name in names:
        _, value = made.metadata[f"qwen3.{name}"]
        made.metadata[f"qwen3.{name}"] = kind, [value] * 2
    assert np.array_equal(logits(made, tmp_path / "a.gguf"), logits(tiny(), tmp_path / "b.gguf"))


def test_the_demo_with_arrays_answers_as_before(tmp_path: Path) -> None:
    keys = {
        "qwen3.attention.head_count": [8] * 6,
        "qwen3.attention.head_count_kv": [4] * 6,
        "qwen3.feed_forward_length": [768] * 6,
    }
    changed = LLM(rewrite(EMBEDDED, tmp_path / "model.gguf", keys), n_threads=2)
    unchanged = LLM(EMBEDDED, n_threads=2)
    text = unchanged.tokenizer.encode("Once upon a time, a king sat on the hill")
    assert np.array_equal(changed.embed(text, "none"), unchanged.embed(text, "none"))
    assert changed.model.config == unchanged.model.config


@pytest.mark.parametrize("backend", [NumpyBackend, CPUBackend])
def test_layers_may_have_feed_forward_networks_of_different_widths(tmp_path: Path, backend: Backend) -> None:
    """As if the narrow one were as wide, with rows of zeros: silu(0) * 0 adds nothing."""
    narrow, padded = tiny(), tiny()
    narrow.metadata["qwen3.feed_forward_length"] = "[u32]", [N_FF, N_FF // 2]
    for made, width in (narrow, N_FF // 2), (padded, N_FF):
        for tensor in list(made.tensors):
            if str(tensor.name).startswith("blk.1.ffn_") and "norm" not in str(tensor.name):
                array = np.frombuffer(tensor.data, np.float32).reshape(tensor.dims[::-1]).copy()
                if "down" in str(tensor.name):
                    array[:, N_FF // 2 :] = 0
                    array = array[:, :width]
                else:
                    array[N_FF // 2 :] = 0
                    array = array[:width]
                made.replace(f32(str(tensor.name), array))
    found = logits(narrow, tmp_path / "a.gguf", backend)
    assert np.allclose(found, logits(padded, tmp_path / "b.gguf", backend), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "attention.head_count",
            [4, 2],
            "differs from layer to layer, from 2 to 4, expected the same in all",
        ),
        ("attention.head_count_kv", [2, 1], "differs from layer to layer, from 1 to 2"),
        ("attention.head_count_kv", [2, 0], "differs from layer to layer, from 0 to 2"),
        ("attention.head_count_kv", [0, 0], "is 0, expected 1 or more"),
        ("attention.head_count", [4], "has 1 elements, expected one for each of 2 layers"),
        ("attention.head_count", [], "has 0 elements"),
        ("feed_forward_length", [64, 0], "has the element 0, expected a value from 1 to"),
        ("feed_forward_length", [64, 2**31], f"has the element {2**31}"),
    ],
)
def test_arrays_that_cannot_be_followed_are_refused(
    tmp_path: Path, name: str, content: list[int], expected: str
) -> None:
    made = tiny()
    made.metadata[f"qwen3.{name}"] = "[u32]", content
    assert f"'qwen3.{name}' {expected}" in refusal(made, tmp_path / "model.gguf")


@pytest.mark.parametrize(("kind", "content"), [("[str]", ["4", "4"]), ("[f32]", [4.0, 4.0]), ("str", "4")])
def test_arrays_of_another_kind_are_refused(tmp_path: Path, kind: str, content: Any) -> None:
    made = tiny()
    made.metadata["qwen3.attention.head_count"] = kind, content
    assert "'qwen3.attention.head_count' is" in refusal(made, tmp_path / "model.gguf")


# -- Ollama's files -----------------------------------------------------------------------------------------------------


def without_layers(made: Gguf) -> None:
    """Leave out what says which layers have attention."""
    for name in "full_attention_interval", "attention.recurrent_layers":
        made.metadata.pop(f"qwen35.{name}", None)


def as_of_ollama(made: Gguf) -> None:
    """What its converter writes differently (ollama/ollama, convert/convert_qwen3next.go)."""
    for i, tensor in enumerate(made.tensors):
        made.tensors[i] = tensor._replace(name=str(tensor.name).replace("ssm_dt.bias", "ssm_dt"))
    n_layer, n_head_kv = (
        made.metadata["qwen35.block_count"][1],
        made.metadata["qwen35.attention.head_count_kv"][1],
    )
    made.metadata["qwen35.attention.head_count_kv"] = (
        "[u32]",
        [n_head_kv * (i % 4 == 3) for i in range(n_layer)],
    )
    without_layers(made)
    sections = made.metadata["qwen35.rope.dimension_sections"][1]
    made.metadata["qwen35.rope.dimension_sections"] = "[i32]", list(sections)[:3]
    made.metadata["qwen35.rope.mrope_interleaved"] = "bool", 1
    made.metadata["qwen35.ssm.v_head_reordered"] = "bool", 1
    made.metadata["qwen35.vision.block_count"] = "u32", 1
    made.tensors += [f32("v.blk.0.attn_q.weight", np.ones((8, 8))), f32("mm.0.weight", np.ones((8, 8)))]


@pytest.mark.parametrize("backend", [NumpyBackend, CPUBackend])
def test_qwen35_as_ollama_has_it(tmp_path: Path, folder: Path, backend: Backend) -> None:
    changed = small("qwen35", folder)
    as_of_ollama(changed)
    expected = logits(small("qwen35", folder), tmp_path / "b.gguf", backend)
    assert np.array_equal(logits(changed, tmp_path / "a.gguf", backend), expected)
    assert not load_model(GGUFFile(tmp_path / "a.gguf")).warnings


@pytest.mark.parametrize("name", ["rope.mrope_section", "mrope_sections"])
def test_sections_by_other_names(tmp_path: Path, folder: Path, name: str) -> None:
    changed = small("qwen35", folder)
    changed.metadata[f"qwen35.{name}"] = changed.metadata.pop("qwen35.rope.dimension_sections")
    expected = logits(small("qwen35", folder), tmp_path / "b.gguf")
    assert np.array_equal(logits(changed, tmp_path / "a.gguf"), expected)


def test_which_layers_have_attention_may_be_anything(tmp_path: Path, folder: Path) -> None:
    """Zeros say it where nothing else does: not in every fourth layer, so the tensors of those layers are missed."""
    changed = small("qwen35", folder)
    without_layers(changed)
    changed.metadata["qwen35.attention.head_count_kv"] = "[u32]", [2, 0, 0, 0]
    assert "tensor 'blk.0.attn_q_norm.weight' is missing" in refusal(changed, tmp_path / "model.gguf")


def test_value_heads_in_another_order(tmp_path: Path, folder: Path) -> None:
    made = small("qwen35", folder)
    made.metadata["qwen35.ssm.v_head_reordered"] = "bool", 0
    nets = load_model(GGUFFile(made.write(tmp_path / "model.gguf"))).config.delta_nets
    assert nets is not None
    assert not nets.tiled


def test_vision_is_no_excuse_for_other_tensors(tmp_path: Path) -> None:
    for name in "vision.weight", "v", "blk.0.v.weight":
        made = tiny()
        made.tensors.append(f32(name, np.ones((8, 8))))
        assert f"have no place in this architecture, such as '{name}'" in refusal(
            made, tmp_path / "model.gguf"
        )


# -- keys ---------------------------------------------------------------------------------------------------------------


def with_key(key: str, kind: str, content: Any) -> Gguf:
    made = tiny()
    made.metadata[key] = kind, content
    return made


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("logit_scale", "f32", 0.5),
        ("attn_logit_softcapping", "f32", 50.0),
        ("final_logit_softcapping", "f32", 30.0),
        ("attention.clamp_kqv", "f32", 8.0),
        ("attention.scale", "f32", 0.1),
        ("residual_scale", "f32", 0.3),
        ("embedding_scale", "f32", 12.0),
        ("embedding_length_out", "u32", 16),
        ("expert_weights_scale", "f32", 2.5),
        ("expert_gating_func", "u32", 2),
        ("expert_group_count", "u32", 4),
        ("leading_dense_block_count", "u32", 1),
        ("rope.scaling.alpha", "f32", 1000.0),
        ("rope.scaling.yarn_log_multiplier", "f32", 0.1),
        ("swiglu_clamp_exp", "[f32]", [0.0, 7.0]),
        ("hidden_activation", "str", "gelu"),
        ("use_parallel_residual", "bool", 1),
    ],
)
def test_keys_that_change_what_is_computed_are_refused(
    tmp_path: Path, name: str, kind: str, content: Any
) -> None:
    message = refusal(with_key(f"qwen3.{name}", kind, content), tmp_path / "model.gguf")
    assert f"metadata key 'qwen3.{name}' is " in message
    assert message.endswith(", which isn't supported")


@pytest.mark.parametrize(
    ("name", "kind", "content"),
    [
        ("logit_scale", "f32", 1.0),
        ("attn_logit_softcapping", "f32", 0.0),
        ("embedding_length_out", "u32", N_EMBD),
        ("swiglu_clamp_exp", "[f32]", [0.0, 0.0]),
        ("hidden_activation", "str", "silu"),
        ("use_parallel_residual", "bool", 0),
        ("attention.sliding_window", "u32", 0),
        ("vocab_size", "u32", 5),
    ],
)
def test_values_that_change_nothing_are_taken(tmp_path: Path, name: str, kind: str, content: Any) -> None:
    model = load_model(GGUFFile(with_key(f"qwen3.{name}", kind, content).write(tmp_path / "model.gguf")))
    assert not model.warnings


@pytest.mark.parametrize(
    ("key", "kind", "content", "expected"),
    [
        ("qwen3.attention.sliding_window", "u32", 64, "sees the whole context instead"),
        ("qwen3.expert_weights_norm", "bool", 1, "the architecture decides"),
        ("qwen3.something_new", "u32", 1, "not known and not followed: qwen3.something_new"),
        ("tokenizer.ggml.add_space_prefix", "bool", 1, "byte-level BPE knows no such step"),
        ("tokenizer.ggml.precompiled_charsmap", "[u8]", [1, 2], "byte-level BPE knows no such step"),
        ("tokenizer.ggml.normalizer.lowercase", "bool", 1, "byte-level BPE knows no such step"),
    ],
)
def test_keys_that_are_not_followed_are_named(
    tmp_path: Path, call: Call, key: str, kind: str, content: Any, expected: str
) -> None:
    path = with_key(key, kind, content).write(tmp_path / "model.gguf")
    found = call("run", "-m", str(path), "-n", "1", "-p", "a", "--backend", "numpy")
    assert found.code == 0
    [line] = [line for line in found.err.splitlines() if "warning" in line and key in line]
    assert expected in line


def test_the_lists_of_keys_have_each_key_once() -> None:
    names = [*READ, *HARMLESS, *NEUTRAL, *WARNED]
    assert len(names) == len(set(names)) > 80


# -- tokens that there aren't -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["eos", "bos", "eot", "eom"])
@pytest.mark.parametrize(
    ("kind", "content"), [("u32", len(TOKENS)), ("u32", 2**32 - 1), ("i32", -1), ("u64", 2**63)]
)
def test_a_token_outside_the_vocabulary_is_a_warning(
    tmp_path: Path, name: str, kind: str, content: int
) -> None:
    key = f"tokenizer.ggml.{name}_token_id"
    path = with_key(key, kind, content).write(tmp_path / "model.gguf")
    said: list[str] = []
    llm = LLM(path, n_threads=1, backend="numpy", report=said.append)
    [warning] = [line for line in said if "warning" in line]
    assert f"'{key}' is {content}, outside the vocabulary of {len(TOKENS)}" in warning
    assert TOKENS.index("<|im_end|>") in llm.tokenizer.eog_ids
    assert "".join(llm.stream([1, 2], 2)) is not None


def test_a_bos_token_that_there_isnt_is_not_added(tmp_path: Path) -> None:
    made = with_key("tokenizer.ggml.add_bos_token", "bool", 1)
    made.metadata["tokenizer.ggml.bos_token_id"] = "u32", 99999
    tokenizer = Tokenizer(GGUFFile(made.write(tmp_path / "model.gguf")))
    assert tokenizer.encode("a", add_special=True) == tokenizer.encode("a")


def test_a_token_id_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = with_key("tokenizer.ggml.eos_token_id", "str", "x").write(tmp_path / "model.gguf")
    with pytest.raises(ModelError, match=r"'tokenizer.ggml.eos_token_id' is a string, expected an integer"):
        Tokenizer(GGUFFile(path))
