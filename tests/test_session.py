"""Sessions in files: an answer goes on as if it had never stopped, and no file but a sound one of this model is believed."""

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from command_line import Call
from random_models import random_model, write_random_model
from shapes import PRESETS

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.kv_cache import PAGE, KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import LOGITS, Backend, Batch, Segment
from qwencli.engine.session import MAGIC, load, save
from qwencli.errors import ContextFull, FormatError, InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.network.load import load_model
from qwencli.network.model import Model

N, MORE, N_CTX = PAGE + 21, 5, 1000
MAKE: dict[str, Callable[[Model], Backend]] = {
    "cpu": lambda model: CPUBackend(model, 2),
    "numpy": NumpyBackend,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return random_model(tmp_path_factory.mktemp("model"), "Q8_0")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose pages are small."""
    return tiny_model(tmp_path_factory.mktemp("model") / "m.gguf")


def tiny_model(path: Path, seed: int = 0, **changed: Any) -> Model:
    config = tiny_models.config(num_hidden_layers=1, num_key_value_heads=1, head_dim=8, **changed)
    tiny_models.write_gguf(path, config, tiny_models.weights(config, seed))
    return load_model(GGUFFile(path))


def logits(backend: Backend, kv: KVSequence, tokens: list[int]) -> np.ndarray:
    """Of the last of `tokens`, those that the sequence doesn't hold yet being run."""
    rows: np.ndarray = backend.run([LOGITS], Batch([Segment(kv, tokens[kv.length :], 1)]))[LOGITS]
    return rows


def tokens_of(model: Model, n: int = N) -> list[int]:
    tokens: list[int] = np.random.RandomState(n).randint(0, model.config.n_vocab, n).tolist()
    return tokens


def saved(path: Path, backend: Backend, n: int = N) -> list[int]:
    """A session of `n` tokens in a file. Returns the tokens."""
    tokens, kv = tokens_of(backend.model, n), KVSequence()
    if n:
        logits(backend, kv, tokens)
    save(path, backend, tokens, kv)
    return tokens


def greedy(backend: Backend, kv: KVSequence, tokens: list[int]) -> list[np.ndarray]:
    """The logits of MORE steps, in which the likeliest token follows each time."""
    found, tokens = [], [*tokens, 0]
    for _ in range(MORE):
        found.append(logits(backend, kv, tokens))
        tokens.append(int(found[-1].argmax()))
    return found


# What is loaded is what was saved


@pytest.mark.parametrize("n", [1, PAGE - 1, PAGE, N, 2 * PAGE])
@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_loaded_session_goes_on_with_the_same_bits(
    tmp_path: Path, model: Model, make: Callable[[Model], Backend], n: int
) -> None:
    first, kv, tokens = make(model), KVSequence(), tokens_of(model, n)
    logits(first, kv, tokens)
    first.cache.reserve(kv, 2 * PAGE)
    save(tmp_path / "s", first, [*tokens, 1, 2, 3], kv)
    expected = greedy(first, kv, tokens)
    second = make(model)
    second.cache.reserve(KVSequence(), 3 * PAGE)  # the pages have other numbers here
    session = load(tmp_path / "s", second, n)
    assert session.tokens.dtype == np.int32
    assert session.tokens.tolist() == tokens
    assert session.kv.length == n
    assert np.array_equal(greedy(second, session.kv, tokens), expected)


def test_a_part_of_a_session_can_be_used(tmp_path: Path, model: Model) -> None:
    tokens = saved(tmp_path / "s", CPUBackend(model, 2))
    backend = CPUBackend(model, 2)
    session = load(tmp_path / "s", backend, N_CTX)
    session.kv.length = n = PAGE + 3
    assert np.array_equal(
        logits(backend, session.kv, tokens[: n + 1]),
        logits(CPUBackend(model, 2), KVSequence(), tokens[: n + 1]),
    )


def test_an_empty_session(tmp_path: Path, tiny: Model) -> None:
    saved(tmp_path / "s", NumpyBackend(tiny), 0)
    session = load(tmp_path / "s", NumpyBackend(tiny), N_CTX)
    assert (len(session.tokens), session.kv.length, session.kv.pages) == (0, 0, [])


def test_progress_counts_pages(tmp_path: Path, tiny: Model) -> None:
    backend, kv, tokens = NumpyBackend(tiny), KVSequence(), tokens_of(tiny)
    logits(backend, kv, tokens)
    told: list[tuple[int, int]] = []
    save(tmp_path / "s", backend, tokens, kv, lambda done, total: told.append((done, total)))
    load(tmp_path / "s", backend, N_CTX, lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)] * 2


def test_more_positions_than_tokens_are_not_saved(tmp_path: Path, tiny: Model) -> None:
    backend, kv = NumpyBackend(tiny), KVSequence()
    logits(backend, kv, tokens_of(tiny))
    with pytest.raises(InputError, match=f"{N - 1} tokens, expected one for each of {N} positions"):
        save(tmp_path / "s", backend, tokens_of(tiny)[:-1], kv)
    assert os.listdir(tmp_path) == []


# Files of others


def refused(path: Path, backend: Backend, error: type[QwenError], message: str, n_ctx: int = N_CTX) -> None:
    """The file is refused in one line, and as it was; no page is lost."""
    before, page = path.read_bytes(), next_page(backend)
    with pytest.raises(error, match=message) as caught:
        load(path, backend, n_ctx)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()
    assert path.read_bytes() == before
    assert next_page(backend) == page


def next_page(backend: Backend) -> int:
    """The lowest page that is free."""
    held = KVSequence()
    backend.cache.reserve(held, 1)
    page = held.pages[0]
    backend.cache.release(held)
    return page


def test_another_model(tmp_path: Path, tiny: Model) -> None:
    saved(tmp_path / "s", NumpyBackend(tiny))
    other = tiny_model(tmp_path / "other.gguf", seed=1)
    assert os.path.getsize(other.file.path) == os.path.getsize(tiny.file.path)
    refused(
        tmp_path / "s",
        NumpyBackend(other),
        InputError,
        r"a session of another model \('m.gguf'\), not of 'other.gguf'",
    )


def test_another_backend(tmp_path: Path, model: Model) -> None:
    saved(tmp_path / "s", NumpyBackend(model))
    refused(
        tmp_path / "s",
        CPUBackend(model, 1),
        InputError,
        r"a session of another backend or of other cache types \(its KV cache is '<f4 ",
    )


def test_a_longer_session_than_the_context(tmp_path: Path, tiny: Model) -> None:
    saved(tmp_path / "s", NumpyBackend(tiny))
    refused(
        tmp_path / "s",
        NumpyBackend(tiny),
        ContextFull,
        f"{N} tokens, more than the context of {N - 1}: raise -c",
        N - 1,
    )


def test_fingerprints_tell_models_apart_whatever_their_names(
    tmp_path: Path, model: Model, tiny: Model
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(tiny.file.path, copy)
    assert (
        GGUFFile(copy).fingerprint()
        == tiny.file.fingerprint()
        == GGUFFile(copy, use_mmap=False).fingerprint()
    )
    prints = {
        tiny.file.fingerprint(),
        model.file.fingerprint(),
        tiny_model(tmp_path / "weights.gguf", 1).file.fingerprint(),
        tiny_model(tmp_path / "metadata.gguf", rope_theta=10001.0).file.fingerprint(),
        random_model(tmp_path, "F16").file.fingerprint(),
    }
    data = copy.read_bytes()
    for info in tiny.file.tensors.values():  # one bit of one tensor
        for place in info.offset, info.offset + info.n_bytes - 1:
            copy.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            prints.add(GGUFFile(copy).fingerprint())
    assert len(prints) == 5 + 2 * len(tiny.file.tensors)


# Damage


def test_every_damaged_byte_is_found(tmp_path: Path, tiny: Model) -> None:
    backend, path = NumpyBackend(tiny), tmp_path / "s"
    saved(path, backend)
    data = path.read_bytes()
    pages = len(data) - 2 * len(backend.read_page(0, 0)) - 32
    places = [
        *range(pages),
        *np.random.RandomState(0).randint(pages, len(data), 300),
        *range(len(data) - 33, len(data)),
    ]
    for i, place in enumerate(places):
        changed = bytearray(data)
        changed[place] ^= 1 << i % 8
        path.write_bytes(changed)
        with pytest.raises(QwenError) as caught:
            load(path, backend, N_CTX)
        assert str(caught.value).isprintable()


def test_swapped_and_shifted_data_is_found(tmp_path: Path, tiny: Model) -> None:
    backend, path = NumpyBackend(tiny), tmp_path / "s"
    saved(path, backend, 2 * PAGE)
    data = path.read_bytes()
    size = len(backend.read_page(0, 0))
    start = len(data) - 32 - 2 * size
    head, first, second, end = data[:start], data[start : start + size], data[start + size : -32], data[-32:]
    words = first[8:16] + first[:8] + first[16:]
    for pages in (
        second + first,
        words + second,
        first[512:] + first[:512] + second,
        bytes(512) + first[512:] + second,
    ):
        path.write_bytes(head + pages + end)
        refused(
            path, backend, FormatError, r"a damaged session \(the checksum of its pages differs\): remove it"
        )


def test_every_length_is_checked(tmp_path: Path, tiny: Model) -> None:
    backend, path = NumpyBackend(tiny), tmp_path / "s"
    saved(path, backend)
    data = path.read_bytes()
    for n in *range(600), len(data) - 1, len(data) // 2:
        path.write_bytes(data[:n])
        refused(path, backend, FormatError, "not a session|damaged")
    path.write_bytes(data + b"\0")
    refused(path, backend, FormatError, f"it has {len(data) + 1} bytes, not those that its header promises")


@pytest.mark.parametrize("n", [0, 1, 15, 24, 100, 10_000])
def test_random_bytes(tmp_path: Path, tiny: Model, n: int) -> None:
    path, draw = tmp_path / "s", np.random.RandomState(n)
    for begin in b"", MAGIC, MAGIC + struct.pack("<I", 1):
        path.write_bytes(begin + draw.bytes(n))
        refused(path, NumpyBackend(tiny), FormatError, "session")


def forged(
    path: Path,
    tokens: list[int],
    rest: int | None = None,
    version: int = 1,
    header: bytes | None = None,
    **changed: Any,
) -> None:
    """Rewrite a session's header with sums that are right. `rest` is how many bytes follow the header's sum, by default as before."""
    data = path.read_bytes()
    n = struct.unpack_from("<I", data, len(MAGIC) + 4)[0]
    about = json.loads(data[len(MAGIC) + 8 : len(MAGIC) + 8 + n])
    pages = data[len(MAGIC) + 8 + n + 4 * about["n_tokens"] + 32 :]
    header = json.dumps(about | changed).encode() if header is None else header
    head = MAGIC + struct.pack("<II", version, len(header)) + header + np.array(tokens, "<i4").tobytes()
    path.write_bytes(head + hashlib.sha256(head).digest() + pages[:rest])


NOT_OURS: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"1",
    b'"x"',
    b"\xff",
    b'{"n_tokens": 1}',
    b"9" * 5000,
    b"[" * 60_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
]


@pytest.mark.parametrize("header", NOT_OURS, ids=range(len(NOT_OURS)))
def test_headers_that_are_none(tmp_path: Path, tiny: Model, header: bytes) -> None:
    saved(tmp_path / "s", NumpyBackend(tiny))
    forged(tmp_path / "s", [], header=header)
    refused(tmp_path / "s", NumpyBackend(tiny), FormatError, r"a damaged session \(its header is b")


NO_COUNTS: tuple[Any, ...] = -1, -(2**63), 85.0, True, "85", None, [85], 1e400
WRONG: list[dict[str, Any]] = [
    *({name: value} for name in ("n_tokens", "page_bytes") for value in NO_COUNTS),
    {"n_tokens": -64, "page_bytes": -1},
    *({name: other} for name in ("model", "fingerprint", "kv_layout") for other in (1, None, ["x"])),
    {"more": 1},
]
LIES: list[dict[str, Any]] = [
    *({name: value} for name in ("n_tokens", "page_bytes") for value in (0, 1, 2**31, 2**63, 10**400)),
    {"n_tokens": 2**40, "page_bytes": 0},
    {"n_tokens": 10**4200, "page_bytes": 10**4200},
]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *((wrong, "its header is b") for wrong in WRONG),
        *((lie, "bytes, not those that its header promises") for lie in LIES),
        ({"model": "m" * 2**16}, r"its header has \d+ bytes, expected at most 65536"),
    ],
    ids=range(len(WRONG) + len(LIES) + 1),
)
def test_headers_that_are_wrong(tmp_path: Path, tiny: Model, changes: dict[str, Any], message: str) -> None:
    path, backend = tmp_path / "s", NumpyBackend(tiny)
    tokens = saved(path, backend)
    forged(path, tokens, **changes)
    refused(path, backend, FormatError, message)


def test_other_sizes_of_pages_that_agree_with_the_file(tmp_path: Path, tiny: Model) -> None:
    path, backend = tmp_path / "s", NumpyBackend(tiny)
    size = len(backend.read_page(0, 0))
    for page_bytes in 0, 1, size - 1, size // 2:
        tokens = saved(path, backend)
        forged(path, tokens, 2 * page_bytes + 32, page_bytes=page_bytes)
        refused(path, backend, FormatError, f"its pages have {page_bytes} bytes, expected {size}")
    tokens = saved(path, backend)
    forged(path, [0] * 900, 32, page_bytes=0, n_tokens=900)
    refused(path, backend, FormatError, f"its pages have 0 bytes, expected {size}")


@pytest.mark.parametrize("token", [-1, -(2**31), 72, 2**31 - 1])
def test_tokens_outside_the_vocabulary(tmp_path: Path, tiny: Model, token: int) -> None:
    tokens = saved(tmp_path / "s", NumpyBackend(tiny))
    forged(tmp_path / "s", [*tokens[:-1], token])
    refused(tmp_path / "s", NumpyBackend(tiny), FormatError, "a token outside the vocabulary of 72")


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("recurrent") / "m.gguf"
    write_random_model(path, PRESETS["tiny-qwen35"], "F16")
    return load_model(GGUFFile(path))


@pytest.mark.parametrize(
    "states",
    [[64, 84], [63, 85], [85, 64], [85, 85], [0, 85], [-64, 85], ["64", 85], [True, 85], [64, 2**70], [85]],
)
def test_states_behind_other_tokens_than_there_are(
    tmp_path: Path, recurrent: Model, states: list[Any]
) -> None:
    backend = NumpyBackend(recurrent)
    tokens = saved(tmp_path / "s", backend, 85)
    assert load(tmp_path / "s", backend, N_CTX).kv.states.keys() == {64, 85}
    forged(tmp_path / "s", tokens, version=2, states=states)
    refused(tmp_path / "s", backend, FormatError, "a damaged session")


def test_states_of_a_model_that_has_none(tmp_path: Path, tiny: Model) -> None:
    tokens = saved(tmp_path / "s", NumpyBackend(tiny))
    forged(tmp_path / "s", tokens, version=2, states=[len(tokens)])
    refused(tmp_path / "s", NumpyBackend(tiny), FormatError, "its states are after")


def test_a_session_of_version_1_has_no_states(tmp_path: Path, tiny: Model) -> None:
    backend = NumpyBackend(tiny)
    tokens = saved(tmp_path / "s", backend)
    data = (tmp_path / "s").read_bytes()
    n = struct.unpack_from("<I", data, len(MAGIC) + 4)[0]
    about = json.loads(data[len(MAGIC) + 8 : len(MAGIC) + 8 + n])
    header = json.dumps(
        {name: value for name, value in about.items() if not name.startswith("state")}
    ).encode()
    forged(tmp_path / "s", tokens, header=header)
    session = load(tmp_path / "s", backend, N_CTX)
    assert (session.tokens.tolist(), session.kv.states) == (tokens, {})


def test_another_version(tmp_path: Path, tiny: Model) -> None:
    tokens = saved(tmp_path / "s", NumpyBackend(tiny))
    forged(tmp_path / "s", tokens, version=3)
    refused(tmp_path / "s", NumpyBackend(tiny), FormatError, "a session of version 3, expected 2")


def test_names_from_the_file_cannot_write_to_the_terminal(tmp_path: Path, tiny: Model) -> None:
    tokens = saved(tmp_path / "s", NumpyBackend(tiny))
    for name in "model", "kv_layout":
        lies: dict[str, Any] = {
            "fingerprint": "0" * (name == "model") or tiny.file.fingerprint(),
            name: "\x1b[2J\n" * 1000,
        }
        forged(tmp_path / "s", tokens, **lies)
        refused(tmp_path / "s", NumpyBackend(tiny), InputError, "another")


# Files that cannot be read or written


def test_what_cannot_be_read(tmp_path: Path, tiny: Model) -> None:
    with pytest.raises(QwenError, match="cannot be read: No such file or directory"):
        load(tmp_path / "none", NumpyBackend(tiny), N_CTX)
    with pytest.raises(InputError, match="not a regular file, expected a session"):
        load(tmp_path, NumpyBackend(tiny), N_CTX)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX only")
def test_a_fifo_blocks_nobody(tmp_path: Path, tiny: Model) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        load(tmp_path / "fifo", NumpyBackend(tiny), N_CTX)
    with pytest.raises(InputError, match="not a regular file"):
        saved(tmp_path / "fifo", NumpyBackend(tiny))


def test_no_memory_for_the_pages(tmp_path: Path, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "s", NumpyBackend(tiny))
    backend = NumpyBackend(tiny)
    pages: Any = backend.read_page

    def scarce(page: int, layer: int) -> Any:
        if page:
            raise QwenError(f"{tmp_path / 's'}: not enough memory")
        return pages(page, layer)

    monkeypatch.setattr(backend, "read_page", scarce)
    refused(tmp_path / "s", backend, QwenError, "not enough memory")


@pytest.mark.parametrize("when", [1, 2])
def test_ctrl_c_while_saving_leaves_the_old_file(tmp_path: Path, tiny: Model, when: int) -> None:
    backend, kv, path = NumpyBackend(tiny), KVSequence(), tmp_path / "s"
    tokens = saved(path, backend, 2 * PAGE)
    before = path.read_bytes()
    logits(backend, kv, tokens[::-1])

    def interrupt(done: int, total: int) -> None:
        if done == when:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(path, backend, tokens[::-1], kv, interrupt)
    assert path.read_bytes() == before
    with pytest.raises(KeyboardInterrupt):
        load(path, backend, N_CTX, interrupt)
    assert os.listdir(tmp_path) == ["s"]


FULL = """
import resource, sys
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.engine import session
from qwencli.errors import QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
backend, kv = NumpyBackend(load_model(GGUFFile(sys.argv[1]))), KVSequence()
backend.cache.fill(kv, 65, [])
if sys.argv[3] == "later":
    session.allocate = lambda *args: None
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    session.save(sys.argv[2], backend, [0] * 65, kv)
except QwenError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
@pytest.mark.parametrize("when", ["at once", "later"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, tiny: Model, when: str) -> None:
    """A limit on the size of files, which the kernel holds as it does a full disk's, in a process of its own."""
    path = tmp_path / "s"
    saved(path, NumpyBackend(tiny))
    before = path.read_bytes()
    command = [sys.executable, "-c", FULL, str(tiny.file.path), str(path), when]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["s"]


@pytest.mark.parametrize(
    ("name", "message"), [("none/s", "No such file or directory"), ("folder", "not a regular file")]
)
def test_run_knows_before_the_answer_that_it_cannot_be_saved(
    tmp_path: Path, call: Call, name: str, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    result = call("run", "-q", "-m", EMBEDDED, "--raw", "-p", "Once", "-n", 1, "--session", tmp_path / name)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert message in result.err
