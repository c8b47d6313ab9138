"""The machine code of x86 kernels: each instruction set uses what it has and nothing else.

Nothing here runs a kernel, so every instruction set is looked at on every x86 machine, whatever its CPU has.
"""

import os
import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import groupby

import other_cpus
import pytest
from blocks import SAMPLE

from qwencli.kernels.formats import FORMATS
from qwencli.kernels.tiles import Tiles

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="looks for x86 instructions"
)
ALL = [
    "attention:attend:64:f16:f16",
    *(f"matmul:{name.lower()}:{form}" for name in SAMPLE for form in ("one", "many")),
]
INTEGER = [spec for spec in ALL if re.search(":q4_k:|:q8_0:", spec)]
FETCHING = [
    *(f"attention:attend:128:{kind}:{kind}" for kind in ("f16", "q8_0", "q4_0")),
    *(f"matmul:{name.lower()}:one" for name in FORMATS),
    *(f"matmul:{name.lower()}:many" for name in SAMPLE),
]
"""Kernels that prefetch what they read next: every format in place, a sample of panels, and attention."""
LISTED = {
    "generic": ALL,
    "avx2": INTEGER,
    "avxvnni": INTEGER,
    "avx512vnni": list(dict.fromkeys(INTEGER + FETCHING)),
}


def variant(isa_name: str, spec: str) -> str:
    """The kernel that a program would use."""
    if not spec.startswith("matmul:"):
        return spec
    _, name, form = spec.upper().split(":")
    tiles = Tiles(isa_name)
    return tiles.one(name, 16 * FORMATS[name].block_size) if form == "ONE" else tiles.many(name)


CHILD = """
import sys
from qwencli.kernels import compiler, isa
name, folder, *specs = sys.argv[1:]
one = isa.named(name)
one = one._replace(cpu=one.cpu or "icelake-server")
isa.ISAS = (one, *isa.ISAS)
for spec in specs:
    with open(f"{folder}/{spec.replace(':', '-')}", "w") as f:
        f.write(compiler.assembly(one, spec))
"""
"""Kernels for the best instruction set are compiled for the CPU that runs them; here that is one which has it."""


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
        self.inner = [[line.split()[0] for line in self.instructions[a : b + 1]] for a, b in inner]
        self.loops = [Counter(names) for names in self.inner]

    def outside(self) -> set[str]:
        """What is called, or jumped to, in other places than here."""
        targets = {line.split(None, 1)[1] for line in self.instructions if re.match(r"(call|jmp)", line)}
        return {target for target in targets if target not in self.labels}


BARE = {"prefetcht1", "addq", "subq", "incq", "decq", "cmpq", "jne", "jg", "jl", "jb", "ja"}
"""All that there is in a loop that only prefetches, at the start of a chunk."""
Listings = Callable[[str], dict[str, Listing]]


@pytest.fixture(scope="module")
def listings(tmp_path_factory: pytest.TempPathFactory) -> Listings:
    """listings(isa_name)[spec], compiled in two processes when a set is first asked for."""
    # without the CPU that other_cpus may pretend to be: its kernels are not quite those that we look at
    env = {name: value for name, value in os.environ.items() if name != other_cpus.VARIABLE}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)

    @cache
    def compiled(isa_name: str) -> dict[str, Listing]:
        folder = tmp_path_factory.mktemp(isa_name)
        specs = {spec: variant(isa_name, spec) for spec in LISTED[isa_name]}
        command = [sys.executable, "-c", CHILD, isa_name, str(folder)]
        halves = [list(specs.values())[i::2] for i in range(2)]
        processes = [subprocess.Popen([*command, *half], env=env) for half in halves]
        assert [process.wait(300) for process in processes] == [0, 0]
        return {spec: Listing((folder / file.replace(":", "-")).read_text()) for spec, file in specs.items()}

    return compiled


BMI = re.compile("andn[lq]|bextr|bls|bzhi|lzcnt|mulx|pdep|pext[lq]|rorx|sarx|shlx|shrx|tzcnt")


@pytest.mark.parametrize("spec", ALL)
def test_generic_code_runs_on_any_x86_64_v2(listings: Listings, spec: str) -> None:
    """No instruction of AVX and later, nor of BMI; no calls into libraries but those that every C library has."""
    listing = listings("generic")[spec]
    names = {line.split()[0] for line in listing.instructions}
    assert not [name for name in names if name.startswith("v") or BMI.match(name)]
    assert not re.search("[yz]mm", "\n".join(listing.instructions))
    assert listing.outside() <= {"memset", "memcpy", "memmove", "memset@PLT", "memcpy@PLT", "memmove@PLT"}


@pytest.mark.parametrize("spec", [spec for spec in ALL if re.search(":iq[123]", spec)])
def test_a_grid_is_in_a_kernel_once(listings: Listings, spec: str) -> None:
    """Some have 16 KB: two of them would have no place in the L1 cache."""
    assert len([label for label in listings("generic")[spec].labels if label.startswith("constant_")]) == 1


PACKED = re.compile("(add|sub|mul|max|min)p[sd]|padd|psub|pmul|pmadd")
SCALAR = re.compile("(add|sub|mul|max|min)s[sd]")


@pytest.mark.parametrize("spec", ALL)
def test_generic_code_has_no_scalar_loops_where_time_is_spent(listings: Listings, spec: str) -> None:
    """In the loops that do the work, with at least a quarter of the largest one's packed arithmetic, nine tenths of it is packed.

    What is left are scales of single blocks; loops without packed arithmetic are those of remainders.
    """

    def count(loop: Counter[str], pattern: re.Pattern[str]) -> int:
        return sum(n for name, n in loop.items() if pattern.match(name))

    loops = listings("generic")[spec].loops
    most = max(count(loop, PACKED) for loop in loops)
    assert most >= (
        8 if re.search(":b?f(16|32):one", spec) else 30
    )  # a float row's step is 16 lanes, multiplied and added four at once
    for loop in loops:
        packed, scalar = count(loop, PACKED), count(loop, SCALAR)
        if packed >= most / 4:
            assert packed >= 9 * scalar


@pytest.mark.parametrize("spec", INTEGER)
@pytest.mark.parametrize("isa_name", ["avx2", "avxvnni", "avx512vnni"])
def test_bytes_are_multiplied_by_the_instructions_for_it(
    listings: Listings, isa_name: str, spec: str
) -> None:
    text = "\n".join(listings(isa_name)[spec].instructions)
    if isa_name == "avx512vnni":
        assert re.search(r"(vpdpbusd|vpmaddubsw|vpdpwssd)\s.*%zmm", text)
    elif isa_name == "avxvnni":
        assert re.search(r"(\{vex\}\s+vpdpbusd|vpmaddubsw)\s.*%ymm", text)
        assert len(re.findall(r"\{vex\}\s+vpdpbusd\s.*%ymm", text)) >= (8 if "q8_0" in spec else 0)
    else:  # Q8_0's weights use all bits of a byte, for which vpmaddubsw would saturate
        assert re.search(r"vpmaddubsw\s.*%ymm" if "q4_k" in spec else r"(vpmaddubsw|vpmaddwd)\s.*%ymm", text)


@pytest.mark.parametrize("spec", INTEGER)
@pytest.mark.parametrize("isa_name", ["avx2", "avxvnni"])
def test_sets_of_avx_use_nothing_of_avx512(listings: Listings, isa_name: str, spec: str) -> None:
    """Neither its registers and masks, nor its encoding of `vpdpbusd`, nor that instruction where the CPU may not have it."""
    text = "\n".join(listings(isa_name)[spec].instructions)
    assert not re.search(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|[23]\d)", text)
    dot_products = re.findall(r".*\bvpdp\w+\s", text)
    assert all(isa_name == "avxvnni" and line.startswith("{vex}") for line in dot_products)


def longest_burst(names: list[str]) -> int:
    """The most prefetches in a row in a loop's instructions, across its end."""
    runs = [
        len(list(run))
        for fetches, run in groupby([*names, *names], lambda n: n.startswith("prefetch"))
        if fetches
    ]
    return max(runs, default=0)


@pytest.mark.parametrize(
    ("isa_name", "spec"), [(isa_name, spec) for isa_name, specs in LISTED.items() for spec in specs]
)
def test_prefetches_are_spread_over_the_arithmetic(listings: Listings, isa_name: str, spec: str) -> None:
    """A burst of them would fill the queue of misses, and other reads would have to wait."""
    loops = listings(isa_name)[spec].inner
    fetching = [names for names in loops if any(name.startswith("prefetch") for name in names)]
    assert fetching
    for names in fetching:
        assert longest_burst(names) <= 2 or set(names) <= BARE
