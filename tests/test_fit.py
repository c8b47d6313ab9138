"""Whether a model and its context fit into memory: what the system says is free, what is needed by hand, and what commands make of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from random import Random

import pytest
from command_line import TEXT, Call
from gguf_builder import HEAD_DIM, N_EMBD, N_FF, N_HEAD, N_HEAD_KV, N_LAYER, Gguf, reciter, tiny

import qwencli.llm
from qwencli import LLM
from qwencli.backends.kv_cache import PAGE, CacheTypes, KVCache, KVSequence
from qwencli.engine.engine import Sequence
from qwencli.engine.fit import COPIES, PROCESS_BYTES, STATES, Fit, measure, values_of_a_token
from qwencli.errors import InputError, NoMemory, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.network.load import load_model
from qwencli.sampling import SamplingParams
from qwencli.server.http.errors import api_error
from qwencli.server.service.service import room_for_prefixes
from qwencli.system.host import Host
from qwencli.units import size

MB = 10**6

# What is free. The files are those of proc(5) and of the kernel's Documentation: cgroup-v2 and cgroup-v1/memory.

V2, V1 = "0::/a/b\n", "4:memory:/docker/c0ffee\n0::/\n"
MEMORY = "MemTotal:  16000000 kB\nMemFree:  100 kB\nMemAvailable:   8000000 kB\n"
STAT = "anon 5\nfile 3000000\ninactive_file 1000000\nactive_file 500000\nshmem 7\n"
STAT_V1 = (
    "inactive_file 5\nactive_file 5\ntotal_cache 9\ntotal_inactive_file 1000000\ntotal_active_file 500000\n"
)
FREE = {
    "no cgroup": ("", MEMORY, {}, 8_192_000_000),
    "v2": (
        V2,
        MEMORY,
        {"a/b/memory.max": "4000000", "a/b/memory.current": "3500000", "a/b/memory.stat": STAT},
        2_000_000,
    ),
    "v2, of a group above": (
        V2,
        MEMORY,
        {
            "a/b/memory.max": "4000000",
            "a/b/memory.current": "0",
            "a/memory.max": "9000000",
            "a/memory.current": "8000000",
        },
        1_000_000,
    ),
    "v2, without limit": (
        V2,
        MEMORY,
        {"a/b/memory.max": "max", "a/b/memory.current": "3500000"},
        8_192_000_000,
    ),
    "v2, more than the machine has": (
        V2,
        MEMORY,
        {"a/b/memory.max": "90000000000", "a/b/memory.current": "1"},
        8_192_000_000,
    ),
    "v2, full": (
        V2,
        MEMORY,
        {"a/b/memory.max": "4000000", "a/b/memory.current": "5000000", "a/b/memory.stat": "anon 1\n"},
        0,
    ),
    "v2, only the limit": (V2, MEMORY, {"a/b/memory.max": "4000000"}, 4_000_000),
    "v2, odd files": (
        V2,
        MEMORY,
        {"a/b/memory.max": "4000000", "a/b/memory.current": "x", "a/b/memory.stat": "active_file -1\nfile"},
        4_000_000,
    ),
    "v1 in a container": (
        V1,
        MEMORY,
        {
            "memory/memory.limit_in_bytes": "4000000",
            "memory/memory.usage_in_bytes": "3500000",
            "memory/memory.stat": STAT_V1,
        },
        2_000_000,
    ),
    "v1 on the host": (
        V1,
        MEMORY,
        {
            "memory/docker/c0ffee/memory.limit_in_bytes": "4000000",
            "memory/docker/c0ffee/memory.usage_in_bytes": "3500000",
            "memory/docker/c0ffee/memory.stat": STAT_V1,
        },
        2_000_000,
    ),
    "v1, without limit": (
        V1,
        MEMORY,
        {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "9"},
        8_192_000_000,
    ),
    "no meminfo": (V2, None, {"a/b/memory.max": "4000000", "a/b/memory.current": "1000000"}, 3_000_000),
    "neither, as on macOS and Windows": (None, None, {}, None),
}


@pytest.mark.parametrize("name", FREE)
def test_what_is_free(tmp_path: Path, name: str) -> None:
    groups, memory, files, expected = FREE[name]
    files = {f"sys/fs/cgroup/{file}": text for file, text in files.items()}
    for file, text in (files | {"proc/self/cgroup": groups, "proc/meminfo": memory}).items():
        if text is not None:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(text, encoding="utf-8")
    assert Host(tmp_path).free() == expected


# What is needed


def written(file: Gguf, folder: Path, n_ctx: int = 4096) -> Path:
    file.metadata["qwen3.context_length"] = "u32", n_ctx
    return file.write(folder / "model.gguf")


@pytest.mark.parametrize(
    ("types", "backend", "position"),
    [
        (CacheTypes(), "cpu", 2 * 2),
        (CacheTypes("q8_0", "q8_0"), "cpu", 2 * 34 / 32),
        (CacheTypes("f32", "q8_0"), "cpu", 4 + 34 / 32),
        (CacheTypes("q8_0", "q8_0"), "numpy", 2 * 4),
    ],
)
def test_what_a_model_needs(tmp_path: Path, types: CacheTypes, backend: str, position: float) -> None:
    """`position`: bytes of a key and a value. 34 bytes of q8_0 are 32 values; the NumPy backend keeps float32, and weights as such."""
    file = tiny()
    model = load_model(GGUFFile(written(file, tmp_path)))
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1000 kB\n")
    object.__setattr__(model.config, "head_dim", 32)  # tiny's 16 can't be divided into blocks of q8_0
    fit = measure(model, types, backend, n_batch=100, host=Host(tmp_path))
    weights = sum(len(t.data) for t in file.tensors)
    assert (fit.weights, fit.free, fit.n_ctx, fit.state) == (weights, 1_024_000, 4096, 0)
    assert fit.page == position * PAGE * N_LAYER * N_HEAD_KV * 32
    assert fit.work == PROCESS_BYTES + COPIES * 4 * 100 * values_of_a_token(model) + (
        weights if backend == "numpy" else 0
    )


def test_what_a_step_holds(tmp_path: Path) -> None:
    """At most: what the layer adds to, gate, up, and their product; or that, and queries, keys and values, the last of them twice."""
    gates, heads = N_EMBD + 3 * N_FF, N_EMBD + N_HEAD * HEAD_DIM + 3 * N_HEAD_KV * HEAD_DIM
    assert values_of_a_token(load_model(GGUFFile(written(tiny(), tmp_path)))) == max(gates, heads)


FIT = Fit(
    "m.gguf",
    n_ctx=4096,
    weights=5 * MB,
    page=PAGE * 1000,
    state=30_000,
    work=MB,
    free=6_030_000 + 1000 * PAGE * 10,
)
"""Of ten pages."""


def test_what_fits() -> None:
    assert FIT.needed(1) == FIT.needed(PAGE) == 6_030_000 + PAGE * 1000
    assert FIT.needed(PAGE + 1, n_seq=3) == 6_000_000 + 3 * (30_000 + 2 * PAGE * 1000)
    assert [FIT.fits(n) for n in (1, 10 * PAGE, 10 * PAGE + 1)] == [True, True, False]
    assert [FIT.fits(5 * PAGE, n_seq=n) for n in (1, 2)] == [True, False]  # each has its state
    assert [FIT.positions(n) for n in (1, 2, 22, 23)] == [10 * PAGE, 9 * PAGE, 0, 0]
    assert [FIT.longest(n) for n in (100, 640, 641, 4096)] == [100, 640, 512, 512]
    assert FIT.for_sequences == 670_000
    unknown = Fit("m.gguf", 4096, 1, 1, 1, 1, None)
    assert (unknown.fits(2**60), unknown.positions(), unknown.longest(2**40), unknown.for_sequences) == (
        True,
        None,
        2**40,
        None,
    )
    assert unknown.choose(2**40, None, None) == 2**40


NEEDS = "a context of 1000 needs 7.1 MB (5.0 MB of weights, 1.0 MB for keys and values, 1.0 MB for other data), 6.7 MB are free"


def test_a_context_is_chosen() -> None:
    said: list[str] = []
    assert [
        FIT.choose(asked, fit, said.append) for asked in (100, 640) for fit in (None, True, False)
    ] == 3 * [100] + 3 * [640]
    assert FIT.choose(1000, fit=False, report=said.append) == 1000
    assert said == []
    assert [
        FIT.choose(1000, True, said.append),
        FIT.choose(None, None, said.append),
        FIT.choose(None, None, None),
    ] == 3 * [512]
    assert said[0] == f"the context is 512 tokens: {NEEDS}"
    assert said[1].startswith("the context is 512 tokens: a context of 4096 needs 10.1 MB")
    with pytest.raises(InputError) as error:
        FIT.choose(1000, None, None)
    assert str(error.value) == f"m.gguf: {NEEDS}: -c 512 would fit, --fit takes it; --no-fit tries anyway"
    with pytest.raises(InputError, match=r"^m.gguf: tg 9 needs 7.3 MB .*; --no-fit tries anyway"):
        FIT.check("tg 9", 600, n_seq=2)
    FIT.check("tg 9", 600)


@pytest.mark.parametrize("asked", [None, 1000, 200])
def test_not_even_the_weights_fit(asked: int | None) -> None:
    small = replace(FIT, free=FIT.weights)
    for fit in None, True:
        with pytest.raises(
            QwenError,
            match=r"m.gguf: even a context of 2(00|56) needs 6.3 MB .* 5.0 MB are free: take .*--no-fit",
        ):
            small.choose(asked, fit, None)
    assert small.choose(asked, False, None) == (asked or 4096)


# Sequences take no more than there is for them


def test_the_cache_takes_no_more_than_its_share() -> None:
    cache, sequences = KVCache(), [KVSequence() for _ in range(3)]
    cache.bound(3 * 1000 + 999, page_bytes=1000, state_bytes=0)
    cache.reserve(sequences[0], 2 * PAGE)
    with pytest.raises(NoMemory, match=r"no memory for 128 more tokens: .*4.0 kB"):
        cache.reserve(sequences[1], PAGE + 1)
    assert sequences[1].pages == []
    cache.reserve(sequences[1], PAGE)
    cache.release(sequences[0])
    cache.reserve(sequences[2], 2 * PAGE)


def test_states_count_as_well() -> None:
    """A step of several tokens needs a page and two states: after its last token and at the page border before that."""
    cache, seq = KVCache(recurrent=True), KVSequence()
    cache.bound(2 * 1000 + 2 * 300, page_bytes=1000, state_bytes=300)
    cache.reserve(seq, PAGE + 1)
    cache.commit(seq, PAGE + 1)
    with pytest.raises(NoMemory):
        cache.reserve(seq, 1)
    assert (len(seq.pages), len(seq.states), seq.length) == (2, 2, PAGE + 1)


def test_a_sequence_has_no_more_states_than_are_counted() -> None:
    """However long its steps are."""
    cache, seq, random = KVCache(recurrent=True), KVSequence(), Random(0)
    for _ in range(200):
        n = random.choice([1, 1, 7, 64, 200])
        cache.reserve(seq, n)
        assert len(seq.states) <= STATES
        cache.commit(seq, n)
    assert cache.n_states == STATES


def test_kept_sequences_make_room(model: Path, free: Free) -> None:
    """Of what is kept nothing is left when the next one needs it all; two that run at once have not enough."""
    free(n_ctx=512)
    llm = LLM(model, 512, n_threads=1)

    def run(*starts: int) -> list[Sequence]:
        sequences = [Sequence([start] * 400, SamplingParams(temp=0), max_tokens=2) for start in starts]
        for seq in sequences:
            llm.engine.submit(seq)
        while llm.engine.running:
            llm.engine.step()
        return sequences

    for start in 1, 2:
        assert [seq.stop_reason for seq in run(start)] == ["length"]
    assert [len(kept.tokens) for kept in llm.engine.prefixes.kept] == [401]
    both = run(3, 4)
    assert sorted(str(seq.stop_reason) for seq in both) == ["error", "length"]
    (error,) = (seq.error for seq in both if seq.error)
    assert isinstance(error, NoMemory)
    assert api_error(error).status == 503


@pytest.mark.parametrize(("n_slots", "expected"), [(1, 300), (2, 600), (4, 3008 // 4), (3000, 300)])
def test_room_for_finished_sequences(n_slots: int, expected: int) -> None:
    """Of 47 pages, no more than a quarter; with 3000 states nothing else fits."""
    fit = Fit("m.gguf", 300, weights=0, page=PAGE * 10, state=10, work=0, free=47 * PAGE * 10 + 100)
    assert room_for_prefixes(fit, 300, n_slots) == expected
    assert room_for_prefixes(replace(fit, free=None), 300, n_slots) == 300


# Commands

Free = Callable[..., int]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, story: Path) -> Path:
    """The story's model, which is compiled already, with a longer context."""
    return written(reciter(), tmp_path_factory.mktemp("fit"))


@pytest.fixture
def free(model: Path, monkeypatch: pytest.MonkeyPatch) -> Free:
    """free(n_ctx, n_batch) leaves as much memory as that needs; `free(0, share=0.5)` half of what the weights do."""

    def leave(n_ctx: int, n_batch: int = 512, share: float = 1.0) -> int:
        fit = measure(load_model(GGUFFile(model)), CacheTypes(), n_batch=n_batch)
        n_bytes = int((fit.needed(n_ctx) if n_ctx else fit.weights) * share)
        monkeypatch.setattr(Host, "free", lambda host: n_bytes)
        return n_bytes

    return leave


RUN = ["run", "-p", "hi", "--temp", "0"]


def test_a_context_that_was_asked_for_is_refused(call: Call, model: Path, free: Free) -> None:
    free(1100)
    for command in (
        RUN,
        ["chat"],
        ["serve", "--port", "0"],
        ["perplexity", "-f", model.parent / "text", "-b", "512"],
    ):
        (model.parent / "text").write_text("the and in a " * 2000)
        code, out, err = call(*command, "-m", model, "-c", 2000)
        assert (code, out) == (1, ""), command
        assert err.splitlines()[-1].startswith(f"qwencli: error: {model}: a context of 2000 needs "), command
        assert err.endswith(" are free: -c 1024 would fit, --fit takes it; --no-fit tries anyway\n"), command


def test_the_longest_that_fits(call: Call, model: Path, free: Free) -> None:
    free(1100)
    for options in ["-c", 2000, "--fit"], []:
        code, out, err = call(*RUN, "-m", model, *options)
        assert (code, out) == (0, TEXT)
        assert f"the context is 1024 tokens: a context of {2000 if options else 4096} needs " in err
        assert call(*RUN, "-m", model, "-q", *options).err == ""
    assert "the context is" not in call(*RUN, "-m", model, "-c", 1024).err
    facts = json.loads(call("info", model, "--json").out)
    assert facts["fitting_context"] == 1024
    assert (
        f"fits            1024 of 4096 tokens in {size(facts['free_bytes'])} free\n"
        in call("info", model).out
    )


def test_perplexity_of_chunks_that_fit(call: Call, model: Path, free: Free) -> None:
    free(300, n_batch=512)
    (model.parent / "text").write_text("the and in a " * 2000)
    options = (
        "perplexity",
        "-m",
        model,
        "-f",
        model.parent / "text",
        "--backend",
        "cpu",
        "-b",
        512,
        "--chunks",
        1,
        "--json",
    )
    code, out, err = call(*options, "-c", 2000, "--fit")
    assert code == 0
    assert "the context is 256 tokens" in err
    assert json.loads(out)["n_ctx"] == 256


def test_a_model_larger_than_the_memory(
    call: Call, model: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(0, share=0.5)
    opened: list[bool] = []

    class Watched(GGUFFile):
        def __init__(self, path: str | PathLike[str], use_mmap: bool = True) -> None:
            opened.append(use_mmap)
            super().__init__(path, use_mmap)

    monkeypatch.setattr(qwencli.llm, "GGUFFile", Watched)
    for options in [], ["-c", "100"], ["--fit"], ["--no-mmap"]:
        code, out, err = call(*RUN, "-m", model, *options)
        assert (code, out) == (1, "")
        assert re.search(
            r"error: .*: even a context of (256|100) needs .* are free: take a smaller model .*; --no-fit tries anyway",
            err,
        )
    assert all(opened)  # it isn't read before it is known to fit
    assert call(*RUN, "-m", model, "--no-fit", "--no-mmap").out == TEXT
    assert opened[-2:] == [True, False]
    assert json.loads(call("info", model, "--json").out)["fitting_context"] == 0


def test_what_is_not_asked_for_or_not_known_is_not_checked(
    call: Call, model: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(300)
    assert call(*RUN, "-m", model, "-c", 4000, "--no-fit").out == TEXT
    monkeypatch.setattr(Host, "free", lambda host: None)
    assert call(*RUN, "-m", model, "-c", 4000).out == TEXT
    facts = json.loads(call("info", model, "--json").out)
    assert (facts["free_bytes"], facts["fitting_context"]) == (None, 4096)
    assert "fits" not in call("info", model).out


def test_bench_looks_before_it_measures(
    call: Call, model: Path, free: Free, monkeypatch: pytest.MonkeyPatch
) -> None:
    free(1100)
    code, out, err = call("bench", "-m", model, "-p", 0, "-n", 8, "-d", 0, "-d", 500, "-npl", 3)
    assert (code, out) == (1, "")
    assert f"error: {model}: tg8 b3 @ d500 needs " in err
    assert err.endswith(" are free; --no-fit tries anyway\n")
    monkeypatch.setattr("qwencli.measure.bench.run_bench", lambda *args: iter([]))
    assert (
        "needs"
        not in call(
            "bench", "-m", model, "-p", 0, "-n", 8, "-d", 500, "-npl", 3, "--no-fit", "-o", "jsonl"
        ).err
    )


def test_with_a_server_it_means_nothing(call: Call) -> None:
    code, _, err = call("chat", "--url", "http://localhost:1", "--fit")
    assert code == 2
    assert "--fit" in err
