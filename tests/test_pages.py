"""Pages of the KV cache as memory: copied, read and written, with an answer that goes on as if it had never stopped."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from random_models import random_model

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE, KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Backend, Batch, Segment
from qwencli.network.model import Model

N = 2 * PAGE + 21
MAKE: dict[str, Callable[[Model], Backend]] = {
    "cpu": lambda model: CPUBackend(model, 2),
    "numpy": NumpyBackend,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return random_model(tmp_path_factory.mktemp("model"), "Q8_0")


@pytest.fixture(params=MAKE)
def make(request: pytest.FixtureRequest) -> Callable[[Model], Backend]:
    return MAKE[request.param]


def logits(backend: Backend, seq: KVSequence, tokens: list[int]) -> np.ndarray:
    """Of the last of `tokens`, those that the sequence doesn't hold yet being run."""
    rows: np.ndarray = backend.run([LOGITS], Batch([Segment(seq, tokens[seq.length :], 1)]))[LOGITS]
    return rows


def uninterrupted(backend: Backend, tokens: list[int]) -> np.ndarray:
    """The logits of the last token, in the steps of the tests: BLAS rounds a step of many tokens in another way."""
    seq = KVSequence()
    logits(backend, seq, tokens[:N])
    return logits(backend, seq, tokens)


def tokens_of(model: Model) -> list[int]:
    tokens: list[int] = np.random.RandomState(0).randint(0, model.config.n_vocab, N + 1).tolist()
    return tokens


def test_a_copied_page_is_the_page_and_its_own(model: Model, make: Callable[[Model], Backend]) -> None:
    tokens = tokens_of(model)
    backend, first = make(model), KVSequence()
    logits(backend, first, tokens[:N])
    second = backend.cache.share(first, N)
    backend.cache.reserve(second, N - second.length)
    backend.copy_page(first.pages[-1], second.pages[-1])
    second.length = N
    other = [*tokens[:N], (tokens[N] + 1) % model.config.n_vocab]
    found = logits(backend, second, other)  # writes to the copy, not to the first's last page
    assert np.array_equal(logits(backend, first, tokens), uninterrupted(make(model), tokens))
    assert np.array_equal(found, uninterrupted(make(model), other))


def test_bytes_of_pages_carry_a_sequence_to_another_cache(
    model: Model, make: Callable[[Model], Backend]
) -> None:
    tokens = tokens_of(model)
    backend, first = make(model), KVSequence()
    logits(backend, first, tokens[:N])
    another, second = make(model), KVSequence()
    another.cache.reserve(KVSequence(), 3 * PAGE)  # the pages have other numbers here
    another.cache.reserve(second, N)
    assert backend.kv_layout == another.kv_layout
    for source, target in zip(first.pages, second.pages):
        for layer in range(model.config.n_layer):
            data = backend.read_page(source, layer)
            assert data.dtype == np.uint8
            assert data.shape == another.read_page(target, layer).shape
            another.write_page(target, layer, data)
    second.length = N
    assert np.array_equal(logits(another, second, tokens), uninterrupted(backend, tokens))


def test_the_layout_tells_backends_and_shapes_apart(tmp_path: Path, model: Model) -> None:
    other = random_model(tmp_path, "Q8_0", n_layer=model.config.n_layer + 1)
    assert len({make(m).kv_layout for make in MAKE.values() for m in (model, other)}) == 4
