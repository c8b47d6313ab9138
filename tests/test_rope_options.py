"""Options about RoPE and metadata against the perplexities that llama.cpp has with them, and what they mean for contexts and sessions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Call
from gguf_builder import N_CTX, Gguf, tiny
from random_models import write_random_model
from shapes import PRESETS

from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.metadata import Metadata
from qwencli.gguf.overrides import read_overrides
from qwencli.llm import LLM
from qwencli.measure.perplexity import perplexity
from qwencli.network.load import known_architectures
from qwencli.network.rope_options import RopeOptions

YARN = {"scaling": "yarn", "scale": 4.0, "yarn_orig_ctx": 128}
PERPLEXITIES: list[tuple[dict[str, Any], str, float]] = [
    ({}, "", 262.6030),
    ({"freq_base": 50000}, "", 288.9585),
    ({"scale": 2}, "", 269.4210),
    ({"freq_scale": 0.5}, "", 269.4210),
    ({"scaling": "none", "scale": 2}, "", 262.6030),
    ({"scaling": "yarn"}, "", 262.6030),
    ({"scaling": "yarn", "scale": 4}, "", 261.6465),
    (YARN, "", 259.2735),
    (YARN | {"yarn_beta_fast": 8, "yarn_beta_slow": 2}, "", 255.3218),
    (YARN | {"yarn_ext_factor": 0.5}, "", 277.4644),
    (YARN | {"yarn_attn_factor": 2}, "", 259.2735),
    ({"scaling": "yarn", "scale": 4, "yarn_ext_factor": 0, "yarn_attn_factor": 1.2}, "", 335.5192),
    ({"scale": 4, "yarn_ext_factor": 1, "yarn_orig_ctx": 128}, "", 259.2735),
    ({"scaling": "none", "yarn_ext_factor": 1, "yarn_attn_factor": 1.2}, "", 262.6030),
    ({"yarn_attn_factor": 1.2}, "", 305.1050),
    ({"scaling": "yarn", "freq_scale": 2, "yarn_orig_ctx": 128}, "", 285.0310),
    ({}, "qwen3.rope.freq_base=float:50000", 288.9585),
    (
        {},
        "qwen3.rope.scaling.type=str:yarn,qwen3.rope.scaling.factor=float:4,qwen3.rope.scaling.original_context_length=int:128",
        259.2735,
    ),
    ({}, "qwen3.attention.layer_norm_rms_epsilon=float:0.1", 410.1313),
]
"""Options, overrides, and what `llama-perplexity -m demo-f16.gguf -f wiki-excerpt.txt -c 512 --chunks 3 --no-repack` says with them.
Its options have the same names: `scale` is --rope-scale, `yarn_orig_ctx` is --yarn-orig-ctx. The build is llama-cpp-python 0.3.36's."""


def tiny_model(**changed: Any) -> Gguf:
    model = tiny()
    model.metadata |= changed
    return model


@pytest.mark.parametrize(
    ("backend", "options", "overrides", "expected"),
    [("cpu", *case) for case in PERPLEXITIES] + [("numpy", *PERPLEXITIES[i]) for i in (2, 8, 11)],
)
def test_perplexities_are_llama_cpps(
    shared: Path, backend: str, options: dict[str, Any], overrides: str, expected: float
) -> None:
    llm = LLM(
        shared / "models" / "demo-f16.gguf",
        n_ctx=512,
        backend=backend,
        overrides=read_overrides(overrides) if overrides else None,
        rope=RopeOptions(**options),
    )
    tokens = llm.tokenizer.encode((shared / "models" / "wiki-excerpt.txt").read_text(encoding="utf-8"))
    *_, last = perplexity(llm.engine.backend, tokens[: 3 * 512], 512, 512, None)
    assert last.n_chunks == 3
    assert last.ppl == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            "--rope-scaling yarn --rope-scale 4 --yarn-orig-ctx 128 --yarn-beta-fast 8 --yarn-beta-slow 2",
            255.3218,
        ),
        ("--rope-freq-scale 0.5", 269.4210),
        ("--override-kv qwen3.rope.freq_base=float:50000", 288.9585),
    ],
)
def test_the_command_lines_are_llama_cpps_too(
    call: Call, shared: Path, options: str, expected: float
) -> None:
    models = shared / "models"
    done = call(
        *("perplexity", "-m", models / "demo-f16.gguf", "-f", models / "wiki-excerpt.txt", "-c", 512),
        *("--chunks", 3, "--json", *options.split()),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["ppl"] == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(
    "unset", [{"freq_base": 0}, {"freq_scale": 0}, {"yarn_orig_ctx": 0}, {"yarn_ext_factor": -1}]
)
def test_what_asks_for_the_files_value_in_llama_cpp(unset: dict[str, float]) -> None:
    assert RopeOptions(**unset) == RopeOptions()
    assert RopeOptions(**unset).overrides(Metadata("m.gguf", {})) == {}


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (
            {"scaling": "longrope\x1b[0m"},
            "unknown RoPE scaling 'longrope\\x1b[0m', expected none, linear, yarn",
        ),
        ({"scale": 0}, "--rope-scale is 0, expected a value from 1e-06 to 1e+06"),
        ({"scale": -2}, "--rope-scale is -2, expected a value from 1e-06 to 1e+06"),
        ({"scale": float("nan")}, "--rope-scale is nan, expected a value from 1e-06 to 1e+06"),
        ({"freq_scale": float("inf")}, "--rope-freq-scale is inf, expected a value from 1e-06 to 1e+06"),
        ({"freq_base": 1}, "--rope-freq-base is 1, expected a value from 2 to 1e+12"),
        ({"yarn_orig_ctx": -5}, "--yarn-orig-ctx is -5, expected a value from 1 to 2.14748e+09"),
        ({"yarn_ext_factor": 1.5}, "--yarn-ext-factor is 1.5, expected a value from 0 to 1"),
        ({"yarn_beta_fast": 0}, "--yarn-beta-fast is 0, expected a value from 1e-06 to 1e+06"),
        (
            {"scale": 2, "freq_scale": 2},
            "--rope-scale and --rope-freq-scale are given: one is the inverse of the other",
        ),
    ],
)
def test_values_out_of_range(options: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        RopeOptions(**options)
    assert str(raised.value) == error


def contexts(path: Path, **options: Any) -> int:
    return LLM(path, rope=RopeOptions(**options)).model.config.n_ctx


def test_yarn_makes_the_context_longer_as_in_llama_cpp(tmp_path: Path) -> None:
    """llama_init_from_model: with YaRN and another scale than the file's, n_ctx_train becomes n_ctx_orig / freq_scale."""
    path = tmp_path / "m.gguf"
    tiny_model().write(path)
    assert contexts(path) == N_CTX
    assert contexts(path, scale=4) == N_CTX
    assert contexts(path, scaling="yarn") == N_CTX
    assert contexts(path, scaling="yarn", scale=4) == 4 * N_CTX
    assert contexts(path, scaling="yarn", freq_scale=0.25, yarn_orig_ctx=100) == 400
    tiny_model(
        **{"qwen3.rope.scaling.type": ("str", "yarn"), "qwen3.rope.scaling.factor": ("f32", 4.0)}
    ).write(path)
    assert contexts(path, scale=4) == N_CTX
    assert contexts(path, scale=8) == 8 * N_CTX


def test_the_default_context_is_the_longer_one(tmp_path: Path) -> None:
    tiny_model().write(tmp_path / "m.gguf")
    said: list[str] = []
    llm = LLM(tmp_path / "m.gguf", rope=RopeOptions(scaling="yarn", scale=4), report=said.append)
    assert llm.engine.n_ctx == 4 * N_CTX
    assert not any("context" in line for line in said)


def test_a_session_of_another_rotation_is_refused(tmp_path: Path) -> None:
    path, session = tmp_path / "m.gguf", tmp_path / "s"
    tiny_model().write(path)
    prompt = list(range(70))
    llm = LLM(path, rope=RopeOptions(scale=2))
    list(llm.stream(prompt, max_tokens=2))
    llm.save_session(session)
    LLM(path, rope=RopeOptions(scale=2)).load_session(session)
    LLM(path, rope=RopeOptions(freq_scale=0.5)).load_session(session)
    LLM(path, overrides={"qwen3.rope.scaling.factor": 2.0}).load_session(session)
    for other in (
        {},
        {"rope": RopeOptions(scale=4)},
        {"rope": RopeOptions(scale=2, freq_base=500)},
        {"overrides": {"qwen3.attention.layer_norm_rms_epsilon": 0.5}},
    ):
        with pytest.raises(InputError, match="a session of another model"):
            LLM(path, **other).load_session(session)


def test_values_as_in_the_file_leave_the_fingerprint_as_it_is(tmp_path: Path) -> None:
    path, session = tmp_path / "m.gguf", tmp_path / "s"
    tiny_model().write(path)
    llm = LLM(path)
    list(llm.stream(list(range(70)), max_tokens=2))
    llm.save_session(session)
    LLM(path, overrides={"qwen3.context_length": N_CTX}, rope=RopeOptions(freq_base=1e6)).load_session(
        session
    )


def test_other_rotations_have_other_answers_and_keys(tmp_path: Path) -> None:
    """The same tokens get other keys: nothing that was kept for one rotation may serve another."""
    path = tmp_path / "m.gguf"
    tiny_model().write(path)
    keys = []
    for options in ({}, {"scale": 2}, {"freq_base": 100}, {"yarn_attn_factor": 2}):
        llm = LLM(path, rope=RopeOptions(**options))
        list(llm.stream(list(range(70)), max_tokens=1))
        kept = llm.engine.prefixes.kept[-1]
        keys.append(llm.engine.backend.read_page(kept.kv.pages[0], 0).tobytes())
    assert len(set(keys)) == len(keys)


def test_metadata_of_the_wrong_type_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_model(**{"qwen3.rope.scaling.attn_factor": ("str", "two")}).write(path)
    with pytest.raises(ModelError, match=r"attn_factor' is a string, expected a number"):
        LLM(path, rope=RopeOptions(yarn_attn_factor=2))


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    before = tiny_model().write(path).read_bytes()
    llm = LLM(path, overrides={"general.name": "mine"}, rope=RopeOptions(freq_base=50000))
    assert llm.file.metadata["general.name"] == "mine"
    assert llm.file.metadata["qwen3.rope.freq_base"] == 50000
    assert path.read_bytes() == before
    assert GGUFFile(path).metadata["qwen3.rope.freq_base"] == 1e6


@pytest.mark.parametrize("architecture", known_architectures())
def test_every_architecture_rotates_the_same_on_both_backends(tmp_path: Path, architecture: str) -> None:
    """Also those whose heads are rotated in part, or by sections."""
    path = tmp_path / "m.gguf"
    write_random_model(path, PRESETS[f"tiny-{architecture}"], "F32")
    rope = RopeOptions(**YARN, freq_base=5000, yarn_beta_fast=4)
    found = {}
    for name, backend, options in (
        ("usual", "cpu", RopeOptions()),
        ("cpu", "cpu", rope),
        ("numpy", "numpy", rope),
    ):
        llm = LLM(path, n_ctx=256, backend=backend, rope=options)
        found[name] = llm.values([i * 7 % 50 for i in range(100)], ["result_output"])["result_output"]
    scale = np.abs(found["numpy"]).max()
    assert np.abs(found["cpu"] - found["numpy"]).max() < 1e-2 * scale
    assert np.abs(found["cpu"] - found["usual"]).max() > 2e-2 * scale
