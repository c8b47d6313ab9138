"""Files are replaced whole or not at all."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qwencli.errors import InputError, QwenError
from qwencli.system.files import check_replaceable, replacing

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions, links and limits")


def put(path: Path, data: bytes) -> None:
    with replacing(path) as f:
        f.write(data)


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with replacing(path) as f:
        f.write(b"new")
        f.flush()
        assert not path.exists()
    assert path.read_bytes() == b"new"
    with replacing(path) as f:
        f.write(b"newer")
        assert path.read_bytes() == b"new"
    assert path.read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_what_goes_wrong_leaves_the_old_file_and_no_other(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "f"
    put(path, b"old")

    def fail() -> None:
        with replacing(path) as f:
            f.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_the_last_of_two_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"second, longer")
        assert path.read_bytes() == b"second, longer"
        first.write(b"!")
    assert path.read_bytes() == b"first!"
    assert os.listdir(tmp_path) == ["f"]


@posix
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel holds as it does a full disk's, in a process of its own."""
    path = tmp_path / "f"
    put(path, b"old")
    code = (
        "import resource, sys; from qwencli.errors import QwenError; from qwencli.system.files import replacing\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    with replacing(sys.argv[1]) as f: f.write(bytes(1001))\n"
        "except QwenError as error: print(error)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True
    ).stdout
    assert said == f"{path}: cannot be written: File too large\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


def test_no_folder(tmp_path: Path) -> None:
    for write in check_replaceable, lambda path: put(path, b""):
        with pytest.raises(QwenError, match="cannot be written: No such file or directory"):
            write(tmp_path / "none" / "f")


def test_a_check_ahead_changes_nothing(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "f")
    assert os.listdir(tmp_path) == []
    put(tmp_path / "f", b"old")
    check_replaceable(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@posix
def test_links_are_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "folder" / "f", tmp_path / "link"
    target.parent.mkdir()
    link.symlink_to(target)
    for data in b"through a dangling link", b"through a link":
        put(link, data)
        assert link.is_symlink()
        assert target.read_bytes() == data
    assert os.listdir(target.parent) == ["f"]


@posix
def test_permissions_stay(tmp_path: Path) -> None:
    path = tmp_path / "f"
    put(path, b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    put(path, b"more")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@posix
def test_what_is_no_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fifo, locked = tmp_path / "folder", tmp_path / "fifo", tmp_path / "locked"
    folder.mkdir()
    os.mkfifo(fifo)
    locked.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: path != locked)  # the superuser may write to any
    for path in folder, fifo, Path("/dev/null"):
        for write in check_replaceable, lambda path: put(path, b""):
            with pytest.raises(InputError, match="not a regular file"):
                write(path)
    for write in check_replaceable, lambda path: put(path, b"new"):
        with pytest.raises(InputError, match="read-only"):
            write(locked)
    assert locked.read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["fifo", "folder", "locked"]


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_new_file_that_is_not_private_has_the_usual_permissions(
    tmp_path: Path, mask: int, mode: int
) -> None:
    before = os.umask(mask)
    try:
        for name, private in ("picture", False), ("session", True):
            with replacing(tmp_path / name, private) as f:
                f.write(b"x")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("picture", "session")] == [mode, 0o600]
