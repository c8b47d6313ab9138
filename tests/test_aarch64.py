"""Kernels for aarch64, compiled on any machine for Linux: that they use the instructions of their set, and, in an emulator, that they are
right."""

import importlib
import os
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aarch64_emulator as emulator
import kernel_calls
import numpy as np
import pytest
import test_attention
import test_delta
import test_experts
import test_matmul
import test_ops
from blocks import SAMPLE, columns
from guarded import guarded

from qwencli.kernels import compiler, isa
from qwencli.kernels.arguments import Arguments
from qwencli.kernels.specs import symbol
from qwencli.kernels.tiles import Tiles

CPUS = {"neon": "cortex-a72", "neon_dotprod": "neoverse-n1", "neon_i8mm": "max"}
"""CPUs that have no more than an instruction set, but for the last: qemu's with everything."""
EVERYWHERE = ["Q8_0", "Q6_K"]
"""Formats that every instruction set is compiled for: bytes below 128 and above. The others are for the base alone."""


def products(isa_name: str, name: str) -> list[str]:
    return [Tiles(isa_name).one(name, columns(name)), Tiles(isa_name).many(name)]


PRODUCTS = [spec for name in SAMPLE for spec in products("neon", name)]
KINDS = ["f32", "q8k", "q8_0", "bf16"]
CACHE_TYPES = [("f16", "f16"), ("q8_0", "q4_0"), ("q4_0", "q8_0")]
OTHERS = [
    *(f"attention:attend:64:{k}:{v}" for k, v in CACHE_TYPES),
    *(f"heads:store:{k}:{v}" for k, v in CACHE_TYPES),
    "heads:rotate",
    *(f"attention:merge:64:{kind}" for kind in KINDS),
    "ops:add",
    "ops:gather",
    *(f"ops:embed:{name.lower()}" for name in SAMPLE),
    *(f"ops:prepare:{what}:{kind}" for what in ("norm", "swiglu") for kind in KINDS),
    *(f"ops:prepare:copy:{kind}" for kind in KINDS[1:]),
    *(f"ops:prepare:{what}:f32" for what in ("gate", "share", "gated_norm")),
    "delta:conv:64:4",
    "delta:normalise:64",
    "delta:gates",
    "delta:scan:64",
    *(f"experts:{what}" for what in ("route", "group", "spread", "one", "many", "combine")),
    "sampling:choose",
    "runtime:step",
    "runtime:worker",
    "runtime:publish",
    "clock:read",
]
COMPILED = {isa_name: [spec for name in EVERYWHERE for spec in products(isa_name, name)] for isa_name in CPUS}
COMPILED["neon"] = [*PRODUCTS, *OTHERS]
CHILD = """
import sys
from pathlib import Path
from qwencli.kernels import compiler, isa
from qwencli.kernels.specs import symbol
isa.machine = lambda: "another"
for spec in sys.argv[3:]:
    library, path = compiler.lower(isa.named(sys.argv[1]), spec), Path(sys.argv[2], spec.replace(":", "-"))
    path.with_suffix(".s").write_text(library.assembly(symbol(spec)))
    path.with_suffix(".o").write_bytes(library.object_code(symbol(spec)))
"""


class Kernel:
    """An object file, and from its listing the instructions and the innermost loops."""

    def __init__(self, code: bytes, text: str) -> None:
        self.code, self.instructions = code, []
        labels: dict[str, int] = {}
        for line in (line.split("//")[0].strip() for line in text.splitlines()):
            if label := re.fullmatch(r'([.\w$"]+):', line):
                labels[label[1]] = len(self.instructions)
            elif line and not line.startswith("."):
                self.instructions.append(" ".join(line.split()))
        loops = []
        for i, line in enumerate(self.instructions):
            jump = re.match(r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\S+)$", line)
            if jump and labels[jump[1]] <= i:
                loops.append((labels[jump[1]], i))
        inner = [
            (a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
        ]
        self.loops = [self.instructions[a : b + 1] for a, b in inner]
        self.names = Counter(line.split()[0] for line in self.instructions)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Kernel]:
    folder, processes, found = tmp_path_factory.mktemp("aarch64"), [], {}
    jobs = [(name, specs[i::2]) for name, specs in COMPILED.items() for i in range(2)]
    for first in range(0, len(jobs), 2):
        for name, specs in jobs[first : first + 2]:
            (folder / name).mkdir(exist_ok=True)
            command = [sys.executable, "-c", CHILD, name, str(folder / name), *specs]
            processes.append(
                subprocess.Popen(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
            )
        assert [process.wait(300) for process in processes[-2:]] == [0, 0]
    for name, specs in COMPILED.items():
        for spec in specs:
            path = folder / name / spec.replace(":", "-")
            found[name, spec] = Kernel(
                path.with_suffix(".o").read_bytes(), path.with_suffix(".s").read_text()
            )
    return found


EVERY = [(name, spec) for name, specs in COMPILED.items() for spec in specs]


@pytest.mark.parametrize(("isa_name", "spec"), EVERY)
def test_kernels_call_nothing_outside(
    kernels: dict[tuple[str, str], Kernel], isa_name: str, spec: str
) -> None:
    """No library function for a conversion, an FMA, an atomic operation or a copy. And no SVE, which no set names."""
    symbols = list(emulator.symbols_of(kernels[isa_name, spec].code))
    assert [name for name, section, _ in symbols if section == 0 and name] == []
    assert symbol(spec) in [name for name, _, _ in symbols]
    assert not [
        line for line in kernels[isa_name, spec].instructions if re.search(r"\b[zp]\d+\.[bhsd]", line)
    ]


@pytest.mark.parametrize(("name", "form"), [("Q8_0", 0), ("Q8_0", 1), ("Q6_K", 1)])
def test_bytes_are_multiplied_by_the_instructions_for_it(
    kernels: dict[tuple[str, str], Kernel], name: str, form: int
) -> None:
    """In those kernels that are made of products of four bytes."""
    base, dotprod, i8mm = (kernels[isa_name, products(isa_name, name)[form]].names for isa_name in CPUS)
    dots = {"sdot", "udot", "usdot", "sudot", "smmla", "ummla", "usmmla"}
    assert not dots & base.keys()
    assert base["smull"] + base["smull2"] >= 16
    assert base["sadalp"] + base["saddlp"] >= 8
    assert dots & dotprod.keys() == {"sdot"}
    assert dots & i8mm.keys() == {"usdot"}
    assert min(dotprod["sdot"], i8mm["usdot"]) >= 16


@pytest.mark.parametrize("spec", [spec for spec in PRODUCTS if re.search(":(f32|f16|bf16):", spec)])
def test_floats_are_multiplied_and_added_at_once(kernels: dict[tuple[str, str], Kernel], spec: str) -> None:
    names = kernels["neon", spec].names
    assert names["fmla"] >= 4
    assert ("fcvtl" in names) == (":f16:" in spec)


def test_words_between_threads_are_ordered(kernels: dict[tuple[str, str], Kernel]) -> None:
    """By loads that acquire and stores that release; what Python does around a published word by a full barrier."""
    publish = [line.split()[0] for line in kernels["neon", "runtime:publish"].instructions]
    assert publish == ["stlr", "dmb", "ret"]
    for spec in "runtime:step", "runtime:worker":
        names = kernels["neon", spec].names
        assert names["ldar"] >= 4
        assert names["ldaxr"] == names["stlxr"] >= 3
        assert not {"ldxr", "stxr", "ldapr"} & names.keys()


VECTOR = re.compile(r"(f?ml[as]|f?mul|smull2?|smlal2?) v\d+\.")
SCALAR = re.compile(r"f(mul|madd|msub|nmul|nmadd|nmsub) s|(mul|madd|msub) w")


@pytest.mark.parametrize("spec", [*(f"attention:attend:64:{k}:{v}" for k, v in CACHE_TYPES), *PRODUCTS])
def test_no_scalar_loops_where_time_is_spent(kernels: dict[tuple[str, str], Kernel], spec: str) -> None:
    """In the loops that do the work, with at least a quarter of the largest one's products of vectors, nine tenths of them are such."""
    counts = [
        [sum(bool(pattern.match(line)) for line in loop) for pattern in (VECTOR, SCALAR)]
        for loop in kernels["neon", spec].loops
    ]
    most = max(vector for vector, _ in counts)
    assert most >= 4
    assert [(vector, scalar) for vector, scalar in counts if vector >= most / 4 and vector < 9 * scalar] == []


THREE = {Tiles("neon").many("Q6_K"), "attention:attend:64:q4_0:q8_0"}


@pytest.mark.parametrize("spec", [*(f"attention:attend:64:{k}:{v}" for k, v in CACHE_TYPES), *PRODUCTS])
def test_prefetches_are_spread(kernels: dict[tuple[str, str], Kernel], spec: str) -> None:
    """At most two in a row, three in THREE: fences keep them apart by what is read between, not, as on x86, by the arithmetic."""
    most = 3 if spec in THREE else 2
    loops = [[line.split()[0] for line in loop] for loop in kernels["neon", spec].loops]
    fetching = [names for names in loops if "prfm" in names]
    assert fetching
    for names in fetching:
        assert not re.search(f"(prfm ){{{most + 1}}}", " ".join([*names, *names, ""]))


emulated = pytest.mark.skipif(emulator.QEMU is None, reason="needs qemu-aarch64 (Debian's qemu-user)")
Call = Callable[..., None]


@pytest.fixture
def call(kernels: dict[tuple[str, str], Kernel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Lets the tests of kernels call them in the emulator."""
    memory: list[np.ndarray] = []

    def recorded(array: np.ndarray, side: str) -> np.ndarray:
        memory.append(guarded(array, side))
        return memory[-1]

    def call(
        isa_name: str,
        kernel: Arguments,
        *variant: object,
        spec: str = "",
        n_chunks: int = 1,
        scratch_bytes: int = 0,
        **args: Any,
    ) -> None:
        spec = spec or kernel.spec(*variant)
        found = kernels.get((isa_name, spec)) or kernels["neon", spec]
        words = kernel_calls.packed(kernel, **args)
        known = [*(a for a in args.values() if isinstance(a, np.ndarray)), *memory]
        emulator.run(
            CPUS[isa_name], found.code, symbol(spec), words, n_chunks, scratch_bytes, known, tmp_path
        )

    for module in kernel_calls, test_attention, test_delta, test_experts, test_matmul, test_ops:
        monkeypatch.setattr(module, "call", call)
    for module in test_attention, test_delta, test_experts:
        monkeypatch.setattr(module, "guarded", recorded)
    return call


PRIMITIVES = Arguments("primitives", "w s x y z halves floats out", writes="out")


def build_primitives(variant: str) -> Any:
    """dot4_wide, dot4, pairs and dot2 of w and s, fma and fma_exact of x, y and z, halves as floats, floats as halves. A chunk takes 64
    bytes of each array, but of out 512.
    """
    from qwencli.kernels.reading import load
    from qwencli.kernels.simd import F32X16, I8X64, I16X16, I16X32, I32X16, i64, intrinsic_of, void

    @intrinsic_of(void, i64, i64)
    def apply(e: Any, args: Any, chunk: Any) -> None:
        a = load(e, PRIMITIVES, args)

        def of_chunk(array: Any, kind: Any) -> Any:
            return e.load(kind, array, e.b.shl(chunk, e.int(6)))

        w, s = (of_chunk(array, I8X64) for array in (a.w, a.s))
        x, y, z = (of_chunk(array, F32X16) for array in (a.x, a.y, a.z))
        low = e.b.and_(w, e.int(127, I8X64))
        out = e.b.add(a.out, e.b.shl(chunk, e.int(9)))
        acc = e.b.bitcast(x, I32X16)
        e.store(e.dot4_wide(acc, e.raised(w), s), out)
        e.store(e.dot4(acc, low, s), out, 64)
        e.store(e.pairs(low, s), out, 128)
        e.store(e.dot2(acc, e.b.bitcast(w, I16X32), e.b.bitcast(s, I16X32)), out, 192)
        e.store(e.fma(x, y, z), out, 256)
        e.store(e.fma_exact(x, y, z), out, 320)
        e.store(e.f16_to_f32(of_chunk(a.halves, I16X16)), out, 384)
        e.store(e.f32_to_f16(of_chunk(a.floats, F32X16)), out, 448)

    def primitives(args, chunk, scratch):  # type: ignore[no-untyped-def]
        apply(args, chunk)

    return primitives


@emulated
@pytest.mark.parametrize("isa_name", CPUS)
def test_primitives(isa_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers exact, also the extreme ones; products and sums rounded once; half floats as NumPy has them, all of them."""
    module = types.ModuleType("qwencli.kernels.primitives")
    module.build = build_primitives  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(isa, "machine", lambda: "another")
    n = 4096
    rng = np.random.default_rng(0)
    w, s = rng.integers(-128, 128, (n, 64), np.int8), rng.integers(-127, 128, (n, 64), np.int8)
    w[: n // 2], s[: n // 2] = (
        rng.choice([-128, -127, -1, 0, 127], (n // 2, 64)),
        rng.choice([-127, 0, 127], (n // 2, 64)),
    )
    w[0], s[0], w[1], s[1], w[2], s[2] = -128, -127, -128, 127, 127, 127
    x, y = (rng.uniform(1, 2, (2, n, 16)) * rng.choice([-1, 1], (2, n, 16))).astype(np.float32)
    z = rng.integers(-(2**24), 2**24, (n, 16)).astype(np.float32) * np.float32(2**-22)
    halves = np.arange(2**16, dtype=np.uint16).reshape(n, 16)
    wide = halves.view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore"):
        ties = (wide + (halves ^ 1).view(np.float16).astype(np.float32)) / 2
        floats = ties * rng.choice(np.float32([1 - 2**-20, 1, 1 + 2**-20]), ties.shape)
    out = np.zeros((n, 8, 16), np.int32)
    code = compiler.compile_kernel(isa.named(isa_name), "primitives:")
    wide_halves = np.concatenate([halves, 0 * halves], -1)
    arrays = {"w": w, "s": s, "x": x, "y": y, "z": z, "halves": wide_halves, "floats": floats, "out": out}
    args = kernel_calls.packed(PRIMITIVES, **arrays)
    emulator.run(CPUS[isa_name], code, symbol("primitives:"), args, n, 0, [*arrays.values()], tmp_path)

    def sums(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
        return (a.astype(np.int64) * b).reshape(n, -1, count).sum(-1)

    acc, low = x.view(np.int32).astype(np.int64), w & 127
    raised_by = 128 * importlib.import_module(f"qwencli.kernels.simd.{isa_name}").RAISED
    assert np.array_equal(out[:, 0], (acc + sums(w.astype(np.int64) + raised_by, s, 4)).astype(np.int32))
    assert np.array_equal(out[:, 1], (acc + sums(low, s, 4)).astype(np.int32))
    assert np.array_equal(out[:, 2].view(np.int16), sums(low, s, 2))
    assert np.array_equal(out[:, 3], (acc + sums(w.view(np.int16), s.view(np.int16), 2)).astype(np.int32))
    exact = (
        x.astype(np.float64) * y + z
    )  # products have 46 bits after the point, z has 22, and none more than 3 before it
    assert not np.array_equal(exact.astype(np.float32), x * y + z)
    for i in 4, 5:
        assert np.array_equal(out[:, i].view(np.float32), exact.astype(np.float32))
    assert np.array_equal(out[:, 6].view(np.float32), wide, equal_nan=True)
    assert np.array_equal(np.signbit(out[:, 6].view(np.float32)), np.signbit(wide))
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.array_equal(out[:, 7, :8].view(np.float16), floats.astype(np.float16), equal_nan=True)


@emulated
@pytest.mark.parametrize(
    ("isa_name", "name"),
    [
        *(("neon", name) for name in SAMPLE),
        *((isa_name, name) for isa_name in CPUS if isa_name != "neon" for name in EVERYWHERE),
    ],
)
def test_products_in_the_emulator(call: Call, isa_name: str, name: str) -> None:
    test_matmul.test_products_are_right_and_have_the_same_bits(isa_name, name)


@emulated
def test_other_kernels_in_the_emulator(call: Call) -> None:
    for kinds in CACHE_TYPES:
        test_attention.test_attention_with_scores_far_apart("neon", kinds)
        test_attention.test_a_token_does_not_see_what_comes_later_even_if_it_is_infinite("neon", kinds)
    test_ops.test_norms_and_gates("neon", 100)
    test_ops.test_what_is_not_finite_stays_so("neon", "swiglu")
    test_ops.test_gates_of_columns_heads_and_tokens("neon", 2, 37)
    for kind in "q8k", "q8_0":
        test_ops.test_results_are_quantized_on_the_way("neon", "norm", kind)
    test_ops.test_sums_and_gathered_rows_are_exact("neon", 37)
    test_delta.test_gates("neon", 6, 3)
    test_delta.test_the_same_bits_however_a_sequence_is_cut("neon", test_delta.SHAPES[0])
    for lengths in (1,), (3, 1):
        test_delta.test_convolutions_of_pieces("neon", test_delta.SHAPES[0], lengths)
        test_delta.test_recurrence_of_pieces("neon", test_delta.SHAPES[0], lengths)
    test_experts.test_the_likeliest_are_chosen("neon", 37, 5)
    test_experts.test_what_is_not_finite_chooses_experts_that_exist_and_stays_visible("neon", 6, 2)
    test_experts.test_tokens_are_put_together_by_expert("neon")
    test_experts.test_rows_are_spread_and_summed("neon")


def test_every_instruction_set_of_arm_is_here() -> None:
    assert [one.name for one in isa.ISAS if one.machines == isa.ARM] == list(CPUS)[::-1]
