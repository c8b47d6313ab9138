"""Hyperparameters: what a file's metadata says about the network, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..errors import ModelError, shown
from ..gguf.file import GGUFFile
from ..gguf.metadata import REQUIRED, LazyArray
from .rope import RopeParams, read_rope

POOLINGS = ("none", "mean", "cls", "last", "rank")
"""How the states of a text's tokens become its vector, in the order of their numbers in files (enum llama_pooling_type in llama.h): not at
all, their mean, the first, the last, and the classes of a rank head."""
MOST_HEAD_DIM = 1024
"""Kernels are compiled for a size of heads; those for delta nets keep rows of a head on the stack. Published models have 256 at most."""


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: each token takes the `n_used` likeliest of `n_expert` feed-forward networks of width `n_ff`.

    If `normalised`, their weights are divided by their sum. `n_ff_shared` is the width of an additional network that every token takes,
    0 if there is none.
    """

    n_expert: int
    n_used: int
    n_ff: int
    n_ff_shared: int
    normalised: bool


@dataclass(frozen=True)
class DeltaNets:
    """Gated delta nets (https://arxiv.org/abs/2412.06464): the layers `layers` keep a state instead of keys and values.

    A convolution over `d_conv` positions is followed by `n_head_k` heads of queries and keys and `n_head_v` heads of values, all of size
    `head_dim`. Value head h uses key head h % n_head_k if `tiled`, else h // (n_head_v / n_head_k).
    """

    layers: tuple[int, ...]
    n_head_k: int
    n_head_v: int
    head_dim: int
    d_conv: int
    tiled: bool

    @property
    def n_channels(self) -> int:
        """The width of the convolution: queries, keys and values together."""
        return (2 * self.n_head_k + self.n_head_v) * self.head_dim

    @property
    def n_state(self) -> tuple[int, int]:
        """How many numbers a layer's state has: for the convolution's last inputs, and for the matrices of the heads."""
        return (self.d_conv - 1) * self.n_channels, self.n_head_v * self.head_dim**2


@dataclass(frozen=True)
class Config:
    """Hyperparameters of a model. `n_ctx` is the context it was trained for.

    Of the file's `n_blocks` layers, the first `n_layer` are run; the others are for predicting several tokens at once and aren't used.
    """

    architecture: str
    n_ctx: int
    n_vocab: int
    n_blocks: int
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    rms_eps: float
    rope: RopeParams
    experts: Experts | None = None
    delta_nets: DeltaNets | None = None
    causal: bool = True
    """Whether a token sees only those before it. Other models read texts, and write none."""
    pooling: str | None = None
    """How the file says that a text's vector is made: one of POOLINGS."""
    n_classes: int = 1
    """Rows of a rank head."""
    class_pooling: str = "last"
    """Of which states a rank head's input is made: one of POOLINGS."""
    n_ff_layers: tuple[int, ...] = ()
    """The width of each layer's feed-forward network, where they differ; `n_ff` is the largest."""

    def n_ff_of(self, layer: int) -> int:
        """The width of a layer's feed-forward network."""
        return self.n_ff_layers[layer] if self.n_ff_layers else self.n_ff

    @cached_property
    def attention_layers(self) -> tuple[int, ...]:
        """The layers that keep keys and values."""
        recurrent = self.delta_nets.layers if self.delta_nets else ()
        return tuple(i for i in range(self.n_layer) if i not in recurrent)

    @property
    def n_kv_values(self) -> int:
        """How many values the KV cache keeps for each position: the keys and values of all layers with attention."""
        return 2 * len(self.attention_layers) * self.n_head_kv * self.head_dim

    @property
    def n_state_values(self) -> int:
        """How many float32 numbers a sequence's state has, in addition to its keys and values; 0 for a model without recurrent layers."""
        return len(self.delta_nets.layers) * sum(self.delta_nets.n_state) if self.delta_nets else 0


def read_config(
    file: GGUFFile,
    arch: str,
    sections: bool = False,
    experts: Experts | None = None,
    delta_nets: DeltaNets | None = None,
) -> Config:
    """Read the hyperparameters; for `sections` see read_rope.

    Raises ModelError if something is missing, has the wrong type, or contradicts something else.
    """
    get = file.metadata
    n_embd = get.integer(f"{arch}.embedding_length", low=1)
    n_layer = read_n_layer(file, arch)
    recurrent = delta_nets.layers if delta_nets else ()
    with_attention = [i for i in range(n_layer) if i not in recurrent]
    n_head = same_in(file, f"{arch}.attention.head_count", with_attention, n_layer)
    n_head_kv = same_in(file, f"{arch}.attention.head_count_kv", with_attention, n_layer, n_head)
    widths = of_layers(file, f"{arch}.feed_forward_length", n_layer, *((0, 0, 0) if experts else ()))
    if n_head % n_head_kv:
        raise ModelError(
            f"{file.path}: {n_head} heads, expected a multiple of the {n_head_kv} key-value heads"
        )
    head_dim = get.integer(f"{arch}.attention.key_length", n_embd // n_head, low=2, high=MOST_HEAD_DIM)
    if (v_dim := get.integer(f"{arch}.attention.value_length", head_dim)) != head_dim:
        raise ModelError(
            f"{file.path}: {arch}.attention.value_length is {v_dim}, expected the key_length {head_dim}"
        )
    n_ctx = get.integer(f"{arch}.context_length", low=1)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{file.path}: tensor 'token_embd.weight' is missing")
    n_vocab = embedding.shape[0]
    tokens = get.get("tokenizer.ggml.tokens", ())
    if isinstance(tokens, (str, int, float)) or len(tokens) not in (0, n_vocab):
        raise ModelError(
            f"{file.path}: tensor 'token_embd.weight' has {n_vocab} rows, expected one for each token of the vocabulary"
            f" ({shown(tokens) if isinstance(tokens, (str, int, float)) else len(tokens)})"
        )
    return Config(
        architecture=arch,
        n_ctx=n_ctx,
        n_vocab=n_vocab,
        n_embd=n_embd,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_dim=head_dim,
        n_blocks=get.integer(f"{arch}.block_count", low=1),
        n_layer=n_layer,
        n_ff=max(widths),
        n_ff_layers=widths if len(set(widths)) > 1 else (),
        rms_eps=get.number(f"{arch}.attention.layer_norm_rms_epsilon", low=0.0, high=1.0),
        rope=read_rope(file, arch, head_dim, n_ctx, sections),
        experts=experts,
        delta_nets=delta_nets,
        causal=(causal := get.boolean(f"{arch}.attention.causal", True)),
        pooling=read_pooling(file, f"{arch}.pooling_type"),
        n_classes=len(get.array(f"{arch}.classifier.output_labels", str, ())) or 1,
        class_pooling=read_class_pooling(file, arch, causal),
    )


def of_layers(
    file: GGUFFile, key: str, n_layer: int, default: Any = REQUIRED, low: int = 1, low_in_array: int = 1
) -> tuple[int, ...]:
    """A number for each of the layers that are run: one for all, or an array. Raises ModelError as read_config does."""
    get = file.metadata
    if not isinstance(get.get(key), LazyArray):
        return (get.integer(key, default, low=low),) * n_layer
    values = get.array(key, int)[:n_layer]
    if len(values) < n_layer:
        raise ModelError(
            f"{file.path}: metadata key '{key}' has {len(values)} elements, expected one for each of {n_layer} layers"
        )
    if wrong := [value for value in values if not low_in_array <= value < 2**31]:
        raise ModelError(
            f"{file.path}: metadata key '{key}' has the element {wrong[0]}, expected a value from {low_in_array} to {2**31 - 1}"
        )
    return tuple(values)


def same_in(file: GGUFFile, key: str, layers: Sequence[int], n_layer: int, default: Any = REQUIRED) -> int:
    """A number that has to be the same in these layers, at least 1; those of others don't count. Raises ModelError as read_config does."""
    values = of_layers(file, key, n_layer, default, low_in_array=0)
    found = sorted({values[i] for i in layers}) or [1]
    if len(found) > 1:
        raise ModelError(
            f"{file.path}: metadata key '{key}' differs from layer to layer, from {found[0]} to {found[-1]}, expected the same in all"
        )
    if not found[0]:
        raise ModelError(f"{file.path}: metadata key '{key}' is 0, expected 1 or more")
    return found[0]


def read_pooling(file: GGUFFile, key: str) -> str | None:
    """The pooling that a key names, None without one. Raises ModelError as read_config does."""
    number = file.metadata.integer(key, None, -1, len(POOLINGS) - 1)  # -1: unspecified
    return None if number in (None, -1) else POOLINGS[number]


def read_class_pooling(file: GGUFFile, arch: str, causal: bool) -> str:
    """What goes into a rank head, as in llama.cpp: the mean where the file says so, else the state that has seen the whole text."""
    if read_pooling(file, f"{arch}.classifier.pooling_type") == "mean":
        return "mean"
    return "last" if causal else "cls"


def read_n_layer(file: GGUFFile, arch: str) -> int:
    """The number of layers that are run. Raises ModelError as read_config does."""
    n_blocks = file.metadata.integer(f"{arch}.block_count", low=1)
    if n_blocks > len(file.tensors):  # checked before anything is allocated for each layer
        raise ModelError(
            f"{file.path}: {arch}.block_count is {n_blocks}, but the file has only {len(file.tensors)} tensors"
        )
    n_predicting: int = file.metadata.integer(f"{arch}.nextn_predict_layers", 0, 0, n_blocks - 1)
    return int(n_blocks - n_predicting)


def read_experts(file: GGUFFile, arch: str, normalised: bool, shared: bool = False) -> Experts:
    """Read the hyperparameters of experts. `shared`: there is an additional network that every token takes.

    Raises ModelError as read_config does.
    """
    get = file.metadata
    n_expert = get.integer(f"{arch}.expert_count", low=1, high=2**15)
    n_layer = read_n_layer(file, arch)
    layers = range(n_layer)
    used_key = f"{arch}.expert_used_count"
    n_used = same_in(file, used_key, layers, n_layer)
    if n_used > n_expert:
        raise ModelError(
            f"{file.path}: metadata key '{used_key}' is {n_used}, expected a value from 1 to {n_expert}"
        )
    n_ff = get.integer(f"{arch}.expert_feed_forward_length", 0)
    if not n_ff:
        n_ff = max(of_layers(file, f"{arch}.feed_forward_length", n_layer, low=n_used)) // n_used
    n_ff_shared = 0
    if shared:
        n_ff_shared = get.integer(f"{arch}.expert_shared_feed_forward_length", 0) or get.integer(
            f"{arch}.feed_forward_length", low=1
        )
    normalised = get.boolean(f"{arch}.norm_top_k_prob", normalised)  # Ollama's
    return Experts(n_expert, n_used, n_ff, n_ff_shared, normalised)


def read_delta_nets(file: GGUFFile, arch: str, tiled: bool) -> DeltaNets:
    """Which layers are recurrent, and their shapes. Raises ModelError as read_config does."""
    get, n_layer = file.metadata, read_n_layer(file, arch)
    n_head_k = get.integer(f"{arch}.ssm.group_count", low=1, high=2**15)
    n_head_v = get.integer(f"{arch}.ssm.time_step_rank", low=1, high=2**15)
    head_dim = get.integer(f"{arch}.ssm.state_size", low=1, high=MOST_HEAD_DIM)
    if n_head_v % n_head_k:
        raise ModelError(
            f"{file.path}: {arch}.ssm.time_step_rank is {n_head_v}, expected a multiple of the {n_head_k} key heads"
        )
    if (inner := get.integer(f"{arch}.ssm.inner_size")) != n_head_v * head_dim:
        raise ModelError(
            f"{file.path}: {arch}.ssm.inner_size is {inner}, expected {n_head_v * head_dim}: {n_head_v} heads of {head_dim}"
        )
    d_conv = get.integer(f"{arch}.ssm.conv_kernel", low=2, high=64)
    recurrent = get.array(f"{arch}.attention.recurrent_layers", bool, None)
    n_head_kv = f"{arch}.attention.head_count_kv"
    if recurrent is None and isinstance(
        get.get(n_head_kv), LazyArray
    ):  # Ollama's: layers without attention have none
        counts = of_layers(file, n_head_kv, n_layer, low_in_array=0)
        recurrent = [not count for count in counts] if 0 in counts else None
    if recurrent is None:
        interval = get.integer(f"{arch}.full_attention_interval", 4, 1)
        recurrent = [(i + 1) % interval != 0 for i in range(n_layer)]
    if len(recurrent) < n_layer:
        raise ModelError(
            f"{file.path}: {arch}.attention.recurrent_layers has {len(recurrent)} elements, expected one for each of {n_layer}"
            " layers"
        )
    layers = tuple(i for i in range(n_layer) if recurrent[i])
    tiled = get.boolean(f"{arch}.ssm.v_head_reordered", tiled)  # Ollama's
    return DeltaNets(layers, n_head_k, n_head_v, head_dim, d_conv, tiled)
