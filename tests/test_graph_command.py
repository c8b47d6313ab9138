"""`qwencli graph`: its formats on disk and on stdout, its options, and what it says when something is wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import tiny_models
from command_line import Call

from qwencli.backends.kv_cache import HALVES, TYPES
from qwencli.drawing import SUFFIXES, formats
from qwencli.errors import InputError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.machine.peak import Peak
from qwencli.measure import node_times
from qwencli.measure.costs import Cost, Costs, Extent
from qwencli.network.load import load_model
from qwencli.network.model import Model

PEAK = Peak(bandwidth=40e9, products=1000e9, flops=250e9)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(GGUFFile(EMBEDDED))


@pytest.fixture
def known_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring of the machine, which takes half a second."""
    monkeypatch.setattr(node_times, "measure_peak", lambda *arguments: PEAK)


def test_text_has_a_line_for_every_node(call: Call, demo: Model) -> None:
    code, out, err = call("graph", "-m", EMBEDDED, "--full")
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == f"{EMBEDDED.name}: {len(demo.graph.nodes)} nodes, 4.7 MB of weights, 1 token"
    names = [
        line.split()[0 if line.strip()[0].isalnum() else 1] for line in lines if not line.startswith("layer")
    ]
    assert sorted(names) == sorted(demo.graph.nodes)
    assert [line for line in lines if line.startswith("layer")] == [f"layer {i}" for i in range(6)]
    assert any(
        re.fullmatch(r"    ffn_up-4 +Linear +f32 +\[1, 768\] +3\.1 kB +ffn_norm-4", line) for line in lines
    )
    assert "layers 0-4, 5 x\n" in call("graph")[1]
    assert "model: " in call("graph").err


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_format_is_written_as_a_file(call: Call, suffix: str) -> None:
    if suffix == ".png" and shutil.which("dot") is None:
        pytest.skip("graphviz's program `dot` is not installed")
    path = Path(f"graph{suffix.upper()}" if suffix == ".svg" else f"graph{suffix}")
    assert call("graph", "-m", EMBEDDED, "-o", path) == (0, "", "")
    data = path.read_bytes()
    begins = {".svg": b"<svg ", ".dot": b"digraph ", ".png": b"\x89PNG", ".json": b"{", ".mmd": b"%% demo"}
    assert data.startswith(begins[suffix])
    if suffix == ".svg":
        ElementTree.fromstring(data)
    if suffix == ".json":
        assert len(json.loads(data)["nodes"]) == 202  # each, though layers are alike
    assert [p.name for p in Path.cwd().iterdir()] == [path.name]


def test_layers_and_tokens(call: Call) -> None:
    out = call("graph", "-m", EMBEDDED, "--layers", "0, 2-3", "--tokens", "7").out
    assert re.findall(r"^layer.*$", out, re.M) == ["layer 0", "layer 2", "layer 3"]
    assert out.splitlines()[0].endswith(", 7 tokens")
    assert re.search(r"attn_norm-3 .*\[7, 256\]", out)
    assert "result_output" not in out
    last = call("graph", "-m", EMBEDDED, "--layers", "5", "--tokens", "7").out
    assert re.search(r"ffn_norm-5 .*\[1, 256\]", last)  # one output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "graph.gif"], "'graph.gif' ends with none of .svg, .dot, .png, .json, .mmd."),
        (["-o", "graph"], "'graph' ends with none of .svg, .dot, .png, .json, .mmd."),
        (["--layers", "x"], "'x' is neither a layer's number nor a range such as 0-3."),
        (["--layers", "3-1"], "'3-1' is neither a layer's number nor a range such as 0-3."),
        (["--layers", ""], "'' is neither a layer's number nor a range such as 0-3."),
        (["--tokens", "0"], "0 is not in the range"),
    ],
)
def test_wrong_usage(call: Call, args: list[str], message: str) -> None:
    code, out, err = call("graph", "-m", "none.gguf", *args)
    assert (code, out) == (2, "")
    assert message in err


def test_errors_are_one_line(call: Call, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    c = tiny_models.config()
    tiny_models.write_gguf(other, c, tiny_models.weights(c, 31), architecture="othernet")
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF")
    cases = {
        ("-m", "none.gguf"): "none.gguf: cannot be read: No such file or directory",
        ("-m", bad): f"{bad}: ",
        ("-m", other): f"{other}: the architecture 'othernet' is not supported; known are qwen, ",
        ("-m", EMBEDDED, "--layers", "6"): "there is no layer 6: the model has 6, from 0 on",
        ("-m", EMBEDDED, "--layers", "4-999999999"): "there is no layer 6: the model has 6, from 0 on",
        ("-m", EMBEDDED, "-o", "no/folder/graph.svg"): "no/folder/graph.svg: cannot be written: ",
        (
            "-m",
            EMBEDDED,
            "--profile",
            "--tokens",
            1025,
        ): "a step of 1025 tokens is longer than the model's context of 1024",
    }
    for args, message in cases.items():
        code, out, err = call("graph", *args)
        assert (code, out) == (1, "")
        assert err.startswith(f"qwencli: error: {message}"), err
        assert err.count("\n") == 1


def test_png_without_graphviz_is_an_error_before_anything_else(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    code, out, err = call("graph", "-m", "none.gguf", "-o", "graph.png")
    assert (code, out) == (1, "")
    assert err == (
        "qwencli: error: a .png needs graphviz's program `dot`, which is not installed: install graphviz, or write a .svg\n"
    )


def test_an_interrupted_command_leaves_the_file_as_it_was(
    call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("graph.svg").write_text("before")

    def interrupt(*args: object) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, "write", interrupt)
    assert call("graph", "-m", EMBEDDED, "-o", "graph.svg")[:2] == (130, "")
    assert Path("graph.svg").read_text() == "before"


# -- profiles


@pytest.mark.usefixtures("known_limits")
def test_a_profile_has_every_nodes_time(call: Call, demo: Model) -> None:
    done = call("graph", "-m", EMBEDDED, "--profile", "--tokens", 5, "-o", "graph.json")
    assert done.code == 0
    nodes = {node["name"]: node for node in json.loads(Path("graph.json").read_text())["nodes"]}
    for name, node in demo.graph.nodes.items():
        assert ("seconds" in nodes[name]) == bool(node.src)
    within = {name: node["within"] for name, node in nodes.items() if node.get("within")}
    assert within == {
        name: target
        for i in range(6)
        for name, target in {
            f"Qcur_normed-{i}": f"Qcur-{i}",
            f"Kcur_normed-{i}": f"kv-{i}",
            f"Kcur-{i}": f"kv-{i}",
            f"ffn_out-{i}": f"l_out-{i}",
            **({f"attn_out-{i}": f"ffn_inp-{i}"} if i < 5 else {}),
        }.items()
    }
    views = {f"{which}cur_heads-{i}" for which in "QKV" for i in range(6)}
    untimed = {name for name, node in nodes.items() if "seconds" in node and node["seconds"] is None}
    assert untimed == {*within, *views}
    assert all(
        0 < nodes[name]["seconds"] < 10
        for name in demo.graph.nodes.keys() - untimed
        if "seconds" in nodes[name]
    )
    weight = demo.file.tensors["token_embd.weight"]
    least = max(weight.n_bytes / PEAK.bandwidth, 2 * weight.n_weights / PEAK.products)
    result = nodes["result_output"]
    assert result["share"] == pytest.approx(least / result["seconds"])
    down = demo.file.tensors["blk.2.ffn_down.weight"]
    least = max(down.n_bytes / PEAK.bandwidth, 5 * 2 * down.n_weights / PEAK.products)
    assert nodes["l_out-2"]["share"] == pytest.approx(least / nodes["l_out-2"]["seconds"])
    assert nodes["attn_norm-0"]["share"] is None


@pytest.mark.usefixtures("known_limits")
def test_a_profile_as_text_and_as_a_picture(call: Call) -> None:
    out = call("graph", "-m", EMBEDDED, "--profile").out
    assert re.match(r"demo-q4_k_m\.gguf: 202 nodes, 4\.7 MB of weights, 1 token, \d+\.\d+ ms\n", out)
    assert re.search(r"  attn_out-i .* in ffn_inp-i +kqv_out-i\n", out)
    assert re.search(r"  ffn_inp-i .* \d\.\d{3,4} ms, \d+% of the limit +attn_out-i inp_embd\n", out)
    call("graph", "-m", EMBEDDED, "--profile", "-o", "graph.svg")
    assert re.search('class="d0 (op|result) h5"', Path("graph.svg").read_text(encoding="utf-8"))


def test_rows_know_their_nodes(demo: Model) -> None:
    from qwencli.backends.cpu.backend import CPUBackend
    from qwencli.backends.kv_cache import KVSequence
    from qwencli.backends.protocol import LOGITS, Batch, Segment

    rows = CPUBackend(demo, 2).profile([LOGITS], Batch([Segment(KVSequence(), np.arange(1, 4), 1)]))
    kernels = {name: [row.kernel for row in rows if row.node == name] for name in demo.graph.nodes}
    assert sum(map(len, kernels.values())) == len(rows)
    assert kernels["inp_embd"] == [rows[0].kernel]
    assert [kernel.split(":")[1] for kernel in kernels["kqv_out-3"]] == ["attend", "merge"]
    assert kernels["ffn_out-3"] == []
    assert len(kernels["l_out-3"]) >= 1


@pytest.mark.parametrize("preset", ["demo", "tiny-qwen3next", "tiny-qwen3moe"])
def test_costs_of_the_nodes_are_those_of_the_step(demo: Model, preset: str, tmp_path: Path) -> None:
    if preset == "demo":
        model = demo
    else:
        from random_models import write_random_model
        from shapes import PRESETS

        write_random_model(tmp_path / "m.gguf", PRESETS[preset], "Q4_K_M")
        model = load_model(GGUFFile(tmp_path / "m.gguf"))
    costs = Costs(model, HALVES._replace(k="q8_0") if "q8_0" in TYPES else HALVES)
    extents = [Extent(5, 0), Extent(3, 70)]
    of_nodes, of_step = Cost(), Cost()
    for node in model.graph.nodes.values():
        of_nodes = of_nodes.plus(costs.of_node(node, extents, 2))
    for cost in costs.of_step(extents, 2).values():
        of_step = of_step.plus(cost)
    np.testing.assert_allclose(of_nodes, of_step, rtol=1e-12)


def test_only_the_cpu_backend_has_a_profile(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwencli.backends.numpy.backend import NumpyBackend

    monkeypatch.setattr(node_times, "make_backend", lambda name, model, *rest: NumpyBackend(model))
    with pytest.raises(InputError, match="only the CPU backend has a profile"):
        node_times.node_times(demo, 1)
