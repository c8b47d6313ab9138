"""The parts that Qwen's architectures are made of, written once for all files in `architectures/`."""

from __future__ import annotations

from ..gguf.file import GGUFFile
from .config import Config
from .graph import CLASSES, HIDDEN, LOGITS, DeltaNet, Graph, Tensor
from .model import Model, Weights


class Decoder:
    """A decoder that is built layer by layer.

    Hidden states between its parts are [n_tokens, n_embd]. All methods raise ModelError for missing tensors and wrong shapes.
    """

    def __init__(self, file: GGUFFile, config: Config) -> None:
        self._file, self.c, self._g = file, config, Graph()
        self._w = Weights(file, self._g)
        self._layers: list[Tensor] = []

    def embedding(self) -> Tensor:
        """The rows of the batch's tokens: what the first layer starts from."""
        weight = self._w("token_embd.weight", self.c.n_vocab, self.c.n_embd)
        x = self._g.get_rows(weight, self._g.tokens, "inp_embd")
        self._layers.append(x)
        return x

    def model(self, x: Tensor, rank_head: bool = False) -> Model:
        """The model, ending in the last norm and the logits, [n_outputs, n_vocab].

        If the file has no output matrix, the embedding is used. With `rank_head` the file may have a matrix that turns the last norm's
        output into classes.
        """
        g, w, c = self._g, self._w, self.c
        x = self._norm(x, "output_norm", HIDDEN)
        output = w.optional("output.weight", c.n_vocab, c.n_embd) or w(
            "token_embd.weight", c.n_vocab, c.n_embd
        )
        g.linear(output, x, LOGITS, w.optional("output.bias", c.n_vocab))
        if rank_head and (head := "cls.output.weight") in w:
            n = c.n_classes
            g.linear(w.as_row(head, c.n_embd) if n == 1 else w(head, n, c.n_embd), x, CLASSES)
        w.skip_layers(range(c.n_layer, c.n_blocks))
        w.check_all_used()
        return Model(self._file, c, g, tuple(self._layers))

    # -- blocks: each begins with a norm and ends with a sum --------------------------------------------------------------

    def attention(
        self, x: Tensor, i: int, bias: bool = False, head_norm: bool = False, gated: bool = False
    ) -> Tensor:
        """Attention with rotated, grouped queries, over layer i's part of the cache.

        The products of queries, keys and values may have biases; with `bias` they must. With `head_norm`, each head of queries and keys is
        normalised.
        With `gated`, the query's product also gives a gate for each head, and the result is multiplied by the gate's sigmoid.
        """
        g, c = self._g, self.c
        h = self._norm(x, f"blk.{i}.attn_norm", f"attn_norm-{i}")
        n_q, n_kv, width = c.n_head * c.head_dim, c.n_head_kv * c.head_dim, 2 if gated else 1
        parts = self._queries_keys_values(h, i, (width * n_q, n_kv, n_kv), bias)
        heads = {
            which: g.heads(part, c.n_head_kv, f"{which.upper()}cur_heads-{i}")
            for which, part in zip("kv", parts[1:])
        }
        q = (
            g.columns(parts[0], c.n_head, 0, c.head_dim, f"Qcur_heads-{i}")
            if gated
            else g.heads(parts[0], c.n_head, f"Qcur_heads-{i}")
        )
        k = heads["k"]
        if head_norm:
            q, k = (
                self._norm(t, f"blk.{i}.attn_{which}_norm", f"{which.upper()}cur_normed-{i}")
                for t, which in ((q, "q"), (k, "k"))
            )
        q, k = g.rope(q, c.rope, f"Qcur-{i}"), g.rope(k, c.rope, f"Kcur-{i}")
        store = g.kv_store(k, heads["v"], c.attention_layers.index(i), f"kv-{i}")
        a = g.attention(q, store, c.head_dim**-0.5, f"kqv_out-{i}", c.causal)
        if gated:
            gate = g.flat(
                g.columns(parts[0], c.n_head, c.head_dim, c.head_dim, f"gate_heads-{i}"), f"gate-{i}"
            )
            a = g.gate(a, gate, f"attn_gated-{i}")
        return self._add(
            g.linear(self._w(f"blk.{i}.attn_output.weight", c.n_embd, n_q), a, f"attn_out-{i}"), x, i
        )

    def delta_net(self, x: Tensor, i: int) -> Tensor:
        """A gated delta net with its own part of the sequence's state, a norm for each head, and a gate."""
        g, w, c, name = self._g, self._w, self.c, f"blk.{i}"
        d = c.delta_nets
        assert d is not None
        h = self._norm(x, f"{name}.attn_norm", f"attn_norm-{i}")
        n_v, layer = d.n_head_v * d.head_dim, d.layers.index(i)
        if f"{name}.ssm_in.weight" in w:
            raise w.error(
                f"tensor '{name}.ssm_in.weight' is from an early converter, which kept queries, keys, values and gates in one"
                " tensor: convert the model again"
            )
        qkv = g.linear(w(f"{name}.attn_qkv.weight", d.n_channels, c.n_embd), h, f"linear_attn_qkv_mixed-{i}")
        z = g.linear(w(f"{name}.attn_gate.weight", n_v, c.n_embd), h, f"z-{i}")
        beta, alpha = self._beta_alpha(h, i)
        mixed = g.conv(
            qkv, w(f"{name}.ssm_conv1d.weight", d.n_channels, d.d_conv), layer, f"conv_output_silu-{i}"
        )
        # files of Ollama's have it without "bias"
        named = f"{name}.ssm_dt" if f"{name}.ssm_dt" in w else f"{name}.ssm_dt.bias"
        dt, a = w(named, d.n_head_v), w(f"{name}.ssm_a", d.n_head_v)
        out = g.delta_net(
            mixed,
            alpha,
            beta,
            dt,
            a,
            DeltaNet(layer, d.n_head_k, c.rms_eps, d.tiled),
            d.head_dim,
            f"attn_output-{i}",
        )
        normed = g.flat(self._norm(out, f"{name}.ssm_norm", f"attn_out_norm-{i}"), f"attn_out_flat-{i}")
        out = g.swiglu(z, normed, f"final_output-{i}")
        return self._add(
            g.linear(w(f"{name}.ssm_out.weight", c.n_embd, n_v), out, f"linear_attn_out-{i}"), x, i
        )

    def feed_forward(self, x: Tensor, i: int, norm: str = "ffn_norm") -> Tensor:
        """The dense SwiGLU network of layer i."""
        h = self._norm(x, f"blk.{i}.{norm}", f"{norm.replace('post_attention_norm', 'attn_post_norm')}-{i}")
        return self._end_of_layer(self._swiglu(h, i, "", self.c.n_ff_of(i), "ffn_out"), x, i)

    def experts(self, x: Tensor, i: int, norm: str = "ffn_norm") -> Tensor:
        """The mixture of experts of layer i, plus the network that all tokens share, if there is one."""
        g, w, c, name = self._g, self._w, self.c, f"blk.{i}.ffn"
        e = c.experts
        assert e is not None
        h = self._norm(x, f"blk.{i}.{norm}", f"{norm.replace('post_attention_norm', 'attn_post_norm')}-{i}")
        logits = g.linear(w(f"{name}_gate_inp.weight", e.n_expert, c.n_embd), h, f"ffn_moe_logits-{i}")
        route = g.route(logits, e.n_used, e.normalised, f"ffn_moe_topk-{i}")
        if f"{name}_gate_up_exps.weight" in w:
            both = f"{name}_gate_up_exps.weight", e.n_expert, 2 * e.n_ff, c.n_embd
            weights = [w(*both, rows=range(e.n_ff)), w(*both, rows=range(e.n_ff, 2 * e.n_ff))]
        else:
            weights = [
                w(f"{name}_{which}_exps.weight", e.n_expert, e.n_ff, c.n_embd) for which in ("gate", "up")
            ]
        gate, up = (
            g.expert_linear(weight, h, route, f"ffn_moe_{which}-{i}")
            for weight, which in zip(weights, ("gate", "up"))
        )
        y = g.expert_linear(
            w(f"{name}_down_exps.weight", e.n_expert, c.n_embd, e.n_ff),
            g.swiglu(gate, up, f"ffn_moe_swiglu-{i}"),
            route,
            f"ffn_moe_down-{i}",
        )
        y = g.expert_sum(y, route, f"ffn_moe_out-{i}")
        if e.n_ff_shared:
            shared = self._swiglu(h, i, "_shexp", e.n_ff_shared, "ffn_shexp")
            weight = w.as_row(f"{name}_gate_inp_shexp.weight", c.n_embd)
            share = g.gate(shared, g.linear(weight, h, f"shared_expert_gate-{i}"), f"ffn_shexp_gated-{i}")
            y = g.add(share, y, f"ffn_out-{i}")
        return self._end_of_layer(y, x, i)

    def _end_of_layer(self, y: Tensor, x: Tensor, i: int) -> Tensor:
        out = self._g.add(y, x, f"l_out-{i}")
        self._layers.append(out)
        return out

    # -- parts of blocks --------------------------------------------------------------------------------------------------

    def _norm(self, x: Tensor, weight: str, name: str) -> Tensor:
        width = x.shape[-1]
        assert isinstance(width, int)
        return self._g.rms_norm(x, self._w(f"{weight}.weight", width), self.c.rms_eps, name)

    def _queries_keys_values(
        self, h: Tensor, i: int, widths: tuple[int, int, int], bias: bool
    ) -> list[Tensor]:
        """Three products, with one matrix each or with rows of a single matrix that contains all three.

        Biases may be missing, unless `bias` is set, and there may be three of them with a single matrix, as in llama.cpp.
        """
        g, w, n_embd, fused = self._g, self._w, self.c.n_embd, f"blk.{i}.attn_qkv"
        found, first = [], 0
        for which, width in zip("qkv", widths):
            rows = range(first, first + width) if f"{fused}.weight" in w else None
            whole = rows and (bias or f"{fused}.bias" in w)
            weight = (
                w(f"{fused}.weight", sum(widths), n_embd, rows=rows)
                if rows
                else w(f"blk.{i}.attn_{which}.weight", width, n_embd)
            )
            if whole:
                b: Tensor | None = w(f"{fused}.bias", sum(widths), rows=rows)
            else:
                b = w.optional(f"blk.{i}.attn_{which}.bias", width)
            found.append(g.linear(weight, h, f"{which.upper()}cur_flat-{i}", b))
            first += width
        return found

    def _beta_alpha(self, h: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """What the gates of a delta net's heads are computed from, [n_tokens, n_head_v] each.

        They come from two matrices, or from one that has, for each key head, the betas of its value heads and then their alphas.
        """
        g, w, n_embd, d = self._g, self._w, self.c.n_embd, self.c.delta_nets
        assert d is not None
        if f"blk.{i}.ssm_ba.weight" not in w:
            beta, alpha = (
                g.linear(w(f"blk.{i}.ssm_{which}.weight", d.n_head_v, n_embd), h, f"{which}-{i}")
                for which in ("beta", "alpha")
            )
            return beta, alpha
        both = g.linear(w(f"blk.{i}.ssm_ba.weight", 2 * d.n_head_v, n_embd), h, f"linear_attn_mixed_ba-{i}")
        n_shared = d.n_head_v // d.n_head_k
        beta, alpha = (
            g.flat(g.columns(both, d.n_head_k, first, n_shared, f"{which}_heads-{i}"), f"{which}-{i}")
            for which, first in (("beta", 0), ("alpha", n_shared))
        )
        return beta, alpha

    def _swiglu(self, h: Tensor, i: int, suffix: str, n_ff: int, name: str) -> Tensor:
        g, w, n_embd = self._g, self._w, self.c.n_embd
        gate, up = (
            g.linear(w(f"blk.{i}.ffn_{which}{suffix}.weight", n_ff, n_embd), h, f"ffn_{which}{suffix}-{i}")
            for which in ("gate", "up")
        )
        h = g.swiglu(gate, up, f"ffn_swiglu{suffix}-{i}")
        return g.linear(w(f"blk.{i}.ffn_down{suffix}.weight", n_embd, n_ff), h, f"{name}-{i}")

    def _add(self, y: Tensor, x: Tensor, i: int) -> Tensor:
        """x + y; in the last layer only for the rows whose logits are wanted, since nothing after it reads the others."""
        g = self._g
        if i == self.c.n_layer - 1:
            y, x = g.get_rows(y, g.outputs, f"attn_out_rows-{i}"), g.get_rows(x, g.outputs, f"inp_rows-{i}")
        return g.add(y, x, f"ffn_inp-{i}")
