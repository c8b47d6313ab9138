"""What a file says of itself comes into messages in short, on one line, and without what a terminal would follow.

Started as a script it damages more copies of the demo: `python tests/test_messages.py 60000 2`, with a seed.
"""

import mmap
import random
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gguf_builder import tiny

from qwencli.cli.info import as_text, describe
from qwencli.errors import SHORT, QwenError, shown
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams
from qwencli.text.tokenizer import Tokenizer

LONGEST = 400
"""Characters of a message without the file's path."""
ESCAPES = "\x1b]0;owned\x07\x1b[2J\n\r\u202e" * 40
EXTREMES = [0, 1, 5, 200, 2**12, 2**16 - 1, 2**16, 2**20]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("qwen3.block_count", "qwen3.block_count"),
        ("a\x1b[2J\nb", "a\\x1b[2J\\nb"),
        ("Ünï 😀", "Ünï 😀"),
        ("\u202e\u200b", "\\u202e\\u200b"),
        ("x" * 60, "x" * 60),
        ("x" * 61, "x" * 60 + "..."),
        ("\n" * 31, "\\n" * 30 + "..."),
        (2.5, "2.5"),
    ],
)
def test_names_and_values_are_escaped_and_cut(given: object, expected: str) -> None:
    assert shown(given) == expected


def test_a_huge_value_is_cut_before_it_is_escaped() -> None:
    assert len(shown("\x00" * 10**7)) == SHORT + 3


def messages_of(path: Path) -> Iterator[str]:
    """What is said about a file, by whoever reads it."""
    try:
        file = GGUFFile(path)
    except QwenError as error:
        yield str(error)
        return
    for step in load_model, Tokenizer, lambda file: SamplingParams.from_metadata(file.metadata):
        try:
            found = step(file)
            yield from getattr(found, "warnings", ())
        except QwenError as error:
            yield str(error)
    try:
        yield from as_text(describe(file), file).splitlines()
    except QwenError as error:
        yield str(error)


def wrong(message: str, path: Path) -> str | None:
    """What is wrong with a message."""
    bare = message.replace(str(path), "")
    if not bare.isprintable():
        return "a control character"
    if len(bare) > LONGEST:
        return f"{len(bare)} characters"
    if found := re.search(r"'[^' ]{70,}'", bare):
        return f"a name of {len(found[0])} characters"
    return None


HOSTILE = {
    "a key": lambda m: m.update({ESCAPES: ("u32", 1)}),
    "a key of the network": lambda m: m.update({f"qwen3.{ESCAPES}": ("u32", 1)}),
    "a refused value": lambda m: m.update({"qwen3.hidden_activation": ("str", ESCAPES)}),
    "the architecture": lambda m: m.update({"general.architecture": ("str", ESCAPES)}),
    "a number that is a text": lambda m: m.update({"qwen3.block_count": ("str", ESCAPES)}),
    "the rotation": lambda m: m.update({"qwen3.rope.scaling.type": ("str", ESCAPES)}),
    "the vocabulary's kind": lambda m: m.update({"tokenizer.ggml.model": ("str", ESCAPES)}),
    "the words' kind": lambda m: m.update({"tokenizer.ggml.pre": ("str", ESCAPES)}),
    "tokens": lambda m: m.update({"tokenizer.ggml.tokens": ("str", ESCAPES)}),
    "the same token": lambda m: m["tokenizer.ggml.tokens"][1].__setitem__(slice(5, 7), [ESCAPES] * 2),
    "a merge without a space": lambda m: m["tokenizer.ggml.merges"][1].append(ESCAPES.replace(" ", "")),
    "a merge of no tokens": lambda m: m["tokenizer.ggml.merges"][1].append(f"{ESCAPES} {ESCAPES}"),
    "the samplers": lambda m: m.update({"general.sampling.sequence": ("str", ESCAPES)}),
    "the name": lambda m: m.update({"general.name": ("str", ESCAPES)}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_text_is_harmless(tmp_path: Path, what: str) -> None:
    made = tiny()
    made.metadata = {
        key: (kind, list(value) if isinstance(value, list) else value)
        for key, (kind, value) in made.metadata.items()
    }
    HOSTILE[what](made.metadata)  # type: ignore[no-untyped-call]
    path = made.write(tmp_path / "model.gguf")
    assert [(wrong(m, path), m[:200]) for m in messages_of(path) if wrong(m, path)] == []


def test_a_hostile_name_of_a_tensor_is_harmless(tmp_path: Path) -> None:
    for name in "\x1b[2J\n" * 10, "blk.0.\x07", "v" * 64:
        made = tiny()
        made.tensors.append(made.tensors[0]._replace(name=name))
        path = made.write(tmp_path / "model.gguf")
        assert [m for m in messages_of(path) if wrong(m, path)] == []
        made.tensors[-1] = made.tensors[-1]._replace(type=999)
        path = made.write(tmp_path / "model.gguf")
        assert [m for m in messages_of(path) if wrong(m, path)] == []


def damaged(folder: Path, n: int, seed: int) -> Iterator[tuple[int, Path]]:
    """The demo in a file whose head is damaged in another way each time: lengths, types and single bytes, near the keys above all."""
    path = folder / "damaged.gguf"
    shutil.copy(EMBEDDED, path)
    whole = GGUFFile(EMBEDDED)
    head = min(t.offset for t in whole.tensors.values())
    original = EMBEDDED.read_bytes()[:head]
    keys = [original.index(key.encode()) for key in whole.metadata]
    with path.open("r+b") as f, mmap.mmap(f.fileno(), 0) as data:
        for i in range(n):
            rng = random.Random(f"{seed} {i}")
            for _ in range(rng.randint(1, 3)):
                at = rng.choice(keys) - 8 + rng.randrange(60) if rng.random() < 0.8 else rng.randrange(head)
                at = min(max(at, 8), head - 8)
                if rng.random() < 0.5:
                    data[at : at + 8] = rng.choice(EXTREMES).to_bytes(8, "little")
                else:
                    data[at] = rng.randrange(256)
            yield i, path
            data[:head] = original


def test_messages_about_damaged_files(tmp_path: Path) -> None:
    for i, path in damaged(tmp_path, 150, seed=1):
        for message in messages_of(path):
            assert wrong(message, path) is None, (i, message[:300])


if __name__ == "__main__":
    import tempfile

    n_wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, path in damaged(Path(folder), int(sys.argv[1]), seed=int(sys.argv[2])):
            for message in messages_of(path):
                if why := wrong(message, path):
                    n_wrong += 1
                    print(i, why, repr(message[:300]), flush=True)
            if i % 1000 == 0:
                print(i, "copies", flush=True)
    print(n_wrong, "wrong")
