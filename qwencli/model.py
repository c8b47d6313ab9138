"""A model: the hyperparameters and the graph that an architecture file makes of a GGUF file."""
from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

from . import models
from .errors import ModelError
from .gguf_file import GGUFFile, TensorInfo
from .graph import Graph, Tensor
from .rope import RopeParams, read_rope


@dataclass(frozen=True)
class Config:
    """Hyperparameters that the Qwen architectures share. `n_ctx` is the context the model was trained for."""
    architecture: str
    n_ctx: int
    n_vocab: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    rope: RopeParams

    @property
    def n_kv_values(self) -> int:
        """Values that the KV cache keeps for each position: keys and values of all layers."""
        return 2 * self.n_layer * self.n_head_kv * self.head_dim


@dataclass(frozen=True)
class Model:
    """What a backend needs to run a file."""
    file: GGUFFile
    config: Config
    graph: Graph


class Weights:
    """The file's tensors as leaves of a graph, each asked for with the shape that the architecture expects."""

    def __init__(self, file: GGUFFile, graph: Graph) -> None:
        self._file, self._graph, self._used = file, graph, set[str]()

    def __contains__(self, name: str) -> bool:
        return name in self._file.tensors

    def __call__(self, name: str, *shape: int) -> Tensor:
        info = self._file.tensors.get(name)
        if info is None:
            raise ModelError(f"{self._file.path}: tensor '{name}' is missing, expected one of shape {list(shape)}")
        if info.shape != shape:
            raise ModelError(f"{self._file.path}: tensor '{name}' has the shape {list(info.shape)}, expected {list(shape)}")
        self._used.add(name)
        return self._graph.weight(info, self._scale(info))

    def _scale(self, info: TensorInfo) -> TensorInfo | None:
        """What products with a weight of a scaled type are multiplied by. An embedding has none: it is looked up, as llama.cpp does."""
        if not info.type.scaled or info.name == "token_embd.weight":
            return None
        name = info.name.removesuffix("weight") + "scale"
        scale = self._file.tensors.get(name)
        if scale is None:
            raise ModelError(f"{self._file.path}: tensor '{info.name}' is {info.type.name}, which needs its scale, the tensor '{name}', "
                             "but the file has none: convert the model again")
        if (scale.shape, scale.type.name) != ((1,), "F32"):
            raise ModelError(f"{self._file.path}: tensor '{name}' is {scale.type.name} {list(scale.shape)}, expected F32 [1]")
        self._used |= {name, info.name.removesuffix("weight") + "input_scale"}  # the latter is for activations of 4 bits
        return scale

    def optional(self, name: str, *shape: int) -> Tensor | None:
        return self(name, *shape) if name in self else None

    def check_all_used(self) -> None:
        """A tensor that the graph leaves out would make the answers wrong without a word."""
        if unused := sorted(self._file.tensors.keys() - self._used):
            raise ModelError(f"{self._file.path}: {len(unused)} tensors have no place in this architecture, such as '{unused[0]}'")


def known_architectures() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(models.__path__))


def load_model(file: GGUFFile) -> Model:
    """Build the graph of the file's architecture. Raises ModelError where the file does not describe a model that runs."""
    architecture = file.metadata.string("general.architecture")
    if architecture not in known_architectures():
        raise ModelError(f"{file.path}: the architecture '{architecture}' is not supported; known are {', '.join(known_architectures())}")
    model: Model = importlib.import_module(f"{models.__name__}.{architecture}").build(file)
    return model


def read_config(file: GGUFFile, arch: str) -> Config:
    """Read the hyperparameters. Raises ModelError for what is missing, mistyped or contradicts itself."""
    get = file.metadata
    n_embd = get.integer(f"{arch}.embedding_length", low=1)
    n_head = get.integer(f"{arch}.attention.head_count", low=1)
    n_head_kv = get.integer(f"{arch}.attention.head_count_kv", n_head, low=1)
    if n_head % n_head_kv:
        raise ModelError(f"{file.path}: {n_head} heads, expected a multiple of the {n_head_kv} key-value heads")
    head_dim = get.integer(f"{arch}.attention.key_length", n_embd // n_head, low=2)
    if (v_dim := get.integer(f"{arch}.attention.value_length", head_dim)) != head_dim:
        raise ModelError(f"{file.path}: {arch}.attention.value_length is {v_dim}, expected the key_length {head_dim}")
    n_ctx = get.integer(f"{arch}.context_length", low=1)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing")
    n_vocab = embedding.shape[0]
    tokens = get.get("tokenizer.ggml.tokens", ())
    if isinstance(tokens, (str, int, float)) or len(tokens) not in (0, n_vocab):
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' has {n_vocab} rows, expected one for each token of the vocabulary"
                         f" ({tokens if isinstance(tokens, (str, int, float)) else len(tokens)})")
    return Config(
        architecture=arch, n_ctx=n_ctx, n_vocab=n_vocab, n_embd=n_embd, n_head=n_head, n_head_kv=n_head_kv, head_dim=head_dim,
        n_layer=get.integer(f"{arch}.block_count", low=1),
        n_ff=get.integer(f"{arch}.feed_forward_length", low=1),
        rms_eps=get.number(f"{arch}.attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        rope=read_rope(file, arch, head_dim, n_ctx))
