"""Typed access to a GGUF file's key-value pairs."""

import math
import struct
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import FormatError, ModelError, shown

STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
"""struct's letter for each numeric value type (`enum gguf_type` in ggml's gguf.h)."""
TYPE_NAMES = {
    0: "u8",
    1: "i8",
    2: "u16",
    3: "i16",
    4: "u32",
    5: "i32",
    6: "f32",
    BOOL: "bool",
    STRING: "str",
    ARRAY: "arr",
    10: "u64",
    11: "i64",
    12: "f64",
}
REQUIRED = object()
_KINDS = {int: "an integer", float: "a number", str: "a string", bool: "a boolean", list: "an array"}


class LazyArray:
    """An array in the file. It has been checked to be inside the file, but is only decoded by `read`.

    So a vocabulary of 151,936 strings costs nothing until it is used.
    """

    def __init__(self, where: str, elements: memoryview, elem_type: int, length: int) -> None:
        self._where, self._elements = where, elements
        self.elem_type, self._length = elem_type, length

    def __len__(self) -> int:
        return self._length

    def read(self) -> list[Any]:
        """The values as Python objects. Raises FormatError for strings that aren't UTF-8 and booleans that are neither 0 nor 1."""
        values, _ = decode_array(
            self._where, bytes(self._elements), 0, self.elem_type, self._length
        )  # slicing bytes is faster than slicing views
        return values


def decode_array(where: str, buffer: bytes, pos: int, elem_type: int, length: int) -> tuple[list[Any], int]:
    """Decode an array whose bounds `skip_array` has checked. Returns the values and the offset after them.

    Raises FormatError as LazyArray.read does.
    """
    if elem_type == STRING:
        return decode_strings(where, buffer, pos, length)
    if elem_type == ARRAY:
        arrays = []
        for _ in range(length):
            inner_type, inner_length = struct.unpack_from("<IQ", buffer, pos)
            values, pos = decode_array(where, buffer, pos + 12, inner_type, inner_length)
            arrays.append(values)
        return arrays, pos
    code = "B" if elem_type == BOOL else NUMBERS[elem_type]
    values = list(struct.unpack_from(f"<{length}{code}", buffer, pos))
    if elem_type == BOOL:
        values = [decode_bool(where, v) for v in values]
    return values, pos + length * struct.calcsize(code)


def decode_strings(where: str, buffer: bytes, pos: int, length: int) -> tuple[list[str], int]:
    """`length` strings from `pos` on, and where they end. Raises FormatError for one that isn't UTF-8."""
    unpack = struct.Struct("<Q").unpack_from
    strings = []
    try:
        for _ in range(length):  # 300,000 times for a real vocabulary
            start = pos + 8
            pos = start + unpack(buffer, pos)[0]
            strings.append(buffer[start:pos].decode())
    except UnicodeDecodeError:
        raise FormatError(f"{where}: string {len(strings)} isn't UTF-8: {buffer[start:pos][:12]!r}") from None
    return strings, pos


def decode_bool(where: str, byte: int) -> bool:
    """Raises FormatError for a byte other than 0 and 1."""
    if byte > 1:
        raise FormatError(f"{where}: a boolean has the value {byte}, expected 0 or 1")
    return bool(byte)


class MetadataValue(NamedTuple):
    """A value and its type in the file."""

    type: int
    value: Any

    @property
    def type_name(self) -> str:
        if self.type == ARRAY:
            return f"arr[{TYPE_NAMES[self.value.elem_type]},{len(self.value)}]"
        return TYPE_NAMES[self.type]


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a file. Indexing gives plain values, arrays as `LazyArray`; the typed getters check what they return.

    A getter raises ModelError, naming the file and the key, if the key is missing and there is no default, or if its value has another
    type or is outside `low .. high`.
    """

    def __init__(self, path: str, values: dict[str, MetadataValue]) -> None:
        self.path, self.typed = path, values

    def __getitem__(self, key: str) -> Any:
        return self.typed[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.typed)

    def __len__(self) -> int:
        return len(self.typed)

    def _get(self, key: str, kind: type, default: Any) -> Any:
        if key not in self.typed:
            if default is REQUIRED:
                raise ModelError(
                    f"{self.path}: metadata key '{shown(key)}' is missing, expected {_KINDS[kind]}"
                )
            return default
        value = self[key]
        found = list if isinstance(value, LazyArray) else type(value)
        if found is not kind and not (kind is float and found is int):
            raise ModelError(
                f"{self.path}: metadata key '{shown(key)}' is {_KINDS[found]}, expected {_KINDS[kind]}"
            )
        return kind(value) if kind is float else value

    def integer(self, key: str, default: Any = REQUIRED, low: float = 0, high: float = 2**31 - 1) -> Any:
        return self._in_range(key, self._get(key, int, default), low, high)

    def number(
        self, key: str, default: Any = REQUIRED, low: float = -math.inf, high: float = math.inf
    ) -> Any:
        value = self._get(key, float, default)
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelError(
                f"{self.path}: metadata key '{shown(key)}' is {shown(value)}, expected a finite number"
            )
        return self._in_range(key, value, low, high)

    def string(self, key: str, default: Any = REQUIRED) -> Any:
        return self._get(key, str, default)

    def boolean(self, key: str, default: Any = REQUIRED) -> Any:
        return self._get(key, bool, default)

    def array(self, key: str, elem: type, default: Any = REQUIRED, length: int | None = None) -> Any:
        """The decoded array, with elements of type `elem` (str, int, float or bool), and exactly `length` of them if that is given.

        Raises ModelError as the other getters do, FormatError as LazyArray.read does.
        """
        value = self._get(key, list, default)
        if not isinstance(value, LazyArray):
            return value
        found = {STRING: str, ARRAY: list, BOOL: bool, 6: float, 12: float}.get(value.elem_type, int)
        if found is not elem:
            raise ModelError(
                f"{self.path}: metadata key '{shown(key)}' is an array whose elements are each {_KINDS[found]}, "
                f"expected {_KINDS[elem]}"
            )
        if length not in (None, len(value)):
            raise ModelError(
                f"{self.path}: metadata key '{shown(key)}' is an array of {len(value)}, expected {length} elements"
            )
        return value.read()

    def _in_range(self, key: str, value: Any, low: float, high: float) -> Any:
        if value is not None and not low <= value <= high:
            raise ModelError(
                f"{self.path}: metadata key '{shown(key)}' is {shown(value)}, expected a value from {low} to {high}"
            )
        return value
