"""GGUF, the model format of GGML: a header, typed key-value pairs, a table of tensors, and the tensors' blocks.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything is little-endian; versions 2 and 3 differ only in
that 3 allows big-endian files, which are rejected here. Nothing in the file is trusted before it is checked against the
file's size: Python's integers don't overflow, and no count leads to an allocation larger than the bytes that it counts.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import stat
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FormatError, QwenError, shown
from .metadata import ARRAY, BOOL, NUMBERS, STRING, LazyArray, Metadata, MetadataValue, decode_bool
from .overrides import Scalar, overridden
from .types import GGML_TYPES, GGMLType, unknown_type

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAGIC = b"GGUF"
MAX_DIMS, MAX_NAME, MAX_KEY, MAX_NESTING, MAX_PARTS = 4, 64, 65535, 4, 9999
SAMPLE = 1024
SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the file.

    `shape` is in NumPy's order, rows first: a weight with n_in inputs and n_out outputs is (n_out, n_in). The file itself and GGML write
    dimensions the other way round. `offset` is in bytes from the start of the file that is part number `part`.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset: int
    n_bytes: int
    part: int

    @property
    def n_weights(self) -> int:
        return self.n_bytes // self.type.block_bytes * self.type.block_size


class GGUFFile:
    """A GGUF file, memory-mapped: opening it only reads the header and the tensor table.

    `metadata` maps keys to values and `tensors` maps names to TensorInfo; `version` is that of the format, `size` is the bytes of all
    parts together. A model split into parts (`name-00001-of-00003.gguf`) is opened from any of them and treated as one file. `buffers` are
    its parts in memory. With `use_mmap=False` they are read and not `mapped`, so that the file may change while it is in use (a mapped file
    that shrinks ends the process).

    Raises FormatError if anything in the file contradicts its size or the format, QwenError if it cannot be read.
    """

    replaced: Mapping[str, Scalar] = {}
    """Values of metadata that are not those of the file."""

    def __init__(self, path: str | os.PathLike[str], use_mmap: bool = True) -> None:
        self.path = Path(path)
        paths = [self.path]
        split = SPLIT_NAME.fullmatch(self.path.name)
        if split:
            paths = [self.path.with_name(f"{split['stem']}-00001-of-{split['count']}.gguf")]
        parts = [_Part(paths[0], 0, use_mmap)]
        first = parts[0].metadata
        n_parts = first.integer("split.count", 1, 0, MAX_PARTS) or 1
        if n_parts > 1:
            if not split or int(split["count"]) != n_parts:
                number = first.integer("split.no", 0, 0, MAX_PARTS) + 1
                name = f"-{number:05}-of-{n_parts:05}.gguf"
                raise FormatError(
                    f"{paths[0]}: is part {number} of {n_parts}, expected a name that ends in {name}"
                )
            paths = [
                self.path.with_name(f"{split['stem']}-{i + 1:05}-of-{n_parts:05}.gguf")
                for i in range(n_parts)
            ]
            parts += [_Part(part_path, i, use_mmap) for i, part_path in enumerate(paths) if i]
        self.buffers = [part.buffer for part in parts]
        self.mapped = use_mmap
        self.version: int = parts[0].version
        self.metadata: Metadata = first
        self.size: int = sum(len(part.buffer) for part in parts)
        self.tensors: Mapping[str, TensorInfo] = self._join(parts, n_parts)

    def _join(self, parts: list[_Part], n_parts: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for i, part in enumerate(parts):
            number, count = (
                part.metadata.integer(key, 0, 0, MAX_PARTS) for key in ("split.no", "split.count")
            )
            if n_parts > 1 and (number, count) != (i, n_parts):
                raise FormatError(
                    f"{part.path}: says that it is part {number + 1} of {count}, expected part {i + 1} of {n_parts}"
                )
            if twice := tensors.keys() & part.tensors.keys():
                raise FormatError(f"{part.path}: tensor '{shown(min(twice))}' is in an earlier part too")
            tensors |= part.tensors
        expected = self.metadata.integer("split.tensors.count", None) if n_parts > 1 else None
        if expected not in (None, len(tensors)):
            raise FormatError(
                f"{self.path}: its {n_parts} parts hold {len(tensors)} tensors, expected {expected}"
            )
        return tensors

    def data(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        """The tensor's blocks as stored in the file, without a copy and read-only: uint8 of shape (*shape[:-1], bytes per row)."""
        import numpy as np

        flat = np.frombuffer(self.buffers[tensor.part], np.uint8, tensor.n_bytes, tensor.offset)
        return flat.reshape(*tensor.shape[:-1], tensor.type.n_bytes(tensor.shape[-1]))

    def override(self, values: Mapping[str, Scalar]) -> None:
        """Replace values of the metadata, for whatever reads it from now on. Raises InputError as overrides.overridden does."""
        changed = {key: value for key, value in values.items() if self.metadata.get(key) != value}
        self.metadata = overridden(self.metadata, values)
        self.replaced = {**self.replaced, **changed}

    def fingerprint(self) -> str:
        """A hash that distinguishes this model from others, whatever the file's name; it takes milliseconds, since it reads only a sample.

        SHA-256, in hex, of each part's size and all that precedes its tensors, of the first and last SAMPLE bytes of every tensor, and of
        what was replaced in the metadata.
        """
        import hashlib

        digest = hashlib.sha256()
        for number, buffer in enumerate(self.buffers):
            tensors = [t for t in self.tensors.values() if t.part == number]
            start = min((t.offset for t in tensors), default=len(buffer))
            digest.update(struct.pack("<QQ", len(buffer), start))
            digest.update(buffer[:start])
            for t in tensors:
                blocks = buffer[t.offset : t.offset + t.n_bytes]
                digest.update(blocks[:SAMPLE])
                digest.update(blocks[-SAMPLE:])
        if self.replaced:
            digest.update(repr(sorted(self.replaced.items())).encode())
        return digest.hexdigest()


class _Part:
    """One file of a split GGUF, or all of one that is not split. Raises FormatError where it isn't GGUF, or damaged."""

    def __init__(self, path: Path, number: int, use_mmap: bool) -> None:
        self.path = path
        self.buffer = _map(path, use_mmap)
        r = _Reader(path, self.buffer)
        if r.take(4) != MAGIC:
            raise FormatError(
                f"{path}: not a GGUF file: it begins with {bytes(self.buffer[:4])!r}, expected {MAGIC!r}"
            )
        self.version = r.number("I")
        if self.version and self.version & 0xFFFF == 0:
            raise FormatError(f"{path}: a big-endian GGUF file, expected a little-endian one")
        if self.version not in (2, 3):
            raise FormatError(f"{path}: GGUF version {self.version}, expected 2 or 3")
        n_tensors, n_kv = r.count(24, "tensors"), r.count(13, "key-value pairs")
        self.metadata = Metadata(str(path), self._read_metadata(r, n_kv))
        self.tensors = self._read_tensors(r, n_tensors, number)

    def _read_metadata(self, r: _Reader, n_kv: int) -> dict[str, MetadataValue]:
        values: dict[str, MetadataValue] = {}
        for _ in range(n_kv):
            r.where = "the key of a key-value pair"
            key = r.string(MAX_KEY)
            if key in values:
                raise FormatError(f"{self.path}: metadata key '{shown(key)}' appears twice")
            r.where = f"metadata key '{shown(key)}'"
            value_type = r.number("I")
            values[key] = MetadataValue(value_type, r.value(value_type))
        return values

    def _read_tensors(self, r: _Reader, n_tensors: int, number: int) -> dict[str, TensorInfo]:
        entries: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(n_tensors):
            r.where = f"the table entry of tensor {len(entries)}"
            name = r.string(MAX_NAME)
            if name in entries:
                raise FormatError(f"{self.path}: tensor '{shown(name)}' appears twice")
            r.where = f"the table entry of tensor '{shown(name)}'"
            n_dims = r.number("I")
            if not 1 <= n_dims <= MAX_DIMS:
                raise FormatError(
                    f"{self.path}: tensor '{shown(name)}' has {n_dims} dimensions, expected 1 to {MAX_DIMS}"
                )
            dims = tuple(r.number("Q") for _ in range(n_dims))
            entries[name] = dims[::-1], r.number("I"), r.number("Q")
        alignment = self.metadata.integer("general.alignment", 32)
        if alignment < 1 or alignment & (alignment - 1):
            raise FormatError(f"{self.path}: general.alignment is {alignment}, expected a power of two")
        start = -(-r.pos // alignment) * alignment
        tensors = {
            name: self._check(name, shape, type_id, offset, alignment, start, number)
            for name, (shape, type_id, offset) in entries.items()
        }
        end = start
        for t in sorted(tensors.values(), key=lambda t: t.offset):
            if t.offset < end:
                raise FormatError(
                    f"{self.path}: tensor '{shown(t.name)}' begins at byte {t.offset}, "
                    f"inside the tensor before it, which ends at {end}"
                )
            end = t.offset + t.n_bytes
        return tensors

    def _check(
        self,
        name: str,
        shape: tuple[int, ...],
        type_id: int,
        offset: int,
        alignment: int,
        start: int,
        number: int,
    ) -> TensorInfo:
        where = f"{self.path}: tensor '{shown(name)}'"
        if type_id not in GGML_TYPES:
            raise FormatError(f"{where} has the unknown type {type_id} ({unknown_type(type_id)})")
        kind, n_weights = GGML_TYPES[type_id], 1
        for dim in shape:
            n_weights *= dim
        if not 0 < n_weights < 2**63:
            raise FormatError(
                f"{where} has the shape {list(shape)}, expected dimensions above 0 with a product below 2**63"
            )
        if shape[-1] % kind.block_size:
            raise FormatError(
                f"{where} has rows of {shape[-1]} weights, expected a multiple of {kind.name}'s block of {kind.block_size}"
            )
        if offset % alignment:
            raise FormatError(
                f"{where} has the offset {offset}, expected a multiple of the alignment {alignment}"
            )
        n_bytes = kind.n_bytes(n_weights)
        if start + offset + n_bytes > len(self.buffer):
            raise FormatError(
                f"{where} {list(shape)} {kind.name} ends at byte {start + offset + n_bytes}, "
                f"but the file has {len(self.buffer)}: truncated?"
            )
        return TensorInfo(name, shape, kind, start + offset, n_bytes, number)


class _Reader:
    """A cursor over the buffer that cannot leave it. `where` says what is being read, for error messages; all errors are FormatError."""

    def __init__(self, path: Path, buffer: memoryview) -> None:
        self.path, self.buffer, self.pos, self.where = path, buffer, 0, "the header"

    def _need(self, n_bytes: int) -> None:
        if n_bytes > len(self.buffer) - self.pos:
            raise FormatError(
                f"{self.path}: {self.where} ends at byte {self.pos + n_bytes}, "
                f"but the file has {len(self.buffer)}: truncated?"
            )

    def take(self, n_bytes: int) -> bytes:
        self._need(n_bytes)
        self.pos += n_bytes
        return bytes(self.buffer[self.pos - n_bytes : self.pos])

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize(code)))[0]

    def count(self, least_bytes: int, of: str) -> int:
        """A count of things that take at least `least_bytes` bytes each, checked to be no more than the file can hold."""
        n: int = self.number("Q")
        if n * least_bytes > len(self.buffer) - self.pos:
            raise FormatError(
                f"{self.path}: {self.where} counts {n} {of}, more than a file of {len(self.buffer)} bytes can hold"
            )
        return n

    def string(self, limit: int | None = None) -> str:
        n_bytes = self.number("Q")
        if limit and n_bytes > limit:
            raise FormatError(
                f"{self.path}: {self.where} has a name of {n_bytes} bytes, expected {limit} at most"
            )
        raw = self.take(n_bytes)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(
                f"{self.path}: {self.where} has a string that isn't UTF-8: {raw[:12]!r}"
            ) from None

    def value(self, value_type: int) -> Any:
        if value_type in NUMBERS:
            return self.number(NUMBERS[value_type])
        if value_type == STRING:
            return self.string()
        if value_type == BOOL:
            return decode_bool(f"{self.path}: {self.where}", self.number("B"))
        if value_type == ARRAY:
            elem_type, start = self.number("I"), self.pos
            length = self.skip_array(elem_type, 1)
            return LazyArray(
                f"{self.path}: {self.where}", self.buffer[start + 8 : self.pos], elem_type, length
            )
        raise FormatError(f"{self.path}: {self.where} has the unknown value type {value_type}")

    def skip_array(self, elem_type: int, depth: int) -> int:
        """Move past an array, checking that each element is inside the file. Returns the array's length."""
        if elem_type in NUMBERS or elem_type == BOOL:
            size = struct.calcsize(NUMBERS.get(elem_type, "B"))
            length = self.count(size, "array elements")
            self.pos += length * size
        elif elem_type == STRING:
            length = self.count(8, "strings")
            self._skip_strings(length)
        elif elem_type == ARRAY:
            if depth == MAX_NESTING:
                raise FormatError(f"{self.path}: {self.where} nests arrays more than {MAX_NESTING} deep")
            length = self.count(12, "arrays")
            for _ in range(length):
                self.skip_array(self.number("I"), depth + 1)
        else:
            raise FormatError(f"{self.path}: {self.where} has the unknown array type {elem_type}")
        return length

    def _skip_strings(self, length: int) -> None:
        unpack = struct.Struct("<Q").unpack_from
        buffer = self.buffer
        pos = self.pos
        end = len(buffer) - 8
        for _ in range(length):  # 300,000 times for a real vocabulary, so there is only one call in the loop
            if pos > end:
                break
            pos += 8 + unpack(buffer, pos)[0]
        else:
            end += 8  # nothing has to follow the last string
        if pos > end:
            raise FormatError(
                f"{self.path}: a string of {self.where} extends beyond the file of {len(buffer)} bytes: truncated?"
            )
        self.pos = pos


def _map(path: Path, use_mmap: bool) -> memoryview:
    try:
        with open(path, "rb", opener=_open_regular) as f:
            size = os.fstat(f.fileno()).st_size
            if size == 0:
                raise FormatError(f"{path}: the file is empty, expected a GGUF file")
            if use_mmap:
                return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
            return _read(f, size)
    except OSError as error:
        raise QwenError(f"{path}: cannot be read: {error.strerror or error}") from None


def _read(f: io.BufferedReader, size: int) -> memoryview:
    """Read a file into memory, in huge pages where the system has them: they are read faster than the small pages of a mapped file."""
    # private: shared memory, mmap's default, usually has no huge pages
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}
    memory = mmap.mmap(-1, size, **private)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    view, done = memoryview(memory), 0
    while n := f.readinto(view[done:]):
        done += n
    return view[:done].toreadonly()


def _open_regular(path: str, flags: int) -> int:
    """Open a regular file; reading a FIFO or a device would block or never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise QwenError(f"{path}: not a regular file, expected a GGUF file")
    return os.open(path, flags)
