"""Sessions: a sequence's tokens, keys and values in a file, to continue from there in another process.

The file, with all numbers little-endian:

- MAGIC; u32 version; u32 bytes of the header; the header, a JSON object; the tokens, i32; SHA-256 of all this;
- the pages of the KV cache: what each layer has there, as it is in the backend's memory, and zeros up to a multiple of UNIT bytes;
- the states of a recurrent model after the numbers of tokens that the header lists: after all tokens, and after the last border before
  them, for a next prompt that differs at the end;
- SHA-256 of the sums of all pages and states.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from io import BufferedReader
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from ..backends.kv_cache import PAGE, KVSequence, Layers, n_pages_for
from ..backends.protocol import I32, Backend, Bytes
from ..errors import ContextFull, FormatError, InputError, QwenError
from ..system.files import replacing

MAGIC = b"qwencli session\n"
VERSION = 2
MAX_HEADER = 2**16
FIELDS = {
    "model": str,
    "fingerprint": str,
    "kv_layout": str,
    "n_tokens": int,
    "page_bytes": int,
    "states": list,
    "state_bytes": int,
}
"""The fields of the header and their types. `model` is the name of the model's file, for messages."""
STATELESS: dict[str, Any] = {"states": [], "state_bytes": 0}
"""The fields that a header of version 1 lacks."""
DIGEST_BYTES = 32
SUM_ROWS = 64
UNIT = 8 * SUM_ROWS
"""Pages and states have a multiple of this many bytes in a session: their sums are of rows of 8-byte words."""
Progress = Callable[[int, int], None]
"""Called with the number of pages that are done, and the number of all."""


class Session(NamedTuple):
    """A session: `tokens`, i32 [n], are the tokens whose keys and values are in `kv`."""

    tokens: I32
    kv: KVSequence


class Part:
    """A page or a state in the backend's memory: what each of its layers has there, read and written as a whole."""

    def __init__(self, what: str, backend: Backend, number: int, layers: Sequence[int]) -> None:
        self.what = what
        self._number = number
        self._read = backend.read_page if what == "page" else backend.read_state
        self._write = backend.write_page if what == "page" else backend.write_state
        self._layers = layers
        n_bytes = sum(len(self._read(number, layer)) for layer in layers)
        self.n_bytes = -(-n_bytes // UNIT) * UNIT

    def read(self) -> Bytes:
        """Return the bytes of all layers, one after the other, and zeros after them."""
        data = np.zeros(self.n_bytes, np.uint8)
        start = 0
        for layer in self._layers:
            part = self._read(self._number, layer)
            data[start : start + len(part)] = part
            start += len(part)
        return data

    def write(self, data: Bytes) -> None:
        """Write what `read` has returned."""
        start = 0
        for layer in self._layers:
            end = start + len(self._read(self._number, layer))
            self._write(self._number, layer, data[start:end])
            start = end


def parts_of(backend: Backend, pages: Iterable[int], states: Iterable[int]) -> list[Part]:
    """Return pages and states as parts of a session. Raises QwenError if there is no memory for one."""
    layers = Layers.of(backend.model.graph.nodes.values())
    return [
        *(Part("page", backend, page, layers.attention) for page in pages),
        *(Part("state", backend, state, layers.recurrent) for state in states),
    ]


def save(
    path: str | os.PathLike[str],
    backend: Backend,
    tokens: Sequence[int] | I32,
    kv: KVSequence,
    progress: Progress | None = None,
) -> None:
    """Write the first `kv.length` of `tokens` with their keys and values, completely or not at all.

    No step of the sequence may run meanwhile. Raises InputError if tokens are missing, QwenError if the file can't be written.
    """
    file = backend.model.file
    ids = np.array(tokens[: kv.length], "<i4")
    if len(ids) < kv.length:
        raise InputError(f"there are {len(ids)} tokens, expected one for each of {kv.length} positions")
    borders = [border for border in kv.borders if border < kv.length]
    positions = [*borders[-1:], kv.length] if kv.states else []
    parts = parts_of(
        backend, kv.pages[: n_pages_for(kv.length)], [kv.states[position] for position in positions]
    )
    sizes = {part.what: part.n_bytes for part in parts}
    header = json.dumps(
        {
            "model": file.path.name,
            "fingerprint": file.fingerprint(),
            "kv_layout": backend.kv_layout,
            "n_tokens": kv.length,
            "page_bytes": sizes.get("page", 0),
            "states": positions,
            "state_bytes": sizes.get("state", 0),
        }
    ).encode()
    head = MAGIC + struct.pack("<II", VERSION, len(header)) + header + ids.tobytes()
    digest = hashlib.sha256()
    with replacing(path) as f:
        allocate(f, len(head) + sum(part.n_bytes for part in parts) + 2 * DIGEST_BYTES)
        f.write(head + hashlib.sha256(head).digest())
        for done, part in enumerate(parts, 1):
            data = part.read()
            f.write(data.data)
            digest.update(sums(data))
            if progress:
                progress(done, len(parts))
        f.write(digest.digest())


def load(
    path: str | os.PathLike[str], backend: Backend, n_ctx: int, progress: Progress | None = None
) -> Session:
    """Read a session into pages of the backend's cache, which the caller has to release.

    Raises FormatError for a file that is damaged or isn't a session, InputError for a session of another model or backend, ContextFull for
    one with more than `n_ctx` tokens, QwenError if the file can't be read or there is too little memory.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO would block
        raise InputError(f"{path}: not a regular file, expected a session")
    try:
        with open(path, "rb") as f:
            about, tokens = _read_head(f, path)
            _check_fit(about, tokens, backend, n_ctx, path)
            return Session(tokens, _read_pages(f, about, backend, path, progress))
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read_head(f: BufferedReader, path: str | os.PathLike[str]) -> tuple[dict[str, Any], I32]:
    """Read the header and the tokens. No length is trusted before it is checked against the file's size."""
    begin = f.read(len(MAGIC) + 8)
    if len(begin) < len(MAGIC) + 8 or not begin.startswith(MAGIC):
        raise FormatError(
            f"{path}: not a session: it begins with {begin[: len(MAGIC)]!r}, expected {MAGIC!r}"
        )
    version, n_header = struct.unpack_from("<II", begin, len(MAGIC))
    if not 1 <= version <= VERSION:
        raise FormatError(f"{path}: a session of version {version}, expected {VERSION}")
    if n_header > MAX_HEADER:
        raise damaged(path, f"its header has {n_header} bytes, expected at most {MAX_HEADER}")
    header = f.read(n_header)
    about = _parse(header, {} if version > 1 else STATELESS, path)
    n_tokens, size = about["n_tokens"], os.fstat(f.fileno()).st_size
    expected = (
        len(begin) + n_header + 4 * n_tokens + n_pages_for(n_tokens) * about["page_bytes"] + 2 * DIGEST_BYTES
    )
    expected += len(about["states"]) * about["state_bytes"]
    if size != expected:
        raise damaged(path, f"it has {size} bytes, not those that its header promises")
    tokens = f.read(4 * n_tokens)
    if hashlib.sha256(begin + header + tokens).digest() != f.read(DIGEST_BYTES):
        raise damaged(path, "the checksum of its header differs")
    return about, np.frombuffer(tokens, "<i4").astype(np.int32)


def _parse(header: bytes, defaults: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        about = json.loads(header)
    except (ValueError, RecursionError):
        about = None
    about = {**defaults, **about} if isinstance(about, dict) else {}
    if {name: type(value) for name, value in about.items()} != FIELDS or min(
        about[name] for name in FIELDS if FIELDS[name] is int
    ) < 0:
        raise damaged(path, f"its header is {header[:40]!r}")
    states = about["states"]
    if len(states) > 2 or not all(
        type(position) is int and 0 < position <= about["n_tokens"] for position in states
    ):
        raise damaged(path, f"its states are {states[:3]}")
    return about


def _check_fit(
    about: Mapping[str, Any], tokens: I32, backend: Backend, n_ctx: int, path: str | os.PathLike[str]
) -> None:
    file, n_vocab = backend.model.file, backend.model.config.n_vocab
    if about["fingerprint"] != file.fingerprint():
        raise InputError(
            f"{path}: a session of another model ({about['model'][:80]!r}), not of {file.path.name!r}:"
            " name another session file"
        )
    if about["kv_layout"] != backend.kv_layout:
        raise InputError(
            f"{path}: a session of another backend or of other cache types (its KV cache is {about['kv_layout'][:80]!r},"
            f" expected {backend.kv_layout!r}): name another session file"
        )
    *borders, last = about["states"] or [0]
    if last != (len(tokens) if backend.cache.recurrent else 0) or any(
        border == last or border % PAGE for border in borders
    ):
        raise damaged(path, f"its states are after {about['states']} of {len(tokens)} tokens")
    if len(tokens) > n_ctx:
        raise ContextFull(
            f"{path}: the session has {len(tokens)} tokens, more than the context of {n_ctx}: raise -c"
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < n_vocab:
        raise damaged(path, f"it has a token outside the vocabulary of {n_vocab}")


def _read_pages(
    f: BufferedReader,
    about: Mapping[str, Any],
    backend: Backend,
    path: str | os.PathLike[str],
    progress: Progress | None,
) -> KVSequence:
    kv = KVSequence()
    digest = hashlib.sha256()
    try:
        backend.cache.fill(kv, about["n_tokens"], about["states"])
        parts = parts_of(backend, kv.pages, [kv.states[position] for position in about["states"]])
        for done, part in enumerate(parts, 1):
            data = np.empty(part.n_bytes, np.uint8)
            if f.readinto(data.data) != about[f"{part.what}_bytes"]:
                expected = f"{about[f'{part.what}_bytes']} bytes, expected {part.n_bytes}"
                raise damaged(path, f"its {part.what}s have {expected}")
            digest.update(sums(data))
            part.write(data)
            if progress:
                progress(done, len(parts))
        if digest.digest() != f.read():
            raise damaged(path, "the checksum of its pages differs")
    except BaseException:
        backend.cache.release(kv)
        raise
    return kv


def sums(page: Bytes) -> bytes:
    """Return the sums of the rows and of the columns of a page's u64 words. They differ if a word has changed or words were swapped.

    They take a fifth of the time of CRC-32, about as long as reading the page, and less than a tenth of the time of SHA-256.
    """
    words = page.view("<u8").reshape(SUM_ROWS, -1)
    return bytes(words.sum(0).tobytes() + words.sum(1).tobytes())


def allocate(f: BinaryIO, n_bytes: int) -> None:
    """Allocate the file's space at once, so that writing takes less than half the time. Errors are ignored: writing reports them."""
    if hasattr(os, "posix_fallocate"):
        with suppress(OSError):
            os.posix_fallocate(f.fileno(), 0, n_bytes)


def damaged(path: str | os.PathLike[str], what: str) -> FormatError:
    return FormatError(f"{path}: a damaged session ({what}): remove it or name another")
