"""GGUFFile on valid files: every type of value, both versions, split files, and the demo model compared with the gguf package's reader."""

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_builder import F32, Gguf, Tensor, f32, parts, tiny

from qwencli.errors import FormatError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.gguf.metadata import LazyArray
from qwencli.gguf.types import FILE_TYPES, FORK_TYPES, GGML_TYPES, REMOVED_TYPES
from qwencli.hub.places import EMBEDDED

VALUES: dict[str, list[Any]] = {
    "u8": [0, 255],
    "i8": [-128, 127],
    "u16": [0, 65535],
    "i16": [-32768, 32767],
    "u32": [0, 2**32 - 1],
    "i32": [-(2**31), 2**31 - 1],
    "f32": [-1.5, 3.4028234663852886e38],
    "bool": [True, False],
    "str": ["", "zwölf 十二 \0 \n"],
    "u64": [0, 2**64 - 1],
    "i64": [-(2**63), 2**63 - 1],
    "f64": [0.1, -1e308],
}
NESTED = {"[[u8]]": [[1, 2], [], [3]], "[[str]]": [["a"], ["b", "é"]], "[[[i32]]]": [[[1], [2, 3]], []]}
WRITER_TYPES = {
    "u8": "UINT8",
    "i8": "INT8",
    "u16": "UINT16",
    "i16": "INT16",
    "u32": "UINT32",
    "i32": "INT32",
    "f32": "FLOAT32",
    "bool": "BOOL",
    "str": "STRING",
    "u64": "UINT64",
    "i64": "INT64",
    "f64": "FLOAT64",
}


def all_values() -> dict[str, tuple[str, Any]]:
    scalars = {f"{kind}.{i}": (kind, v) for kind, values in VALUES.items() for i, v in enumerate(values)}
    return scalars | {f"array.{kind}": (f"[{kind}]", values) for kind, values in VALUES.items()}


def by_gguf_package(path: Path) -> dict[str, tuple[str, Any]]:
    values = all_values()
    writer = gguf.GGUFWriter(path, "any")
    for key, (kind, v) in values.items():
        value_type = gguf.GGUFValueType[WRITER_TYPES[kind.strip("[]")]]
        writer.add_key_value(
            key, v, *((gguf.GGUFValueType.ARRAY, value_type) if kind[0] == "[" else (value_type,))
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return values | {"general.architecture": ("str", "any")}


def by_hand(path: Path, version: int) -> dict[str, tuple[str, Any]]:
    values = (
        all_values() | {f"nested.{kind}": (kind, v) for kind, v in NESTED.items()} | {"empty": ("[str]", [])}
    )
    Gguf(values, version=version).write(path)
    return values


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("source", ["the gguf package", "version 2", "version 3"])
def test_every_type_of_value(tmp_path: Path, source: str, use_mmap: bool) -> None:
    path = tmp_path / "values.gguf"
    expected = by_gguf_package(path) if source == "the gguf package" else by_hand(path, int(source[-1]))
    file = GGUFFile(path, use_mmap)
    assert file.metadata.keys() == expected.keys()
    assert file.version == (2 if source == "version 2" else 3)
    assert file.size == path.stat().st_size
    for key, (kind, value) in expected.items():
        found = file.metadata[key]
        if kind.startswith("["):
            assert isinstance(found, LazyArray)
            assert len(found) == len(value), key
            found = found.read()
        assert found == value, key
        assert repr(found) == repr(value), key  # True is not 1, 1.0 is not 1


def test_type_names(tmp_path: Path) -> None:
    file = GGUFFile(Gguf(all_values() | {"nested": ("[[u8]]", [[1]])}).write(tmp_path / "names.gguf"))
    names = {key: value.type_name for key, value in file.metadata.typed.items()}
    assert [names[f"{kind}.0"] for kind in VALUES] == list(VALUES)
    assert names["array.str"] == "arr[str,2]"
    assert names["nested"] == "arr[arr,1]"


def test_arrays_are_decoded_when_read(tmp_path: Path) -> None:
    """An error inside an array doesn't matter to those who don't read it."""
    metadata: dict[str, tuple[str, Any]] = {
        "good": ("[str]", ["x"]),
        "bad": ("[str]", ["y", b"\xff\xfe"]),
        "flags": ("[bool]", [1, 7]),
    }
    file = GGUFFile(Gguf(metadata).write(tmp_path / "lazy.gguf"))
    assert file.metadata["good"].read() == ["x"]
    with pytest.raises(FormatError, match="'bad': string 1 isn't UTF-8"):
        file.metadata["bad"].read()
    with pytest.raises(FormatError, match="'flags': a boolean has the value 7"):
        file.metadata["flags"].read()


def test_tensors_of_all_ranks(tmp_path: Path) -> None:
    """Shapes are in NumPy's order, whatever is between the tensors and in whatever order they are listed."""
    arrays = {
        f"rank{n}": np.arange(np.prod(range(2, 2 + n)), dtype=np.float32).reshape(tuple(range(2, 2 + n)))
        for n in range(1, 5)
    }
    tensors = [f32(name, a)._replace(offset=4096 * i) for i, (name, a) in enumerate(arrays.items())]
    for t in tensors[:-1]:
        tensors[tensors.index(t)] = t._replace(data=t.data + bytes(4096 - len(t.data)))
    file = GGUFFile(Gguf({"general.alignment": ("u32", 64)}, tensors).write(tmp_path / "ranks.gguf"))
    for name, a in arrays.items():
        info = file.tensors[name]
        assert (info.shape, info.type.name, info.n_weights, info.n_bytes) == (
            a.shape,
            "F32",
            a.size,
            a.nbytes,
        )
        assert np.array_equal(file.data(info).view(np.float32), a)


def test_tables_need_not_be_in_the_order_of_the_data(tmp_path: Path) -> None:
    tensors = [Tensor("second", (8,), F32, bytes(32), 32), Tensor("first", (8,), F32, b"\1" * 32, 0)]
    file = GGUFFile(Gguf({}, tensors).write(tmp_path / "order.gguf"))
    assert list(file.tensors) == ["second", "first"]
    assert file.data(file.tensors["first"]).tobytes() == bytes(
        32
    )  # the data was written in the table's order
    assert file.data(file.tensors["second"]).tobytes() == b"\1" * 32


@pytest.mark.parametrize("alignment", [1, 8, 32, 4096])
def test_alignment(tmp_path: Path, alignment: int) -> None:
    tensors = [f32("a", [1, 2, 3]), f32("b", [4, 5])]
    path = Gguf({"general.alignment": ("u32", alignment)}, tensors).write(tmp_path / "aligned.gguf")
    file, reader = GGUFFile(path), gguf.GGUFReader(path)
    assert {t.name: t.data_offset for t in reader.tensors} == {
        t.name: t.offset for t in file.tensors.values()
    }
    assert file.data(file.tensors["b"]).view(np.float32).tolist() == [4, 5]


def test_no_tensors_and_bytes_after_the_last(tmp_path: Path) -> None:
    assert GGUFFile(Gguf().write(tmp_path / "nothing.gguf")).tensors == {}
    path = tmp_path / "longer.gguf"
    path.write_bytes(Gguf({}, [f32("a", [1])]).build() + b"after")
    assert GGUFFile(path).data(GGUFFile(path).tensors["a"]).view(np.float32).tolist() == [1]


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("model", ["demo", "qwen3", "qwen2"])
def test_models_as_the_gguf_package_reads_them(tmp_path: Path, model: str, use_mmap: bool) -> None:
    """The demo model, and files that the tests build, so that our builder is checked too."""
    path = EMBEDDED if model == "demo" else tiny(model).write(tmp_path / "tiny.gguf")
    file, reader = GGUFFile(path, use_mmap), gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    ours = {
        key: value.read() if isinstance(value, LazyArray) else value for key, value in file.metadata.items()
    }
    assert ours == theirs
    assert len(file.tensors) == len(reader.tensors) == {"demo": 68, "qwen3": 24, "qwen2": 27}[model]
    for t in reader.tensors:
        info = file.tensors[t.name]
        assert (info.shape, info.type.name, info.n_weights) == (
            tuple(t.shape.tolist())[::-1],
            t.tensor_type.name,
            t.n_elements,
        )
        assert (info.offset, info.n_bytes) == (t.data_offset, t.n_bytes)
        data = file.data(info)
        assert not data.flags.writeable
        assert data.shape == (
            t.data.shape if t.data.dtype == np.uint8 else (*t.data.shape[:-1], t.data.shape[-1] * 4)
        )
        assert data.tobytes() == t.data.tobytes(), t.name


def test_read_files_may_change(tmp_path: Path) -> None:
    path = tiny().write(tmp_path / "model.gguf")
    before = {name: GGUFFile(path).data(info).tobytes() for name, info in GGUFFile(path).tensors.items()}
    file = GGUFFile(path, use_mmap=False)
    path.write_bytes(b"")
    assert {name: file.data(info).tobytes() for name, info in file.tensors.items()} == before


def test_type_table_is_the_gguf_packages() -> None:
    q2_0 = {42: ("Q2_0", 64, 18)}  # block_q2_0 in ggml-common.h, for an older package
    theirs = q2_0 | {t.value: (t.name, *sizes) for t, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {t.id: (t.name, t.block_size, t.block_bytes) for t in GGML_TYPES.values()} == theirs
    forks = [number for names in FORK_TYPES.values() for number in names]
    assert len(set(forks)) == len(forks)
    assert not {*REMOVED_TYPES, *forks} & theirs.keys()


def test_file_types_are_the_gguf_packages() -> None:
    q2_0 = {41: "Q2_0"}  # LLAMA_FTYPE_MOSTLY_Q2_0 in llama.h
    theirs = q2_0 | {
        t.value: t.name.removeprefix("MOSTLY_").removeprefix("ALL_")
        for t in gguf.LlamaFileType
        if t.name != "GUESSED"
    }
    assert theirs == FILE_TYPES


def write_parts(folder: Path, files: list[Gguf], name: str = "m") -> list[Path]:
    return [file.write(folder / f"{name}-{i + 1:05}-of-{len(files):05}.gguf") for i, file in enumerate(files)]


@pytest.mark.parametrize("use_mmap", [True, False])
def test_split_files_open_as_one_from_any_part(tmp_path: Path, use_mmap: bool) -> None:
    whole = GGUFFile(tiny().write(tmp_path / "whole.gguf"))
    paths = write_parts(tmp_path, parts(tiny(), 3))
    for path in paths:
        file = GGUFFile(path, use_mmap)
        assert file.path == path
        assert file.size == sum(p.stat().st_size for p in paths)
        assert file.tensors.keys() == whole.tensors.keys()
        assert {t.part for t in file.tensors.values()} == {0, 1, 2}
        for name, info in file.tensors.items():
            assert file.data(info).tobytes() == whole.data(whole.tensors[name]).tobytes()
        assert file.metadata.keys() - whole.metadata.keys() == {
            "split.no",
            "split.count",
            "split.tensors.count",
        }


def test_split_files_as_the_gguf_package_writes_them(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "any", split_max_tensors=2)
    arrays = {f"t{i}": np.full((3, 4), i, np.float32) for i in range(5)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "w-00002-of-00003.gguf")
    assert file.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(file.data(file.tensors[name]).view(np.float32), array)


def test_missing_part(tmp_path: Path) -> None:
    paths = write_parts(tmp_path, parts(tiny(), 3))
    paths[1].unlink()
    with pytest.raises(QwenError, match=r"m-00002-of-00003\.gguf: cannot be read: No such file"):
        GGUFFile(paths[2])
    paths[0].unlink()
    with pytest.raises(QwenError, match=r"m-00001-of-00003\.gguf: cannot be read: No such file"):
        GGUFFile(paths[2])


def test_a_part_under_another_name(tmp_path: Path) -> None:
    first, second = parts(tiny(), 2)
    with pytest.raises(
        FormatError, match=r"alone\.gguf: is part 1 of 2, expected a name that ends in -00001-of-00002\.gguf"
    ):
        GGUFFile(first.write(tmp_path / "alone.gguf"))
    with pytest.raises(
        FormatError, match=r"alone\.gguf: is part 2 of 2, expected a name that ends in -00002-of-00002\.gguf"
    ):
        GGUFFile(second.write(tmp_path / "alone.gguf"))
    with pytest.raises(FormatError, match=r"m-00001-of-00003\.gguf: is part 1 of 2, expected a name"):
        GGUFFile(write_parts(tmp_path, [*parts(tiny(), 2), second])[0])


@pytest.mark.parametrize(
    ("part", "key", "value", "message"),
    [
        (1, "split.no", ("u16", 2), "says that it is part 3 of 3, expected part 2 of 3"),
        (0, "split.no", ("u16", 1), "says that it is part 2 of 3, expected part 1 of 3"),
        (2, "split.count", ("u16", 4), "says that it is part 3 of 4, expected part 3 of 3"),
        (1, "split.no", ("str", "1"), "'split.no' is a string, expected an integer"),
        (0, "split.count", ("i32", -3), "'split.count' is -3, expected a value from 0 to 9999"),
        (0, "split.tensors.count", ("i32", 25), "its 3 parts hold 24 tensors, expected 25"),
    ],
)
def test_parts_that_contradict_each_other(
    tmp_path: Path, part: int, key: str, value: tuple[str, Any], message: str
) -> None:
    files = parts(tiny(), 3)
    files[part].metadata[key] = value
    paths = write_parts(tmp_path, files)
    with pytest.raises(QwenError) as caught:
        GGUFFile(paths[0])
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{paths[part]}: ")


def test_a_tensor_in_two_parts(tmp_path: Path) -> None:
    files = parts(tiny(), 3)
    files[2].tensors.append(files[0].tensors[1])
    with pytest.raises(
        FormatError, match=r"00003-of-00003\.gguf: tensor 'output_norm.weight' is in an earlier part too"
    ):
        GGUFFile(write_parts(tmp_path, files)[0])


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages"
)
def test_a_file_that_is_read_asks_for_huge_pages() -> None:
    """In private memory: shared memory usually gets none, whatever it asks for."""
    file = GGUFFile(EMBEDDED, use_mmap=False)
    address = file.data(next(iter(file.tensors.values()))).ctypes.data
    lines = Path("/proc/self/smaps").read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if re.match("[0-9a-f]+-[0-9a-f]+ ", line)]
    for i, end in zip(starts, [*starts[1:], len(lines)]):
        first, last = (int(word, 16) for word in lines[i].split()[0].split("-"))
        if first <= address < last:
            flags = next(line for line in lines[i:end] if line.startswith("VmFlags:")).split()
            assert lines[i].split()[1].endswith("p")
            assert "hg" in flags
            return
    raise AssertionError("the file's memory isn't mapped")
