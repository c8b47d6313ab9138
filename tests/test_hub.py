"""qwencli pull: against a local server that speaks the hub's API, and fails as it is told."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hub_server
import huggingface_hub
import pytest
from command_line import QWENCLI, Call
from gguf_builder import parts, reciter
from hub_server import COMMIT, Hub
from huggingface_hub import constants, file_download

from qwencli.errors import QwenError
from qwencli.hub.access import Access
from qwencli.hub.downloads import fetch, look_up
from qwencli.hub.names import HubName

REPO, FILE = "maker/Story-GGUF", "Story-Q4_K_M.gguf"
MODEL = reciter().build()
SPLIT = [file.build() for file in parts(reciter(), 3)]
CHUNK = 10_000
FILES = {
    REPO: {
        FILE: MODEL,
        "Story-Q8_0.gguf": MODEL + b"longer",
        "mmproj-Q4_K_M.gguf": b"no model",
        "README.md": b"text",
    },
    "maker/Split-GGUF": {f"Q4_K_M/Split-{i + 1:05}-of-00003.gguf": part for i, part in enumerate(SPLIT)},
    "maker/Only-GGUF": {"only.gguf": MODEL},
    "maker/Empty": {"README.md": b"text"},
    "maker/Big-GGUF": {"Big-UD-Q4_K_XL.gguf": MODEL, "Big-Q8_0.gguf": MODEL + b"8"},
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub, and an empty cache; what huggingface_hub has read of the environment at its import is set to the same."""
    with hub_server.serve({repo: dict(files) for repo, files in FILES.items()}) as hub:
        for name in (
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "HF_HUB_OFFLINE",
        ):
            monkeypatch.delenv(name, raising=False)
        for name, value in {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "OLLAMA_MODELS": str(tmp_path / "ollama"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DOWNLOAD_TIMEOUT": "60",
            "no_proxy": "*",
        }.items():
            monkeypatch.setenv(name, value)
        known: dict[str, Any] = {
            "HF_TOKEN_PATH": str(tmp_path / "hf" / "token"),
            "DOWNLOAD_CHUNK_SIZE": CHUNK,
            "HF_HUB_DISABLE_TELEMETRY": True,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DOWNLOAD_TIMEOUT": 60,
        }
        for name, constant in known.items():
            monkeypatch.setattr(constants, name, constant, raising=False)
        monkeypatch.setattr(
            logging, "raiseExceptions", False
        )  # its handler writes to the stderr that it has found at its import
        hasty = SimpleNamespace(
            **vars(time) | {"sleep": lambda seconds: None}
        )  # it waits a second before it tries again
        monkeypatch.setattr(file_download, "time", hasty, raising=False)
        yield hub


def cache(tmp_path: Path, repo: str = REPO) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{repo.replace('/', '--')}"


def one_line(err: str) -> str:
    """The error: the last line, and the only one that isn't progress."""
    assert "Traceback" not in err
    *talk, last = err.splitlines()
    assert not [
        line
        for line in talk
        if not line.startswith(("fetching ", "Error while downloading", "Trying to resume"))
    ]
    return last.removeprefix("qwencli: error: ")


def test_pull_prints_the_path_of_the_whole_file(hub: Hub, call: Call, tmp_path: Path) -> None:
    path = cache(tmp_path) / "snapshots" / COMMIT / FILE
    assert call("pull", REPO) == (0, f"{path}\n", f"fetching {FILE}, 174.1 kB\n")
    assert path.read_bytes() == MODEL
    assert (cache(tmp_path) / "refs" / "main").read_text() == COMMIT
    assert [p.name for p in (cache(tmp_path) / "blobs").iterdir()] == [hashlib.sha256(MODEL).hexdigest()]
    facts = json.loads(call("pull", REPO, "--json").out)
    assert facts == {"name": f"{REPO}:Q4_K_M", "path": str(path), "files": [FILE], "size_bytes": len(MODEL)}
    assert hub.ranges(FILE) == [None]  # the second call has found it


def test_the_library_finds_what_was_pulled(hub: Hub, call: Call, tmp_path: Path) -> None:
    """The cache is huggingface_hub's: it gives the file out without a request, and its own scan finds nothing wrong."""
    path = call("pull", REPO).out.strip()
    n_requests = len(hub.requests)
    assert huggingface_hub.try_to_load_from_cache(REPO, FILE, cache_dir=tmp_path / "hf" / "hub") == path
    scan = huggingface_hub.scan_cache_dir(tmp_path / "hf" / "hub")
    assert (len(scan.warnings), scan.size_on_disk) == (0, len(MODEL))
    assert len(hub.requests) == n_requests


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (f"{REPO}:Q8_0", ["Story-Q8_0.gguf"]),
        (f"{REPO}:q8_0", ["Story-Q8_0.gguf"]),
        (f"{REPO}/{FILE}", [FILE]),
        ("maker/Only-GGUF", ["only.gguf"]),
        ("maker/Big-GGUF:q4_k_xl", ["Big-UD-Q4_K_XL.gguf"]),
        ("maker/Split-GGUF", [f"Q4_K_M/Split-0000{i}-of-00003.gguf" for i in (1, 2, 3)]),
    ],
)
def test_which_files_are_fetched(hub: Hub, call: Call, name: str, files: list[str]) -> None:
    done = call("pull", name)
    assert done.code == 0
    assert [
        path.partition("/resolve/main/")[2]
        for method, path, *_ in hub.requests
        if method == "GET" and "/resolve/" in path
    ] == files
    assert done.out.endswith(f"/{files[0]}\n")
    assert all((Path(done.out.strip()).parent / Path(file).name).is_file() for file in files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{REPO}:IQ4_XS", f"{REPO} holds no IQ4_XS, choose one with {REPO}:TAG: Q4_K_M (0 MB), Q8_0 (0 MB)"),
        (f"{REPO}:Q4", f"{REPO} holds no Q4, choose one with {REPO}:TAG: Q4_K_M (0 MB), Q8_0 (0 MB)"),
        (
            "maker/Big-GGUF",
            "maker/Big-GGUF holds no Q4_K_M, choose one with maker/Big-GGUF:TAG: Q8_0 (0 MB), UD-Q4_K_XL (0 MB)",
        ),
        (
            f"{REPO}/none.gguf",
            f"{REPO} holds no none.gguf, choose one with {REPO}:TAG: Q4_K_M (0 MB), Q8_0 (0 MB)",
        ),
        ("maker/Empty", "maker/Empty holds no GGUF models"),
        ("qwen3", "qwen3: not a name on the hub, expected user/repo, user/repo:QUANT or user/repo/file.gguf"),
        ("../x", "../x: not a name on the hub, expected user/repo, user/repo:QUANT or user/repo/file.gguf"),
        (
            "a/../b.gguf",
            "a/../b.gguf: not a name on the hub, expected user/repo, user/repo:QUANT or user/repo/file.gguf",
        ),
    ],
)
def test_names_that_mean_no_model(hub: Hub, call: Call, name: str, expected: str) -> None:
    assert call("pull", name) == (1, "", f"qwencli: error: {expected}\n")
    assert not [path for _, path, *_ in hub.requests if "/resolve/" in path]


def pull_twice(call: Call) -> str:
    """Older versions of huggingface_hub need the second call to go on, newer ones do so in the first."""
    call("pull", REPO)
    code, out, _ = call("pull", REPO)
    assert code == 0
    return out.strip()


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.broken_after[FILE] = 5 * CHUNK + 1
    pull_twice(call)
    first, second = hub.ranges(FILE)
    assert first is None
    assert second == f"bytes={5 * CHUNK}-"
    assert (cache(tmp_path) / "snapshots" / COMMIT / FILE).read_bytes() == MODEL


def test_a_later_call_goes_on_where_one_gave_up(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.broken_after[FILE] = 3 * CHUNK
    hub.status_after_break = 503
    code, out, err = call("pull", REPO)
    assert (code, out) == (1, "")
    assert re.match(
        f"{REPO}: {hub.url} (answered with 503: try again later|cannot be reached or broke off: )",
        one_line(err),
    )
    (part,) = (cache(tmp_path) / "blobs").iterdir()
    assert part.name == f"{hashlib.sha256(MODEL).hexdigest()}.incomplete"
    assert part.read_bytes() == MODEL[: part.stat().st_size]
    assert call("list", "--json").out.count(REPO) == 0
    n_bytes, hub.status_after_break, n_before = part.stat().st_size, None, len(hub.ranges(FILE))
    assert n_bytes >= 2 * CHUNK
    assert (
        call("pull", REPO).err
        == f"fetching {FILE}, 174.1 kB, of which {n_bytes / 1000:.1f} kB is here already\n"
    )
    assert hub.ranges(FILE)[n_before:] == [f"bytes={n_bytes}-"]
    assert (cache(tmp_path) / "snapshots" / COMMIT / FILE).read_bytes() == MODEL


@pytest.mark.parametrize("wrong", [b"x" * 20_000, MODEL + b"too long", MODEL[:-1] + b"x"])
def test_a_part_that_is_wrong_is_never_taken_for_the_file(
    hub: Hub, call: Call, tmp_path: Path, wrong: bytes
) -> None:
    blobs = cache(tmp_path) / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{hashlib.sha256(MODEL).hexdigest()}.incomplete"
    part.write_bytes(wrong)
    done = call("pull", REPO)
    if len(wrong) <= len(MODEL):
        assert (done.code, done.out) == (1, "")
        assert f"{REPO}: {FILE} arrived with the SHA-256 " in one_line(done.err)
        assert not list(blobs.iterdir())
        done = call("pull", REPO)
    assert done.code == 0
    assert Path(done.out.strip()).read_bytes() == MODEL


def test_a_wrong_hash(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.lies.add(FILE)
    found, told = hashlib.sha256(MODEL).hexdigest(), hashlib.sha256(MODEL + b"lie").hexdigest()
    code, out, err = call("pull", REPO)
    expected = f"{REPO}: {FILE} arrived with the SHA-256 {found}, expected {told}: removed, try again"
    assert (code, out, one_line(err)) == (1, "", expected)
    assert not list((cache(tmp_path) / "blobs").iterdir())
    assert not list(cache(tmp_path).glob("snapshots/*/*"))


def test_an_etag_that_is_no_name(hub: Hub, call: Call, tmp_path: Path) -> None:
    hub.etag = "../../../outside"
    code, _, err = call("pull", REPO)
    assert (code, one_line(err)) == (
        1,
        f"{REPO}: {hub.url} gives no usable ETag for {FILE}, expected one of letters and digits",
    )
    assert not list(tmp_path.rglob("outside*"))


def test_files_outside_the_repository(hub: Hub, call: Call) -> None:
    hub.files["maker/Evil"] = {
        "../../evil-Q4_K_M.gguf": MODEL,
        "/evil.gguf": MODEL,
        "c:\\evil.gguf": MODEL,
        "\x1b]evil.gguf": MODEL,
    }
    assert call("pull", "maker/Evil")[::2] == (1, "qwencli: error: maker/Evil holds no GGUF models\n")


def test_a_full_disk(hub: Hub, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
        code, out, err = call("pull", REPO)
    assert (code, out) == (1, "")
    assert one_line(err) == f"{cache(tmp_path) / 'blobs'}: 0 MB are needed, 0 MB are free"
    assert hub.ranges(FILE) == []


@pytest.mark.skipif(os.name == "nt", reason="needs limits of a POSIX process")
def test_a_disk_that_fills_up_meanwhile(hub: Hub, tmp_path: Path) -> None:
    """What can't be written is an error like a full disk's, here by a limit on the size of files; later the rest is fetched."""
    code = (
        "import resource, sys; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10000\n"
        "limit = int(sys.argv.pop(1)); limit and resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "from qwencli.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for limit, expected in (5 * CHUNK + 5, 1), (0, 0):
        done = subprocess.run(
            [sys.executable, "-c", code, str(limit), "pull", REPO], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == expected, done.stderr
        if limit:
            hub_folder = tmp_path / "hf" / "hub"
            assert (
                one_line(done.stderr)
                == f"{hub_folder}: the disk is full; what was fetched of {REPO} is kept there and will be resumed"
            )
    assert hub.ranges(FILE) == [None, f"bytes={5 * CHUNK + 5}-"]
    assert Path(done.stdout.strip()).read_bytes() == MODEL


@pytest.mark.skipif(
    os.getuid() == 0 if hasattr(os, "getuid") else True, reason="this user may write everywhere"
)
def test_a_cache_that_can_not_be_written(hub: Hub, call: Call, tmp_path: Path) -> None:
    (tmp_path / "hf").mkdir(mode=0o500)
    code, _, err = call("pull", REPO)
    assert (code, "Permission denied" in one_line(err)) == (1, True)


def test_a_cache_below_a_file(hub: Hub, call: Call, tmp_path: Path) -> None:
    (tmp_path / "hf").touch()
    code, _, err = call("pull", REPO)
    assert (code, os.strerror(errno.ENOTDIR) in one_line(err)) == (1, True)


def test_a_gated_repository(hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated.add(REPO)
    code, _, err = call("pull", REPO)
    assert code == 1
    assert one_line(err) == (
        f"{REPO}: its owner wants to know who fetches it: ask for access on {hub.url}/{REPO}, "
        "then set HF_TOKEN to your token or call `hf auth login`"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert call("pull", REPO).code == 0
    assert all(with_token for _, path, _, with_token in hub.requests[-4:])


def test_a_private_repository_and_a_wrong_token(
    hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private.add(REPO)
    assert "no such repository" in one_line(call("pull", REPO).err)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert (
        one_line(call("pull", REPO).err)
        == f"{REPO}: {hub.url} answered with 401: the token in HF_TOKEN is not accepted"
    )
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert call("pull", REPO).code == 0


@pytest.mark.parametrize("token", ["", "hf_right"])
def test_a_repository_that_does_not_exist(
    hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    """Strangers are answered with 401, those who are known with 404: both are told of what the hub has like it."""
    monkeypatch.setenv("HF_TOKEN", token)
    expected = f"no such repository on {hub.url}, or a private one that needs HF_TOKEN"
    for name in "maker/Storry-GGUF", "maker/Story":
        assert one_line(call("pull", name).err) == f"{name}: {expected}; similar names: {REPO}"
    assert one_line(call("pull", "nobody/xyz").err) == f"nobody/xyz: {expected}"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (500, "500: try again later"),
        (403, "403: the token in HF_TOKEN does not allow it"),
        (400, "400: refused"),
    ],
)
def test_other_answers(hub: Hub, call: Call, status: int, expected: str) -> None:
    hub.status = status
    assert call("pull", REPO) == (1, "", f"qwencli: error: {REPO}: {hub.url} answered with {expected}\n")


def test_what_is_no_hub(hub: Hub, call: Call) -> None:
    for hub.body in b"<html>", b"{}", b"[]":
        code, out, err = call("pull", REPO)
        assert (code, out) == (1, "")
        assert one_line(err).startswith(f"{REPO}: {hub.url} does not answer like the hub: ")


def test_no_network(call: Call, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, reason in (
        ("http://127.0.0.1:1", os.strerror(errno.ECONNREFUSED)),
        ("http://nowhere.invalid", ""),
    ):
        monkeypatch.setenv("HF_ENDPOINT", url)
        code, out, err = call("pull", REPO)
        assert (code, out) == (1, "")
        assert one_line(err).startswith(f"{REPO}: {url} cannot be reached or broke off: {reason}")


def test_offline_by_choice(hub: Hub) -> None:
    done = subprocess.run(
        [QWENCLI, "pull", REPO],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (
        1,
        f"qwencli: error: {REPO}: not fetched: HF_HUB_OFFLINE is set\n",
    )
    assert hub.requests == []


def hub_name(text: str) -> HubName:
    name = HubName.parse(text)
    assert name
    return name


def asked_offline(name: str) -> str:
    with pytest.raises(QwenError) as raised:
        look_up(hub_name(name), access=Access(offline=True))
    return str(raised.value)


def test_nothing_is_asked_offline(hub: Hub) -> None:
    """Neither the hub nor, for a name that isn't there, its search."""
    for name in REPO, f"{REPO}:Q8_0", "maker/No-Such-GGUF":
        assert (
            asked_offline(name)
            == f"{name}: not on this machine, and nothing is fetched offline: see `qwencli list`"
        )
    assert hub.requests == []


@pytest.mark.parametrize("how", ["-hf", "-m"])
def test_offline_a_model_of_the_cache_runs(hub: Hub, call: Call, how: str) -> None:
    command = ["run", how, REPO, "--offline", "-p", "hi", "-n", "4", "--temp", "0", "-q"]
    done = call(*command)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"qwencli: error: {REPO}: not on this machine, and nothing is fetched offline: see `qwencli list`\n"
    )
    assert hub.requests == []
    assert call("pull", f"{REPO}:Q4_K_M").code == 0
    n_requests = len(hub.requests)
    done = call(*command)
    assert (done.code, done.err) == (0, "")
    assert done.out
    assert len(hub.requests) == n_requests


def test_offline_needs_nothing_of_the_hubs_library() -> None:
    """Importing it takes a third of a second, and it looks at the network's variables."""
    script = (
        "import sys\n"
        "from qwencli.errors import QwenError\n"
        "from qwencli.hub.access import Access\n"
        "from qwencli.hub.downloads import look_up\n"
        "from qwencli.hub.names import HubName\n"
        "try:\n    look_up(HubName.parse('a/b'), access=Access(offline=True))\n"
        "except QwenError:\n    print('huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")


def fetch_with(token: str | None, name: str = REPO) -> Path:
    model = look_up(hub_name(name), access=Access(token))
    return fetch(model, lambda *_: None, lambda *_: None, token)


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_a_token_that_is_given(hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It counts in place of HF_TOKEN, and goes with every request; it is in no message."""
    getattr(hub, kind).add(REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert fetch_with(hub.token).read_bytes() == MODEL
    assert all(with_token for *_, with_token in hub.requests)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with pytest.raises(QwenError) as raised:
        fetch_with("hf_wrong", "maker/Only-GGUF")
    assert (
        str(raised.value)
        == f"maker/Only-GGUF: {hub.url} answered with 401: the token that was given is not accepted"
    )


def test_a_token_is_not_sent_on_to_where_files_lie(
    hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub redirects downloads to another host: Range goes there, the token does not."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.redirects, hub.broken_after[FILE] = True, 2 * CHUNK
    assert Path(pull_twice(call)).read_bytes() == MODEL
    elsewhere = [
        (range_, with_token) for _, path, range_, with_token in hub.requests if path.startswith("/elsewhere/")
    ]
    assert [with_token for _, with_token in elsewhere] == [False, False]
    assert re.fullmatch(r"bytes=[12]0000-", elsewhere[1][0] or "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_what_can_be_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.hangs, hub.broken_after[FILE] = True, 5 * CHUNK
    code = (
        "import sys; from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 10000\n"
        "from qwencli.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "pull", REPO]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as child:
        assert hub.reached.wait(60)
        part = cache(tmp_path) / "blobs" / f"{hashlib.sha256(MODEL).hexdigest()}.incomplete"
        while not (part.exists() and part.stat().st_size):
            assert child.poll() is None
            threading.Event().wait(0.01)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert err.strip().endswith(f"\nstopped; `qwencli pull {REPO}:Q4_K_M` resumes it")
    n_bytes = part.stat().st_size
    assert 0 < n_bytes <= 5 * CHUNK
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, Path(done.stdout.strip()).read_bytes()) == (0, MODEL)
    assert hub.ranges(FILE) == [None, f"bytes={n_bytes}-"]


def test_two_at_once_fetch_once(hub: Hub) -> None:
    hub.n_askers = 2
    children = [
        subprocess.Popen([QWENCLI, "pull", REPO], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert [Path(path).read_bytes() for path in paths] == [MODEL, MODEL]
    assert hub.ranges(FILE) == [None]


def test_the_examples_of_pull_and_rm(hub: Hub, call: Call) -> None:
    """Those that --help shows, which tests of all examples leave out."""
    for repo in "bartowski/Qwen_Qwen3-0.6B-GGUF", "user/repo":
        hub.files[repo] = {"x-Q4_K_M.gguf": MODEL, "x-Q8_0.gguf": MODEL + b"8"}
    shown = [
        line.split()
        for command in ("pull", "rm")
        for line in re.findall(r"^ +qwencli (.*)", call(command, "--help").out, re.M)
    ]
    lines = [words for words in shown if words[0] in ("pull", "rm") and "models/old.gguf" not in words]
    assert [words[0] for words in lines] == ["pull", "pull", "rm"]
    assert [call(*words, *["-y"] * (words[0] == "rm")).code for words in lines] == [0, 0, 0]


def test_the_installed_command(hub: Hub) -> None:
    """As users call it: in a process of its own, with the environment alone to say where the hub and the cache are."""
    done = subprocess.run([QWENCLI, "pull", f"{REPO}:Q8_0"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "fetching Story-Q8_0.gguf, 174.2 kB\n")
    assert Path(done.stdout.strip()).read_bytes() == MODEL + b"longer"
