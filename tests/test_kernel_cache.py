"""The cache of compiled kernels: what is in it is run, so whose it is matters; and where it lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from qwencli.kernels import workers
from qwencli.kernels.isa import choose
from qwencli.kernels.jit import Kernels, cache_folder, trusted

SPEC = "runtime:publish"
posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes are POSIX's")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """With a cache of its own that holds b"code" as the kernel SPEC."""
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path / "cache"))
    kernels = Kernels(choose())
    kernels._write(SPEC, b"code")
    return kernels


def test_what_is_kept_is_found(kernels: Kernels) -> None:
    assert kernels._read(SPEC) == b"code"
    assert [path.name for path in kernels.folder.iterdir()] == ["runtime-publish.o"]


@posix
def test_a_folder_is_made_for_the_user_alone(kernels: Kernels) -> None:
    assert kernels.folder.stat().st_mode & 0o077 == 0
    assert kernels._path(SPEC).stat().st_mode & 0o077 == 0


@posix
@pytest.mark.parametrize("mode", [0o660, 0o602, 0o777])
@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_others_may_write_is_not_run(kernels: Kernels, which: str, mode: int) -> None:
    said: list[str] = []
    kernels.report = said.append
    (kernels._path(SPEC) if which == "file" else kernels.folder).chmod(mode | 0o100)
    assert kernels._read(SPEC) is None
    assert kernels._read(SPEC) is None
    assert len(said) == 1
    assert str(kernels.folder) in said[0]


@posix
def test_what_belongs_to_somebody_else_is_not_run() -> None:
    def belongs_to(uid: int, mode: int = 0o100600) -> os.stat_result:
        return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))

    me = os.geteuid()
    assert trusted(belongs_to(me))
    assert trusted(belongs_to(0))
    assert not trusted(belongs_to(me + 1))
    assert not trusted(belongs_to(me, 0o100620))


@posix
def test_the_cache_is_never_in_the_current_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENCLI_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    usual = cache_folder()
    monkeypatch.setenv(
        "XDG_CACHE_HOME", "cache"
    )  # relative ones are to be ignored, says the XDG base directory specification
    assert cache_folder() == usual
    monkeypatch.setattr(
        os.path, "expanduser", lambda path: path
    )  # as it is for a user without $HOME and an entry in passwd
    assert cache_folder().is_absolute()
    assert Path.cwd() not in cache_folder().parents


@pytest.mark.parametrize("executable", [None, ""])
def test_without_an_interpreter_kernels_are_compiled_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setenv("QWENCLI_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", executable)
    kernels = Kernels(choose())
    assert kernels.load([SPEC])[SPEC]
    assert kernels._read(SPEC) is not None


def test_a_frozen_application_is_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(
        workers.subprocess, "Popen", lambda *args, **options: pytest.fail("a process was started")
    )
    monkeypatch.setattr(workers, "_compile_here", lambda isa, spec: b"code")
    assert list(workers.compile_apart(choose(), [SPEC])) == [(SPEC, b"code")]
