"""GGUF files built byte by byte, with neither our own code nor the gguf package's writer, so that damaged ones can be made too.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A key-value pair is `key: (type, value)` with a type of TYPES, or with
one in brackets for an array: `"a.b": ("u32", 3)`, `"c": ("[str]", ["x", "y"])`, `"d": ("[[u8]]", [[1], [2, 3]])`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TYPES = {
    "u8": 0,
    "i8": 1,
    "u16": 2,
    "i16": 3,
    "u32": 4,
    "i32": 5,
    "f32": 6,
    "bool": 7,
    "str": 8,
    "u64": 10,
    "i64": 11,
    "f64": 12,
}
ARRAY = 9
CODES = {
    "u8": "B",
    "i8": "b",
    "u16": "H",
    "i16": "h",
    "u32": "I",
    "i32": "i",
    "f32": "f",
    "bool": "B",
    "u64": "Q",
    "i64": "q",
    "f64": "d",
}
F32 = 0  # ggml's number of the tensor type


def number(code: str, value: float) -> bytes:
    return struct.pack("<" + code, value)


def string(text: str | bytes) -> bytes:
    """Bytes are taken as they are, so that a string can contain bytes that aren't UTF-8."""
    raw = text if isinstance(text, bytes) else text.encode()
    return number("Q", len(raw)) + raw


def type_id(kind: str) -> int:
    return ARRAY if kind.startswith("[") else TYPES[kind]


def value(kind: str, content: Any) -> bytes:
    if kind.startswith("["):
        elem = kind[1:-1]
        return (
            number("I", type_id(elem)) + number("Q", len(content)) + b"".join(value(elem, c) for c in content)
        )
    return string(content) if kind == "str" else number(CODES[kind], content)


def pair(key: str | bytes, kind: str, content: Any) -> bytes:
    return string(key) + number("I", type_id(kind)) + value(kind, content)


class Tensor(NamedTuple):
    """`dims` is in the file's order, fastest first. With `offset` None it follows the tensor before it."""

    name: str | bytes
    dims: tuple[int, ...]
    type: int
    data: bytes
    offset: int | None = None


def f32(name: str, array: Any) -> Tensor:
    array = np.asarray(array, np.float32)
    return Tensor(name, array.shape[::-1], F32, array.tobytes())


@dataclass
class Gguf:
    """What the file holds; `n_tensors` and `n_kv`, if given, are the lies that its header tells."""

    metadata: dict[str, tuple[str, Any]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)
    version: int = 3
    n_tensors: int | None = None
    n_kv: int | None = None

    def build(self) -> bytes:
        alignment = self.metadata.get("general.alignment", ("u32", 32))[1]
        padding = alignment if isinstance(alignment, int) and 0 < alignment < 2**16 else 32
        table, data = b"", b""
        for t in self.tensors:
            data += bytes(-len(data) % padding)
            offset = len(data) if t.offset is None else t.offset
            dims = b"".join(number("Q", d) for d in t.dims)
            table += (
                string(t.name) + number("I", len(t.dims)) + dims + number("I", t.type) + number("Q", offset)
            )
            data += t.data
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_kv = len(self.metadata) if self.n_kv is None else self.n_kv
        head = b"GGUF" + number("I", self.version) + number("Q", n_tensors) + number("Q", n_kv)
        head += b"".join(pair(key, *content) for key, content in self.metadata.items()) + table
        return head + bytes(-len(head) % padding) + data

    def write(self, path: Path) -> Path:
        path.write_bytes(self.build())
        return path

    def replace(self, tensor: Tensor) -> None:
        """Replace the tensor that has the name of `tensor`."""
        i = [t.name for t in self.tensors].index(tensor.name)
        self.tensors[i] = tensor


NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = [chr(b) for b in PRINTABLE] + [chr(256 + i) for i in range(256 - len(PRINTABLE))]
"""GPT-2's characters for the 256 bytes, in the order of its vocabulary."""
MERGES = ["Ġ t", "h e", "Ġt he", "a n", "an d", "Ġ a", "i n", "in g"]
SPECIAL = {"<|endoftext|>": CONTROL, "<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<think>": USER_DEFINED}
TOKENS = BYTES + [merge.replace(" ", "") for merge in MERGES] + list(SPECIAL)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

N_LAYER, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, HEAD_DIM, N_CTX = 2, 32, 64, 4, 2, 16, 128
"""HEAD_DIM is qwen3's; qwen2 files don't name theirs, which is N_EMBD / N_HEAD."""


def tiny(arch: str = "qwen3", seed: int = 0) -> Gguf:
    """A model that runs, with random F32 weights: qwen3 with tied embeddings, or qwen2 with biases and an output matrix of its own."""
    head_dim = HEAD_DIM if arch == "qwen3" else N_EMBD // N_HEAD
    file = Gguf(
        {
            "general.architecture": ("str", arch),
            "general.name": ("str", "tiny"),
            "general.file_type": ("u32", 0),
            f"{arch}.block_count": ("u32", N_LAYER),
            f"{arch}.context_length": ("u32", N_CTX),
            f"{arch}.embedding_length": ("u32", N_EMBD),
            f"{arch}.feed_forward_length": ("u32", N_FF),
            f"{arch}.attention.head_count": ("u32", N_HEAD),
            f"{arch}.attention.head_count_kv": ("u32", N_HEAD_KV),
            f"{arch}.attention.layer_norm_rms_epsilon": ("f32", 1e-6),
            f"{arch}.rope.freq_base": ("f32", 1e6),
            "tokenizer.ggml.model": ("str", "gpt2"),
            "tokenizer.ggml.pre": ("str", "qwen2"),
            "tokenizer.ggml.tokens": ("[str]", TOKENS),
            "tokenizer.ggml.token_type": ("[i32]", [SPECIAL.get(token, NORMAL) for token in TOKENS]),
            "tokenizer.ggml.merges": ("[str]", MERGES),
            "tokenizer.ggml.eos_token_id": ("u32", TOKENS.index("<|im_end|>")),
            "tokenizer.ggml.bos_token_id": ("u32", TOKENS.index("<|endoftext|>")),
            "tokenizer.ggml.add_bos_token": ("bool", False),
            "tokenizer.chat_template": ("str", TEMPLATE),
        }
    )
    if arch == "qwen3":
        file.metadata |= {
            "qwen3.attention.key_length": ("u32", head_dim),
            "qwen3.attention.value_length": ("u32", head_dim),
        }
    random = np.random.default_rng(seed)

    def add(name: str, *shape: int) -> None:
        """A weight of the given NumPy shape; vectors lie around 1, as norms do."""
        file.tensors.append(f32(name, random.normal(1.0 if len(shape) == 1 else 0.0, 0.1, shape)))

    add("token_embd.weight", len(TOKENS), N_EMBD)
    add("output_norm.weight", N_EMBD)
    if arch == "qwen2":
        add("output.weight", len(TOKENS), N_EMBD)
    for i in range(N_LAYER):
        for name, n_head in ("q", N_HEAD), ("k", N_HEAD_KV), ("v", N_HEAD_KV):
            add(f"blk.{i}.attn_{name}.weight", n_head * head_dim, N_EMBD)
            if arch == "qwen2":
                add(f"blk.{i}.attn_{name}.bias", n_head * head_dim)
            elif name != "v":
                add(f"blk.{i}.attn_{name}_norm.weight", head_dim)
        add(f"blk.{i}.attn_norm.weight", N_EMBD)
        add(f"blk.{i}.attn_output.weight", N_EMBD, N_HEAD * head_dim)
        add(f"blk.{i}.ffn_norm.weight", N_EMBD)
        add(f"blk.{i}.ffn_gate.weight", N_FF, N_EMBD)
        add(f"blk.{i}.ffn_up.weight", N_FF, N_EMBD)
        add(f"blk.{i}.ffn_down.weight", N_EMBD, N_FF)
    return file


STORY = [*"abcdefghijklmnopqrstuvwxyz", "Ã", "©", "Ġthe", "<|im_end|>"]
"""Tokens of "abc...zé the" and the end of an answer; é takes two."""


def reciter(story: Sequence[str] = STORY[:-1]) -> Gguf:
    """A model that answers any chat with `story`, tokens that differ, and says it again and again if it may not end: each of its tokens
    leads to the next, and so do the last one and a newline to the first. What TOKENS lack is added to them, as text. The layers add
    nothing, an output row is the embedding of what it follows."""
    file = tiny()
    random = np.random.default_rng(1)
    tokens = TOKENS + [token for token in story if token not in TOKENS]
    file.metadata["tokenizer.ggml.tokens"] = "[str]", tokens
    types = [SPECIAL.get(token, NORMAL if token in TOKENS else USER_DEFINED) for token in tokens]
    file.metadata["tokenizer.ggml.token_type"] = "[i32]", types
    embedding = random.normal(size=(len(tokens), N_EMBD))
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    output = np.zeros_like(embedding)
    for before, after in zip(["Ċ", STORY[-1], *story], [story[0], story[0], *story[1:], STORY[-1]]):
        output[tokens.index(after)] += embedding[tokens.index(before)]
    file.replace(f32("token_embd.weight", embedding))
    file.tensors.append(f32("output.weight", 10 * output))
    for i in range(N_LAYER):
        file.replace(f32(f"blk.{i}.attn_output.weight", np.zeros((N_EMBD, N_HEAD * HEAD_DIM))))
        file.replace(f32(f"blk.{i}.ffn_down.weight", np.zeros((N_EMBD, N_FF))))
    return file


def parts(file: Gguf, n_parts: int) -> list[Gguf]:
    """The file split as llama.cpp's gguf-split does it: all metadata in the first part, tensors dealt out in order."""
    per_part = -(-len(file.tensors) // n_parts)
    split = []
    for i in range(n_parts):
        about = {
            "split.no": ("u16", i),
            "split.count": ("u16", n_parts),
            "split.tensors.count": ("i32", len(file.tensors)),
        }
        split.append(
            Gguf(
                (file.metadata if i == 0 else {}) | about,
                file.tensors[i * per_part : (i + 1) * per_part],
                file.version,
            )
        )
    return split
