"""A graph that runs on several devices: the same bits as on one, whatever is cut, kept, loaded, interrupted or wrong."""

import gc
import itertools
import os
import random
import re
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from divided import ALLOWED, NUMPY, ONE, TWO, divided, wishes
from engine_runs import finish
from random_models import write_random_model
from shapes import PRESETS
from test_architectures import WAYS, Way, in_one_step

from qwencli.backends.choose import make_devices
from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.cpu.team import Cancelled, Team
from qwencli.backends.devices import Device
from qwencli.backends.kv_cache import KVSequence
from qwencli.backends.numpy.backend import NumpyBackend
from qwencli.backends.protocol import HIDDEN, LOGITS, Backend, Batch, Segment, Task
from qwencli.backends.scheduler.placement import place
from qwencli.backends.scheduler.splits import cut
from qwencli.engine.engine import Engine
from qwencli.engine.engine import Sequence as EngineSequence
from qwencli.engine.session import load, save
from qwencli.errors import InputError, ModelError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.network.graph import Route, Weight
from qwencli.network.load import load_model
from qwencli.network.model import Model
from qwencli.sampling import SamplingParams
from qwencli.sampling.sampler import Draw

ARCHITECTURES = sorted(name for name in PRESETS if name.startswith("tiny-"))
RECURRENT = "tiny-qwen35"
F32 = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def preset(folder: Path, name: str, mix: str = "Q4_K_M") -> Model:
    path = folder / f"{name}-{mix}.gguf"
    if not path.exists():
        shape = PRESETS[name]
        write_random_model(path, replace(shape, n_layer=max(4, shape.n_layer)), mix)
    return load_model(GGUFFile(path))


@pytest.fixture(scope="module", params=["tiny-qwen3", RECURRENT])
def model(request: pytest.FixtureRequest, folder: Path) -> Model:
    return preset(folder, request.param)


def tokens_of(model: Model, n: int, seed: int = 0) -> list[int]:
    return np.random.RandomState(seed).randint(0, model.config.n_vocab, n).tolist()


CHUNKS = (0, 70), (70, 71), (71, 75), (75, 140)
"""From a border of states and a page to the next, and in between."""


def logits(backend: Backend) -> F32:
    """Of two sequences in the same steps, one with two outputs in each."""
    tokens, other = (tokens_of(backend.model, 140, seed) for seed in (0, 1))
    one, two, found = KVSequence(), KVSequence(), []
    for start, end in CHUNKS:
        segments = [Segment(one, tokens[start:end], 1), Segment(two, other[start:end], min(2, end - start))]
        found.append(backend.run([LOGITS], Batch(segments))[LOGITS])
    for seq in one, two:
        backend.cache.release(seq)
    return np.concatenate(found)


# The same bits as one device


def random_overrides(model: Model, seed: int) -> dict[str, str]:
    """Kinds of tensors and single tensors, each on one of the devices. Those of a layer's delta net that share its state stay together."""
    rng = random.Random(seed)
    names = [node.op.info.name for node in model.graph.nodes.values() if isinstance(node.op, Weight)]
    names = [name for name in names if not re.search(r"ssm_(conv1d|dt|a$)", name)]
    kinds = sorted({re.sub(r"blk\.\d+\.|\.(weight|bias)$", "", name) for name in names})
    chosen = [rf"\b{kind}\." for kind in rng.sample(kinds, 2)]
    chosen += [f"^{re.escape(re.sub(r'(weight|bias)$', '', name))}" for name in rng.sample(names, 2)]
    return {pattern: rng.choice(["one", "two"]) for pattern in rng.sample(chosen, len(chosen))}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_the_bits_of_one_device(folder: Path, name: str) -> None:
    model = preset(folder, name)
    expected, n_layer = logits(CPUBackend(model, 1)), model.config.n_layer
    ways: list[dict[str, Any]] = [
        {"shares": (1.0, 1.0)},
        {"shares": (3.0, 1.0)},
        {"n_layers": (1, n_layer - 1)},
        {"overrides": {"ffn_.*exps": "two"} if "moe" in name or "next" in name else {"ffn_up": "two"}},
        *({"overrides": random_overrides(model, seed)} for seed in range(6)),
    ]
    for way in ways:
        assert np.array_equal(logits(divided(model, **way)), expected), way


def test_experts_elsewhere_get_their_numbers_and_weights(folder: Path) -> None:
    """What a route has chosen is copied as values."""
    model = preset(folder, "tiny-qwen3moe")
    backend = divided(model, (ONE,), {"exps": "two"})
    routes = {name for name, node in model.graph.nodes.items() if isinstance(node.op, Route)}
    splits = backend.plan((LOGITS,), ())
    assert len(splits) == 2 * model.config.n_layer + 1
    assert routes <= {name for split in splits if split.device == 1 for name in split.feed}


def test_values_are_kept_only_as_long_as_a_split_needs_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mixture of experts' many splits each hands on some megabytes."""
    model = preset(folder, "tiny-qwen3moe")
    backend, handed, n_alive = divided(model, (ONE,), {"down_exps": "two"}), [], []

    def watch(device: Backend, finish: Callable[[Any], Any]) -> None:
        def finished(begun: Any) -> Any:
            results = finish(begun)
            n_alive.append(sum(array() is not None for array in handed))
            for value in results.values.values():
                handed.extend(map(weakref.ref, value if isinstance(value, tuple) else [value]))
            return results

        monkeypatch.setattr(device, "finish", finished)

    for device in backend.devices.values():
        watch(device, device.finish)
    backend.step(Batch([Segment(KVSequence(), [1, 2, 3], 1)]))
    per_layer = 4  # the route is a pair; then what goes to the experts, and what is added to their sum
    assert len(handed) > model.config.n_layer * per_layer
    assert max(n_alive) <= 2 * per_layer


def test_more_threads_and_three_devices(folder: Path) -> None:
    model = preset(folder, RECURRENT)
    both = Device("both", "cpu", frozenset(ALLOWED))
    expected = logits(CPUBackend(model, 1))
    three = divided(model, (ONE, Device("more", "cpu"), both), shares=(1.0, 2.0, 1.0), n_threads=2)
    assert len(three.devices) == 3
    assert np.array_equal(logits(three), expected)


# What a caller asks for


def draws() -> list[Draw | None]:
    drawn = Draw(0.8, 20, 0.9, 0.0, 1.1, 0.0, 0.0, {}, 0.3)
    return [None, drawn]


def results(backend: Backend) -> list[F32]:
    """Of each method that runs a batch; of `run` with tensors of all devices, inputs and a weight, and from a tensor that is given."""
    tokens, seq = tokens_of(backend.model, 40), KVSequence()

    def batch(start: int, end: int, n_outputs: int = 1) -> Batch:
        return Batch([Segment(seq, tokens[start:end], n_outputs)])

    hidden = backend.hidden(batch(0, 20, 20))
    found = [hidden, backend.score(hidden, tokens[1:21])]
    backend.step(batch(20, 30))
    found += [np.array(choice) for choice in backend.sample(batch(30, 32, 2), draws())]
    layers = [layer.name for layer in backend.model.layers]
    names = [*layers[::-1], "inp_tokens", "inp_pos", "output_norm.weight", LOGITS, HIDDEN]
    values = backend.run(names, batch(32, 36, 2))
    assert list(values) == names
    found += values.values()
    values = backend.run([LOGITS, HIDDEN], batch(36, 40, 2), feed={layers[1]: values[layers[1]]})
    found += values.values()
    found += backend.run([LOGITS], feed={HIDDEN: hidden}).values()
    found += backend.run([layers[-2]], feed={layers[-2]: values[HIDDEN]}).values()
    assert backend.run([], batch(36, 37)) == {}
    return found


def test_all_methods_agree_with_one_device(model: Model) -> None:
    for found, expected in zip(results(divided(model)), results(CPUBackend(model, 1)), strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("fetch", "feed", "error"),
    [
        (["nothing"], {}, ModelError),
        ([LOGITS], {"nothing": np.zeros(3)}, ModelError),
        (["kv-0"], {}, ModelError),
        ([LOGITS], {"inp_tokens": np.zeros(3)}, ModelError),
        ([LOGITS], {"output_norm.weight": np.zeros(256)}, ModelError),
        ([LOGITS], {"l_out-0": np.zeros((3, 2))}, InputError),
        ([LOGITS], {"l_out-0": np.zeros((2, 256))}, InputError),
        (["inp_embd"], {"l_out-0": np.zeros((3, 2))}, InputError),  # which isn't needed
    ],
)
def test_what_one_device_refuses(folder: Path, fetch: list[str], feed: dict[str, F32], error: type) -> None:
    model, messages = preset(folder, "tiny-qwen3"), []
    for backend in CPUBackend(model, 1), divided(model):
        seq = KVSequence()
        with pytest.raises(error) as caught:
            backend.run(fetch, Batch([Segment(seq, [1, 2, 3], 1)]), feed)
        assert seq.length == 0
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_without_a_batch_or_with_a_token_outside_the_vocabulary(folder: Path) -> None:
    backend = divided(preset(folder, "tiny-qwen3"))
    with pytest.raises(InputError, match="needs a batch"):
        backend.run([LOGITS])
    with pytest.raises(InputError, match="outside the vocabulary"):
        backend.run([LOGITS], Batch([Segment(KVSequence(), [10**6], 1)]))


# What is kept, saved and loaded


def answer(engine: Engine, tokens: Sequence[int], n: int = 6) -> EngineSequence:
    seq = EngineSequence(list(tokens), SamplingParams(temp=0), n)
    finish(engine, seq)
    assert seq.stop_reason == "length", seq.error
    return seq


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_logits_have_the_bits_of_one_device(model: Model, tmp_path: Path, way: Way) -> None:
    """In one step; after a prefix, with a copied part of a page; from a session; among others."""
    tokens = tokens_of(model, 300)
    expected = in_one_step(lambda: CPUBackend(model, 1), tokens, tmp_path)
    assert np.array_equal(way(lambda: divided(model, shares=(3.0, 2.0)), tokens, tmp_path), expected)


def test_a_page_is_copied_on_all_devices(folder: Path) -> None:
    model = preset(folder, "tiny-qwen3")
    backend, rng = divided(model), np.random.default_rng(0)
    backend.cache.reserve(KVSequence(), 100)
    data = [rng.integers(0, 256, len(backend.read_page(0, i)), np.uint8) for i in range(model.config.n_layer)]
    for layer, its in enumerate(data):
        backend.write_page(0, layer, its)
    backend.copy_page(0, 1)
    assert all(np.array_equal(backend.read_page(1, layer), its) for layer, its in enumerate(data))


def test_answers_after_a_shared_prefix(model: Model) -> None:
    """Of whole pages, and of a part of one, which is copied; for a recurrent model from a border."""
    begin = tokens_of(model, 150)
    prompts = [begin, [*begin[:140], 1, 2, 3], [*begin[:70], 5, 6], begin]
    expected = [answer(Engine(CPUBackend(model, 1), 300), prompt).generated for prompt in prompts]
    engine = Engine(divided(model, shares=(3.0, 2.0)), 300, n_batch=64, n_kept=2000)
    found = [answer(engine, prompt) for prompt in prompts]
    assert [seq.generated for seq in found] == expected
    assert all(seq.n_cached for seq in found[1:])
    assert model.config.delta_nets or found[1].n_cached == 140


def test_sessions_load_with_any_split(model: Model, tmp_path: Path) -> None:
    tokens, n_layer = tokens_of(model, 150), model.config.n_layer
    makers: list[Callable[[], Backend]] = [
        lambda: CPUBackend(model, 1),
        lambda: divided(model),
        lambda: divided(model, n_layers=(1, n_layer - 1)),
        lambda: divided(model, (ONE,), {"attn_|ssm_": "two"}),
        lambda: CPUBackend(model, 1),
    ]
    kept, seq = makers[0](), KVSequence()
    kept.step(Batch([Segment(seq, tokens[:130], 1)]))
    save(tmp_path / "0", kept, tokens, seq)
    expected = kept.run([LOGITS], Batch([Segment(seq, tokens[130:], 20)]))[LOGITS]
    for i, make in enumerate(makers):
        backend = make()
        seq = load(tmp_path / f"{i}", backend, 1000).kv
        save(tmp_path / f"{i + 1}", backend, tokens, seq)
        assert np.array_equal(
            backend.run([LOGITS], Batch([Segment(seq, tokens[130:], 20)]))[LOGITS], expected
        )
    assert len({(tmp_path / f"{i}").read_bytes() for i in range(len(makers) + 1)}) == 1


# Ctrl-C and errors


@pytest.fixture
def alarm() -> Iterator[Callable[[float], None]]:
    """alarm(seconds) raises KeyboardInterrupt after so long in this thread."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs setitimer")

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    gc.collect()  # so that it doesn't come in the middle of what ends a team of the tests before
    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_answers_after_ctrl_c_at_any_time(model: Model, alarm: Callable[[float], None]) -> None:
    prompts = [tokens_of(model, 140, seed) for seed in range(2)]
    expected = [answer(Engine(CPUBackend(model, 1), 300), prompt).generated for prompt in prompts]
    engine = Engine(divided(model), 300, n_batch=100)
    answer(engine, prompts[0][:100])  # now all programs are there
    sequences = [EngineSequence(list(prompt), SamplingParams(temp=0), 6) for prompt in prompts]
    for seq in sequences:
        engine.submit(seq)
    rng, n_interrupts = random.Random(0), 0
    while not all(seq.stop_reason for seq in sequences):
        try:
            alarm(rng.uniform(1e-4, 2e-3) * 1.03**n_interrupts)  # at last longer than any step
            engine.step()
            alarm(0)
        except KeyboardInterrupt:
            n_interrupts += 1
    assert n_interrupts > 5
    assert [seq.generated for seq in sequences] == expected


WATCHED = (
    "driver.py",
    "team.py",
    "scheduler.py",
    "protocol.py",
    "backend.py",
    "threading.py",
    "_base.py",
    "thread.py",
)
"""Files in which Ctrl-C comes: ours, and those of the standard library that a driver may use."""


class CtrlC:
    """Raises KeyboardInterrupt where Python looks for signals: at the start of a function and after a call of one in C. The n-th time that
    is in a watched file."""

    def __init__(self, n: int) -> None:
        self._n_left = n

    def __enter__(self) -> None:
        sys.setprofile(self._look)

    def __exit__(self, *exc: object) -> None:
        sys.setprofile(None)

    def _look(self, frame: Any, event: str, arg: object) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.endswith(WATCHED):
            self._n_left -= 1
            if self._n_left == 0:
                sys.setprofile(None)
                raise KeyboardInterrupt


def test_ctrl_c_anywhere_leaves_nothing_locked(folder: Path, alarm: Callable[[float], None]) -> None:
    """Neither in ours nor in what it is made of; the next step is as if nothing had been."""
    backend = divided(preset(folder, "tiny-qwen3"))

    def logits() -> F32:
        seq = KVSequence()
        try:
            return backend.run([LOGITS], Batch([Segment(seq, [1, 2, 3], 1)]))[LOGITS]
        finally:
            backend.cache.release(seq)

    expected = logits()
    alarm(60)  # it would wait forever
    for n in itertools.count(1):
        try:
            with CtrlC(n):
                logits()
            break
        except KeyboardInterrupt:
            assert np.array_equal(logits(), expected), n
    assert n > 50


@pytest.mark.parametrize("what", ["page", "state", "copy"])
def test_a_step_that_was_begun_and_not_finished_writes_to_no_memory_of_others(
    folder: Path, what: str
) -> None:
    """Ctrl-C can come right between begin and finish. Then the sequence is given up, and others get its pages."""
    model = preset(folder, RECURRENT)
    backend, tokens, seq = divided(model, n_layers=(4, 1)), tokens_of(model, 140), KVSequence()
    first = backend.devices[0]
    assert isinstance(first, CPUBackend)
    assert first._driver
    batch = Batch([Segment(seq, tokens, 1)])
    batch.reserve(backend.cache)
    late = threading.Event()
    first._driver._put(late.wait)
    threading.Timer(0.1, late.set).start()
    backend.begin(Task((LOGITS,), batch))
    page, state = seq.pages[0], seq.states[len(tokens)]
    if what == "copy":
        backend.copy_page(seq.pages[1], page)
        expected, found = np.zeros(len(backend.read_page(page, 0)), np.uint8), backend.read_page(page, 0)
    else:
        found = backend.read_page(page, 0) if what == "page" else backend.read_state(state, 0)
        expected = np.full(len(found), 7, np.uint8)
        if what == "page":
            backend.write_page(page, 0, expected)
        else:
            backend.write_state(state, 0, expected)
    first._driver._put(int).wait()  # until it is idle
    assert np.array_equal(found, expected)


def test_ctrl_c_while_waiting_ends_the_devices_step(
    folder: Path, alarm: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = preset(folder, "tiny-qwen3")
    backend, tokens, seq = divided(model), tokens_of(model, 100), KVSequence()
    expected = backend.run([LOGITS], Batch([Segment(seq, tokens, 1)]))[LOGITS]
    backend.cache.release(seq)
    ended, run = [], Team.run

    def watched(team: Team, *args: Any) -> None:
        alarm(1e-3)
        deadline = time.monotonic() + 60
        while not team._is_cancelled and time.monotonic() < deadline:
            time.sleep(0.001)
        try:
            run(team, *args)
        except Cancelled:
            ended.append(team)
            raise

    with monkeypatch.context() as patch:
        patch.setattr(Team, "run", watched)
        with pytest.raises(KeyboardInterrupt):
            backend.step(Batch([Segment(seq, tokens, 1)]))
        alarm(0)
        assert len(ended) == 1, "the step ran on"
    assert seq.length == 0
    assert np.array_equal(backend.run([LOGITS], Batch([Segment(seq, tokens, 1)]))[LOGITS], expected)


@pytest.mark.parametrize("error", [QwenError("broken"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("part", [0, 1])
def test_a_step_is_committed_once(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: BaseException, part: int
) -> None:
    """All parts have written what they write when the last one fails."""
    backend, alone = divided(model), CPUBackend(model, 1)

    def segments(sequences: Sequence[KVSequence], start: int, end: int) -> Batch:
        return Batch([Segment(seq, tokens_of(model, 90, i)[start:end], 1) for i, seq in enumerate(sequences)])

    mine, theirs = ([KVSequence() for _ in range(2)] for _ in range(2))
    for device, sequences in (backend, mine), (alone, theirs):
        device.step(segments(sequences, 0, 50))
    device, finish_it = backend.devices[part], backend.devices[part].finish

    def fail(begun: Any) -> Any:
        finish_it(begun)
        raise error

    def contents() -> list[Any]:
        found: list[Any] = [seq.length for seq in mine]
        for seq in mine:
            for position in [p for p in seq.states if p <= seq.length]:
                layers = [n for what, n in backend._holders if what == "state"]
                found.append([backend.read_state(seq.states[position], n).tobytes() for n in layers])
        return found

    before = contents()
    assert before[:2] == [50, 50]
    with monkeypatch.context() as patch:
        patch.setattr(device, "finish", fail)
        with pytest.raises(type(error)):
            backend.step(segments(mine, 50, 90))
    assert contents() == before
    found = backend.run([LOGITS], segments(mine, 50, 90))[LOGITS]
    assert np.array_equal(found, alone.run([LOGITS], segments(theirs, 50, 90))[LOGITS])


def test_without_memory_on_one_device_nothing_is_reserved(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = preset(folder, "tiny-qwen3")
    backend, seq = divided(model), KVSequence()

    def no_memory(page: int) -> None:
        raise QwenError("there is none")

    with monkeypatch.context() as patch:
        patch.setattr(backend.devices[1], "make_page", no_memory)
        with pytest.raises(QwenError, match="there is none"):
            backend.step(Batch([Segment(seq, [1, 2, 3], 1)]))
    assert (seq.length, seq.pages) == (0, [])
    backend.step(Batch([Segment(seq, [1, 2, 3], 1)]))
    assert (seq.length, seq.pages) == (3, [0])


# NumPy as one device


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-qwen3moe", RECURRENT])
def test_with_numpy_as_one_device(folder: Path, name: str) -> None:
    """As near to NumPy alone as the CPU backend is (what rounding does to logits in test_architectures)."""
    model = preset(folder, name, "F16")
    expected = logits(NumpyBackend(model, 1))
    np.testing.assert_allclose(logits(CPUBackend(model, 1)), expected, rtol=0, atol=0.05)
    for devices, overrides in (((ONE, NUMPY), {}), ((NUMPY, ONE), {}), ((ONE,), {"exps|ffn_up": "numpy"})):
        found = logits(divided(model, devices, overrides))
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.05)
        assert not np.array_equal(found, expected)


def test_sessions_of_other_layouts_are_refused(folder: Path, tmp_path: Path) -> None:
    """Each layer's layout counts, and not that of devices without layers in the cache."""
    model = preset(folder, "tiny-qwen3", "F16")
    tokens = tokens_of(model, 70)
    backends: list[Backend] = [
        divided(model, (ONE, NUMPY), n_layers=(2, 2)),
        divided(model, (NUMPY, ONE), n_layers=(2, 2)),
        CPUBackend(model, 1),
    ]
    for backend in backends:
        seq = KVSequence()
        backend.step(Batch([Segment(seq, tokens, 1)]))
        save(tmp_path / "s", backend, tokens, seq)
        for other in backends:
            if other is backend:
                assert load(tmp_path / "s", other, 100).kv.length == 70
            else:
                with pytest.raises(InputError, match="a session of another backend"):
                    load(tmp_path / "s", other, 100)
    load(tmp_path / "s", divided(model, (ONE,), {"ffn": "numpy"}), 100)  # from the CPU backend's


# Threads


def drivers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("qwencli-")}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="needs affinities")
@pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs")
def test_threads_are_where_they_should_be(folder: Path) -> None:
    """The driving thread and the team's, on the device's CPUs; the caller's stays where it was."""
    before = drivers()
    both = Device("both", "cpu", frozenset(ALLOWED[:2]))
    backend = divided(preset(folder, "tiny-qwen3"), (TWO, both), n_threads=2)
    logits(backend)
    where = [sorted(os.sched_getaffinity(t.native_id)) for t in drivers() - before if t.native_id]
    its, theirs = [ALLOWED[-1]], ALLOWED[:2]
    assert sorted(where) == sorted([its, theirs, theirs])
    assert os.sched_getaffinity(0) == set(ALLOWED)


def test_a_team_of_a_scheduler_parks_at_once(folder: Path) -> None:
    both = Device("both", "cpu", frozenset(ALLOWED))
    backend = divided(preset(folder, "tiny-qwen3"), (ONE, both), n_threads=4)
    for device in backend.devices.values():
        assert isinstance(device, CPUBackend)
        assert device._team._state["patience"] == 0
    assert CPUBackend(backend.model, 1)._team._state["patience"] > 0
    logits(backend)
    team = backend.devices[1]._team  # type: ignore[attr-defined]
    deadline = time.monotonic() + 60
    while not team._statuses["parked"][1:].all():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_threads_end_with_the_scheduler(folder: Path) -> None:
    before = drivers()
    backend = divided(preset(folder, "tiny-qwen3"), n_threads=1)
    logits(backend)
    threads = drivers() - before
    assert len(threads) == 2
    del backend
    gc.collect()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


# One device


def test_one_device_runs_the_program_of_today(folder: Path) -> None:
    """Row for row, and without a scheduler."""
    model = preset(folder, "tiny-qwen35moe")
    placement = place(model, wishes((ONE,)))
    splits = cut(model.graph.subgraph([LOGITS]), placement.of, [LOGITS])
    assert [(split.device, split.feed, split.fetch) for split in splits] == [(0, (), (LOGITS,))]
    backend, alone = make_devices(placement, model, 1, None), CPUBackend(model, 1)
    assert isinstance(backend, CPUBackend)
    for other in backend, alone:
        logits(other)
    programs, expected = backend._programs.made, alone._programs.made
    assert len(programs) == len(expected)
    for program, same in zip(programs, expected):
        assert len(program.rows) == len(same.rows) > 10
        assert program.specs == same.specs
        assert program.times([0.0] * len(program.rows)) == same.times([0.0] * len(same.rows))
