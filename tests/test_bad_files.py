"""Damaged and hostile files: the error is one line that names the file and the value, and the exit code is 1.

Among them are files that exploit published vulnerabilities of other GGUF readers, each under its number. The first five are described
in Cisco Talos' reports TALOS-2024-1912 to -1916, the others in llama.cpp's advisories GHSA-vgg9-87g3-85w8, GHSA-3p4r-fq3f-q74v and
GHSA-96jg-mvhq-q7q7; those without a number in its pull requests 24263 and 24759 and issues 27200 and 27203.
"""

import os
import stat
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import F32, Gguf, f32, number, pair, parts, string, tiny

from qwencli.cli import main as run_cli
from qwencli.errors import FormatError, ModelError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED

MAX = 2**64 - 1
Q4_0, Q8_0, Q4_K, I8 = 2, 8, 12, 24


def header(n_tensors: int = 0, n_kv: int = 0, version: int = 3, rest: bytes = b"") -> bytes:
    return b"GGUF" + number("I", version) + number("Q", n_tensors) + number("Q", n_kv) + rest


def entry(
    name: str | bytes, dims: tuple[int, ...], type_id: int = F32, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """An entry of the tensor table."""
    count = number("I", len(dims) if n_dims is None else n_dims)
    return (
        string(name)
        + count
        + b"".join(number("Q", d) for d in dims)
        + number("I", type_id)
        + number("Q", offset)
    )


def table(*entries: bytes, data: int = 4096) -> bytes:
    """A file with these tensors, and some bytes of data after the table."""
    return header(len(entries), rest=b"".join(entries)) + bytes(data)


def metadata(**content: tuple[str, Any]) -> bytes:
    return Gguf({key.replace("__", "."): v for key, v in content.items()}, [f32("t", [1])]).build()


def array(elem_type: int, length: int, rest: bytes) -> bytes:
    """A key-value pair whose value is an array that claims to have `length` elements."""
    return header(
        n_kv=1, rest=string("a") + number("I", 9) + number("I", elem_type) + number("Q", length) + rest
    )


def typed_string(key: str, n_bytes: int) -> bytes:
    """A key-value pair whose value is a string that claims to have `n_bytes` bytes, and has 256."""
    return header(n_kv=1, rest=string(key) + number("I", 8) + number("Q", n_bytes) + b"A" * 256)


DEMO = EMBEDDED.read_bytes()[:200_000]

HOLES: dict[str, tuple[bytes, str]] = {
    # info->ne has room for four dimensions, n_dims was trusted
    "CVE-2024-21802 five": (
        table(entry("t", (1, 1, 1, 1, 1))),
        "tensor 't' has 5 dimensions, expected 1 to 4",
    ),
    "CVE-2024-21802 many": (
        table(entry("t", (1,) * 64, n_dims=2**32 - 1)),
        "tensor 't' has 4294967295 dimensions, expected 1 to 4",
    ),
    # the size of an array's buffer, n * sizeof(element), wraps
    "CVE-2024-21825 strings": (
        array(8, 2**60 + 1, string("x") * 99),
        "key 'a' counts 1152921504606846977 strings, more than a file of",
    ),
    "CVE-2024-21825 numbers": (
        array(10, 2**61 + 1, bytes(800)),
        "metadata key 'a' counts 2305843009213693953 array elements",
    ),
    "CVE-2024-21825 arrays": (
        array(9, 2**60, bytes(800)),
        "metadata key 'a' counts 1152921504606846976 arrays",
    ),
    # n_tensors * sizeof(gguf_tensor_info), of 88 bytes, wraps to 80
    "CVE-2024-21836 wraps": (
        header(2**64 // 88 + 1, rest=bytes(800)),
        "the header counts 209622091746699451 tensors, more than a file of",
    ),
    "CVE-2024-21836 largest": (header(MAX, rest=bytes(800)), f"the header counts {MAX} tensors"),
    # the n + 1 bytes for a string of n bytes wrap to 0
    "CVE-2024-23496 key": (
        header(n_kv=1, rest=number("Q", MAX) + b"A" * 256),
        f"a name of {MAX} bytes, expected 65535 at most",
    ),
    "CVE-2024-23496 value": (
        typed_string("general.name", MAX),
        "key 'general.name' ends at byte 18446744073709551671, but the file has",
    ),
    "CVE-2024-23496 cursor": (
        typed_string("a", MAX - 40),
        "metadata key 'a' ends at byte 18446744073709551620",
    ),  # wraps to 4
    "CVE-2024-23496 in an array": (
        array(8, 2, string("x") + number("Q", MAX - 7) + bytes(64)),
        "a string of metadata key 'a' extends beyond",
    ),
    "CVE-2024-23496 name": (
        table(number("Q", MAX) + bytes(64)),
        f"the table entry of tensor 0 has a name of {MAX} bytes, expected 64",
    ),
    # n_kv * sizeof(gguf_kv), of 48 bytes, wraps to 32
    "CVE-2024-23605 wraps": (
        header(n_kv=2**64 // 48 + 1, rest=bytes(800)),
        "the header counts 384307168202282326 key-value pairs",
    ),
    "CVE-2024-23605 signed": (
        header(n_kv=2**63, rest=bytes(800)),
        "the header counts 9223372036854775808 key-value pairs",
    ),
    # the sum of all tensors' sizes wraps: four of 2^62 bytes and a small one
    "CVE-2025-53630": (
        table(*(entry(f"t{i}", (2**62,), I8, i * 2**62) for i in range(4)), entry("t4", (32,), I8, 0)),
        "tensor 't0' [4611686018427387904] I8 ends at byte",
    ),
    # the sum of the sizes just fits into 64 bits, and wraps when the tensors' structs are added to it
    "CVE-2026-27940": (
        table(entry("a", (2**63 - 32,), I8, 0), entry("b", (2**63 - 32,), I8, 2**63 - 32)),
        "tensor 'a' [9223372036854775776] I8 ends at byte",
    ),
    # a small buffer for a huge tensor: 4 * 1024 * (2^52 + 1024) bytes are 4 MB modulo 2^64, 4 * 4 * (2^60 + 1) are 16
    "CVE-2026-33298 4 MB": (
        table(entry("t", (1024, 2**52 + 1024))),
        "tensor 't' [4503599627371520, 1024] F32 ends at byte",
    ),
    "CVE-2026-33298 16 bytes": (
        table(entry("t", (4, 2**60 + 1))),
        "tensor 't' [1152921504606846977, 4] F32 ends at byte",
    ),
    "CVE-2026-33298 blocks": (
        table(entry("t", (5124095576030431008,), Q4_0)),
        "tensor 't' [5124095576030431008] Q4_0 ends at byte",
    ),
    "padding wraps": (
        table(entry("t", (2**62 - 1,)), entry("u", (8,))),
        "tensor 't' [4611686018427387903] F32 ends at byte",
    ),
    "elements wrap": (
        table(entry("t", (2**63 - 1, 2), I8)),
        "tensor 't' has the shape [2, 9223372036854775807], expected",
    ),
    "elements wrap to few": (
        table(entry("t", (2**32, 2**32, 2**32, 2**32), I8)),
        "expected dimensions above 0 with a product below 2**63",
    ),
    "alignment 0": (
        metadata(general__alignment=("u32", 0)),
        "general.alignment is 0, expected a power of two",
    ),
    "alignment 48": (
        metadata(general__alignment=("u32", 48)),
        "general.alignment is 48, expected a power of two",
    ),
    "alignment 2^31": (
        metadata(general__alignment=("u32", 2**31)),
        "'general.alignment' is 2147483648, expected a value from 0 to",
    ),
    "alignment 2^30": (
        metadata(general__alignment=("u32", 2**30)),
        "tensor 't' [1] F32 ends at byte 1073741828, but the file has",
    ),
    "alignment a string": (
        metadata(general__alignment=("str", "32")),
        "'general.alignment' is a string, expected an integer",
    ),
    "alignment negative": (metadata(general__alignment=("i32", -32)), "'general.alignment' is -32"),
    "a dimension of 0": (
        table(entry("t", (0, 4))),
        "tensor 't' has the shape [4, 0], expected dimensions above 0",
    ),
    "arrays nested 10000 deep": (
        array(9, 1, (number("I", 9) + number("Q", 1)) * 10_000),
        "metadata key 'a' nests arrays more than 4 deep",
    ),
}

DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file is empty, expected a GGUF file"),
    "text": (b"hello world\n" * 9, "not a GGUF file: it begins with b'hell', expected b'GGUF'"),
    "two bytes": (b"GG", "the header ends at byte 4, but the file has 2: truncated?"),
    "magic alone": (b"GGUF", "the header ends at byte 8, but the file has 4: truncated?"),
    "GGML's older format": (b"tjgg" + bytes(99), "it begins with b'tjgg', expected b'GGUF'"),
    "version 0": (header(version=0), "GGUF version 0, expected 2 or 3"),
    "version 1": (header(version=1), "GGUF version 1, expected 2 or 3"),
    "version 4": (header(version=4), "GGUF version 4, expected 2 or 3"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        "a big-endian GGUF file, expected a little-endian one",
    ),
    "more pairs than there are": (
        header(n_kv=2, rest=pair("a", "u8", 1) + bytes(12)),
        "key '' ends at byte 51, but the file has 50",
    ),
    "more tensors than there are": (
        table(entry("t", (1,)), data=0)[:-8],
        "the table entry of tensor 't' ends at byte",
    ),
    "a key twice": (
        header(n_kv=2, rest=pair("a", "u8", 1) + pair("a", "u8", 2)),
        "metadata key 'a' appears twice",
    ),
    "a key that isn't UTF-8": (
        header(n_kv=1, rest=pair(b"a\xff", "u8", 1)),
        r"a key-value pair has a string that isn't UTF-8: b'a\xff'",
    ),
    "a value that isn't UTF-8": (
        metadata(a__b=("str", b"caf\xe9")),
        r"metadata key 'a.b' has a string that isn't UTF-8: b'caf\xe9'",
    ),
    "a key of 65536 bytes": (
        header(n_kv=1, rest=pair("k" * 65536, "u8", 1)),
        "a name of 65536 bytes, expected 65535 at most",
    ),
    "an unknown type of value": (
        header(n_kv=1, rest=string("a") + number("I", 13)),
        "metadata key 'a' has the unknown value type 13",
    ),
    "an unknown type of array": (array(99, 0, b""), "metadata key 'a' has the unknown array type 99"),
    "a boolean of 2": (
        metadata(a=("bool", 2)),
        "metadata key 'a': a boolean has the value 2, expected 0 or 1",
    ),
    "a tensor twice": (table(entry("t", (8,)), entry("t", (8,), offset=32)), "tensor 't' appears twice"),
    "a tensor without dimensions": (table(entry("t", ())), "tensor 't' has 0 dimensions, expected 1 to 4"),
    "a name of 65 bytes": (
        table(entry("n" * 65, (8,))),
        "the table entry of tensor 0 has a name of 65 bytes, expected 64 at most",
    ),
    "a name that isn't UTF-8": (
        table(entry(b"\xff", (8,))),
        r"the table entry of tensor 0 has a string that isn't UTF-8: b'\xff'",
    ),
    "an unknown tensor type": (
        table(entry("t", (8,), 43)),
        "unknown type 43 (GGML's types end at 42: the file is damaged, made for a fork, or",
    ),
    "a type of ik_llama.cpp": (
        table(entry("t", (8,), 139)),
        "unknown type 139 (IQ4_K, which only ik_llama.cpp reads: use a file of the",
    ),
    "a repacked type": (
        table(entry("t", (8,), 212)),
        "tensor 't' has the unknown type 212 (Q4_K_R4, which only ik_llama.cpp reads",
    ),
    "a type of PrismML": (
        table(entry("t", (8,), 142)),
        "unknown type 142 (PQ2_0, which only PrismML's llama.cpp reads: use a file",
    ),
    "a type of bitnet.cpp": (
        table(entry("t", (8,), 36)),
        "tensor 't' has the unknown type 36 (I2_S, which only bitnet.cpp reads: use",
    ),
    "a removed tensor type": (
        table(entry("t", (8,), 4)),
        "unknown type 4 (Q4_2, which GGML no longer reads: convert the model again)",
    ),
    "the largest tensor type": (
        table(entry("t", (8,), 2**32 - 1)),
        "tensor 't' has the unknown type 4294967295",
    ),
    "a row of no whole block": (
        table(entry("t", (48, 2), Q4_0)),
        "rows of 48 weights, expected a multiple of Q4_0's block of 32",
    ),
    "a vector of half a block": (
        table(entry("t", (128,), Q4_K)),
        "rows of 128 weights, expected a multiple of Q4_K's block of 256",
    ),
    "a row of half a block of 128": (
        table(entry("t", (64, 2), 41)),
        "rows of 64 weights, expected a multiple of Q1_0's block of 128",
    ),
    "a row of half a block of 64": (
        table(entry("t", (32, 2), 42)),
        "rows of 32 weights, expected a multiple of Q2_0's block of 64",
    ),
    "a row of one and a half": (
        table(entry("t", (96, 2), 40)),
        "rows of 96 weights, expected a multiple of NVFP4's block of 64",
    ),
    "blocks only over rows": (
        table(entry("t", (16, 2), Q8_0)),
        "rows of 16 weights, expected a multiple of Q8_0's block of 32",
    ),
    "an offset between": (
        table(entry("t", (1,), offset=16)),
        "tensor 't' has the offset 16, expected a multiple of the alignment 32",
    ),
    "an offset outside": (
        table(entry("t", (1,), offset=2**20)),
        "tensor 't' [1] F32 ends at byte 1048644, but the file has",
    ),
    "an offset that wraps": (
        table(entry("t", (16,), offset=2**64 - 32)),
        "tensor 't' [16] F32 ends at byte 18446744073709551712",
    ),
    "a tensor inside another": (
        table(entry("t", (64,)), entry("u", (8,), offset=32)),
        "tensor 'u' begins at byte 128, inside the tensor",
    ),
    "no room for the data": (
        table(entry("t", (1025,))),
        "tensor 't' [1025] F32 ends at byte 4164, but the file has 4153: truncated?",
    ),
}


def message_of(path: Path, use_mmap: bool = True) -> str:
    """The message of the FormatError or ModelError that is raised when the file is opened."""
    with pytest.raises((FormatError, ModelError)) as caught:
        GGUFFile(path, use_mmap)
    return str(caught.value)


@pytest.mark.parametrize("name", [*HOLES, *DAMAGED])
def test_damaged_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    content, expected = (HOLES | DAMAGED)[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    message = message_of(path)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message
    assert message_of(path, use_mmap=False) == message
    assert run_cli(["info", str(path)]) == 1
    assert capfd.readouterr() == ("", f"qwencli: error: {message}\n")
    assert run_cli(["run", "-q", "-m", str(path), "-p", "x", "-n", "1"]) == 1
    assert capfd.readouterr() == ("", f"qwencli: error: {message}\n")


@pytest.mark.parametrize("use_mmap", [True, False])
@pytest.mark.parametrize("n_bytes", [1, 7, 23, 24, 31, 300, 5_000, 90_000, 190_000, 199_999])
def test_truncated_demo_model(tmp_path: Path, n_bytes: int, use_mmap: bool) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(DEMO[:n_bytes])
    message = message_of(path, use_mmap)
    assert message.startswith(f"{path}: ")
    assert f"{n_bytes}" in message


def not_a_model(folder: Path, kind: str) -> Path:
    path = folder / "not.gguf"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a loop of links":
        path.symlink_to(path)
    elif kind == "a link to nothing":
        path.symlink_to(folder / "nothing")
    elif kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a path through a file":
        path.write_bytes(b"x")
        path /= "model.gguf"
    elif kind == "a name too long":
        path = folder / ("x" * 5000)
    elif kind == "unreadable":
        path.write_bytes(DEMO)
        path.chmod(stat.S_IWUSR)
        if os.access(path, os.R_OK):
            pytest.skip("this user may read every file")
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("nothing", "cannot be read: No such file or directory"),
        ("a folder", "the folder holds no .gguf file, expected one"),
        ("a FIFO", "not a regular file, expected a GGUF file"),
        ("a device", "not a regular file, expected a GGUF file"),
        ("a loop of links", "cannot be read: Too many levels of symbolic links"),
        ("a link to nothing", "cannot be read: No such file"),
        ("a path through a file", "cannot be read: Not a directory"),
        ("a name too long", "cannot be read: File name too long"),
        ("unreadable", "cannot be read: Permission denied"),
    ],
)
def test_not_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str, expected: str) -> None:
    path = not_a_model(tmp_path, kind)
    for command in (
        ["info", str(path)],
        ["run", "-q", "-m", str(path), "-p", "x"],
        ["tokenize", "-m", str(path), "x"],
        ["detokenize", "-m", str(path), "1"],
        ["info", "--no-mmap", str(path)],
    ):
        assert run_cli(command) == 1
        out, err = capfd.readouterr()
        assert err.startswith(
            f"qwencli: error: {path}: {expected}" if kind != "a name too long" else "qwencli: error: "
        )
        assert (out, err.count("\n"), expected in err) == ("", 1, True)


def test_a_folder_with_the_name_of_a_part(tmp_path: Path) -> None:
    for i, file in enumerate(parts(tiny(), 2)):
        file.write(tmp_path / f"m-{i + 1:05}-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    (tmp_path / "m-00002-of-00002.gguf").mkdir()
    with pytest.raises(QwenError, match=r"m-00002-of-00002\.gguf: not a regular file"):
        GGUFFile(tmp_path / "m-00001-of-00002.gguf")
