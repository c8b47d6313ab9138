"""Shapes of models: the hyperparameters of Qwen's models, and the tensors and metadata of a file with such a shape.

Sources: llama.cpp's converter (conversion/qwen*.py) and quantizer (llama-quant.cpp) for names, shapes, keys, and what stays F32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from gguf import GGUFWriter
from mixes import TYPES, Place, type_of_embedding, type_of_layer, type_of_output

from qwencli.errors import InputError
from qwencli.gguf.types import GGMLType

Shapes = dict[str, tuple[int, ...]]
BIASED = {"qwen2", "qwen2moe", "qwen2vl"}
"""Architectures with separate biases for queries, keys and values; `qwen` has a single one for all three."""
SAME_WIDTH = BIASED | {"qwen"}
"""Architectures whose heads together are as wide as the embedding, so files don't give the width of a head."""
RECURRENT = {"qwen3next", "qwen35", "qwen35moe"}
"""Architectures with gated delta nets in most layers."""
DEEPSTACK = {"qwen3vl": 3, "qwen3vlmoe": 3}
"""The number of layers that take in features of images."""


@dataclass(frozen=True)
class Shape:
    """Hyperparameters, with the names of `qwencli.network.config.Config`. `tied`: the embedding is also the output matrix.

    `n_ff_shexp` is the width of the shared expert. `n_rot` is how many dimensions of a head are rotated, if not all; `rope_sections` are
    those of M-RoPE. `n_k_heads`, `n_v_heads` and `d_state` (the width of their heads) are for delta nets. `n_nextn` is the number of
    additional layers at the end that predict further tokens. `norm` is the mean of the norms' weights; `attn_norm` is that of the norms
    before attention, if it differs, and `output_norm` that of the last norm, which spreads the logits.
    """

    arch: str
    n_layer: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_vocab: int = 151936
    n_ctx: int = 40960
    tied: bool = True
    rope_theta: float = 1e6
    rms_eps: float = 1e-6
    n_expert: int = 0
    n_expert_used: int = 0
    n_ff_exp: int = 0
    n_ff_shexp: int = 0
    n_rot: int = 0
    rope_sections: tuple[int, ...] = ()
    n_k_heads: int = 0
    n_v_heads: int = 0
    d_state: int = 0
    n_nextn: int = 0
    norm: float = 1.0
    attn_norm: float = 0.0
    output_norm: float = 1.0

    def check(self) -> None:
        """Raise InputError for numbers of heads or experts that no model can have."""
        if self.n_head % self.n_head_kv:
            raise InputError(
                f"--n-head is {self.n_head}, expected a multiple of --n-head-kv {self.n_head_kv}"
            )
        if self.head_dim % 2:
            raise InputError(f"--head-dim is {self.head_dim}, expected an even number")
        if self.n_expert_used > self.n_expert:
            raise InputError(f"--n-expert-used is {self.n_expert_used}, more than --n-expert {self.n_expert}")
        if self.n_k_heads and self.n_v_heads % self.n_k_heads:
            raise InputError(
                f"--n-v-heads is {self.n_v_heads}, expected a multiple of --n-k-heads {self.n_k_heads}"
            )

    @property
    def n_block(self) -> int:
        return self.n_layer + self.n_nextn

    def is_recurrent(self, i: int) -> bool:
        """Whether layer i is a delta net: all but every fourth, and none of the additional ones at the end."""
        return self.arch in RECURRENT and i < self.n_layer and i % 4 != 3


# from config.json of the models on huggingface.co/Qwen; 0.6B and 1.7B are tied there, but their files have both matrices
QWEN3_06B = Shape(
    "qwen3", n_layer=28, n_embd=1024, n_ff=3072, n_head=16, n_head_kv=8, head_dim=128, tied=False
)
QWEN3_17B = replace(QWEN3_06B, n_embd=2048, n_ff=6144)
DELTA = Shape(
    "qwen35",
    n_layer=24,
    n_embd=1024,
    n_ff=3584,
    n_head=8,
    n_head_kv=2,
    head_dim=256,
    n_vocab=248320,
    n_ctx=262144,
    rope_theta=1e7,
    n_rot=64,
    rope_sections=(11, 11, 10, 0),
    n_k_heads=16,
    n_v_heads=16,
    d_state=128,
)
REAL = {
    "qwen3-0.6b": QWEN3_06B,
    "qwen3-1.7b": QWEN3_17B,
    "qwen3-4b": Shape("qwen3", n_layer=36, n_embd=2560, n_ff=9728, n_head=32, n_head_kv=8, head_dim=128),
    "qwen2.5-0.5b": Shape(
        "qwen2", n_layer=24, n_embd=896, n_ff=4864, n_head=14, n_head_kv=2, head_dim=64, n_ctx=32768
    ),
    "qwen-1.8b": Shape(
        "qwen",
        n_layer=24,
        n_embd=2048,
        n_ff=11008,
        n_head=16,
        n_head_kv=16,
        head_dim=128,
        n_ctx=8192,
        tied=False,
        rope_theta=1e4,
    ),
    "qwen2-vl-2b": Shape(
        "qwen2vl",
        n_layer=28,
        n_embd=1536,
        n_ff=8960,
        n_head=12,
        n_head_kv=2,
        head_dim=128,
        n_ctx=32768,
        rope_sections=(16, 24, 24, 0),
    ),
    "qwen3-vl-2b": replace(
        QWEN3_17B, arch="qwen3vl", n_ctx=262144, tied=True, rope_theta=5e6, rope_sections=(24, 20, 20, 0)
    ),
    "qwen3.5-0.8b": DELTA,
}
QWEN3_A3B = Shape(
    "qwen3moe",
    n_layer=24,
    n_embd=2048,
    n_ff=6144,
    n_head=32,
    n_head_kv=4,
    head_dim=128,
    tied=False,
    n_expert=24,
    n_expert_used=8,
    n_ff_exp=768,
)
SPARSE_DELTA = replace(
    DELTA, n_embd=2048, n_head=16, n_v_heads=32, tied=False, n_expert=32, n_ff_exp=512, n_ff_shexp=512
)
CUT = {  # fewer layers and experts, so that a file takes two gigabytes. Attention adds little in these: otherwise tokens would become more
    # alike from layer to layer, and all of them would take the same experts
    "qwen1.5-moe-a2.7b-12l-16e": Shape(
        "qwen2moe",
        n_layer=12,
        n_embd=2048,
        n_ff=5632,
        n_head=16,
        n_head_kv=16,
        head_dim=128,
        n_ctx=8192,
        tied=False,
        n_expert=16,
        n_expert_used=4,
        n_ff_exp=1408,
        n_ff_shexp=5632,
    ),
    "qwen3-30b-a3b-24l-24e": QWEN3_A3B,
    "qwen3-vl-30b-a3b-24l-24e": replace(
        QWEN3_A3B, arch="qwen3vlmoe", n_ctx=262144, rope_theta=5e6, rope_sections=(24, 20, 20, 0)
    ),
    "qwen3-next-80b-a3b-24l-32e": replace(
        SPARSE_DELTA, arch="qwen3next", n_ff=5120, n_vocab=151936, rope_sections=(), n_expert_used=10
    ),
    "qwen3.5-35b-a3b-20l-32e": replace(SPARSE_DELTA, arch="qwen35moe", n_layer=20, n_ff=0, n_expert_used=8),
    # each token reads as many bytes as in qwen3-0.6b
    "qwen3moe-3b-a0.6b": replace(QWEN3_06B, arch="qwen3moe", n_expert=56, n_expert_used=6, n_ff_exp=512),
}
TINY = Shape(
    "qwen3",
    n_layer=2,
    n_embd=256,
    n_ff=512,
    n_head=4,
    n_head_kv=2,
    head_dim=128,
    n_vocab=512,
    n_ctx=1024,
    rope_theta=1e4,
    norm=2.0,
    output_norm=6.0,
)
TINY_QWEN2 = replace(TINY, arch="qwen2", head_dim=64)
TINY_MOE = replace(TINY, arch="qwen3moe", tied=False, n_expert=8, n_expert_used=2, n_ff_exp=256)
TINY_DELTA = replace(
    TINY, arch="qwen35", n_layer=5, n_rot=32, rope_sections=(6, 5, 5, 0), n_k_heads=4, n_v_heads=8, d_state=64
)
TINY_SPARSE_DELTA = replace(
    TINY_DELTA,
    arch="qwen35moe",
    tied=False,
    n_ff=0,
    n_expert=8,
    n_expert_used=3,
    n_ff_exp=256,
    n_ff_shexp=512,
)
TINIES = [
    TINY,
    replace(TINY_QWEN2, arch="qwen", n_ff=1024, n_head_kv=4, tied=False),
    TINY_QWEN2,
    replace(
        TINY_QWEN2, arch="qwen2vl", rope_sections=(8, 12, 12, 0), rms_eps=1e-9
    ),  # llama.cpp uses 0, whatever the file says
    replace(TINY_MOE, arch="qwen2moe", head_dim=64, n_head_kv=4, n_expert_used=3, n_ff_shexp=512),
    replace(TINY_MOE, n_layer=3),
    # llama.cpp doesn't rotate dimensions that the sections leave over, here frequencies 61 and 62; with this base the difference can't be
    # seen
    replace(TINY, arch="qwen3vl", rope_theta=5e6, rope_sections=(24, 20, 20, 0)),
    replace(TINY_MOE, arch="qwen3vlmoe", rope_theta=5e6, rope_sections=(24, 20, 20, 0)),
    replace(TINY_SPARSE_DELTA, arch="qwen3next", n_ff=512, rope_sections=(), n_expert_used=2, n_ff_shexp=256),
    replace(TINY_DELTA, n_nextn=1),
    TINY_SPARSE_DELTA,
]
"""One of each architecture, with a few layers. Attention favours some tokens over others, so that no mistake is averaged away."""
PRESETS = (
    REAL
    | {name: replace(s, norm=2.0, attn_norm=0.25) for name, s in CUT.items()}
    | {
        "tiny": Shape(
            "qwen3",
            n_layer=2,
            n_embd=256,
            n_ff=512,
            n_head=4,
            n_head_kv=2,
            head_dim=64,
            n_vocab=512,
            n_ctx=1024,
        ),
        **{f"tiny-{s.arch}": s for s in TINIES},
    }
)


# --- tensors ---


class TensorPlan(NamedTuple):
    """A tensor to write. `shape` is rows first, as in NumPy. With a `spread` it is F32, with values evenly spread around `mean`."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLType
    mean: float = 0.0
    spread: float | None = None

    @property
    def n_bytes(self) -> int:
        return self.kind.n_bytes(int(np.prod(self.shape)))


def plan_tensors(s: Shape, mix: str, same_output: bool = False) -> list[TensorPlan]:
    """The tensors of a model, in the order in which llama-quantize writes them.

    With `same_output`, the embedding gets the type of the output matrix even if the two are not tied.
    """
    matrix, output = (s.n_vocab, s.n_embd), type_of_output(mix, s.n_embd)
    plans = [] if s.tied else with_scale(TensorPlan("output.weight", matrix, output))
    plans += [
        TensorPlan("output_norm.weight", (s.n_embd,), TYPES["F32"], s.output_norm, 0.1 * s.output_norm),
        TensorPlan(
            "token_embd.weight", matrix, output if s.tied or same_output else type_of_embedding(mix, s.n_embd)
        ),
    ]
    for i in range(s.n_block):
        for name, shape in sorted(layer_shapes(s, i).items()):
            plans += plan_of_layer(s, mix, i, name, shape)
    return plans


def layer_shapes(s: Shape, i: int) -> Shapes:
    """The names, without `blk.<i>.`, and shapes of layer i's tensors."""
    shapes = {
        "attn_norm.weight": (s.n_embd,),
        "post_attention_norm.weight" if s.arch in RECURRENT else "ffn_norm.weight": (s.n_embd,),
    }
    shapes |= delta_net(s) if s.is_recurrent(i) else attention(s)
    shapes |= experts(s) if s.n_expert else ffn(s.n_embd, s.n_ff // 2 if s.arch == "qwen" else s.n_ff)
    if i >= s.n_layer:
        shapes |= {f"nextn.{name}.weight": (s.n_embd,) for name in ("enorm", "hnorm", "shared_head_norm")}
        shapes["nextn.eh_proj.weight"] = s.n_embd, 2 * s.n_embd
    return shapes


def attention(s: Shape) -> Shapes:
    n_q, n_kv = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    if s.arch == "qwen":
        return {
            "attn_qkv.weight": (3 * s.n_embd, s.n_embd),
            "attn_qkv.bias": (3 * s.n_embd,),
            "attn_output.weight": (s.n_embd, s.n_embd),
        }
    shapes = {
        "attn_q.weight": (
            2 * n_q if s.arch in RECURRENT else n_q,
            s.n_embd,
        ),  # each head's output gate follows its query
        "attn_k.weight": (n_kv, s.n_embd),
        "attn_v.weight": (n_kv, s.n_embd),
        "attn_output.weight": (s.n_embd, n_q),
    }
    if s.arch in BIASED:
        return shapes | {"attn_q.bias": (n_q,), "attn_k.bias": (n_kv,), "attn_v.bias": (n_kv,)}
    return shapes | {"attn_q_norm.weight": (s.head_dim,), "attn_k_norm.weight": (s.head_dim,)}


def delta_net(s: Shape) -> Shapes:
    n_values = s.n_v_heads * s.d_state
    n_qkv = 2 * s.n_k_heads * s.d_state + n_values
    names = ["ssm_ba"] if s.arch == "qwen3next" else ["ssm_alpha", "ssm_beta"]
    gates = {f"{name}.weight": (2 * s.n_v_heads // len(names), s.n_embd) for name in names}
    return gates | {
        "attn_qkv.weight": (n_qkv, s.n_embd),
        "attn_gate.weight": (n_values, s.n_embd),
        "ssm_conv1d.weight": (n_qkv, 4),
        "ssm_a": (s.n_v_heads,),
        "ssm_dt.bias": (s.n_v_heads,),
        "ssm_norm.weight": (s.d_state,),
        "ssm_out.weight": (s.n_embd, n_values),
    }


def ffn(n_embd: int, n_ff: int, of: str = "") -> Shapes:
    return {
        f"ffn_gate{of}.weight": (n_ff, n_embd),
        f"ffn_up{of}.weight": (n_ff, n_embd),
        f"ffn_down{of}.weight": (n_embd, n_ff),
    }


def experts(s: Shape) -> Shapes:
    shapes = {name: (s.n_expert, *shape) for name, shape in ffn(s.n_embd, s.n_ff_exp, "_exps").items()}
    shapes["ffn_gate_inp.weight"] = s.n_expert, s.n_embd
    if s.n_ff_shexp:
        shapes |= {"ffn_gate_inp_shexp.weight": (s.n_embd,)} | ffn(s.n_embd, s.n_ff_shexp, "_shexp")
    return shapes


def plan_of_layer(s: Shape, mix: str, i: int, name: str, shape: tuple[int, ...]) -> list[TensorPlan]:
    """A tensor of layer i, with its scale if the type is a scaled one."""
    full = f"blk.{i}.{name}"
    if len(shape) == 1 or name in ("ffn_gate_inp.weight", "ssm_conv1d.weight"):
        return [TensorPlan(full, shape, TYPES["F32"], *values_of(name, s))]
    nth = 2 * i + name.endswith("shexp.weight") if s.n_ff_shexp else i
    place = Place(i, s.n_block, s.n_head // s.n_head_kv, s.n_expert, nth)
    return with_scale(
        TensorPlan(full, shape, type_of_layer(mix, name.removesuffix(".weight"), place, shape[-1]))
    )


def values_of(name: str, s: Shape) -> tuple[float, float]:
    """The mean and spread of a tensor that is always F32.

    Gates are neither open nor shut, and states last for a few to a few dozen tokens. The logits of experts have a standard deviation of 3,
    so that rounding seldom changes the choice of an expert, and then only of one with little weight.
    """
    if name.startswith("ffn_gate_inp."):
        return 0.0, 3 / s.norm * (3 / s.n_embd) ** 0.5
    if name.startswith("ffn_gate_inp_shexp"):
        return 0.0, 1 / s.norm * (3 / s.n_embd) ** 0.5
    known = {
        "attn_q_norm.weight": (s.norm**0.5, 0.1),
        "attn_k_norm.weight": (s.norm**0.5, 0.1),
        "attn_norm.weight": (s.attn_norm or s.norm, 0.1),
        "ssm_a": (-1.025, 0.975),
        "ssm_dt.bias": (0.0, 1.0),
        "ssm_conv1d.weight": (0.0, 0.5),
    }
    return known.get(name, (s.norm if name.endswith("norm.weight") else 0.0, 0.1))


def with_scale(t: TensorPlan) -> list[TensorPlan]:
    """A tensor, with its scale (one per expert) if the type is a scaled one."""
    if not t.kind.scaled:
        return [t]
    return [
        t,
        TensorPlan(t.name.removesuffix("weight") + "scale", t.shape[:-2] or (1,), TYPES["F32"], 1.0, 0.1),
    ]


# --- metadata ---


def add_hyperparameters(w: GGUFWriter, s: Shape) -> None:
    """Add the architecture's keys, in the converter's order."""
    w.add_block_count(s.n_block)
    w.add_context_length(s.n_ctx)
    w.add_embedding_length(s.n_embd)
    if s.n_ff:  # qwen35moe has none
        w.add_feed_forward_length(s.n_ff)
    w.add_head_count(s.n_head)
    if s.arch != "qwen":
        w.add_head_count_kv(s.n_head_kv)
    if s.rope_sections:
        w.add_rope_dimension_sections(s.rope_sections)
    w.add_rope_freq_base(s.rope_theta)
    w.add_layer_norm_rms_eps(s.rms_eps)
    if s.n_expert:
        w.add_expert_count(s.n_expert)
        w.add_expert_used_count(s.n_expert_used)
    if s.arch not in SAME_WIDTH or s.n_head * s.head_dim != s.n_embd:
        w.add_key_length(s.head_dim)
        w.add_value_length(s.head_dim)
    if s.n_expert:
        w.add_expert_feed_forward_length(s.n_ff_exp)
    if s.n_ff_shexp:
        w.add_expert_shared_feed_forward_length(s.n_ff_shexp)
    if s.n_nextn:
        w.add_nextn_predict_layers(s.n_nextn)
    if s.arch in DEEPSTACK:
        w.add_num_deepstack_layers(DEEPSTACK[s.arch])
    if s.arch in RECURRENT:
        add_delta_net(w, s)


def add_delta_net(w: GGUFWriter, s: Shape) -> None:
    w.add_ssm_conv_kernel(4)
    w.add_ssm_state_size(s.d_state)
    w.add_ssm_group_count(s.n_k_heads)
    w.add_ssm_time_step_rank(s.n_v_heads)
    w.add_ssm_inner_size(s.n_v_heads * s.d_state)
    if s.arch != "qwen3next":  # its config.json doesn't list its layers
        w.add_array(f"{s.arch}.attention.recurrent_layers", [s.is_recurrent(i) for i in range(s.n_block)])
    w.add_full_attention_interval(4)
    w.add_rope_dimension_count(s.n_rot or s.head_dim)
