#!/usr/bin/env python3
"""Write the demo model in every tensor type that GGML can quantize to, and llama.cpp's perplexity of each file.

    python scripts/make_formats.py FOLDER [TYPE...]

FOLDER gets a file for each TYPE (default: all) and a README that lists them; tests/oracles/formats.json gets the perplexities. All matrices
of the layers have the type. The embedding has it too, or Q8_0 if the type is too coarse. llama.cpp quantizes the files, with an importance
matrix computed from our own activations. It can't quantize to NVFP4, so those blocks come from GGML's quantizer and are written here.
Weights for ternary types are made ternary first.
Needs the extra `oracle`, and `../shared/models`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT.parent / "shared" / "models"
SOURCE = MODELS / "demo-f16.gguf"
NOTES = ROOT / "tests" / "oracles" / "formats.json"
TEXTS = "heldout.txt", "wiki-excerpt.txt"
N_CTX = 256
MIXES = {
    name: name
    for name in (
        "F16",
        "BF16",
        "Q8_0",
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q2_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
        "IQ3_XXS",
        "IQ3_S",
        "IQ2_XXS",
        "IQ2_XS",
        "IQ1_S",
        "IQ1_M",
        "TQ1_0",
        "TQ2_0",
        "Q1_0",
        "Q2_0",
    )
} | {
    "F32": "F32",
    "Q3_K": "Q3_K_S",
    "Q4_K": "Q4_K_S",
    "Q5_K": "Q5_K_S",
    "IQ2_S": "IQ2_M",
    "MXFP4": "MXFP4_MOE",
}
"""For each tensor type, the mix of llama.cpp (`llama_ftype`) that has all matrices in this type if it is made "pure"."""
COARSE = {
    "Q2_K",
    "Q3_K",
    "IQ3_XXS",
    "IQ3_S",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ1_S",
    "IQ1_M",
    "TQ1_0",
    "TQ2_0",
    "Q1_0",
    "Q2_0",
}
"""Types that would ruin the model if the embedding, which is also the output matrix, had them."""
TERNARY = {"TQ1_0", "TQ2_0", "Q2_0"}
"""Types for models that were trained for them: llama.cpp copies weights that have only three values, and destroys all others."""
TYPES = [*MIXES, "NVFP4"]
INPUTS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "kqv_out": ("attn_output",),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_swiglu": ("ffn_down",),
}
"""The names of activations, and of the weights that they are multiplied with."""


def importance_matrix() -> dict[str, F32]:
    """Return, by tensor name, the mean squares of the activations for each column of the layers' matrices, float32 [n_in].

    Only six of 24 bits are kept, so that the order of sums, which differs from machine to machine, seldom changes a file.
    """
    from qwencli.backends.kv_cache import KVSequence
    from qwencli.backends.numpy.backend import NumpyBackend
    from qwencli.backends.protocol import Batch, Segment
    from qwencli.gguf.file import GGUFFile
    from qwencli.network.load import load_model
    from qwencli.text.tokenizer import Tokenizer

    file = GGUFFile(SOURCE)
    model = load_model(file)
    tokens = Tokenizer(file).encode((ROOT / "docs" / "stories.txt").read_text(encoding="utf-8"))[
        : model.config.n_ctx
    ]
    names = {
        f"{name}-{i}": [f"blk.{i}.{weight}.weight" for weight in weights]
        for name, weights in INPUTS.items()
        for i in range(model.config.n_layer)
    }
    found = NumpyBackend(model).run(list(names), Batch([Segment(KVSequence(), tokens, len(tokens))]))
    squares = {
        weight: np.square(found[name], dtype=np.float64).mean(0)
        for name, weights in names.items()
        for weight in weights
    }
    mantissas = {weight: np.frexp(mean) for weight, mean in squares.items()}
    return {
        weight: np.ldexp(np.round(m * 64) / 64, e).astype(np.float32) for weight, (m, e) in mantissas.items()
    }


def file_of(folder: Path, kind: str) -> Path:
    return folder / f"demo-{kind.lower()}.gguf"


def quantize(kind: str, path: Path, importance: Mapping[str, F32]) -> None:
    """Write the file of a type. Raises RuntimeError if llama.cpp can't, or if it leaves a matrix in another type."""
    if kind == "NVFP4":
        write_copy(path, gguf.LlamaFileType.MOSTLY_NVFP4, as_nvfp4)
        return
    import llama_cpp.llama_cpp as lc

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    params = lc.llama_model_quantize_default_params()
    mix = MIXES[kind]
    params.ftype = getattr(lc, f"LLAMA_FTYPE_{'ALL' if mix == 'F32' else 'MOSTLY'}_{mix}")
    params.pure, params.nthread = True, 1
    if kind in COARSE:
        params.token_embedding_type = gguf.GGMLQuantizationType.Q8_0
    entries = (lc.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(entries, importance.items()):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    params.imatrix = ctypes.cast(entries, type(params.imatrix))
    with tempfile.TemporaryDirectory() as folder:
        source = SOURCE
        if kind in TERNARY:
            write_copy(source := Path(folder, "ternary.gguf"), gguf.LlamaFileType.MOSTLY_F16, as_ternary)
        if lc.llama_model_quantize(str(source).encode(), str(path).encode(), ctypes.byref(params)):
            raise RuntimeError(f"llama.cpp cannot quantize to {kind}")
    check_types(path, kind)


Tensors = Iterator[tuple[str, NDArray[Any], gguf.GGMLQuantizationType]]


def write_copy(path: Path, file_type: int, change: Callable[[str, F32], Tensors]) -> None:
    """Write the demo model with changed matrices in its layers; the embedding becomes Q8_0."""
    reader, writer = gguf.GGUFReader(SOURCE), gguf.GGUFWriter(path, "qwen3")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in (
            "general.architecture",
            "general.file_type",
        ):
            kinds = field.types
            writer.add_key_value(
                field.name, field.contents(), kinds[0], sub_type=kinds[-1] if len(kinds) > 1 else None
            )
    writer.add_file_type(file_type)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        found = (
            change(tensor.name, values)
            if tensor.name.startswith("blk.") and values.ndim == 2
            else unchanged(tensor.name, values)
        )
        for name, data, kind in found:
            writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def unchanged(name: str, values: F32) -> Tensors:
    kind = gguf.GGMLQuantizationType.F32 if values.ndim == 1 else gguf.GGMLQuantizationType.Q8_0
    yield name, gguf.quantize(values, kind), kind


def as_ternary(name: str, values: F32) -> Tensors:
    """Make each weight one of -d, 0 and d, in blocks of 256 (https://arxiv.org/abs/1605.04711).

    Weights above 0.7 times the block's mean magnitude become d or -d, where d is the mean magnitude of these; the others become 0.
    """
    blocks = values.reshape(-1, 256)
    magnitudes = np.abs(blocks)
    kept = magnitudes > 0.7 * magnitudes.mean(1, keepdims=True)
    d = (magnitudes * kept).sum(1, keepdims=True) / kept.sum(1, keepdims=True)
    yield (
        name,
        (np.sign(blocks) * kept * d).reshape(values.shape).astype(np.float16),
        gguf.GGMLQuantizationType.F16,
    )


def as_nvfp4(name: str, values: F32) -> Tensors:
    """Blocks from GGML's quantizer, and a scale for the tensor (https://arxiv.org/abs/2509.25149).

    The scale maps the largest weight to the largest value that a block can represent, 6 times an E4M3 scale of 448.
    """
    kind = gguf.GGMLQuantizationType.NVFP4
    scale = np.abs(values).max() / np.float32(6 * 448)
    yield name, ggml_blocks(values / scale, kind), kind
    yield name.removesuffix("weight") + "scale", np.array([scale], np.float32), gguf.GGMLQuantizationType.F32


def ggml_library() -> ctypes.CDLL:
    """GGML without its backends, from llama-cpp-python."""
    import llama_cpp

    return ctypes.CDLL(str(next(Path(llama_cpp.__file__).with_name("lib").glob("*ggml-base.*"))))


def ggml_blocks(values: F32, kind: gguf.GGMLQuantizationType) -> NDArray[np.uint8]:
    """Rows quantized by `ggml_quantize_chunk`: uint8 [n_rows, bytes per row]."""
    n_rows, n_cols = values.shape
    block, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    rows = np.empty((n_rows, n_cols // block * n_bytes), np.uint8)
    values = np.ascontiguousarray(values)
    chunk = ggml_library().ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    assert chunk(kind, values.ctypes.data, rows.ctypes.data, 0, n_rows, n_cols, None) == rows.nbytes
    return rows


def check_types(path: Path, kind: str) -> None:
    """Raise RuntimeError if a matrix of a layer has another type."""
    from qwencli.gguf.file import GGUFFile

    found = {
        t.type.name for t in GGUFFile(path).tensors.values() if len(t.shape) > 1 and t.name.startswith("blk.")
    }
    if found != {kind}:
        raise RuntimeError(f"{path}: the layers' matrices have {', '.join(sorted(found))}, expected {kind}")


def running_perplexity(model: Path, text: bytes, **options: Any) -> list[float]:
    """llama.cpp's perplexity after each chunk of N_CTX tokens, as `llama-perplexity -c 256` computes it (tools/perplexity), unrounded.

    `options` are those of llama_cpp.Llama.
    """
    from llama_cpp import Llama

    llama = Llama(
        model_path=str(model),
        n_ctx=N_CTX,
        n_batch=N_CTX,
        logits_all=True,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        **options,
    )
    tokens = llama.tokenize(text, add_bos=True, special=False)
    nll: list[float] = []
    running = []
    for start in range(0, len(tokens) // N_CTX * N_CTX, N_CTX):
        chunk = tokens[start : start + N_CTX]
        llama.reset()
        llama.eval(chunk)
        logits = llama.scores[N_CTX // 2 : N_CTX - 1].astype(np.float64)
        largest = logits.max(-1)
        chances = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
        nll += (chances - logits[np.arange(len(logits)), chunk[N_CTX // 2 + 1 :]]).tolist()
        running.append(float(f"{np.exp(np.mean(nll)):.8g}"))
    return running


def perplexities(model: Path) -> dict[str, float]:
    """llama.cpp's perplexity of each text as a whole."""
    return {text: running_perplexity(model, (MODELS / text).read_bytes())[-1] for text in TEXTS}


def main(folder: str, *kinds: str) -> None:
    if unknown := set(kinds) - set(TYPES):
        sys.exit(f"unknown type {', '.join(sorted(unknown))}, expected {', '.join(TYPES)}")
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    found = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    importance = importance_matrix()
    paths = {kind: file_of(out, kind) for kind in kinds or TYPES}
    for kind, path in paths.items():
        quantize(kind, path, importance)
    for kind, path in paths.items():
        found[kind] = perplexities(path)
        print(f"{kind:8}", *(f"{found[kind][text]:.4f} {text}" for text in TEXTS), sep="  ", flush=True)
        found = {kind: found[kind] for kind in TYPES if kind in found}
        NOTES.write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"llama.cpp's perplexity, -c {N_CTX}", " " * 20 + "".join(f"{text:>20}" for text in TEXTS)]
    for kind, figures in found.items():
        lines.append(f"{file_of(out, kind).name:20}" + "".join(f"{figures[text]:20.4f}" for text in TEXTS))
    (out / "README").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
