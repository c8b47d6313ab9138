"""The machine code itself: that each instruction set uses what it has, and nothing that it hasn't."""

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from blocks import SAMPLE

from qwencli.kernels import isa
from qwencli.kernels.formats import FORMATS
from qwencli.kernels.tiles import Tiles

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="looks for x86 instructions"
)
FROZEN = {kind.name: f":{16 * kind.block_size}" if kind.family == "q8_0" else "" for kind in FORMATS.values()}
ALL = [
    "attention:attend:64:f16:f16",
    *(f"matmul:{name.lower()}:{form}" for name in SAMPLE for form in (f"one{FROZEN[name]}", "many")),
]
INTEGER = [spec for spec in ALL if re.search(":q4_k:|:q8_0:", spec)]
LISTED = {"generic": ALL, "avx2": INTEGER, "avx512vnni": INTEGER}


def with_tile(isa_name: str, spec: str) -> str:
    return Tiles(isa_name).many(spec.split(":")[1].upper()) if spec.endswith(":many") else spec


CHILD = """
import sys
from qwencli.kernels import compiler, isa
for spec in sys.argv[3:]:
    with open(f"{sys.argv[2]}/{spec.replace(':', '-')}", "w") as f:
        f.write(compiler.assembly(isa.choose(sys.argv[1]), spec))
"""


class Listing:
    """A kernel's instructions, the labels among them, and the innermost loops."""

    def __init__(self, text: str) -> None:
        self.instructions: list[str] = []
        self.labels: dict[str, int] = {}
        for line in (line.split("#")[0].strip() for line in text.splitlines()):
            if label := re.fullmatch(r'([.\w$"]+):', line):
                self.labels[label[1]] = len(self.instructions)
            elif line and not line.startswith("."):
                self.instructions.append(line)
        loops = []
        for i, line in enumerate(self.instructions):
            jump = re.fullmatch(r"j\w+\s+(\S+)", line)
            if jump and self.labels.get(jump[1], len(self.instructions)) <= i:
                loops.append((self.labels[jump[1]], i))
        inner = [
            (a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
        ]
        self.loops = [Counter(line.split()[0] for line in self.instructions[a : b + 1]) for a, b in inner]

    def outside(self) -> set[str]:
        """What is called, or jumped to, in other places than here."""
        targets = {line.split(None, 1)[1] for line in self.instructions if re.match(r"(call|jmp)", line)}
        return {target for target in targets if target not in self.labels}


@pytest.fixture(scope="module")
def listings(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Listing]:
    """Of the instruction sets that this CPU has, compiled in several processes."""
    folder, processes, found = tmp_path_factory.mktemp("assembly"), [], {}
    for one in isa.available():
        (folder / one.name).mkdir()
        n = 2 if one.name == "generic" else 1
        for i in range(n):
            specs = [with_tile(one.name, spec) for spec in LISTED[one.name][i::n]]
            command = [sys.executable, "-c", CHILD, one.name, str(folder / one.name), *specs]
            processes.append(
                subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
            )
    assert [process.wait(300) for process in processes] == [0] * len(processes)
    for one in isa.available():
        for spec in LISTED[one.name]:
            found[one.name, spec] = Listing(
                Path(folder, one.name, with_tile(one.name, spec).replace(":", "-")).read_text()
            )
    return found


BMI = re.compile("andn[lq]|bextr|bls|bzhi|lzcnt|mulx|pdep|pext[lq]|rorx|sarx|shlx|shrx|tzcnt")


@pytest.mark.parametrize("spec", ALL)
def test_generic_code_runs_on_any_x86_64_v2(listings: dict[tuple[str, str], Listing], spec: str) -> None:
    """No instruction of AVX and later, nor of BMI; no calls into libraries but those that every C library has."""
    listing = listings["generic", spec]
    names = {line.split()[0] for line in listing.instructions}
    assert not [name for name in names if name.startswith("v") or BMI.match(name)]
    assert not re.search("[yz]mm", "\n".join(listing.instructions))
    assert listing.outside() <= {"memset", "memcpy", "memmove", "memset@PLT", "memcpy@PLT", "memmove@PLT"}


@pytest.mark.parametrize("spec", [spec for spec in ALL if re.search(":iq[123]", spec)])
def test_a_grid_is_in_a_kernel_once(listings: dict[tuple[str, str], Listing], spec: str) -> None:
    """Some have 16 KB: two of them would have no place in the L1 cache."""
    assert len([label for label in listings["generic", spec].labels if label.startswith("constant_")]) == 1


PACKED = re.compile("(add|sub|mul|max|min)p[sd]|padd|psub|pmul|pmadd")
SCALAR = re.compile("(add|sub|mul|max|min)s[sd]")


@pytest.mark.parametrize("spec", ALL)
def test_generic_code_has_no_scalar_loops_where_time_is_spent(
    listings: dict[tuple[str, str], Listing], spec: str
) -> None:
    """In the loops that do the work, with at least a quarter of the largest one's packed arithmetic, nine tenths of it is packed.

    What is left are scales of single blocks; loops without packed arithmetic are those of remainders.
    """

    def count(loop: Counter[str], pattern: re.Pattern[str]) -> int:
        return sum(n for name, n in loop.items() if pattern.match(name))

    loops = listings["generic", spec].loops
    most = max(count(loop, PACKED) for loop in loops)
    assert most >= (
        8 if re.search(":b?f(16|32):one", spec) else 30
    )  # a float row's step is 16 lanes, multiplied and added four at once
    for loop in loops:
        packed, scalar = count(loop, PACKED), count(loop, SCALAR)
        if packed >= most / 4:
            assert packed >= 9 * scalar


@pytest.mark.parametrize("spec", INTEGER)
@pytest.mark.parametrize("isa_name", ["avx2", "avx512vnni"])
def test_bytes_are_multiplied_by_the_instructions_for_it(
    listings: dict[tuple[str, str], Listing], isa_name: str, spec: str
) -> None:
    if (isa_name, spec) not in listings:
        pytest.skip(f"this CPU has no {isa_name}")
    text = "\n".join(listings[isa_name, spec].instructions)
    if isa_name == "avx2":  # Q8_0's weights use all bits of a byte, for which vpmaddubsw would saturate
        assert re.search(r"vpmaddubsw\s.*%ymm" if "q4_k" in spec else r"(vpmaddubsw|vpmaddwd)\s.*%ymm", text)
        assert "%zmm" not in text
    else:
        assert re.search(r"(vpdpbusd|vpmaddubsw|vpdpwssd)\s.*%zmm", text)
