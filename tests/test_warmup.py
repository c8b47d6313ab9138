"""`qwencli warmup`: what it compiles is what the other commands need, and all of it."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from command_line import Call, process
from random_models import random_model, write_random_model
from shapes import PRESETS

from qwencli.cli._bar import Bar
from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.kernels import isa, workers
from qwencli.kernels.formats import FORMATS
from qwencli.kernels.jit import Kernels
from qwencli.machine import warmup
from qwencli.machine.warmup import InFormat, kernels_of_model, warm_up
from qwencli.network.load import load_model
from qwencli.network.model import Model

TEXT = b"the and in a " * 30


@pytest.fixture(scope="module")
def model(story: Path) -> Model:
    return load_model(GGUFFile(story))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no kernels in this process."""
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(warmup, "kernels_of", lambda name: Kernels(isa.choose(name)))
    return tmp_path / "cache"


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "compile_apart", lambda isa, specs: pytest.fail("it compiles"))


def test_after_it_the_commands_compile_nothing(story: Path, cache: Path) -> None:
    """A process of its own each: in an empty cache all that run, perplexity and bench need is there after `warmup`."""
    done = process("warmup", "-m", story, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["isas"]
    assert (found["isa"], found["present"]) == (isa.choose().name, 0)
    assert found["compiled"] > 10
    files = sorted(Path(found["folder"]).iterdir())
    assert [path.name for path in files if path.suffix != ".o"] == ["tiles.json"]
    assert len(files) == found["compiled"] + 1
    assert f"compiling {found['compiled']} kernels" in done.stderr.decode()
    for command in (
        ["run", "-p", "the", "-n", 20],
        ["run", "-p", "the " * 20, "-n", 3, "--top-k", 0],
        ["perplexity", "-f", "-", "-c", 16],
        ["perplexity", "-f", "-", "-c", 8, "-b", 3],
        ["bench", "-p", "5,40", "-n", 2, "-npl", "1,3", "-r", 1, "--profile"],
    ):
        done = process(*command, "-m", story, stdin=None, input=TEXT)
        assert done.returncode == 0, done.stderr
        assert b"compil" not in done.stderr
        assert sorted(Path(found["folder"]).iterdir()) == files
    (again,) = json.loads(process("warmup", "-m", story, "--json").stdout)["isas"]
    assert (again["compiled"], again["present"]) == (0, found["compiled"])


@pytest.mark.parametrize("mix", ["Q4_0", "Q8_0", "Q4_K_M", "Q6_K", "F16"])
def test_all_formats_hold_what_each_format_needs(tmp_path: Path, mix: str) -> None:
    name = isa.choose().name
    own = random_model(tmp_path, "F32" if mix == "F16" else "F16")
    other = random_model(tmp_path, mix)
    assert not kernels_of_model(own, name, all_formats=False) >= kernels_of_model(
        other, name, all_formats=False
    )
    assert kernels_of_model(own, name, all_formats=True) >= kernels_of_model(other, name, all_formats=False)


@pytest.mark.parametrize("arch", ["qwen2moe", "qwen35"])
def test_all_formats_of_experts_and_of_delta_nets(tmp_path: Path, arch: str) -> None:
    """Matrices of experts are stored in each format, with a scale for each of them where it has some, and convolutions are not."""
    name = isa.choose().name
    for mix in "F16", "NVFP4":
        write_random_model(tmp_path / mix, PRESETS[f"tiny-{arch}"], mix)
    own, other = (load_model(GGUFFile(tmp_path / mix)) for mix in ("F16", "NVFP4"))
    assert kernels_of_model(own, name, all_formats=True) >= kernels_of_model(other, name, all_formats=False)


def test_the_bar_is_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in True, False:
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Bar()
        for n in range(4):
            bar(n, 3)
        assert ("/3 " in stream.getvalue()) is is_terminal


def test_a_model_as_if_in_another_format(model: Model) -> None:
    types = {kind.name: kind for kind in warmup.GGML_TYPES.values()}
    for kind in FORMATS:
        found = InFormat(model.file, types[kind]).tensors
        for tensor, info in model.file.tensors.items():
            fits = len(info.shape) == 2 and info.shape[1] % types[kind].block_size == 0
            assert found[tensor].type.name == (kind if fits else info.type.name)
            assert found[tensor].shape == info.shape


def test_every_instruction_set_that_is_named(
    model: Model, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(Kernels, "load", lambda self, specs: compiled.append((self.isa.name, sorted(specs))))
    names = [each.name for each in isa.available()]
    found = list(warm_up([model], names, tune=False))
    assert [each.isa for each in found] == [name for name, _ in compiled] == names
    assert [each.folder for each in found] == [Kernels(each).folder for each in isa.available()]
    assert [each.compiled for each in found] == [len(specs) for _, specs in compiled]


@pytest.mark.usefixtures("no_compiler")
def test_an_instruction_set_that_there_is_not(model: Model, cache: Path, call: Call) -> None:
    with pytest.raises(
        InputError, match=f"'sse9' is not available on this CPU, which has {isa.available()[0].name}"
    ):
        list(warm_up([model], ["generic", "sse9"]))
    code, out, err = call("warmup", "--isa", "sse9")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("qwencli: error: the instruction set 'sse9' is not available")


@pytest.mark.usefixtures("no_compiler", "cache")
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX's devices and modes")
def test_a_cache_that_keeps_nothing_is_an_error(
    call: Call, monkeypatch: pytest.MonkeyPatch, story: Path, tmp_path: Path
) -> None:
    """Before anything is compiled: it would be for nothing."""
    monkeypatch.setenv("QWENCLI_CACHE", "/dev/null/cache")
    code, out, err = call("warmup", "-m", story)
    assert (code, out) == (1, "")
    assert "compiled kernels can't be kept there: Not a directory" in err
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "open"))
    Kernels(isa.choose()).folder.mkdir(parents=True)
    Kernels(isa.choose()).folder.chmod(0o777)
    assert "compiled kernels can't be kept there: others can write to it" in call("warmup", "-m", story).err


@pytest.mark.usefixtures("no_compiler", "cache")
def test_a_model_without_kernels_is_an_error(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(FORMATS, "Q5_0")
    other = load_model(
        InFormat(model.file, next(kind for kind in warmup.GGML_TYPES.values() if kind.name == "Q5_0"))
    )
    with pytest.raises(ModelError, match="there are no compiled kernels for Q5_0"):
        list(warm_up([other]))
