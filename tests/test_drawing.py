"""Pictures of graphs: what is drawn as one, sizes, edges, devices, and formats that stay whole whatever a name contains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from math import prod
from pathlib import Path
from xml.etree import ElementTree

import gguf
import pytest
from random_models import write_random_model
from shapes import PRESETS

from qwencli.drawing import SUFFIXES
from qwencli.drawing.folding import Group, Run, fold, shortened
from qwencli.drawing.formats import write
from qwencli.drawing.labels import plain
from qwencli.drawing.layout import lay_out
from qwencli.drawing.picture import OUTSIDE, Frame, Picture, boxes_of, picture, picture_of_model
from qwencli.drawing.spacing import LINE, assign_tracks, spread
from qwencli.drawing.svg import rounded
from qwencli.drawing.text import as_text
from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.measure.node_times import NodeTime
from qwencli.network.graph import Add, Input, KVStore, Route, Tensor, Weight
from qwencli.network.load import load_model
from qwencli.network.model import Model

HOSTILE = 'a"b\\n]--></svg><script>&amp;\x1b[31m\u202e<br/>#1;|}{%%'
needs_dot = pytest.mark.skipif(
    shutil.which("dot") is None, reason="graphviz's program `dot` is not installed"
)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load_model(GGUFFile(EMBEDDED))


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """12 layers, every fourth with attention; the others are delta nets."""
    path = tmp_path_factory.mktemp("models") / "hybrid.gguf"
    write_random_model(path, replace(PRESETS["tiny-qwen35"], n_layer=12), "Q4_K_M")
    return load_model(GGUFFile(path))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("models") / "experts.gguf"
    write_random_model(path, PRESETS["tiny-qwen3moe"], "Q4_K_M")
    return load_model(GGUFFile(path))


def titles(parts: Iterable[object]) -> list[object]:
    """The titles of frames, nested as the frames are."""
    return [
        (part.title, *titles(part.parts)) if any(isinstance(p, Frame) for p in part.parts) else part.title
        for part in parts
        if isinstance(part, Frame)
    ]


def halves(model: Model) -> dict[str, str]:
    """The first three layers on one device, all else on another."""
    first = [*model.graph.nodes][: [*model.graph.nodes].index(model.layers[3].name) + 1]
    return {name: "cpus:0" if name in first else "cpus:1" for name in model.graph.nodes}


def colliding_pairs(p: Picture) -> list[tuple[str, str]]:
    layout = lay_out(p, lambda box: (8.0 * len(box.name), 40.0))
    places = [*layout.places.values()]
    return [
        (a.source.name, b.source.name)
        for i, a in enumerate(places)
        for b in places[i + 1 :]
        if abs(a.x - b.x) < (a.width + b.width) / 2 and a.y < b.y + b.height and b.y < a.y + a.height
    ]


# -- what is drawn as one


def test_runs_and_groups_of_equal_layers() -> None:
    assert fold("") == ()
    assert fold("a") == (Run(1, (0,)),)
    assert fold("aaab") == (Run(3, (0, 1, 2)), Run(1, (3,)))
    assert fold("ab") == (Run(1, (0,)), Run(1, (1,)))
    assert fold("dddadddaddde") == (
        Group(2, (Run(3, (0, 1, 2, 4, 5, 6)), Run(1, (3, 7)))),
        Run(3, (8, 9, 10)),
        Run(1, (11,)),
    )
    assert fold("dddadddaddde")[0].layers == tuple(range(8))
    assert fold("ababab") == (Group(3, (Run(1, (0, 2, 4)), Run(1, (1, 3, 5)))),)


def test_numbers_as_ranges() -> None:
    assert shortened([3]) == "3"
    assert shortened([0, 1, 2, 4, 7, 8]) == "0-2, 4, 7-8"
    assert shortened([*range(0, 40, 4)]) == "0, 4, ..., 36"


def test_layers_that_are_alike_are_one_frame(demo: Model, experts: Model, hybrid: Model) -> None:
    """The last layer computes only some rows from its middle on, so it isn't like the others."""
    assert titles(picture_of_model(demo, "").parts) == ["layers 0-4, 5 x", "layer 5"]
    n = experts.config.n_layer
    assert titles(picture_of_model(experts, "").parts) == [f"layers 0-{n - 2}, {n - 1} x", f"layer {n - 1}"]
    assert titles(picture_of_model(hybrid, "").parts) == [
        ("layers 0-7, 2 x", "layers 0-2, 4-6, 3 x each time", "layers 3, 7"),
        "layers 8-10, 3 x",
        "layer 11",
    ]


def test_a_folded_box_names_the_types_and_sizes_of_all_its_layers(demo: Model) -> None:
    p = picture_of_model(demo, "")
    (box,) = (box for box in p.boxes if box.name == "blk.i.ffn_down.weight")
    tensors = [demo.file.tensors[f"blk.{i}.ffn_down.weight"] for i in range(5)]
    assert {t.type.name for t in tensors} == {"Q4_K", "Q6_K"}
    assert box.types == ("q4_K", "q6_K")
    assert box.n_bytes == (min(t.n_bytes for t in tensors), max(t.n_bytes for t in tensors))
    assert [node.name for node in box.nodes] == [t.name for t in tensors]


def test_layers_with_other_devices_are_not_alike(demo: Model) -> None:
    """Layer 3 is not like layer 4: it reads from another device."""
    p = picture_of_model(demo, "", placement=halves(demo))
    assert titles(p.parts) == ["layers 0-2, 3 x", "layer 3", "layer 4", "layer 5"]
    crossing = {(edge.node.name, edge.target.name) for edge in p.edges if edge.crosses}
    assert crossing == {("l_out-2", "attn_norm-3"), ("l_out-2", "ffn_inp-3")}
    (n_bytes,) = {edge.n_bytes for edge in p.edges if edge.crosses}
    assert n_bytes == 4 * demo.config.n_embd
    assert [device.name for device in p.devices] == ["cpus:0", "cpus:1"]


def test_only_what_is_computed_crosses(demo: Model) -> None:
    """The tied embedding is read on both devices, and positions too."""
    p = picture_of_model(demo, "", placement=halves(demo), full=True)
    assert {edge.source.name for edge in p.edges if edge.crosses} == {"l_out-2"}


def test_nodes_without_a_place(demo: Model) -> None:
    """Weights and inputs are where they are first read, other nodes on the CPU."""
    nodes = demo.graph.nodes
    p = picture_of_model(demo, "", placement={"Qcur_flat-2": "numpy"}, full=True)
    on = {box.name: box.device for box in p.boxes}
    assert {name for name, device in on.items() if device == "numpy"} == {
        "Qcur_flat-2",
        "blk.2.attn_q.weight",
    }
    assert on.keys() == nodes.keys()
    assert {(e.source.name, e.target.name) for e in p.edges if e.crosses} == {
        ("attn_norm-2", "Qcur_flat-2"),
        ("Qcur_flat-2", "Qcur_heads-2"),
    }


# -- nodes, sizes, edges


def test_full_has_every_node_once_and_every_edge(demo: Model, experts: Model, hybrid: Model) -> None:
    for model in demo, experts, hybrid:
        p = picture_of_model(model, "", full=True)
        nodes = model.graph.nodes
        assert Counter(box.name for box in p.boxes) == Counter([*nodes])
        found = [(edge.source.name, edge.target.name) for edge in p.edges]
        assert found == [(source.name, node.name) for node in nodes.values() for source in node.src]
        assert {box.name for box in p.boxes if box.kind == "result"} == {"result_output"}


def test_weights_that_nothing_reads_are_left_out(tmp_path: Path) -> None:
    """A vector that is read as a row is in the graph twice."""
    write_random_model(tmp_path / "m.gguf", PRESETS["tiny-qwen3next"], "Q4_K_M")
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    read = {source.name for node in model.graph.nodes.values() for source in node.src}
    p = picture_of_model(model, "", full=True)
    assert {box.name for box in p.boxes if box.kind == "weight"} == {
        name for name, node in model.graph.nodes.items() if isinstance(node.op, Weight) and name in read
    }
    assert sum(device.weight_bytes for device in p.devices) == sum(
        tensor.n_bytes for tensor in model.file.tensors.values()
    )


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_bytes_are_those_of_the_types(demo: Model, experts: Model, n_tokens: int) -> None:
    """Sizes of types are those of the gguf package."""
    for model in demo, experts:
        p = picture_of_model(model, "", n_tokens, full=True)
        for box in p.boxes:
            (node,) = box.nodes
            shape = tuple({"n_tokens": n_tokens, "n_outputs": 1}.get(str(d), d) for d in node.shape)
            assert box.shape == shape
            n = prod(int(d) for d in shape)
            if isinstance(node.op, Weight):
                block, n_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[node.op.info.type.name]]
                expected = n // block * n_bytes
            elif isinstance(node.op, KVStore):
                expected = 2 * n * 2  # keys and values, half floats
            elif isinstance(node.op, Route):
                expected = n * (4 + 4)  # a number and a weight
            else:
                expected = 4 * n
            assert box.n_bytes == (expected, expected), box.name


def test_some_layers_are_shown_in_full_with_what_they_read(demo: Model) -> None:
    p = picture_of_model(demo, "", layers=[3, 0, 3])
    assert titles(p.parts) == ["layer 0", "layer 3"]
    outside = {box.name for box in p.boxes if box.kind == OUTSIDE}
    assert outside == {"inp_embd", "l_out-2"}
    inside = {box.name for part in p.parts if isinstance(part, Frame) for box in boxes_of(part.parts)}
    assert {box.name for box in p.boxes} - inside == {*outside, "inp_pos"}
    assert {re.sub(r"^blk\.(\d+)\..*|.*-(\d+)$", r"\1\2", name) for name in inside} == {"0", "3"}
    assert picture_of_model(demo, "", layers=[0, 1]).boxes[0].name == "inp_embd"
    with pytest.raises(InputError, match="there is no layer 6: the model has 6, from 0 on"):
        picture_of_model(demo, "", layers=[0, 6])


def test_times_of_a_folded_box_are_the_mean_of_its_layers(demo: Model) -> None:
    times = {name: NodeTime(1e-3 * (i + 1), 0.5e-3) for i in range(5) for name in (f"ffn_up-{i}",)} | {
        f"ffn_out-{i}": NodeTime(within=f"l_out-{i}") for i in range(5)
    }
    p = picture_of_model(demo, "", times=times)
    by_name = {box.name: box for box in p.boxes}
    assert by_name["ffn_up-i"].seconds == pytest.approx(3e-3)
    assert by_name["ffn_up-i"].share == pytest.approx(2.5 / 15)
    assert by_name["ffn_out-i"].within == "l_out-i"
    assert p.seconds == pytest.approx(15e-3)
    text = as_text(p)
    assert re.search(r"ffn_up-i .* 3\.000 ms, 17% of the limit", text)
    assert re.search(r"ffn_out-i .* in l_out-i", text)
    assert "layers 0-4, 5 x, 15.0 ms" in text
    classes = dict(
        re.findall(
            r'data-node="([^"]+)"><title>[^<]*</title><rect class="([^"]+)"', write(p, ".svg").decode()
        )
    )
    assert classes["ffn_up-i"] == "d0 op h5"
    assert classes["ffn_gate-i"] == "d0 op h0"


# -- layouts


def test_boxes_do_not_overlap_and_edges_go_down(demo: Model, experts: Model, hybrid: Model) -> None:
    for model in demo, experts, hybrid:
        for full in False, True:
            p = picture_of_model(model, "", full=full)
            assert colliding_pairs(p) == []
            layout = lay_out(p, lambda box: (8.0 * len(box.name), 40.0))
            attached = p.attached()
            assert layout.routes.keys() == {edge for edge in p.edges if edge.source not in attached}
            for edge, points in layout.routes.items():
                start, end = layout.places[edge.source], layout.places[edge.target]
                assert points[0] == (start.x, start.y + start.height)
                assert points[-1][1] == end.y
                assert abs(points[-1][0] - end.x) <= end.width / 2
                for (ax, ay), (bx, by) in pairwise(points):
                    assert ax == pytest.approx(bx, abs=1.01) or ay == by
                    assert by >= ay
                    crossed = [
                        place.source.name
                        for place in layout.places.values()
                        if place.y < by - 0.1
                        and ay + 0.1 < place.y + place.height
                        and min(ax, bx) < place.x + place.width / 2 - 0.1
                        and place.x - place.width / 2 + 0.1 < max(ax, bx)
                    ]
                    assert crossed == []


def test_things_in_a_row_keep_their_order_and_distance() -> None:
    assert spread([10, 10], [0, 100], [1, 1], 5) == [0, 100]
    assert spread([10, 10], [50, 50], [1, 1], 0) == [45, 55]
    assert spread([10, 20, 10], [0, 0, 0], [1, 1, 1], 10) == [-25, 0, 25]
    assert spread([10, 10], [50, 50], [3, 1], 0) == [47.5, 57.5]


def test_tracks_keep_lines_apart() -> None:
    assert dict(assign_tracks([(0, [100]), (200, [300])])) == {0: 0, 1: 0}
    overlapping = dict(assign_tracks([(0, [100]), (50, [150])]))
    assert overlapping[0] != overlapping[1]
    below = dict(assign_tracks([(0, [100]), (100 + LINE / 4, [200])]))
    assert below[1] < below[0]  # the second leaves the x at which the first ends, so it turns first
    assert len(assign_tracks([(0, [100]), (100, [0])])) == 2  # a circle


def test_corners_are_rounded() -> None:
    assert rounded([(0, 0), (0, 20), (30, 20)]) == "M0.0 0.0L0.0 15.0Q0.0 20.0 5.0 20.0L30.0 20.0"


# -- formats


def hostile_graph() -> list[Tensor]:
    a = Tensor(HOSTILE, Input(), (), (3,))
    b = Tensor("long " * 1000, Input(), (), (3,))
    c = Tensor("sum", Add(), (a, b), (3,))
    return [a, b, c, Tensor("twice", Add(), (c, c), (3,))]


def test_svg_is_xml_with_every_box_and_both_colour_schemes(demo: Model) -> None:
    for full in False, True:
        p = picture_of_model(demo, "demo <&>", full=full)
        text = write(p, ".svg").decode()
        root = ElementTree.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        names = [element.get("data-node") for element in root.iter() if element.get("data-node")]
        assert Counter(names) == Counter(box.name for box in p.boxes)
        assert "@media (prefers-color-scheme: dark)" in text
        assert 'class="paper"' in text
        assert text.count('<path class="edge"') == len(p.edges) - len(p.attached())


def test_dot_has_the_boxes_edges_and_clusters(demo: Model) -> None:
    p = picture_of_model(demo, "demo", placement=halves(demo))
    text = write(p, ".dot").decode()
    ids = dict(re.findall(r'^ *(n\d+) \[.*label="([^"\\]+)\\n', text, re.M))
    assert sorted(ids.values()) == sorted(box.name for box in p.boxes)
    edges = re.findall(r"^ *(n\d+) -> (n\d+)(.*)$", text, re.M)
    assert [(ids[a], ids[b]) for a, b, _ in edges] == [(e.source.name, e.target.name) for e in p.edges]
    assert [("penwidth=3" in rest, "1.0 kB" in rest) for *_, rest in edges] == [
        (e.crosses,) * 2 for e in p.edges
    ]
    assert text.count("subgraph cluster_c") == 4
    assert text.count("{") == text.count("}")


@needs_dot
@pytest.mark.parametrize("which", ["demo", "hybrid", "hostile"])
def test_graphviz_takes_it(demo: Model, hybrid: Model, which: str) -> None:
    models = {"demo": demo, "hybrid": hybrid}
    p = picture_of_model(models[which], HOSTILE) if which in models else picture(hostile_graph())
    done = subprocess.run(["dot", "-Tplain"], input=write(p, ".dot"), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert sum(line.startswith("node n") for line in lines) == len(p.boxes)
    assert sum(line.startswith("edge ") for line in lines) == len(p.edges)
    assert write(p, ".png").startswith(b"\x89PNG\r\n")


def test_without_graphviz_there_is_no_png(demo: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        QwenError, match=r"a \.png needs graphviz's program `dot`.*: install graphviz, or write a \.svg"
    ):
        write(picture_of_model(demo, ""), ".png")


def test_a_dot_that_fails_says_why(demo: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\ncat > /dev/null\necho 'no such font' >&2\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(QwenError, match="can't draw the graph: no such font"):
        write(picture_of_model(demo, ""), ".png")


def test_json_has_every_node(demo: Model) -> None:
    facts = json.loads(write(picture_of_model(demo, "demo", 7, halves(demo), full=True), ".json"))
    assert (facts["model"], facts["n_tokens"]) == ("demo", 7)
    by_name = {node["name"]: node for node in facts["nodes"]}
    assert by_name.keys() == demo.graph.nodes.keys()
    assert by_name["ffn_up-4"] == {
        "name": "ffn_up-4",
        "op": "Linear",
        "type": "f32",
        "shape": [7, 768],
        "bytes": 7 * 768 * 4,
        "kind": "op",
        "device": "cpus:1",
        "layer": 4,
        "sources": ["blk.4.ffn_up.weight", "ffn_norm-4"],
    }
    for node in facts["nodes"]:
        assert node["sources"] == [source.name for source in demo.graph.nodes[node["name"]].src]
    assert [e for e in facts["edges"] if e["crosses"]] == [
        {"from": "l_out-2", "to": name, "bytes": 7 * 256 * 4, "crosses": True}
        for name in ("attn_norm-3", "ffn_inp-3")
    ]
    assert {device["name"]: device["nodes"] for device in facts["devices"]} == Counter(
        node["device"] for node in facts["nodes"] if node["kind"] not in ("weight", "input")
    )


def test_mermaid_has_the_boxes_and_edges(demo: Model) -> None:
    p = picture_of_model(demo, "demo", placement=halves(demo))
    lines = write(p, ".mmd").decode().splitlines()
    assert lines[1] == "flowchart TD"
    nodes = [line for line in lines if re.match(r'^ +n\d+[\[(]+/?".*"/?[\])]+$', line)]
    assert len(nodes) == len(p.boxes)
    assert sum(" --> " in line for line in lines) == sum(not edge.crosses for edge in p.edges)
    assert sum(' ==>|"1.0 kB"| ' in line for line in lines) == sum(edge.crosses for edge in p.edges)
    assert sum(line.strip().startswith("subgraph ") for line in lines) == lines.count("  end") == 4


def test_names_are_escaped_and_shortened() -> None:
    assert plain("x" * 100, 9) == "xxx...xxx"
    assert plain("\x1b[31m\n") == r"\x1b[31m\n"
    p = picture(hostile_graph(), title=HOSTILE)
    svg = write(p, ".svg")
    root = ElementTree.fromstring(svg)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {
        "svg",
        "title",
        "style",
        "rect",
        "text",
        "g",
        "path",
    }
    names = [element.get("data-node", "") for element in root.iter() if element.get("data-node")]
    assert names[0].startswith(HOSTILE.split("\x1b")[0])
    assert len(svg) < 20_000
    for suffix in ".dot", ".mmd":
        text = write(p, suffix).decode()
        assert not any(c < " " and c != "\n" for c in text)
        assert "\u202e" not in text
        assert max(map(len, text.splitlines())) < 1500
    nodes = [line for line in write(p, ".mmd").decode().splitlines() if re.match(r"^  n0\[", line)]
    assert len(nodes) == 1
    assert re.fullmatch(r'  n0\[/"[\w .,/\[\]%#;-]*<br/>[^<>"]*"/\]', nodes[0])
    assert json.loads(write(p, ".json"))["nodes"][0]["name"] == HOSTILE
    assert not any(c < " " and c != "\n" for c in as_text(p))


def test_a_graph_without_layers_and_one_without_edges() -> None:
    only = [Tensor("a", Input(), (), (3,))]
    for nodes in only, hostile_graph():
        for suffix in SUFFIXES:
            if suffix != ".png":
                assert write(picture(nodes), suffix)
    assert [box.kind for box in picture(hostile_graph()).boxes] == ["input", "input", "op", "result"]


ARCHITECTURES = [name for name in PRESETS if name.startswith("tiny-")]


@pytest.mark.parametrize("preset", ARCHITECTURES)
def test_every_architecture_is_drawn(preset: str, tmp_path: Path) -> None:
    write_random_model(tmp_path / "m.gguf", PRESETS[preset], "Q4_K_M")
    model = load_model(GGUFFile(tmp_path / "m.gguf"))
    for full in False, True:
        p = picture_of_model(model, preset, full=full)
        assert ElementTree.fromstring(write(p, ".svg")) is not None
        assert colliding_pairs(p) == []
