"""Kernels for aarch64 run by qemu-aarch64: an object file is linked here into a program that calls it on an image of the memory.

No compiler, linker or Python for aarch64 is needed. The program calls what a table at the beginning of the image lists, kernel, arguments,
chunk and scratch, up to a kernel 0, and writes the image to its output.
"""

import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

QEMU = shutil.which("qemu-aarch64")
CODE, IMAGE = 0x400000, 0x10000000
SECTION = struct.Struct(
    "<IIQQQQIIQQ"
)  # sh_name, type, flags, addr, offset, size, link, info, addralign, entsize
SYMBOL, RELOCATION, PROGRAM = struct.Struct("<IBBHQQ"), struct.Struct("<QQq"), struct.Struct("<IIQQQQQQ")
SYMBOLS, RELOCATIONS, NO_BITS, ALLOCATED = 2, 4, 8, 2
START = [  # x19: the table
    0xD2A20013,  # movz x19, #0x1000, lsl #16
    0xA8C10270,  # ldp x16, x0, [x19], #16
    0xA8C10A61,  # ldp x1, x2, [x19], #16
    0xB4000070,  # cbz x16, +3
    0xD63F0200,  # blr x16
    0x17FFFFFC,  # b -4
    0xAA0003E2,  # mov x2, x0: the image's size
    0xD2800020,  # movz x0, #1
    0xD2A20001,  # movz x1, #0x1000, lsl #16
    0xD2800808,  # movz x8, #64: write
    0xD4000001,  # svc #0
    0xD2800000,  # movz x0, #0
    0xD2800BA8,  # movz x8, #93: exit
    0xD4000001,  # svc #0
]
SCALED = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""R_AARCH64_ADD_ABS_LO12_NC and R_AARCH64_LDST8.., 16, 32, 64, 128_ABS_LO12_NC: what the lower 12 bits are counted in, as a power of 2."""


def link(code: bytes) -> tuple[bytes, dict[str, int]]:
    """An object file's sections as they are laid out at CODE, after START, and the addresses of its symbols.

    Raises KeyError for a symbol that isn't in it, and for a kind of relocation that isn't known here ("ELF for the Arm 64-bit
    Architecture").
    """
    sections = sections_of(code)
    memory = bytearray(struct.pack(f"<{len(START)}I", *START))
    places = {}
    for i, (_, kind, flags, _, at, size, _, _, align, _) in enumerate(sections):
        if flags & ALLOCATED:
            memory += bytes(-len(memory) % max(align, 1))
            places[i] = CODE + len(memory)
            memory += bytes(size) if kind == NO_BITS else code[at : at + size]
    symbols = list(symbols_of(code))
    addresses = {
        i: places[section] + value for i, (_, section, value) in enumerate(symbols) if section in places
    }
    for _, kind, _, _, at, size, _, target, _, _ in sections:
        if kind == RELOCATIONS and target in places:
            for start in range(at, at + size, RELOCATION.size):
                where, info, addend = RELOCATION.unpack_from(code, start)
                relocate(memory, places[target] + where, info & 0xFFFFFFFF, addresses[info >> 32] + addend)
    return bytes(memory), {symbols[i][0]: address for i, address in addresses.items()}


def sections_of(code: bytes) -> list[tuple[int, ...]]:
    (offset,) = struct.unpack_from("<Q", code, 0x28)
    (n_sections,) = struct.unpack_from("<H", code, 0x3C)
    return [SECTION.unpack_from(code, offset + SECTION.size * i) for i in range(n_sections)]


def symbols_of(code: bytes) -> Iterator[tuple[str, int, int]]:
    """Name, section and value of an object file's symbols; those of section 0 it expects from elsewhere."""
    sections = sections_of(code)
    table = next(section for section in sections if section[1] == SYMBOLS)
    names = sections[table[6]][4]
    for i in range(table[5] // SYMBOL.size):
        name, _, _, section, value, _ = SYMBOL.unpack_from(code, table[4] + SYMBOL.size * i)
        yield code[names + name : code.index(b"\0", names + name)].decode(), section, value


def relocate(memory: bytearray, place: int, kind: int, target: int) -> None:
    at = place - CODE
    (word,) = struct.unpack_from("<I", memory, at)
    if kind in (282, 283):  # JUMP26, CALL26
        word |= (target - place) >> 2 & 0x3FFFFFF
    elif kind == 275:  # ADR_PREL_PG_HI21
        pages = (target >> 12) - (place >> 12)
        word |= (pages & 3) << 29 | (pages >> 2 & 0x7FFFF) << 5
    elif kind == 261:  # PREL32, of tables for unwinding
        word = target - place & 0xFFFFFFFF
    else:
        word |= (target & 0xFFF) >> SCALED[kind] << 10
    struct.pack_into("<I", memory, at, word)


def program(code: bytes, image: bytes) -> bytes:
    """An executable ELF file with the code, followed by the image, on pages of its own."""
    parts = [(5, CODE, code), (6, IMAGE, image)]
    header, body = (
        b"\x7fELF\x02\x01\x01"
        + bytes(9)
        + struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, CODE, 64, 0, 0, 64, 56, 2, 64, 0, 0),
        b"",
    )
    for flags, address, content in parts:
        body += bytes(-(len(body)) % 4096)
        header += PROGRAM.pack(1, flags, 4096 + len(body), address, address, len(content), len(content), 4096)
        body += content
    return header + bytes(4096 - len(header)) + body


class Image:
    """Arrays at addresses of their own. Those of int64 and of records may hold addresses in `known` arrays, which are then in the image,
    too.
    """

    def __init__(self, table_bytes: int, known: Sequence[np.ndarray]) -> None:
        self.content = bytearray(table_bytes)
        self.known = known
        self.placed: dict[int, tuple[np.ndarray, int]] = {}

    def put(self, array: np.ndarray) -> int:
        """The address of an array, which is copied to the image if it isn't there yet."""
        host = array.ctypes.data
        if host not in self.placed:
            self.content += bytes(-len(self.content) % 64)
            start = len(self.content)
            self.placed[host] = array, start
            self.content += array.tobytes()
            if holds_addresses(array):
                for i, (value,) in enumerate(struct.iter_unpack("<q", array.tobytes())):
                    struct.pack_into("<q", self.content, start + 8 * i, self.translated(value))
        return IMAGE + self.placed[host][1]

    def translated(self, value: int) -> int:
        for array in self.known:
            if 0 <= value - array.ctypes.data < array.nbytes:
                return self.put(array) + value - array.ctypes.data
        return value

    def copy_back(self, content: bytes) -> None:
        for array, start in self.placed.values():
            if not holds_addresses(array):
                array[...] = np.frombuffer(content, array.dtype, array.size, start).reshape(array.shape)


def holds_addresses(array: np.ndarray) -> bool:
    return array.dtype == np.int64 or array.dtype.names is not None


def run(
    cpu: str,
    code: bytes,
    entry: str,
    args: np.ndarray,
    n_chunks: int,
    scratch_bytes: int,
    known: Sequence[np.ndarray],
    folder: Path,
) -> None:
    """Call a kernel of an object file on a CPU that qemu knows. Addresses among its arguments and in memory are in arrays of `known`."""
    linked, entries = link(code)
    image = Image(32 * (n_chunks + 1), known)
    words = image.put(args)
    scratch = image.put(np.zeros(scratch_bytes + 64, np.uint8))
    table = [(entries[entry], words, chunk, scratch) for chunk in range(n_chunks)] + [
        (0, len(image.content), 0, 0)
    ]
    image.content[: 32 * len(table)] = np.array(table, np.int64).tobytes()
    path = folder / "program"
    path.write_bytes(program(linked, bytes(image.content)))
    path.chmod(0o755)
    with open(folder / "out", "wb") as out:
        result = subprocess.run(
            [str(QEMU), "-cpu", cpu, str(path)], stdout=out, stderr=subprocess.PIPE, timeout=60, check=False
        )
    assert result.returncode == 0, (
        f"{entry} on {cpu}: exit code {result.returncode} {result.stderr.decode()[-300:]}"
    )
    image.copy_back((folder / "out").read_bytes())
