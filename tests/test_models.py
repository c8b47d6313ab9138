"""The NumPy backend, layer by layer, compared with transformers' Qwen2 and Qwen3."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import naive
import numpy as np
import pytest
import tiny_models
from random_models import write_random_model
from shapes import PRESETS
from tiny_models import F32, Config

from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import Batch, Segment
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import known_architectures, load_model

ORACLES = sorted(Path(__file__).with_name("oracles").glob("qwen*.npz"))
MAKE_ORACLES = Path(__file__).parents[1] / "scripts" / "make_oracles.py"


def backend(path: Path, c: Config, seed: int) -> NumpyBackend:
    tiny_models.write_gguf(path, c, tiny_models.weights(c, seed))
    return NumpyBackend(load_model(GGUFFile(path)))


def names(c: Config) -> list[str]:
    return [*(f"l_out-{i}" for i in range(c["num_hidden_layers"])), "result_norm", "result_output"]


def run_whole(b: NumpyBackend, fetch: Sequence[str], tokens: Sequence[int]) -> dict[str, F32]:
    return b.run(fetch, Batch([Segment(KVSequence(), tokens, len(tokens))]))


def test_there_are_oracles() -> None:
    assert len(ORACLES) == 7


@pytest.mark.parametrize("oracle", ORACLES, ids=lambda p: p.stem)
def test_states_and_logits_are_those_of_transformers(oracle: Path, tmp_path: Path) -> None:
    compare(oracle, tmp_path / "m.gguf")


def test_states_and_logits_are_those_of_the_transformers_installed_here(tmp_path: Path) -> None:
    if not all(map(importlib.util.find_spec, ("transformers", "torch"))):
        pytest.skip(
            "transformers and torch are not installed (extra `oracle`); their stored answers are compared all the same"
        )
    subprocess.run([sys.executable, MAKE_ORACLES, "models", tmp_path, "500"], check=True, cwd=tmp_path)
    fresh = sorted(tmp_path.glob("*.npz"))
    assert [p.name for p in fresh] == [p.name for p in ORACLES]
    for oracle in fresh:
        compare(oracle, tmp_path / f"{oracle.stem}.gguf")


def compare(oracle: Path, path: Path) -> None:
    """Run the model that `oracle` describes, written to `path`, and compare every layer."""
    with np.load(oracle) as expected:
        c = json.loads(str(expected["config"]))
        found = run_whole(backend(path, c, int(expected["seed"])), names(c), expected["tokens"].tolist())
        for name in names(c):
            np.testing.assert_allclose(
                found[name][expected["rows"]],
                expected[name],
                rtol=0,
                atol=1e-4,
                err_msg=f"{oracle.stem} {name}",
            )


@pytest.mark.parametrize("oracle", ["qwen3-gqa-tied", "qwen3-output", "qwen2-biases"])
def test_the_naive_twin_of_other_tests_agrees_with_transformers(oracle: str) -> None:
    with np.load(ORACLES[0].with_name(f"{oracle}.npz")) as expected:
        c = json.loads(str(expected["config"]))
        found = naive.forward(c, tiny_models.weights(c, int(expected["seed"])), expected["tokens"].tolist())
        for name in names(c):
            np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5, err_msg=name)


@pytest.fixture(scope="module", params=["qwen3", "qwen2"])
def tiny(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NumpyBackend, list[str]]:
    c = tiny_models.config(request.param)
    return backend(tmp_path_factory.mktemp("tiny") / "m.gguf", c, 5), names(c)


def prompt(seed: int, n: int) -> list[int]:
    return np.random.RandomState(seed).randint(0, 72, n).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_prompt_in_chunks_gives_the_states_of_the_whole(
    tiny: tuple[NumpyBackend, list[str]], chunk: int
) -> None:
    b, fetch = tiny
    tokens, seq = prompt(1, 150), KVSequence()
    parts = []
    for start in range(0, len(tokens), chunk):
        piece = tokens[start : start + chunk]
        parts.append(b.run(fetch, Batch([Segment(seq, piece, len(piece))])))
    whole = run_whole(b, fetch, tokens)
    for name in fetch:
        np.testing.assert_allclose(
            np.concatenate([part[name] for part in parts]), whole[name], rtol=0, atol=2e-5, err_msg=name
        )


def test_several_sequences_in_a_batch_do_not_see_each_other(tiny: tuple[NumpyBackend, list[str]]) -> None:
    b, fetch = tiny
    prompts = [prompt(2, 90), prompt(3, 5), prompt(4, 70)]
    sequences = [KVSequence() for _ in prompts]
    starts = [60, 0, 69]  # in the middle of a prompt, at the start of one, and with a single token to go
    for seq, tokens, start in zip(sequences, prompts, starts):
        if start:
            b.run(["result_norm"], Batch([Segment(seq, tokens[:start], 0)]))
    rest = [tokens[start:] for tokens, start in zip(prompts, starts)]
    together = b.run(
        fetch, Batch([Segment(seq, tokens, len(tokens)) for seq, tokens in zip(sequences, rest)])
    )
    for name in fetch:
        alone = [run_whole(b, [name], tokens)[name][start:] for tokens, start in zip(prompts, starts)]
        np.testing.assert_allclose(together[name], np.concatenate(alone), rtol=0, atol=2e-5, err_msg=name)


def test_only_the_outputs_asked_for_come_back(tiny: tuple[NumpyBackend, list[str]]) -> None:
    b, _ = tiny
    tokens = prompt(6, 30), prompt(7, 20), prompt(8, 10)
    found = b.run(["result_output"], Batch([Segment(KVSequence(), t, n) for t, n in zip(tokens, (1, 0, 4))]))[
        "result_output"
    ]
    whole = [run_whole(b, ["result_output"], t)["result_output"] for t in tokens]
    np.testing.assert_allclose(found, np.concatenate([whole[0][-1:], whole[2][-4:]]), rtol=0, atol=2e-5)


def test_hidden_is_the_last_norms_output(tiny: tuple[NumpyBackend, list[str]]) -> None:
    b = tiny[0]
    tokens = prompt(5, 8)
    whole = run_whole(b, ["result_norm"], tokens)["result_norm"]
    assert np.array_equal(b.hidden(Batch([Segment(KVSequence(), tokens, len(tokens))])), whole)


@pytest.mark.parametrize("architecture", known_architectures())
def test_a_model_knows_the_states_between_its_layers(architecture: str, tmp_path: Path) -> None:
    write_random_model(tmp_path / "m.gguf", PRESETS[f"tiny-{architecture}"], "F16")
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    found = [layer.name for layer in model.layers]
    assert found == ["inp_embd", *(f"l_out-{i}" for i in range(model.config.n_layer))]


def test_fed_with_the_last_norm_only_the_head_runs(tiny: tuple[NumpyBackend, list[str]]) -> None:
    b, _ = tiny
    whole = run_whole(b, ["result_norm", "result_output"], prompt(9, 12))
    head = b.run(["result_output"], feed={"result_norm": whole["result_norm"][3:8]})
    assert head.keys() == {"result_output"}
    np.testing.assert_allclose(head["result_output"], whole["result_output"][3:8], rtol=0, atol=2e-5)
