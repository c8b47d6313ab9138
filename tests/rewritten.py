"""Copies of a model file with other metadata and other tensors, by the gguf package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType as Kind


def rewrite(
    source: Path,
    target: Path,
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Path:
    """Copy `source` to `target`. `keys` are set, `tensors` (F32) added or replaced; None leaves one out. `renamed` tensors get other names.

    A value is written as its Python type says: integers as u32, floats as f32; an array as [i32], [f32], [bool] or [str]; a pair
    (Kind, value) as that kind.
    """
    reader = gguf.GGUFReader(source)
    keys, tensors, renamed = keys or {}, tensors or {}, renamed or {}
    arch = reader.fields["general.architecture"].contents()
    w = gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in keys or name == "general.architecture":
            continue
        is_array = field.types[0] == Kind.ARRAY
        w.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_array else None)
    for name, value in keys.items():
        if isinstance(value, tuple):
            w.add_key_value(name, value[1], value[0])
        elif value is not None:
            w.add_key_value(
                name,
                value,
                kind_of(value),
                kind_of(value[0], Kind.INT32) if isinstance(value, list) else None,
            )
    for t in reader.tensors:
        if t.name not in tensors:
            w.add_tensor(renamed.get(t.name, t.name), t.data, raw_dtype=t.tensor_type)
    for name, data in tensors.items():
        if data is not None:
            w.add_tensor(name, np.ascontiguousarray(data, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return target


def kind_of(value: Any, integer: Kind = Kind.UINT32) -> Kind:
    kinds = {bool: Kind.BOOL, int: integer, float: Kind.FLOAT32, str: Kind.STRING, list: Kind.ARRAY}
    return kinds[type(value)]
