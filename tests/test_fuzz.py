"""A damaged model file loads or raises a QwenError: never another exception, a crash, a hang, nor more than 100 MB of memory.

Each test starts this file as a script, in a process with a limited address space, and lets it damage a model in some hundreds or
thousands of ways, which the seed makes repeatable. If one of them fails, the damaged file is kept.
"""

import gc
import json
import random
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import gguf
import pytest
from gguf_builder import tiny
from test_bad_files import HOLES

from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.cli.info import as_text, describe
from qwencli.errors import QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.network.load import load_model
from qwencli.text.tokenizer import Tokenizer

MEMORY = 100 * 2**20
SECONDS = 10  # for one file; a valid one takes about 30 ms
TEXT = (
    "<|im_start|>user\nOnce upon a time, there was the naïve 1234 \U0001f600 and it's<|im_end|>\n\0 <think>"
)
EXTREMES = [
    0,
    1,
    2**7,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**60,
    2**61,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 32,
    2**64 - 1,
]

Patch = tuple[int, bytes]


class Hang(BaseException):
    """Not an Exception, so that nothing catches it."""


def use(path: Path) -> bool:
    """Everything that is done with a file before it generates. Returns whether any of it worked."""
    try:
        file = GGUFFile(path)
    except QwenError:
        return False
    n_worked = 0
    for step in run_model, run_tokenizer, show:
        try:
            step(file)
            n_worked += 1
        except QwenError:
            pass
    return n_worked > 0


def run_model(file: GGUFFile) -> None:
    NumpyBackend(load_model(file))


def run_tokenizer(file: GGUFFile) -> None:
    tokenizer = Tokenizer(file)
    tokenizer.decode(tokenizer.encode(TEXT, add_special=True, parse_special=True))


def show(file: GGUFFile) -> None:
    facts = describe(file)
    json.dumps(facts, allow_nan=False)
    as_text(facts, file)


def boundaries(path: Path) -> tuple[list[int], list[tuple[int, int]]]:
    """Where the parts of a file begin and the last one ends, found by the gguf package; and the parts as (start, end).

    Parts are repeated, so that there are about as many of the header and its pairs as of the tokenizer's arrays and of the tensor table.
    """
    reader = gguf.GGUFReader(path)
    starts = sorted(
        {0, *(f.offset for f in reader.fields.values()), *(t.field.offset for t in reader.tensors)}
    )
    arrays = {reader.fields[f"tokenizer.ggml.{name}"].offset for name in ("tokens", "token_type", "merges")}
    table = min(t.field.offset for t in reader.tensors)
    end = max(t.field.offset + sum(part.nbytes for part in t.field.parts) for t in reader.tensors)
    spans = list(zip(starts, [*starts[1:], end]))
    groups: list[list[tuple[int, int]]] = [[], [], []]
    for span in spans:
        groups[1 if span[0] in arrays else 0 if span[0] < table else 2].append(span)
    return [*starts, end], [span for group in groups for span in group * (60 // len(group) + 1)]


def patches(path: Path, n: int, rng: random.Random) -> Iterator[Patch]:
    """Flipped bits, replaced bytes, numbers of 1 to 8 bytes replaced by extreme ones, and bytes copied from elsewhere in the file.

    Half of them are near the beginning of a key-value pair, an array or a tensor's entry, where types and counts are.
    """
    data = path.read_bytes()
    _, spans = boundaries(path)
    for _ in range(n):
        start, end = rng.choice(spans)
        at = rng.randrange(start, min(end, start + 64) if rng.random() < 0.5 else end)
        kind = rng.randrange(4)
        if kind == 0:
            new = bytes([data[at] ^ 1 << rng.randrange(8)])
        elif kind == 1:
            new = rng.randbytes(rng.choice([1, 1, 2, 4, 8]))
        elif kind == 2:
            new = rng.choice(EXTREMES).to_bytes(8, "little")[: rng.choice([1, 2, 4, 8])]
        else:
            source = rng.randrange(len(data) - 16)
            new = data[source : source + rng.randrange(2, 16)]
        yield at, new


def patched(path: Path, n: int, rng: random.Random) -> Iterator[str]:
    """Damage the file in place, and undo that when the next damage is asked for."""
    for at, new in list(patches(path, n, rng)):
        with open(path, "r+b") as f:
            f.seek(at)
            old = f.read(len(new))
            f.seek(at)
            f.write(new)
        yield f"at byte {at} {old!r} replaced by {new!r}"
        with open(path, "r+b") as f:
            f.seek(at)
            f.write(old)


def truncated(path: Path, n: int, rng: random.Random) -> Iterator[str]:
    """Cut the file shorter and shorter, at `n` places, some of them just before or after where something begins."""
    size = path.stat().st_size
    starts, _ = boundaries(path)
    places = {p for s in starts for p in (s - 1, s, s + 1, s + 8) if 0 <= p < size}
    cuts = [size - 1, *rng.sample(sorted(places), min(n // 2, len(places)))]
    cuts += [rng.randrange(starts[-1] if rng.random() < 0.8 else size) for _ in range(n - len(cuts))]
    for length in sorted(cuts, reverse=True):
        with open(path, "r+b") as f:
            f.truncate(length)
        yield f"cut to {length} bytes"


def holes(path: Path, n: int, rng: random.Random) -> Iterator[str]:
    for name, (content, _) in list(HOLES.items())[:n]:
        path.write_bytes(content)
        yield name


def limit() -> None:
    """Allow the process no more than MEMORY beyond what it has already, and end whatever takes longer than SECONDS."""
    import resource  # not on Windows, where the test is skipped

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGALRM, stop)


def main(path: Path, damage: str, n: int) -> None:
    """Damage the file in `n` ways and use it each time; print how often that worked."""
    ways = {"patched": patched, "truncated": truncated, "holes": holes}[damage](
        path, n, random.Random(f"{damage} {n}")
    )
    for _ in range(2):
        assert use(path)  # so that all imports, caches and threads of a valid file are there
    gc.collect()
    gc.freeze()
    limit()
    n_used = 0
    for way in ways:
        signal.alarm(SECONDS)
        try:
            n_used += use(path)
        except BaseException as error:  # a panic in Rust isn't an Exception
            signal.alarm(0)
            print(f"{type(error).__name__} for the file {way}", file=sys.stderr)
            traceback.print_exc()
            sys.exit(1)
        gc.collect()
    print(n_used)


def fuzz(path: Path, damage: str, n: int) -> int:
    """The number of damaged files that could be used anyway."""
    done = subprocess.run(
        [sys.executable, __file__, str(path), damage, str(n)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, f"exit code {done.returncode}, the file is {path}\n{done.stderr}"
    return int(done.stdout)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc and RLIMIT_AS")
@pytest.mark.parametrize(
    ("model", "damage", "n"),
    [
        ("tiny", "patched", 4000),
        ("demo", "patched", 400),
        ("tiny", "truncated", 300),
        ("demo", "truncated", 100),
        ("tiny", "holes", len(HOLES)),
    ],
)
def test_damaged_files_never_do_worse_than_an_error(tmp_path: Path, model: str, damage: str, n: int) -> None:
    path = tmp_path / "model.gguf"
    if model == "demo":
        shutil.copy(EMBEDDED, path)
    else:
        tiny().write(path)
    n_used = fuzz(path, damage, n)
    if damage == "patched":
        assert 0.1 * n < n_used < 0.9 * n  # both outcomes happen
    else:
        assert n_used == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
