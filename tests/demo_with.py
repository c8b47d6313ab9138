"""The demo model with other metadata, for tests of what files say."""

from pathlib import Path
from typing import Any

import gguf

from qwencli.hub.places import EMBEDDED


def demo_with(path: Path, **keys: Any) -> Path:
    """Write the demo with these keys, whose dots are written as two underscores: bools, whole numbers or texts."""
    reader, writer = gguf.GGUFReader(EMBEDDED), gguf.GGUFWriter(path, "qwen3")
    given = {name.replace("__", "."): value for name, value in keys.items()}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in {"general.architecture", *given}:
            of = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=of)
    for name, value in given.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}[type(value)]
        add(name, value)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
