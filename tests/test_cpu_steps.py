"""What a step of the CPU backend takes and gives back: any pair of results, tensors that are fed, callers in several threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import tiny_models

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import F32, LOGITS, Batch, Segment
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.network.graph import Input, Weight
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling.sampler import Draw

TOKENS = np.random.RandomState(1).randint(0, 72, 11)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = tiny_models.config(num_hidden_layers=2)
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    tiny_models.write_gguf(path, config, tiny_models.weights(config, 3))
    return load_model(GGUFFile(path))


@pytest.fixture(scope="module")
def cpu(model: Model) -> CPUBackend:
    return CPUBackend(model, 2)


@pytest.fixture(scope="module")
def reference(model: Model) -> NumpyBackend:
    return NumpyBackend(model)


def batch(n: int = 5, n_outputs: int = 3) -> Batch:
    return Batch([Segment(KVSequence(), TOKENS[:n], n_outputs)])


@pytest.mark.parametrize("n", [5, 11])
def test_any_two_results(model: Model, cpu: CPUBackend, reference: NumpyBackend, n: int) -> None:
    names = [
        name
        for name, node in model.graph.nodes.items()
        if not isinstance(node.op, (Weight, Input)) and not name.startswith("kv-")
    ]
    expected = reference.run(names, batch(n))
    for pair in itertools.combinations(names, 2):
        compare(cpu, pair, n, expected)


def compare(cpu: CPUBackend, names: Sequence[str], n: int, expected: dict[str, F32]) -> None:
    values = cpu.run(names, batch(n))
    for name in names:
        assert values[name].shape == expected[name].shape
        np.testing.assert_allclose(
            values[name], expected[name], rtol=0, atol=0.02, err_msg=f"{name} of {names}"
        )


@pytest.mark.parametrize(
    ("given", "wanted"), [("ffn_inp-0", "ffn_norm-0"), ("l_out-0", "Vcur_flat-1"), ("ffn_inp-1", LOGITS)]
)
@pytest.mark.parametrize("n", [0, 1, 5, 40])
def test_as_many_rows_as_are_fed(
    cpu: CPUBackend, reference: NumpyBackend, given: str, wanted: str, n: int
) -> None:
    rows = np.random.RandomState(2).standard_normal((n, 32)).astype(np.float32)
    values, expected = (backend.run([wanted], feed={given: rows})[wanted] for backend in (cpu, reference))
    assert values.shape == expected.shape
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)


def test_what_is_fed_can_be_fetched(cpu: CPUBackend) -> None:
    rows = np.random.RandomState(2).standard_normal((3, 32)).astype(np.float32)
    assert np.array_equal(cpu.run(["result_norm"], feed={"result_norm": rows})["result_norm"], rows)


@pytest.mark.parametrize("n", [4, 6, 40])
def test_rows_that_contradict_the_batch(cpu: CPUBackend, n: int) -> None:
    with pytest.raises(InputError, match=f"'inp_embd' is fed with {n} rows, expected 5"):
        cpu.run(["l_out-0"], batch(), {"inp_embd": np.zeros((n, 32), np.float32)})


@pytest.mark.parametrize("token", [-1, 72, 2**31 - 1])
def test_a_token_outside_the_vocabulary_is_no_row(cpu: CPUBackend, token: int) -> None:
    with pytest.raises(InputError, match="outside the vocabulary of 72"):
        cpu.run([LOGITS], Batch([Segment(KVSequence(), [1, token, 2], 1)]))


def test_results_are_the_callers_own(cpu: CPUBackend) -> None:
    first = cpu.run([LOGITS], batch())[LOGITS]
    copy = first.copy()
    cpu.run([LOGITS], Batch([Segment(KVSequence(), [7, 8, 9], 3)]))
    assert np.array_equal(first, copy)


def test_threads_that_call_at_once_take_turns(cpu: CPUBackend) -> None:
    wrong: list[int] = []

    def caller(token: int) -> Callable[[], None]:
        def logits() -> np.ndarray:
            seq = KVSequence()
            result = cpu.run([LOGITS], Batch([Segment(seq, [token, 2, 3], 1)]))[LOGITS]
            cpu.cache.release(seq)
            return result

        expected = logits()

        def call() -> None:
            wrong.extend(token for _ in range(300) if not np.array_equal(logits(), expected))

        return call

    threads = [threading.Thread(target=caller(token)) for token in (5, 9, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_prompt_takes_no_memory_for_the_logits_that_nobody_wants(model: Model) -> None:
    backend, seq = CPUBackend(model, 1), KVSequence()
    for n_outputs in 0, 1:
        backend.sample(
            Batch([Segment(seq, [1] * 100, n_outputs)]), [Draw(0, 40, 1, 0, 1, 0, 0, {}, 0)] * n_outputs
        )
    (program,) = backend._programs.made
    assert max(len(buffer) for buffer in program._memory._all.values()) < 128 * 4 * model.config.n_vocab
