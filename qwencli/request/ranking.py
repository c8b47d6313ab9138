"""How well documents answer a query, as a model for ranking says: by its rank head, or by how likely it says yes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..backends.protocol import CLASSES, F32, HIDDEN, LOGITS, Backend
from ..engine.embedding import Embedding
from ..errors import InputError
from ..network.model import Model
from ..text.chat.template import guarded
from ..text.tokenizer import Tokenizer

TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided."
    ' Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
    "<Query>: {query}\n<Document>: {document}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""What Qwen3-Reranker was trained on (https://huggingface.co/Qwen/Qwen3-Reranker-0.6B)."""
ANSWERS = "yes", "no"
WITH_SOFTMAX = "qwen3", "qwen3vl"
"""Architectures whose rank heads give logits of classes; the first class is that of a fitting document (build_pooling in llama.cpp)."""


class Ranking:
    """How a model ranks. `template` has the places {query} and {document}; None: the two texts are joined by the file's EOS tokens.

    A file without a rank head is taken for one like Qwen3-Reranker: its score is the share of "yes" in the probabilities of "yes" and "no"
    as the next token. Raises InputError where that can't be asked.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._config = tokenizer, model.config
        self._metadata = model.file.metadata
        self.template: str | None = self._metadata.string("tokenizer.chat_template.rerank", None)
        self._answers: list[int] = []
        if CLASSES not in model.graph.nodes:
            tokens = [tokenizer.encode(answer) for answer in ANSWERS]
            if any(len(ids) != 1 for ids in tokens):
                raise InputError(
                    f"{model.file.path.name}: can't rank: the file has no rank head (cls.output.weight), nor the tokens yes and no"
                )
            self._answers = [ids[0] for ids in tokens]
            self.template = self.template or TEMPLATE

    def prompt(self, query: str, document: str) -> list[int]:
        """The token ids that the model reads of a query and a document, in which only the template can name control tokens."""
        encode = self._tokenizer.encode
        if self.template is None:
            return self._joined(encode(query), encode(document))
        texts, guard = guarded({"query": query, "document": document}, self._tokenizer.control_texts)
        text = re.sub(r"\{(query|document)\}", lambda place: texts[place[1]], self.template)
        return encode(text, parse_special=True, guard=guard)

    def _joined(self, query: Sequence[int], document: Sequence[int]) -> list[int]:
        """Two texts with the special tokens between them that the file asks for, as in llama.cpp."""
        t = self._tokenizer
        sep = self._metadata.integer("tokenizer.ggml.seperator_token_id", None, 0, t.n_vocab - 1)
        begin = [t.bos_id] if t.add_bos else []
        end = [sep if t.eos_id is None else t.eos_id] if t.add_eos else []
        between = [sep] if self._metadata.boolean("tokenizer.ggml.add_sep_token", False) else []
        return [i for i in [*begin, *query, *end, *between, *document, *end] if i is not None]

    def reading(self, tokens: Sequence[int]) -> Embedding:
        """The reading of a prompt; its result is the score, float32 [1, 1]."""
        return Embedding(tokens, self._config.class_pooling if not self._answers else "last", self._score)

    def _score(self, backend: Backend, hidden: F32) -> F32:
        name = LOGITS if self._answers else CLASSES
        classes: F32 = backend.run((name,), feed={HIDDEN: hidden})[name]
        if self._answers:
            classes = classes[:, self._answers]
        if self._answers or self._config.architecture in WITH_SOFTMAX:
            classes = np.exp(classes - classes.max(axis=1, keepdims=True))
            classes /= classes.sum(axis=1, keepdims=True)
        return classes[:, :1]
