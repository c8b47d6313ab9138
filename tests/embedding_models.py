"""The demo model with metadata that says how it embeds or ranks, and the texts that scripts/make_embedding_oracles.py asks about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf.quants import dequantize
from rewritten import rewrite

TEXTS = (
    "a king sat on the hill",
    "The little dog ran to the river and drank, because the day was warm.",
    "x",
    "Une reine, 3 chevaux & a castle. " * 12,
)
"""One of a single token, and one whose keys take several pages."""
QUERY = "Where does the king live?"
DOCUMENTS = (
    "The king lives in a castle on the hill.",
    "A little dog ran to the river.",
    "Bread is made from flour, water and salt.",
    "kings",
)
YES_NO = (
    "<|im_start|>system\nAnswer yes or no.<|im_end|>\n<|im_start|>user\n{query}\nDoes this say it? {document}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


class Variant(NamedTuple):
    """A rewritten demo file and the `--pooling` that llama.cpp gets for it, None for the file's own."""

    keys: Mapping[str, Any] = {}
    pooling: str | None = None
    head: int = 0
    """Rows of a rank head: those of "yes" and "no", or random ones."""
    no_head: bool = False
    """For ranking without one."""
    biases: str = ""
    """Which of queries, keys and values get random biases."""

    @property
    def ranks(self) -> bool:
        return bool(self.head or self.no_head)


BOTH_WAYS = {"qwen3.attention.causal": False}
EMBEDDING = {
    "mean in the file": Variant({"qwen3.pooling_type": 1}),
    "cls in the file": Variant({"qwen3.pooling_type": 2}),
    "last in the file": Variant({"qwen3.pooling_type": 3}),
    "none in the file": Variant({"qwen3.pooling_type": 0}),
    "both ways, mean": Variant({"qwen3.pooling_type": 1} | BOTH_WAYS),
    "both ways, cls": Variant({"qwen3.pooling_type": 2} | BOTH_WAYS),
    "both ways, last": Variant({"qwen3.pooling_type": 3} | BOTH_WAYS),
    "both ways, none": Variant({"qwen3.pooling_type": 0} | BOTH_WAYS),
    "mean asked for": Variant({"qwen3.pooling_type": 3}, "mean"),
    "none asked for": Variant({"qwen3.pooling_type": 1} | BOTH_WAYS, "none"),
    "cls asked for": Variant({}, "cls"),
    "with biases": Variant({"qwen3.pooling_type": 3}, biases="qkv"),
    "with biases on keys": Variant({"qwen3.pooling_type": 3}, biases="k"),
}
LABELS = {"qwen3.classifier.output_labels": ["yes", "no"]}
RANK = {"qwen3.pooling_type": 4}
RANKING = {
    "a head and a template": Variant(RANK | LABELS | {"tokenizer.chat_template.rerank": YES_NO}, head=2),
    "a head, no template": Variant(RANK | LABELS, head=2),
    "with an EOS token": Variant(RANK | LABELS | {"tokenizer.ggml.add_eos_token": True}, head=2),
    "with BOS and EOS tokens": Variant(
        RANK | LABELS | {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.add_bos_token": True}, head=2
    ),
    "three classes": Variant(RANK | {"qwen3.classifier.output_labels": ["a", "b", "c"]}, head=3),
    "both ways": Variant(RANK | LABELS | BOTH_WAYS, head=2),
    "of the mean": Variant(RANK | LABELS | {"qwen3.classifier.pooling_type": 1}, head=2),
    "asked for": Variant(LABELS | {"tokenizer.chat_template.rerank": YES_NO}, "rank", head=2),
}


def write_variant(source: Path, target: Path, variant: Variant) -> Path:
    """The demo model's file `source` as a variant. Its vocabulary, which has no "yes", gets one in place of <tool_call>.

    Where it ranks, its weights become float32: scores are steep, and activations are quantized differently here and there.
    """
    reader = gguf.GGUFReader(source)
    words = reader.fields["tokenizer.ggml.tokens"].contents()
    words[words.index("<tool_call>")] = "yes"
    tensors = {}
    draw = np.random.RandomState(7).normal
    for name in (f"blk.{i}.attn_{which}" for i in range(6) for which in variant.biases):
        [weight] = [t for t in reader.tensors if t.name == f"{name}.weight"]
        tensors[f"{name}.bias"] = draw(0, 0.5, weight.shape[1])
    if variant.ranks:
        tensors = {t.name: dequantize(t.data, t.tensor_type) for t in reader.tensors}
    if variant.head:
        [table] = [t for t in reader.tensors if t.name == "token_embd.weight"]
        rows = dequantize(table.data, table.tensor_type)
        if variant.head == 2:
            head = rows[[words.index("yes"), words.index("no")]]
        else:
            head = np.random.RandomState(3).normal(0, 0.2, (variant.head, rows.shape[1]))
        tensors["cls.output.weight"] = head
    return rewrite(source, target, {**variant.keys, "tokenizer.ggml.tokens": words}, tensors)
