"""The CPU backend's patterns of fused nodes: what they replace in every architecture, and what keeps them from applying."""

from collections import Counter
from collections.abc import Sequence

import pytest
from random_models import write_random_model
from shapes import PRESETS

from qwencli.backends.cpu.fuse import (
    Attend,
    DeltaConv,
    GatedNorm,
    Plus,
    RotateHeads,
    StoreHeads,
    fuse,
    quantized_forms,
)
from qwencli.backends.cpu.program import takes
from qwencli.gguf.file import GGUFFile, TensorInfo
from qwencli.gguf.types import GGML_TYPES
from qwencli.network.graph import (
    Add,
    Attention,
    Conv,
    DeltaNet,
    ExpertSum,
    Gate,
    Graph,
    KVStore,
    Linear,
    RMSNorm,
    Rope,
    SwiGLU,
    Tensor,
)
from qwencli.network.load import load_model

ARCHITECTURES = [name for name in PRESETS if name.startswith("tiny-")]
LOGITS = "result_output"
TYPES = {kind.name: kind for kind in GGML_TYPES.values()}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp(request.param) / "m.gguf"
    write_random_model(path, PRESETS[request.param], "F16")
    return load_model(GGUFFile(path)).graph


def weight(g: Graph, name: str, *shape: int, kind: str = "F32") -> Tensor:
    return g.weight(TensorInfo(name, shape, TYPES[kind], 0, 0, 0))


def fused(graph: Graph, fetch: Sequence[str], feed: Sequence[str] = ()) -> list[Tensor]:
    return fuse(graph.subgraph(fetch, feed), fetch)


def by_name(nodes: Sequence[Tensor]) -> dict[str, Tensor]:
    return {node.name: node for node in nodes}


def test_what_has_no_kernel_of_its_own_is_fused_in_every_architecture(graph: Graph) -> None:
    before, after = graph.subgraph([LOGITS]), fused(graph, [LOGITS])
    ops = Counter(type(node.op) for node in after)
    for op in Rope, KVStore, Attention, Conv:
        assert ops[op] == 0
    assert not [node.name for node in after if isinstance(node.op, RMSNorm) and len(node.shape) == 3]
    was = Counter(type(node.op) for node in before)
    assert ops[StoreHeads] == ops[Attend] == ops[RotateHeads] == was[KVStore]
    assert ops[DeltaConv] == ops[DeltaNet] == ops[GatedNorm] == was[Conv]
    gates_of_tokens = sum(isinstance(n.op, Gate) and n.src[1].shape[-1] == 1 for n in before)
    assert ops[Plus] + ops[Add] == was[Add]
    assert ops[Add] == gates_of_tokens + 1, "sums of two sums, and of the last layer's chosen rows"


def test_each_node_comes_after_its_sources_and_reads_nodes_that_are_there(graph: Graph) -> None:
    seen: dict[str, Tensor] = {}
    for node in fused(graph, [LOGITS]):
        for source in node.src:
            assert seen[source.name] is source, f"{node.name} reads {source.name}"
        seen[node.name] = node


def test_what_is_fetched_stays(graph: Graph) -> None:
    """Each tensor, alone and with the logits; nodes get no new names."""
    for name in graph.nodes:
        for fetch in [name], [name, LOGITS]:
            found = by_name(fused(graph, fetch))
            assert fetch[0] in found
            assert found.keys() <= graph.nodes.keys()
            assert found[name].shape == graph.nodes[name].shape


def test_a_fetched_product_is_added_by_a_node_of_its_own(graph: Graph) -> None:
    name = "l_out-1"
    total = graph.nodes[name]
    product = next(s for s in total.src if isinstance(s.op, (Linear, ExpertSum)) or len(s.src) > 1)
    found = by_name(fused(graph, [product.name, LOGITS]))
    assert isinstance(found[name].op, Add)
    assert [source.name for source in found[name].src] == [source.name for source in total.src]


def test_what_is_fed_is_not_looked_through(graph: Graph) -> None:
    """A sum of something given isn't fused with the node that would have computed it."""
    total = graph.nodes["ffn_inp-0"]
    product = next(s for s in total.src if isinstance(s.op, Linear))
    found = by_name(fused(graph, [total.name], [product.name]))
    assert isinstance(found[total.name].op, Add)
    assert product.name not in found


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("qwen3") / "m.gguf"
    write_random_model(path, PRESETS["tiny-qwen3"], "F16")
    return load_model(GGUFFile(path)).graph


def test_heads_of_qwen3(qwen3: Graph) -> None:
    found = by_name(fused(qwen3, [LOGITS]))
    rotation, store, attention = found["Qcur-0"], found["kv-0"], found["kqv_out-0"]
    assert [s.name for s in rotation.src] == ["Qcur_heads-0", "blk.0.attn_q_norm.weight"]
    assert [s.name for s in store.src] == ["Kcur_heads-0", "Vcur_heads-0", "blk.0.attn_k_norm.weight"]
    assert [s.name for s in attention.src] == ["Qcur-0", "kv-0"]
    norm, rope = qwen3.nodes["Kcur_normed-0"].op, qwen3.nodes["Kcur-0"].op
    assert isinstance(norm, RMSNorm)
    assert isinstance(rope, Rope)
    assert store.op == StoreHeads(0, RotateHeads(rope.params, norm.eps))


@pytest.mark.parametrize(
    ("fetched", "ops"), [("Kcur-0", (RotateHeads, KVStore)), ("Kcur_normed-0", (RMSNorm, StoreHeads))]
)
def test_fetched_steps_of_heads_stay_apart(qwen3: Graph, fetched: str, ops: tuple[type, type]) -> None:
    found = by_name(fused(qwen3, [fetched, LOGITS]))
    assert (type(found[fetched].op), type(found["kv-0"].op)) == ops


def test_a_product_that_is_read_twice_keeps_its_result() -> None:
    g = Graph()
    x = g.get_rows(weight(g, "token_embd.weight", 4, 8), g.tokens, "x")
    w = weight(g, "w", 8, 8)
    y = g.linear(w, x, "y")
    g.swiglu(y, g.add(y, x, "sum"), "out")
    assert {type(n.op) for n in fuse(g.subgraph(["out"]), ["out"])} >= {Linear, Add, SwiGLU}


def test_of_two_products_that_are_added_the_second_takes_the_first() -> None:
    g = Graph()
    x = g.get_rows(weight(g, "token_embd.weight", 4, 8), g.tokens, "x")
    first, second = g.linear(weight(g, "v", 8, 8), x, "first"), g.linear(weight(g, "w", 8, 8), x, "second")
    g.add(second, first, "out")
    found = by_name(fuse(g.subgraph(["out"]), ["out"]))
    assert isinstance(found["first"].op, Linear)
    assert found["out"].op == Plus(Linear())
    assert [s.name for s in found["out"].src] == ["w", "x", "first"]
    assert "second" not in found


def test_the_form_of_a_result_is_that_of_the_first_product_that_quantizes() -> None:
    g = Graph()
    x = g.get_rows(weight(g, "token_embd.weight", 4, 8), g.tokens, "x")
    h = g.rms_norm(x, weight(g, "norm", 8), 1e-6, "h")
    for name in "abc":
        g.linear(weight(g, name, 8, 8), h, f"{name}_out")
    forms = {"a_out": "float", "b_out": "q8k", "c_out": "q8_0"}
    nodes = list(g.nodes.values())
    assert quantized_forms(nodes, lambda node: forms[node.name]) == {"h": "q8k"}
    assert quantized_forms(nodes, lambda node: "float") == {}


def test_only_products_take_a_result_quantized_and_only_in_their_form() -> None:
    g = Graph()
    x = g.get_rows(weight(g, "token_embd.weight", 4, 256), g.tokens, "x")
    h = g.rms_norm(x, weight(g, "norm", 256), 1e-6, "h")
    k_quant, block, floats = (
        g.linear(weight(g, kind, 256, 256, kind=kind), h, f"{kind}_out") for kind in ("Q4_K", "Q8_0", "F16")
    )
    other = g.linear(weight(g, "other", 256, 256, kind="Q4_K"), x, "other_out")
    for kind, product in ("q8k", k_quant), ("q8_0", block), ("float", floats):
        assert [takes(node, "h", kind) for node in (k_quant, block, floats)] == [
            node is product for node in (k_quant, block, floats)
        ]
    assert not takes(g.add(h, x, "sum"), "h", "q8k")
    for product, added, expected in (k_quant, x, True), (k_quant, h, False), (other, h, False):
        plus = Tensor("plus", Plus(Linear()), (*product.src, added), product.shape)
        assert takes(plus, "h", "q8k") == expected
