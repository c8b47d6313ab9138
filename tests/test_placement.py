"""Which device gets what of a model, where the graph is cut, and how much memory each device needs."""

import itertools
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from divided import ALLOWED, NUMPY, ONE, TWO, divided, wishes
from gguf_builder import tiny
from random_models import write_random_model
from shapes import PRESETS
from test_devices import allow, machine
from test_fit import written

from qwencli import LLM
from qwencli.backends.cpu import lower
from qwencli.backends.devices import Device
from qwencli.backends.kv_cache import CacheTypes, KVSequence
from qwencli.backends.protocol import LOGITS, Batch, Segment
from qwencli.backends.scheduler import placement as placement_module
from qwencli.backends.scheduler.placement import Placement, devices_of_layers, layers_of, place
from qwencli.backends.scheduler.splits import Split, cut
from qwencli.backends.scheduler.wishes import MOST_PATTERN, Wishes, read_wishes
from qwencli.engine.fit import measure, measure_devices
from qwencli.errors import InputError, ModelError, NoMemory
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import formats
from qwencli.network.graph import Attention, Conv, DeltaNet, Input, KVStore, Route, Tensor, Weight
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.system.host import Host

THREE = Device("three", "cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    folder = tmp_path_factory.mktemp("models")

    def model(name: str) -> Model:
        path = folder / name
        if not path.exists():
            write_random_model(path, PRESETS[name], "Q4_K_M")
        return load_model(GGUFFile(path))

    return model


@pytest.fixture(scope="module")
def model(models: Callable[[str], Model]) -> Model:
    """Of two layers."""
    return models("tiny-qwen3")


@pytest.fixture(scope="module")
def hybrid(models: Callable[[str], Model]) -> Model:
    """Of five layers, with attention in the fourth and delta nets in the others."""
    return models("tiny-qwen35")


def weights_of(model: Model) -> list[Tensor]:
    return [node for node in model.graph.nodes.values() if isinstance(node.op, Weight)]


# Layers


def of_layers(n_layer: int, **wanted: Any) -> list[int]:
    n_devices = len(next(iter(wanted.values())))
    model: Any = SimpleNamespace(config=SimpleNamespace(n_layer=n_layer))
    return devices_of_layers(model, Wishes((THREE,) * n_devices, **wanted))


@pytest.mark.parametrize(
    ("n_layer", "shares", "expected"),
    [
        # the places of four layers and of what comes after them are 0, 0.2, 0.4, 0.6 and 0.8
        (4, (1, 1), [0, 0, 0, 1, 1]),
        (4, (3, 1), [0, 0, 0, 0, 1]),
        (4, (1, 3), [0, 0, 1, 1, 1]),
        (4, (0.2, 0.1), [0, 0, 0, 0, 1]),
        (4, (1, 1, 1), [0, 0, 1, 1, 2]),
        (4, (1, 4), [0, 1, 1, 1, 1]),  # a place where a share ends belongs to the next
        (4, (2, 3), [0, 0, 1, 1, 1]),
        (4, (1, 0), [0, 0, 0, 0, 0]),
        (4, (0, 1), [1, 1, 1, 1, 1]),
        (4, (1, 0, 1), [0, 0, 0, 2, 2]),
        (4, (0, 0, 5, 0), [2, 2, 2, 2, 2]),
        (4, (1,) * 6, [0, 1, 2, 3, 4]),
        (4, (1,) * 8, [0, 1, 3, 4, 6]),
        (2, (1, 1), [0, 0, 1]),  # 1/3 is before the middle
        (28, (1, 1), [0] * 15 + [1] * 14),
        (28, (3, 1), [0] * 22 + [1] * 7),
    ],
)
def test_layers_are_divided_as_llama_cpp_does(
    n_layer: int, shares: tuple[float, ...], expected: list[int]
) -> None:
    """llama_model::load_tensors: upper_bound of layer / (n_layer + 1) in the sums of the shares up to each device."""
    assert of_layers(n_layer, shares=shares) == expected


def test_shares_whose_sums_are_rounded() -> None:
    """However they are, each layer has a device, in order, and none whose share is zero."""
    rng = random.Random(0)
    for _ in range(300):
        shares = [rng.choice([0, 0.1, 0.3, 1 / 3, 1e-9, 1e9, rng.random()]) for _ in range(rng.randint(1, 9))]
        if any(shares):
            found = of_layers(rng.randint(1, 50), shares=tuple(shares))
            assert found == sorted(found)
            assert all(shares[device] for device in found)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((1, 3), [0, 1, 1, 1, 1]),
        ((4, 0), [0] * 5),  # what comes after the last layer is where that is
        ((0, 4), [1] * 5),
        ((2, 2, 0), [0, 0, 1, 1, 1]),
        ((1, 0, 3), [0, 2, 2, 2, 2]),
    ],
)
def test_layers_are_counted(counts: tuple[int, ...], expected: list[int]) -> None:
    assert of_layers(4, n_layers=counts) == expected


def test_counts_that_do_not_fit(model: Model) -> None:
    with pytest.raises(
        InputError, match=r"the layers per device, 2,1, are 3 in all, but the model has 2 layers"
    ):
        place(model, wishes(n_layers=(2, 1)))


def test_all_of_a_layer_is_where_the_layer_is(hybrid: Model) -> None:
    """The embedding belongs to the first layer; the last norm and the output matrix come after the last."""
    of = place(hybrid, wishes(n_layers=(2, 3))).of
    for name, device in of.items():
        if number := re.search(r"^blk\.(\d+)\.|-(\d+)$", name):
            assert device == (int(number[1] or number[2]) >= 2), name
    assert [of[name] for name in ("inp_embd", "result_norm", LOGITS)] == [0, 1, 1]
    assert layers_of(hybrid)[LOGITS] == layers_of(hybrid)["result_norm"] == 5


# What the user's patterns move


def moved(model: Model, *args: Any, **more: Any) -> set[str]:
    """The nodes that aren't on the first device."""
    of = place(model, wishes(*args, **more)).of
    return {
        name for name, device in of.items() if device and not isinstance(model.graph.nodes[name].op, Weight)
    }


def test_the_first_pattern_that_matches_counts(model: Model) -> None:
    both = {"ffn_down": "one", "blk.0.ffn": "two"}
    assert moved(model, (ONE,), both) == {"ffn_norm-0", "ffn_gate-0", "ffn_up-0", "ffn_swiglu-0"}
    assert moved(model, (ONE,), dict(reversed(both.items()))) >= {"ffn_out-0"}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("n_dow", {"ffn_out-0", "ffn_out-1"}),
        (r"\.1\..*_down", {"ffn_out-1"}),
        (r"^blk\.0\.ffn_down\.weight$", {"ffn_out-0"}),
        ("attn_k.w", {"Kcur_flat-0", "Kcur_heads-0", "Kcur_flat-1", "Kcur_heads-1"}),
    ],
)
def test_patterns_are_searched_for(model: Model, pattern: str, expected: set[str]) -> None:
    assert moved(model, (ONE,), {pattern: "two"}) == expected


def test_nodes_without_weights_follow_their_sources(models: Callable[[str], Model]) -> None:
    """If all are on one device that isn't their layer's; otherwise they stay."""
    model = models("tiny-qwen3")
    assert "ffn_swiglu-0" in moved(model, (ONE,), {"ffn_(gate|up)": "two"})
    assert "ffn_swiglu-0" not in moved(model, (ONE,), {"ffn_up": "two"})
    attention = {
        name for name, node in model.graph.nodes.items() if isinstance(node.op, (Attention, KVStore))
    }
    assert len(attention) == 4
    assert attention <= moved(model, (ONE,), {"attn_[qkv]": "two"})
    for part in "attn_[kv]", "attn_q", "attn_output":
        assert not attention & moved(model, (ONE,), {part: "two"})
    assert "l_out-1" not in moved(model, (ONE,), {"ffn_down": "two"})  # it adds to what stayed
    assert moved(model, (ONE,), {".": "two"}) == {
        name for name, node in model.graph.nodes.items() if not isinstance(node.op, Weight)
    }
    experts = models("tiny-qwen3moe")
    routes = {name for name, node in experts.graph.nodes.items() if isinstance(node.op, Route)}
    assert routes
    assert not routes & moved(experts, (ONE,), {"exps": "two"})


def test_weights_are_with_who_reads_them_first(model: Model) -> None:
    of = place(model, wishes((ONE,), {"token_embd": "two"})).of
    assert [of[name] for name in ("token_embd.weight", "inp_embd", LOGITS)] == [1, 1, 1]  # it is tied


def test_a_device_that_only_patterns_name_has_no_layers(model: Model) -> None:
    placement = place(model, wishes((ONE,), {"ffn_up": "numpy", "ffn_down": "two"}))
    assert [device.name for device in placement.devices] == ["one", "numpy", "two"]
    assert {name for name, device in placement.names().items() if device == "numpy"} == {
        f"{what}{i}{rest}" for i in range(2) for what, rest in (("blk.", ".ffn_up.weight"), ("ffn_up-", ""))
    }


@pytest.mark.parametrize("pattern", ["nothing", "^ffn_up", "ffn_up$", "l_out-0", "Ffn"])
def test_a_pattern_that_matches_nothing(model: Model, pattern: str) -> None:
    expected = f"the pattern '{pattern}' matches no tensor of the model, which are named like "
    with pytest.raises(InputError, match=f"^{re.escape(expected)}'output_norm"):
        place(model, wishes((ONE,), {"ffn": "two", pattern: "two"}))


# What can't be cut


def test_keys_values_and_attention_stay_together(model: Model) -> None:
    rng = random.Random(0)
    names = [re.escape(node.name) for node in weights_of(model)]
    for _ in range(50):
        of = place(model, wishes((ONE,), dict.fromkeys(rng.sample(names, rng.randint(1, 9)), "two"))).of
        for node in model.graph.nodes.values():
            if isinstance(node.op, Attention):
                assert of[node.name] == of[node.src[1].name]


def test_a_delta_net_and_its_convolution_stay_together(hybrid: Model) -> None:
    found = moved(hybrid, (ONE,), {r"ssm_(conv1d|dt|a$)": "two"})
    units = {name for name, node in hybrid.graph.nodes.items() if isinstance(node.op, (Conv, DeltaNet))}
    assert len(units) == 8
    assert units <= found


@pytest.mark.parametrize("pattern", ["ssm_conv1d", "ssm_dt", "ssm_a$", r"blk\.2\.ssm_(a$|conv1d)"])
def test_a_cut_inside_a_delta_net(hybrid: Model, pattern: str) -> None:
    with pytest.raises(InputError, match=r"share its state and can't be cut, .*ssm_.* on one.*") as caught:
        place(hybrid, wishes((ONE,), {pattern: "two"}))
    assert "on two" in str(caught.value)
    assert "\n" not in str(caught.value)
    place(hybrid, wishes((ONE,), {pattern: "one", "ffn_up": "two"}))  # where it is anyway: nothing is cut


def test_a_node_with_tensors_on_different_devices(models: Callable[[str], Model]) -> None:
    """Patterns that name a matrix and its bias; a bias that none names follows."""
    model = models("tiny-qwen2")
    with pytest.raises(
        InputError, match=r"'Qcur.*' needs tensors that the patterns want on different devices"
    ):
        place(model, wishes((ONE,), {"attn_q.weight": "one", "attn_q.bias": "two"}))
    of = place(model, wishes((ONE,), {"attn_q.weight": "two"})).of
    assert of["blk.0.attn_q.bias"] == of["blk.0.attn_q.weight"] == 1


# What devices lack


def test_what_a_device_lacks_goes_to_the_next_that_has_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next in their order, from the first again; NumPy is the last resort, and comes in only where it is needed."""
    kinds = {node.op.info.type.name for node in weights_of(model) if isinstance(node.op, Weight)}
    assert "Q6_K" in kinds
    lacking = {"one"}

    def lacks(model: Model, nodes: Sequence[Tensor], device: Device) -> list[str]:
        read = [source.op for node in nodes for source in node.src if isinstance(source.op, Weight)]
        return ["Q6_K"] if device.name in lacking and any(w.info.type.name == "Q6_K" for w in read) else []

    def found(*devices: Device) -> tuple[Placement, set[str]]:
        placement = place(model, wishes(devices, n_layers=(2, *[0] * (len(devices) - 1))))
        names = placement.names()
        there = {
            names[node.name]
            for node in model.graph.nodes.values()
            for source in node.src
            if isinstance(source.op, Weight) and source.op.info.type.name == "Q6_K"
        }
        return placement, there

    monkeypatch.setattr(placement_module, "lacks", lacks)
    placement, there = found(ONE, TWO, THREE)
    assert there == {"two"}
    assert placement.said == ("Q6_K runs on two, since one has no kernels for it",)
    lacking |= {"two", "three"}
    assert found(ONE, TWO)[0].said == ("Q6_K runs on numpy, since one has no kernels for it",)
    assert found(ONE, TWO)[0].devices == (ONE, TWO, NUMPY)
    assert found(NUMPY, ONE)[0].said == ()
    lacking.add("numpy")
    with pytest.raises(ModelError, match=r"tiny-qwen3: no device can run Q6_K, which '\w+' needs"):
        found(ONE, TWO)


def test_tensors_without_kernels_run_on_numpy(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bits of a model of which they were put there."""
    names = [w.name for w in weights_of(model) if isinstance(w.op, Weight) and w.op.info.type.name == "Q6_K"]

    def logits(overrides: dict[str, str]) -> np.ndarray:
        backend = divided(model, (ONE,), overrides)
        return backend.run([LOGITS], Batch([Segment(KVSequence(), [1, 2, 3], 3)]))[LOGITS]

    expected = logits({"|".join(map(re.escape, names)): "numpy"})
    monkeypatch.delitem(formats.FORMATS, "Q6_K")
    assert {what for node in weights_of(model) for what in lower.lacks_kernels(model, node)} == {"Q6_K"}
    said = place(model, wishes((ONE,))).said
    assert said == ("Q6_K runs on numpy, since one has no kernels for it",)
    assert np.array_equal(logits({}), expected)


# Splits


def splits_of(model: Model, *args: Any, fetch: Sequence[str] = (LOGITS,), **more: Any) -> list[Split]:
    return cut(model.graph.subgraph(fetch), place(model, wishes(*args, **more)).of, fetch)


def run_for(model: Model, fetch: Sequence[str]) -> list[str]:
    """The nodes to run; inputs and weights only if they are fetched."""
    nodes = model.graph.subgraph(fetch)
    return [n.name for n in nodes if not isinstance(n.op, (Input, Weight)) or n.name in fetch]


def check(model: Model, splits: Sequence[Split], of: dict[str, int], fetch: Sequence[str]) -> None:
    """Each node runs once, on its device, after its sources, which are in its split or handed on to it."""
    run = run_for(model, fetch)
    assert sorted(name for split in splits for name in split.nodes) == sorted(run)
    place_in = {name: i for i, name in enumerate(run)}
    ready: set[str] = set()
    for split in splits:
        assert {of[name] for name in split.nodes} == {split.device}
        assert list(split.nodes) == sorted(split.nodes, key=lambda name: place_in[name])
        assert set(split.feed) <= ready
        done: set[str] = set()
        for name in split.nodes:
            node = model.graph.nodes[name]
            sources = {source.name for source in node.src if not isinstance(source.op, (Input, Weight))}
            assert sources <= done | set(split.feed)
            assert not isinstance(node.op, Attention) or node.src[1].name in done
            done.add(name)
        used = {source.name for name in split.nodes for source in model.graph.nodes[name].src}
        assert set(split.feed) <= used - set(split.nodes)
        assert set(split.fetch) <= set(split.nodes)
        ready |= set(split.fetch)
    assert set(fetch) <= ready
    wanted = set(fetch).union(*(split.feed for split in splits))
    assert ready == wanted, "values that nobody needs are copied"
    for i, split in enumerate(splits):
        later = {name for other in splits[i + 1 :] for name in other.feed}
        assert set(split.last) == set(split.feed) - later - set(fetch)


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if name.startswith("tiny-")))
def test_splits_of_random_placements(models: Callable[[str], Model], name: str) -> None:
    """Of any results, on three devices; in all fewer than if the graph were cut wherever the next node is elsewhere."""
    model, rng = models(name), random.Random(0)
    names = [w.name for w in weights_of(model) if not re.search(r"ssm_(conv1d|dt|a$)", w.name)]
    names = sorted({name for name in names if name.endswith(".weight")})
    n_saved = 0
    for i in range(20):
        overrides = {
            re.escape(name[:-6]): rng.choice(["one", "two", "numpy"]) for name in rng.sample(names, 8)
        }
        of = place(model, wishes((ONE, TWO), overrides)).of
        fetch = rng.sample(sorted(of), 5) if i % 2 else [LOGITS]
        splits = cut(model.graph.subgraph(fetch), of, fetch)
        check(model, splits, of, fetch)
        n_naive = sum(1 for _ in itertools.groupby(of[name] for name in run_for(model, fetch)))
        n_saved += n_naive - len(splits)
    assert n_saved > 0


def test_a_known_cut(model: Model) -> None:
    """By hand: keys of the first layer elsewhere. All that attention needs besides them runs before the cut."""
    first, second, third = splits_of(model, (ONE,), {"blk.0.attn_k.weight": "two"})
    assert (first.device, first.feed, first.fetch[0]) == (0, (), "inp_embd")
    assert {"inp_embd", "attn_norm-0", "Qcur-0", "Vcur_heads-0"} <= set(first.nodes)
    keys = Split(1, ("Kcur_flat-0", "Kcur_heads-0"), ("attn_norm-0",), ("Kcur_heads-0",), ("attn_norm-0",))
    assert second == keys
    assert {"Kcur_heads-0", "Vcur_heads-0", "Qcur-0", "inp_embd"} == set(third.feed)
    assert third.fetch == (LOGITS,)
    assert {"kv-0", "kqv_out-0", LOGITS} <= set(third.nodes)


def test_layers_are_cut_once(hybrid: Model) -> None:
    splits = splits_of(hybrid, (ONE, TWO, NUMPY), n_layers=(1, 3, 1))
    assert [(split.device, split.feed, split.fetch) for split in splits] == [
        (0, (), ("l_out-0",)),
        (1, ("l_out-0",), ("l_out-3",)),
        (2, ("l_out-3",), (LOGITS,)),
    ]
    backend = divided(hybrid, (ONE, TWO, NUMPY), n_layers=(1, 3, 1))
    assert backend.describe(n_tokens=3) == [
        "## SPLIT #0: one # 0 inputs",
        "## SPLIT #1: two # 1 inputs: [l_out-0 (3.1 kB)]",  # 3 x 256 x 4 bytes
        "## SPLIT #2: numpy # 1 inputs: [l_out-3 (3.1 kB)]",
    ]


# Options as text


def test_options_are_read() -> None:
    found = read_wishes("cpu,numpy", "3/1", None, ["ffn_up=numpy,a=b=cpu", " ffn =NUMPY"])
    assert [device.name for device in found.devices] == ["cpu", "numpy"]
    assert found.shares == (3.0, 1.0)
    assert [(o.text, o.device.name) for o in found.overrides] == [
        ("ffn_up", "numpy"),
        ("a=b", "cpu"),
        (" ffn ", "numpy"),
    ]
    assert read_wishes("cpu,numpy", layers_per_device=[1, 3]).n_layers == (1, 3)
    only = read_wishes(override_tensor=["ffn=numpy"])
    assert [device.name for device in only.all_devices] == ["cpu", "numpy"]


def test_a_device_may_be_written_otherwise_in_a_pattern() -> None:
    """It is the same one, and not named twice."""
    name = f"cpus:{ALLOWED[0]}"
    found = read_wishes(name, override_tensor=[f"ffn=cpus:{ALLOWED[0]}-{ALLOWED[0]}", "a=numpy,b=NumPy"])
    assert [device.name for device in found.all_devices] == [name, "numpy"]
    assert found.overrides[0].device == found.devices[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": "gpu"}, "unknown device 'gpu'; known are cpu"),
        ({"tensor_split": "1,1"}, "expected one share per device, 1, not 2"),
        ({"devices": "cpu,numpy", "tensor_split": "1"}, "expected one share per device, 2, not 1"),
        ({"devices": "cpu,numpy", "tensor_split": "0,0"}, "one of them is more than 0"),
        ({"devices": "cpu,numpy", "tensor_split": "1,-1"}, "numbers from 0 up"),
        ({"devices": "cpu,numpy", "tensor_split": "1,nan"}, "numbers from 0 up"),
        ({"devices": "cpu,numpy", "tensor_split": "1,inf"}, "numbers from 0 up"),
        ({"devices": "cpu,numpy", "tensor_split": "1e308,1e308"}, "numbers from 0 up"),
        ({"tensor_split": "x"}, "'x': expected numbers such as 3,1"),
        ({"tensor_split": ""}, "'': expected numbers such as 3,1"),
        ({"layers_per_device": "1.5"}, "'1.5': expected numbers such as 14,14"),
        ({"layers_per_device": "1,1"}, "expected one number of layers per device, 1, not 2"),
        ({"layers_per_device": "-1"}, "a device can't have -1 layers"),
        ({"devices": "cpu,numpy", "layers_per_device": f"{'9' * 4300},{'9' * 4300}"}, "can't have 99999"),
        ({"tensor_split": "1", "layers_per_device": "1"}, "both the shares of devices and their numbers"),
        ({"override_tensor": ["ffn"]}, "'ffn': expected PATTERN=DEVICE"),
        ({"override_tensor": ["=cpu"]}, "'=cpu': expected PATTERN=DEVICE"),
        ({"override_tensor": ["ffn="]}, "'ffn=': expected PATTERN=DEVICE"),
        ({"override_tensor": ["ffn=cpu,"]}, "'': expected PATTERN=DEVICE"),
        ({"override_tensor": ["ffn=gpu"]}, "unknown device 'gpu'; known are cpu"),
        ({"override_tensor": ["(=cpu"]}, "'(' is not a regular expression"),
        ({"override_tensor": ["x" * 501 + "=cpu"]}, f"501 characters, expected at most {MOST_PATTERN}"),
        (
            {"override_tensor": [f"ffn=cpus:{ALLOWED[0]}"]},
            f"cpu and cpus:{ALLOWED[0]} share CPU {ALLOWED[0]}",
        ),
    ],
)
def test_options_that_cannot_be_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_wishes(**options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


# Memory

GB = 10**9


def memory(kilobytes: int, node: int | None = None) -> str:
    if node is None:
        return f"MemTotal: {kilobytes} kB\nMemAvailable: {kilobytes} kB\n"
    return f"Node {node} MemTotal: {kilobytes} kB\nNode {node} MemFree: {kilobytes} kB\n"


def test_what_each_node_needs_and_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes of two CPUs; the second one has 1 MB, which isn't enough for any process."""
    allow(monkeypatch, {0, 1, 2, 3})
    nodes = {
        f"sys/devices/system/node/node{i}/{file}": text
        for i, (cpus, free) in enumerate([("0-1\n", 9_000_000), ("2-3\n", 1000)])
        for file, text in (("cpulist", cpus), ("meminfo", memory(free, i)))
    }
    host = machine(tmp_path, {**nodes, "proc/meminfo": memory(9_001_000)})
    model = load_model(GGUFFile(written(tiny(), tmp_path)))

    def measured(text: str, **more: Any) -> Any:
        return measure_devices(
            model, place(model, read_wishes(text, host=host, **more)), CacheTypes(), host=host
        )

    whole, (first, second) = measured("cpu:0,cpu:1", layers_per_device="1,1")
    alone = measure(model, CacheTypes(), host=host)
    assert (whole.weights, whole.page, whole.free) == (alone.weights, alone.page, 9_001_000 * 1024)
    assert (first.free, second.free) == (9_000_000 * 1024, 1000 * 1024)
    assert first.page == second.page == whole.page / 2
    # the embedding is also the output matrix: both nodes read it
    (embedding,) = (t.n_bytes for t in model.file.tensors.values() if t.name == "token_embd.weight")
    assert first.weights + second.weights == whole.weights + embedding
    with pytest.raises(NoMemory, match=r"model.gguf on cpu:1: even .* needs 10\d.\d MB .*, 1.0 MB are free"):
        second.choose(None, None, None)
    # devices of one node share its memory; a device on several nodes has no memory of its own
    whole, (both,) = measured("cpus:2,cpus:3", layers_per_device="1,1")
    assert both.path.endswith("model.gguf on cpus:2 and cpus:3")
    assert (both.weights, both.page, both.work) == (whole.weights, whole.page, whole.work)
    assert measured("cpus:1-2")[1] == []


def test_the_context_is_what_fits_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tiny(), tmp_path)
    model = load_model(GGUFFile(path))
    here, there = (Device(d.name, "cpu", d.cpus, node) for node, d in enumerate((ONE, TWO)))
    asked = Wishes((here, there), n_layers=(1, 1))
    free = {0: 9 * GB, 1: 9 * GB}
    monkeypatch.setattr(Host, "node_free", lambda host, node: free[node])
    monkeypatch.setattr(Host, "free", lambda host: sum(free.values()))
    whole, (_, second) = measure_devices(model, place(model, asked), CacheTypes())
    free[1] = second.needed(1024)
    said: list[str] = []

    def loaded(n_ctx: int | None = None, fit: bool | None = None) -> int:
        said.clear()
        return LLM(path, n_ctx, report=said.append, devices=asked, fit=fit).engine.n_ctx

    assert loaded() == 1024
    assert [line.split(":")[0] for line in said] == ["the context is 1024 tokens"]
    assert loaded(2000, fit=True) == 1024
    assert loaded(2000, fit=False) == 2000
    assert loaded(512) == 512
    assert said == []
    with pytest.raises(InputError, match=r"gguf on two: a context of 2000 needs .*: -c 1024 would fit"):
        loaded(2000)
    # the process has room for less than each node
    monkeypatch.setattr(Host, "free", lambda host: whole.needed(512))
    assert loaded() == 512
    assert [line.split(":")[0] for line in said] == ["the context is 512 tokens"]
