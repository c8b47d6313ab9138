"""Valid files whose experts, states or sections no model can have: the error is one line with the file and the value; exit code 1."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_builder import Gguf, Tensor, f32
from random_models import load_script
from shapes import PRESETS
from test_unfit_models import Change, adding, dropping, setting, shaped, without

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.cli import main as run_cli
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import known_architectures, load_model

SMALL: dict[str, Any] = {
    "n_embd": 32,
    "n_ff": 64,
    "n_head": 2,
    "n_head_kv": 2,
    "head_dim": 16,
    "n_vocab": 283,
}
DELTA: dict[str, Any] = SMALL | {
    "n_layer": 4,
    "n_rot": 8,
    "n_k_heads": 2,
    "n_v_heads": 4,
    "d_state": 16,
    "n_nextn": 0,
}
EXPERTS: dict[str, Any] = {"n_expert": 4, "n_expert_used": 2, "n_ff_exp": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen": SMALL,
    "qwen2vl": SMALL | {"rope_sections": (2, 3, 3, 0)},
    "qwen3vl": SMALL | {"rope_sections": (3, 3, 2, 0)},
    "qwen3moe": SMALL | EXPERTS | {"n_layer": 2},
    "qwen2moe": SMALL | EXPERTS | {"n_ff_shexp": 48},
    "qwen35": DELTA | {"rope_sections": (2, 1, 1, 0)},
    "qwen3next": DELTA | EXPERTS | {"n_ff_shexp": 32},
}
KINDS = {"UINT32": "u32", "INT32": "i32", "FLOAT32": "f32", "STRING": "str", "BOOL": "bool", "ARRAY": ""}


@cache
def written(arch: str, folder: Path) -> Path:
    mm, shape = load_script(), replace(PRESETS[f"tiny-{arch}"], **SHAPES[arch])
    mm.write_model(folder / f"{arch}.gguf", "small", shape, "F32", mm.make_up_vocabulary(shape.n_vocab))
    return folder / f"{arch}.gguf"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("small")


def small(arch: str, folder: Path) -> Gguf:
    """A small model that can be run, for the tests to change. Its weights are F32."""
    reader, file = gguf.GGUFReader(written(arch, folder)), Gguf()
    for key, value in reader.fields.items():
        if not key.startswith("GGUF."):
            kinds = [KINDS[kind.name] for kind in value.types]
            file.metadata[key] = kinds[-1] if len(kinds) == 1 else f"[{kinds[-1]}]", value.contents()
    file.tensors = [f32(t.name, t.data) for t in reader.tensors]
    return file


def hyper(key: str, kind: str, content: Any) -> Change:
    return lambda file: setting(f"{file.metadata['general.architecture'][1]}.{key}", kind, content)(file)


def lacking(key: str) -> Change:
    return lambda file: without(f"{file.metadata['general.architecture'][1]}.{key}")(file)


def filled(name: str, *values: float) -> Change:
    """The tensor, filled with these values over and over."""

    def change(file: Gguf) -> None:
        dims = next(t.dims for t in file.tensors if t.name == name)
        file.replace(f32(name, np.resize(np.array(values, np.float32), dims[::-1])))

    return change


def renamed(name: str, to: str) -> Change:
    def change(file: Gguf) -> None:
        file.tensors = [Tensor(to, *t[1:]) if t.name == name else t for t in file.tensors]

    return change


MOE: dict[str, tuple[Change, str]] = {
    "count missing": (lacking("expert_count"), "key 'qwen3moe.expert_count' is missing, expected an integer"),
    "count 0": (hyper("expert_count", "u32", 0), "'qwen3moe.expert_count' is 0, expected a value from 1 to"),
    "count huge": (
        hyper("expert_count", "u32", 2**31 - 1),
        "'qwen3moe.expert_count' is 2147483647, expected a value from 1 to",
    ),
    "count a string": (
        hyper("expert_count", "str", "4"),
        "'qwen3moe.expert_count' is a string, expected an integer",
    ),
    "one less than tensors have": (
        hyper("expert_count", "u32", 3),
        "'blk.0.ffn_gate_inp.weight' has the shape [4, 32], expected [3, 32]",
    ),
    "used missing": (lacking("expert_used_count"), "'qwen3moe.expert_used_count' is missing"),
    "used 0": (
        hyper("expert_used_count", "u32", 0),
        "'qwen3moe.expert_used_count' is 0, expected a value from 1 to",
    ),
    "more used than there are": (
        hyper("expert_used_count", "u32", 5),
        "'qwen3moe.expert_used_count' is 5, expected a value from 1 to 4",
    ),
    "another width": (
        hyper("expert_feed_forward_length", "u32", 33),
        "_gate_exps.weight' has the shape [4, 32, 32], expected [4, 33, 32]",
    ),
    "a width for each layer": (
        hyper("expert_feed_forward_length", "[u32]", [32, 32]),
        "is an array, expected an integer",
    ),
    "no width at all": (
        lambda f: (lacking("expert_feed_forward_length")(f), lacking("feed_forward_length")(f)),
        "'qwen3moe.feed_forward_length' is missing",
    ),
    "the width of all": (
        lambda f: (lacking("expert_feed_forward_length")(f), hyper("feed_forward_length", "u32", 66)(f)),
        "_gate_exps.weight' has the shape [4, 32, 32], expected [4, 33, 32]",
    ),
    "one expert less": (
        shaped("blk.1.ffn_down_exps.weight", 32, 32, 3),
        "_exps.weight' has the shape [3, 32, 32], expected [4, 32, 32]",
    ),
    "a single one": (
        shaped("blk.0.ffn_up_exps.weight", 32, 32),
        "'blk.0.ffn_up_exps.weight' has the shape [32, 32], expected [4, 32, 32]",
    ),
    "experts in rank 4": (
        shaped("blk.0.ffn_up_exps.weight", 32, 32, 2, 2),
        "has the shape [2, 2, 32, 32], expected [4, 32, 32]",
    ),
    "no router": (
        dropping("blk.1.ffn_gate_inp.weight"),
        "'blk.1.ffn_gate_inp.weight' is missing, expected one of shape [4, 32]",
    ),
    "a router turned": (
        shaped("blk.1.ffn_gate_inp.weight", 4, 32),
        "'blk.1.ffn_gate_inp.weight' has the shape [32, 4], expected [4, 32]",
    ),
    "experts one by one": (
        renamed("blk.0.ffn_up_exps.weight", "blk.0.ffn_up.0.weight"),
        "'blk.0.ffn_up_exps.weight' is missing",
    ),
    "a shared one": (
        adding("blk.0.ffn_up_shexp.weight", 32),
        "1 tensors have no place in this architecture, such as 'blk.0.ffn_up_shexp",
    ),
    "gate and up in one": (
        lambda f: (
            dropping("blk.0.ffn_up_exps.weight")(f),
            renamed("blk.0.ffn_gate_exps.weight", "blk.0.ffn_gate_up_exps.weight")(f),
        ),
        "'blk.0.ffn_gate_up_exps.weight' has the shape [4, 32, 32], expected [4, 64, 32]",
    ),
}
SHARED: dict[str, tuple[Change, str]] = {
    "another width": (
        hyper("expert_shared_feed_forward_length", "u32", 47),
        "_shexp.weight' has the shape [48, 32], expected [47, 32]",
    ),
    "the width of all": (
        lacking("expert_shared_feed_forward_length"),
        "_gate_shexp.weight' has the shape [48, 32], expected [64, 32]",
    ),
    "no gate": (
        dropping("blk.1.ffn_gate_inp_shexp.weight"),
        "tensor 'blk.1.ffn_gate_inp_shexp.weight' is missing",
    ),
    "a longer gate": (
        shaped("blk.1.ffn_gate_inp_shexp.weight", 33),
        "'blk.1.ffn_gate_inp_shexp.weight' has the shape [33], expected",
    ),
    "two gates": (
        shaped("blk.1.ffn_gate_inp_shexp.weight", 32, 2),
        "'blk.1.ffn_gate_inp_shexp.weight' has the shape [2, 32], expected",
    ),
    "none at all": (
        dropping("blk.0.ffn_down_shexp.weight"),
        "'blk.0.ffn_down_shexp.weight' is missing, expected one of shape [32, 48]",
    ),
}
STATES: dict[str, tuple[Change, str]] = {
    "state huge": (
        hyper("ssm.state_size", "u32", 2**15),
        "'qwen35.ssm.state_size' is 32768, expected a value from 1 to 1024",
    ),
    "state 0": (hyper("ssm.state_size", "u32", 0), "'qwen35.ssm.state_size' is 0, expected a value from 1"),
    "state wrong": (
        hyper("ssm.state_size", "u32", 8),
        "qwen35.ssm.inner_size is 64, expected 32: 4 heads of 8",
    ),
    "state missing": (lacking("ssm.state_size"), "'qwen35.ssm.state_size' is missing"),
    "state and inner size wrong": (
        lambda f: (hyper("ssm.state_size", "u32", 8)(f), hyper("ssm.inner_size", "u32", 32)(f)),
        "'blk.0.attn_qkv.weight' has the shape [128, 32], expected [64, 32]",
    ),
    "inner size wrong": (
        hyper("ssm.inner_size", "u32", 65),
        "qwen35.ssm.inner_size is 65, expected 64: 4 heads of 16",
    ),
    "no key heads": (
        hyper("ssm.group_count", "u32", 0),
        "'qwen35.ssm.group_count' is 0, expected a value from 1",
    ),
    "heads that don't divide": (
        hyper("ssm.group_count", "u32", 3),
        "time_step_rank is 4, expected a multiple of the 3 key heads",
    ),
    "fewer key heads": (
        hyper("ssm.group_count", "u32", 1),
        "'blk.0.attn_qkv.weight' has the shape [128, 32], expected [96, 32]",
    ),
    "no value heads": (
        hyper("ssm.time_step_rank", "u32", 0),
        "'qwen35.ssm.time_step_rank' is 0, expected a value from 1",
    ),
    "heads beyond measure": (
        lambda f: (
            hyper("ssm.time_step_rank", "u32", 2**31 - 2)(f),
            hyper("ssm.group_count", "u32", 2**31 - 2)(f),
        ),
        "is 2147483646, expected a value from 1 to",
    ),
    "conv 1": (hyper("ssm.conv_kernel", "u32", 1), "'qwen35.ssm.conv_kernel' is 1, expected a value from 2"),
    "conv 5": (
        hyper("ssm.conv_kernel", "u32", 5),
        "'blk.0.ssm_conv1d.weight' has the shape [128, 4], expected [128, 5]",
    ),
    "conv huge": (
        hyper("ssm.conv_kernel", "u32", 2**31 - 1),
        "'qwen35.ssm.conv_kernel' is 2147483647, expected a value from 2",
    ),
    "conv turned": (
        shaped("blk.1.ssm_conv1d.weight", 128, 4),
        "'blk.1.ssm_conv1d.weight' has the shape [4, 128], expected [128, 4]",
    ),
    "conv of rank 3": (
        shaped("blk.1.ssm_conv1d.weight", 4, 1, 128),
        "has the shape [128, 1, 4], expected [128, 4]",
    ),
    "conv of other channels": (
        shaped("blk.1.ssm_conv1d.weight", 4, 127),
        "has the shape [127, 4], expected [128, 4]",
    ),
    "a of other length": (shaped("blk.2.ssm_a", 3), "'blk.2.ssm_a' has the shape [3], expected [4]"),
    "a of another name": (
        renamed("blk.2.ssm_a", "blk.2.ssm_a.weight"),
        "tensor 'blk.2.ssm_a' is missing, expected one of shape [4]",
    ),
    "no dt": (
        dropping("blk.2.ssm_dt.bias"),
        "tensor 'blk.2.ssm_dt.bias' is missing, expected one of shape [4]",
    ),
    "betas of other heads": (
        shaped("blk.2.ssm_beta.weight", 32, 2),
        "'blk.2.ssm_beta.weight' has the shape [2, 32], expected [4, 32]",
    ),
    "norm of other length": (
        shaped("blk.2.ssm_norm.weight", 64),
        "'blk.2.ssm_norm.weight' has the shape [64], expected [16]",
    ),
    "gate of other length": (
        shaped("blk.2.attn_gate.weight", 32, 32),
        "attn_gate.weight' has the shape [32, 32], expected [64, 32]",
    ),
    "queries without gates": (
        shaped("blk.3.attn_q.weight", 32, 32),
        "'blk.3.attn_q.weight' has the shape [32, 32], expected [64, 32]",
    ),
    "too few kinds of layers": (
        hyper("attention.recurrent_layers", "[bool]", [True] * 3),
        "has 3 elements, expected one for each of 4",
    ),
    "kinds that are numbers": (
        hyper("attention.recurrent_layers", "[i32]", [1, 1, 1, 0]),
        "elements are each an integer, expected a bool",
    ),
    "kinds that aren't an array": (
        hyper("attention.recurrent_layers", "bool", True),
        "is a boolean, expected an array",
    ),
    "another kind": (
        hyper("attention.recurrent_layers", "[bool]", [True, False, True, False]),
        "tensor 'blk.1.attn_q_norm.weight' is",
    ),
    "more that predict than layers": (
        hyper("nextn_predict_layers", "u32", 4),
        "nextn_predict_layers' is 4, expected a value from 0 to 3",
    ),
    "more layers than tensors": (
        hyper("block_count", "u32", 2**31 - 1),
        "block_count is 2147483647, but the file has only 55 tensors",
    ),
}
NEXT: dict[str, tuple[Change, str]] = {
    "interval 0": (
        hyper("full_attention_interval", "u32", 0),
        "'qwen3next.full_attention_interval' is 0, expected a value from 1",
    ),
    "interval 3": (
        hyper("full_attention_interval", "u32", 3),
        "tensor 'blk.2.attn_q_norm.weight' is missing",
    ),
    "an early converter's": (
        renamed("blk.0.attn_qkv.weight", "blk.0.ssm_in.weight"),
        "'blk.0.ssm_in.weight' is from an early converter",
    ),
    "gates of other heads": (
        shaped("blk.0.ssm_ba.weight", 32, 4),
        "'blk.0.ssm_ba.weight' has the shape [4, 32], expected [8, 32]",
    ),
}
SECTIONS: dict[str, tuple[Change, str]] = {
    "missing": (lacking("rope.dimension_sections"), "rope.dimension_sections' is missing, expected an array"),
    "too small a sum": (
        hyper("rope.dimension_sections", "[i32]", [3, 2, 2, 0]),
        "is [3, 2, 2, 0], expected three numbers whose sum is 8",
    ),
    "too large a sum": (
        hyper("rope.dimension_sections", "[i32]", [3, 3, 3, 0]),
        "is [3, 3, 3, 0], expected three numbers whose sum is 8",
    ),
    "a fourth": (
        hyper("rope.dimension_sections", "[i32]", [3, 2, 2, 1]),
        "is [3, 2, 2, 1], expected three numbers whose sum is 8, and 0",
    ),
    "less than 0": (
        hyper("rope.dimension_sections", "[i32]", [9, 0, -1, 0]),
        "is [9, 0, -1, 0], expected three numbers",
    ),
    "two": (hyper("rope.dimension_sections", "[i32]", [4, 4]), "is [4, 4], expected three numbers"),
    "none": (hyper("rope.dimension_sections", "[i32]", []), "is [], expected three numbers"),
    "a thousand": (
        hyper("rope.dimension_sections", "[i32]", [0] * 1000),
        "is [0, 0, 0, 0, 0, 0, 0, 0], expected three numbers",
    ),
    "strings": (
        hyper("rope.dimension_sections", "[str]", ["3", "3", "2"]),
        "elements are each a string, expected an integer",
    ),
}
QWEN: dict[str, tuple[Change, str]] = {
    "queries alone": (
        shaped("blk.0.attn_qkv.weight", 32, 32),
        "'blk.0.attn_qkv.weight' has the shape [32, 32], expected [96, 32]",
    ),
    "no bias": (
        dropping("blk.0.attn_qkv.bias"),
        "tensor 'blk.0.attn_qkv.bias' is missing, expected one of shape [96]",
    ),
    "the whole width": (
        hyper("feed_forward_length", "u32", 32),
        "'blk.0.ffn_gate.weight' has the shape [32, 32], expected [16, 32]",
    ),
}
UNFIT = {
    f"{arch}: {name}": (arch, *case)
    for arch, cases in [
        ("qwen3moe", MOE),
        ("qwen2moe", SHARED),
        ("qwen35", STATES),
        ("qwen3next", NEXT),
        ("qwen2vl", SECTIONS),
        ("qwen3vl", SECTIONS),
        ("qwen", QWEN),
    ]
    for name, case in cases.items()
}


@pytest.mark.parametrize("name", UNFIT)
def test_unfit_model(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    arch, change, expected = UNFIT[name]
    file = small(arch, folder)
    change(file)
    path = file.write(tmp_path / "unfit.gguf")
    assert run_cli(["run", "-q", "-m", str(path), "-p", "x", "-n", "1"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith(f"qwencli: error: {path}: ")
    assert expected in err
    assert (out, err.count("\n")) == ("", 1)
    assert run_cli(["info", str(path)]) in (0, 1)
    out, err = capfd.readouterr()
    assert (out == "") == (err != "")


@pytest.mark.parametrize("arch", SHAPES)
def test_what_the_changes_start_from_runs(folder: Path, tmp_path: Path, arch: str) -> None:
    backend = NumpyBackend(load_model(GGUFFile(small(arch, folder).write(tmp_path / "sound.gguf"))))
    found = backend.run([LOGITS], Batch([Segment(KVSequence(), range(40), 40)]))[LOGITS]
    assert np.isfinite(found).all()
    assert len(np.unique(found, axis=0)) == 40


@pytest.mark.parametrize("arch", ["llama", "gemma3", "qwen2audio", "qwen4", "Qwen3", "qwen35moe.py", ""])
def test_another_family(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], arch: str) -> None:
    file = small("qwen", folder)
    file.metadata["general.architecture"] = "str", arch
    path = file.write(tmp_path / "other.gguf")
    assert run_cli(["run", "-q", "-m", str(path), "-p", "x", "-n", "1"]) == 1
    assert known_architectures() == [
        "qwen",
        "qwen2",
        "qwen2moe",
        "qwen2vl",
        "qwen3",
        "qwen35",
        "qwen35moe",
        "qwen3moe",
        "qwen3next",
        "qwen3vl",
        "qwen3vlmoe",
    ]
    assert capfd.readouterr().err == (
        f"qwencli: error: {path}: the architecture '{arch}' is not supported; known are {', '.join(known_architectures())};"
        " how to add one: CONTRIBUTING.md\n"
    )


NAN, INF = float("nan"), float("inf")
BROKEN: dict[str, tuple[str, Change]] = {
    "a router of NaN": ("qwen3moe", filled("blk.0.ffn_gate_inp.weight", NAN)),
    "a router with some NaN": ("qwen3moe", filled("blk.1.ffn_gate_inp.weight", *[1.0] * 32, *[NAN] * 32)),
    "an infinite router": ("qwen3moe", filled("blk.1.ffn_gate_inp.weight", INF, -INF)),
    "an expert of NaN": ("qwen2moe", filled("blk.1.ffn_up_exps.weight", NAN)),
    "a state that grows": ("qwen35", filled("blk.0.ssm_a", 1e30)),
    "a state of NaN": ("qwen35", filled("blk.1.ssm_dt.bias", NAN)),
    "an infinite convolution": ("qwen3next", filled("blk.1.ssm_conv1d.weight", INF)),
}


@pytest.mark.parametrize("backend", ["numpy", "cpu"])
@pytest.mark.parametrize("name", BROKEN)
def test_weights_that_are_not_finite(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, backend: str
) -> None:
    """An expert's number computed from NaN could be anything."""
    arch, change = BROKEN[name]
    file = small(arch, folder)
    change(file)
    path = file.write(tmp_path / "broken.gguf")
    for prompt in ("a", "the and the other one"):
        assert (
            run_cli(
                [
                    "run",
                    "-q",
                    "-m",
                    str(path),
                    "-p",
                    prompt,
                    "-n",
                    "40",
                    "--raw",
                    "--temp",
                    "0",
                    "--backend",
                    backend,
                ]
            )
            == 1
        )
        err = capfd.readouterr().err
        assert "are not finite, first in l_out-" in err
        assert err.count("\n") == 1
