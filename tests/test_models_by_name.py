"""Which model a name means: the names of files, what `list` finds on a machine, what `rm` removes, and -m and -hf of all commands."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import COMMANDS, QWENCLI, Call, allow_ctrl_c
from gguf_builder import Gguf, f32, parts, reciter, tiny
from test_hub import FILE, MODEL, REPO, Hub, cache, hub, one_line

from qwencli.errors import InputError
from qwencli.hub.names import HubName, choose, models_among, names_of, tag_of
from qwencli.hub.places import EMBEDDED

__all__ = ["hub"]  # the fixture

OTHER = "0f" * 20


# -- Names of files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "tag"),
    [  # files of repositories on the hub, and what their pages call them
        ("Qwen_Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M"),
        ("qwen2.5-7b-instruct-q4_k_m-00001-of-00002.gguf", "Q4_K_M"),
        ("Qwen3-0.6B-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("Qwen3-0.6B-IQ4_XS.gguf", "IQ4_XS"),
        ("Qwen3-0.6B-UD-IQ2_XXS.gguf", "UD-IQ2_XXS"),
        ("BF16/Qwen3-235B-A22B-BF16-00001-of-00010.gguf", "BF16"),
        ("Q4_K_M/model-00001-of-00002.gguf", "Q4_K_M"),
        ("tinyllama-1.1b-chat-v1.0.Q8_0.gguf", "Q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4"),
        ("Qwen3-8B-MXFP4_MOE.gguf", "MXFP4_MOE"),
        ("qwen2-0_5b-instruct-fp16.gguf", "FP16"),
        ("Qwen_Qwen3-0.6B-Q6_K_L.gguf", "Q6_K_L"),
        ("Qwen2-0.5B-Q4_0_4_4.gguf", "Q4_0_4_4"),
        ("model.gguf", None),
        ("Qwen3-0.6B.gguf", None),
        ("bitnet-TQ2_0.gguf", "TQ2_0"),
    ],
)
def test_the_tag_of_a_file(file: str, tag: str | None) -> None:
    assert tag_of(file) == tag


def test_models_among_files() -> None:
    files = [
        "a-Q8_0.gguf",
        "mmproj-a-F16.gguf",
        "a-imatrix.gguf",
        "README.md",
        "b/b-00001-of-00002.gguf",
        "b/b-00002-of-00002.gguf",
        "c-00001-of-00002.gguf",
        "d-00002-of-00002.gguf",
        "imatrix.dat",
        "mtp-a-Q8_0.gguf",
    ]
    assert models_among(files) == {"a-Q8_0.gguf": ["a-Q8_0.gguf"], "b/b-00001-of-00002.gguf": files[4:6]}


def test_names_are_unique() -> None:
    found = names_of("u/r", ["a-Q8_0.gguf", "b-Q8_0.gguf", "a-Q4_0.gguf", "c.gguf"])
    assert list(found.values()) == ["u/r/a-Q8_0.gguf", "u/r/b-Q8_0.gguf", "u/r:Q4_0", "u/r/c.gguf"]
    assert [HubName.parse(name) for name in found.values()] == [
        ("u/r", None, "a-Q8_0.gguf"),
        ("u/r", None, "b-Q8_0.gguf"),
        ("u/r", "Q4_0", None),
        ("u/r", None, "c.gguf"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "a:b",
        "a/b:",
        "a/b:c/d",
        "/a/b",
        "a//b",
        "a/b/c",
        "a b/c",
        "../a",
        "a/..",
        "a/b:c:d",
        "é/b",
        "a\\b/c",
        "~/a",
        "./a",
        "a/b\n",
        "-a/b",
        "http://a/b",
    ],
)
def test_what_is_no_name(text: str) -> None:
    assert HubName.parse(text) is None


@pytest.mark.parametrize(
    ("name", "files", "strict", "like_llama"),
    [  # the second: llama.cpp's find_best_model in common/download.cpp
        ("u/r", ["a-Q4_K_M.gguf", "a-Q8_0.gguf"], 0, 0),
        ("u/r", ["a-Q2_K.gguf", "a-Q8_0.gguf"], None, 1),
        ("u/r", ["a-Q2_K.gguf", "a-Q6_K.gguf"], None, 0),
        ("u/r", ["a-Q2_K.gguf"], 0, 0),
        ("u/r:q8_0", ["a-Q4_K_M.gguf", "a-Q8_0.gguf"], 1, 1),
        ("u/r:Q5_0", ["a-Q4_K_M.gguf", "a-Q8_0.gguf"], None, None),
        ("u/r:Q4_K_M", ["a-UD-Q4_K_M.gguf", "a-Q4_K_M.gguf"], 1, 1),
        ("u/r:Q4_K_XL", ["a-UD-Q4_K_XL.gguf", "a-Q4_K_M.gguf"], 0, 0),
        ("u/r:v2", ["a-v1-Q8_0.gguf", "a-v2-Q8_0.gguf"], 1, 1),
        ("u/r:Q8_0", ["a-Q8_0.gguf", "b-Q8_0.gguf"], None, 0),
        ("u/r/B-q8_0.gguf", ["a-Q8_0.gguf", "b-Q8_0.gguf"], 1, 1),
        ("u/r", [], None, None),
    ],
)
def test_which_model_is_chosen(
    name: str, files: list[str], strict: int | None, like_llama: int | None
) -> None:
    wanted = HubName.parse(name)
    assert wanted is not None
    for first, expected in (False, strict), (True, like_llama):
        if expected is None:
            with pytest.raises(InputError, match=r"^u/r holds "):
                choose(wanted, dict.fromkeys(files), first)
        else:
            assert choose(wanted, dict.fromkeys(files), first) == files[expected]


# -- What is on a machine -----------------------------------------------------------------------------------------------


def in_cache(
    tmp_path: Path, repo: str, files: dict[str, bytes], commit: str = OTHER, main: bool = True
) -> None:
    """Put files into the cache as huggingface_hub does: blobs by hash, links to them in a snapshot."""
    folder = cache(tmp_path, repo)
    for name, content in files.items():
        blob, link = (
            folder / "blobs" / hashlib.sha256(content).hexdigest(),
            folder / "snapshots" / commit / name,
        )
        for path in blob, link, folder / "refs" / "main":
            path.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if main:
        (folder / "refs" / "main").write_text(commit)


def in_ollama(
    tmp_path: Path, place: str, content: bytes, media_type: str = "application/vnd.ollama.image.model"
) -> Path:
    digest = hashlib.sha256(content).hexdigest()
    blob, manifest = (
        tmp_path / "ollama" / "blobs" / f"sha256-{digest}",
        tmp_path / "ollama" / "manifests" / place,
    )
    for path in blob, manifest:
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00", "size": 2},
        {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)},
    ]
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": layers}))
    return blob


@pytest.fixture
def machine(hub: Hub, call: Call, tmp_path: Path) -> Path:
    """A machine with models everywhere; the current folder is the one with ./models."""
    q8 = tiny(seed=8).build()
    split = {f"BF16/Big-{i + 1:05}-of-00002.gguf": part.build() for i, part in enumerate(parts(reciter(), 2))}
    in_cache(tmp_path, REPO, {FILE: MODEL, "Story-Q8_0.gguf": q8, "mmproj-F16.gguf": b"x"})
    in_cache(tmp_path, "maker/Big", split | {"Big-Q2_K-00001-of-00002.gguf": b"one of two"})
    (cache(tmp_path) / "blobs" / ("ab" * 32 + ".incomplete")).write_bytes(b"a part")
    gone = cache(tmp_path, "maker/Gone") / "snapshots" / OTHER / "Gone-Q4_K_M.gguf"
    gone.parent.mkdir(parents=True)
    gone.symlink_to("../../blobs/none")
    Path("models").mkdir()
    Path("models", "one.gguf").write_bytes(MODEL)
    Path("models", "damaged.gguf").write_bytes(MODEL[:-1000])
    Path("models", "notes.txt").touch()
    Gguf({"general.architecture": ("str", "mamba")}, [f32("t", [[1, 2]])]).write(Path("models", "other.gguf"))
    in_ollama(tmp_path, "registry.ollama.ai/library/story/0.6b", MODEL + b"o")
    in_ollama(tmp_path, "registry.ollama.ai/library/story/latest", MODEL + b"l")
    in_ollama(tmp_path, "hf.co/maker/Story-GGUF/Q4_K_M", MODEL + b"h")
    in_ollama(
        tmp_path, "registry.ollama.ai/library/picture/1b", b"x", "application/vnd.ollama.image.projector"
    )
    return tmp_path


def listed(call: Call) -> dict[str, dict[str, object]]:
    code, out, err = call("list", "--json")
    assert (code, err) == (0, "")
    return {model["name"]: model for model in json.loads(out)["models"]}


NAMES = [
    "models/damaged.gguf",
    "models/one.gguf",
    "models/other.gguf",
    "maker/Big:BF16",
    f"{REPO}:Q4_K_M",
    f"{REPO}:Q8_0",
    "hf.co/maker/Story-GGUF:Q4_K_M",
    "story:0.6b",
    "story:latest",
    "demo",
]


def test_list_finds_what_is_there(machine: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = listed(call)
    assert list(found) == [str(Path(name)) if name.startswith("models") else name for name in NAMES]
    one = found[f"{REPO}:Q4_K_M"]
    assert one == {
        "name": f"{REPO}:Q4_K_M",
        "architecture": "qwen3",
        "quant": "F32",
        "size_bytes": len(MODEL),
        "n_files": 1,
        "owner": "hub",
        "path": str(cache(machine) / "snapshots" / OTHER / FILE),
        "runs": True,
        "why_not": None,
    }
    assert (found["maker/Big:BF16"]["n_files"], found["maker/Big:BF16"]["runs"]) == (2, True)
    assert found["demo"]["path"] == str(EMBEDDED)
    other, damaged = found[str(Path("models/other.gguf"))], found[str(Path("models/damaged.gguf"))]
    assert (other["architecture"], other["runs"]) == ("mamba", False)
    assert str(other["why_not"]).startswith("the architecture 'mamba' is not supported")
    assert (damaged["architecture"], damaged["runs"], "truncated?" in str(damaged["why_not"])) == (
        None,
        False,
        True,
    )
    shutil.copy("models/one.gguf", machine / "elsewhere.gguf")
    monkeypatch.setenv("QWENCLI_MODEL", str(machine / "elsewhere.gguf"))
    assert next(iter(listed(call))) == str(machine / "elsewhere.gguf")


def test_list_as_a_table(machine: Path, call: Call) -> None:
    code, out, err = call("list")
    head, *rows = out.splitlines()
    assert (code, err, head.split()) == (0, "", ["name", "arch", "quant", "size", "path"])
    assert [row.split()[0] for row in rows] == list(listed(call))
    assert re.fullmatch(
        rf"{REPO}:Q4_K_M +qwen3 +F32 +174\.1 kB  {re.escape(str(cache(machine)))}.*{FILE}", rows[4]
    )
    assert re.search(r"mamba .* can't run: the architecture 'mamba' is not supported", rows[2])


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
def test_the_table_fits_a_terminal(machine: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    child = pexpect.spawn(
        QWENCLI, ["list"], timeout=60, encoding="utf-8", dimensions=(24, 90), env=environment
    )
    rows = child.read().splitlines()
    child.wait()
    child.close()
    assert child.exitstatus == 0
    assert max(map(len, rows)) <= 90
    assert [row.split()[0].replace("\\", "/") for row in rows[1:]] == NAMES
    assert rows[5].endswith(f"…/{FILE}"[-10:])


def test_list_on_an_empty_machine(hub: Hub, call: Call) -> None:
    assert list(listed(call)) == ["demo"]


def test_of_several_revisions_the_main_branch_counts(hub: Hub, call: Call, tmp_path: Path) -> None:
    in_cache(tmp_path, REPO, {FILE: MODEL}, "aa" * 20)
    in_cache(tmp_path, REPO, {FILE: MODEL + b"newer", "Story-Q8_0.gguf": MODEL + b"8"}, "bb" * 20, main=False)
    found = listed(call)
    assert "aa" * 20 in str(found[f"{REPO}:Q4_K_M"]["path"])
    assert "bb" * 20 in str(found[f"{REPO}:Q8_0"]["path"])


# -- -m and -hf ---------------------------------------------------------------------------------------------------------


def chosen(call: Call, *args: object) -> str:
    """The model that `info` describes."""
    code, out, err = call("info", "--json", *args)
    assert code == 0, err
    return str(json.loads(out)["path"])


def test_names_as_list_has_them_are_taken(machine: Path, call: Call, hub: Hub) -> None:
    for name, model in listed(call).items():
        if "damaged" not in name:
            assert chosen(call, name) == model["path"]
    assert chosen(call, "story") == listed(call)["story:latest"]["path"]
    assert chosen(call, "maker/story-gguf:q8_0") == listed(call)[f"{REPO}:Q8_0"]["path"]
    assert chosen(call, REPO) == listed(call)[f"{REPO}:Q4_K_M"]["path"]
    assert chosen(call, "maker/Big") == listed(call)["maker/Big:BF16"]["path"]
    assert hub.requests == []


def test_a_path_comes_first(machine: Path, call: Call) -> None:
    for name in "story", "maker/Big":
        Path(name).mkdir(parents=True)
        shutil.copy("models/one.gguf", Path(name, "here.gguf"))
        assert chosen(call, name) == str(Path(name, "here.gguf"))


def test_the_variable_takes_names_too(machine: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWENCLI_MODEL", f"{REPO}:Q8_0")
    done = call("run", "-p", "x", "-n", "0")
    path = cache(machine) / "snapshots" / OTHER / "Story-Q8_0.gguf"
    assert (done.code, done.err.splitlines()[0]) == (0, f"model: {path} ($QWENCLI_MODEL {REPO}:Q8_0)")


def test_the_variable_is_fetched_with_leave_too(
    hub: Hub, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWENCLI_MODEL", REPO)
    assert (
        call("tokenize", "the").err
        == f"qwencli: error: {REPO}: not on this machine; fetch it with `qwencli pull {REPO}`, or add -y\n"
    )
    code, out, err = call("tokenize", "the", "--ids", "-y")
    assert (code, out, err.splitlines()[0]) == (0, "[83, 257]\n", f"fetching {FILE}, 174.1 kB")


def test_names_that_mean_nothing_suggest_others(machine: Path, call: Call, hub: Hub) -> None:
    for name, near in {
        "storry": "story:latest",
        "Story-Q8_0": f"{REPO}:Q8_0",
        "models/on.gguf": str(Path("models/one.gguf")),
    }.items():
        code, out, err = call("info", name)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(
            f"qwencli: error: {name}: no such file and no model of that name; similar names: "
        )
        assert near in err
    err, name = call("info", "marker/Story-GGUF:Q8_0").err, "marker/Story-GGUF:Q8_0"
    assert err.startswith(
        f"qwencli: error: {name}: not on this machine; fetch it with `qwencli pull {name}`, or add -y; similar names"
    )
    assert f"; similar names here: {REPO}:Q8_0" in err
    assert call("info", "zzz") == (
        1,
        "",
        "qwencli: error: zzz: no such file and no model of that name; see `qwencli list`\n",
    )
    assert hub.requests == []


def test_what_is_not_here_is_fetched_only_with_leave(hub: Hub, call: Call) -> None:
    name = f"{REPO}:Q8_0"
    expected = (
        f"qwencli: error: {name}: not on this machine; fetch it with `qwencli pull {name}`, or add -y\n"
    )
    for command in (
        ["run", "-p", "x"],
        ["tokenize", "x"],
        ["bench"],
        ["perplexity", "-f", "-"],
        ["warmup"],
        ["doctor"],
        ["detokenize", "1"],
    ):
        assert call(*command, "-m", name) == (1, "", expected)
    assert call("info", name) == (1, "", expected)
    assert hub.requests == []
    code, out, err = call("tokenize", "-y", "-m", name, "--ids", "the")
    assert (code, out, err) == (0, "[83, 257]\n", "fetching Story-Q8_0.gguf, 174.2 kB\n")
    n_requests = len(hub.requests)
    assert call("tokenize", "-m", name, "--ids", "the") == (0, "[83, 257]\n", "")
    assert len(hub.requests) == n_requests


def test_hf_fetches_as_llama_does(hub: Hub, call: Call, tmp_path: Path) -> None:
    """Without asking, and without a tag Q4_K_M, Q8_0 or the first there is; the second time without a request."""
    folder = cache(tmp_path, "maker/Big-GGUF") / "snapshots" / hub_commit()
    for option in "-hf", "--hf-repo":
        assert chosen(call, option, "maker/Big-GGUF") == str(folder / "Big-Q8_0.gguf")
    assert len([path for method, path, *_ in hub.requests if method == "GET"]) == 2
    assert chosen(call, "-hf", "maker/Big-GGUF", "-hff", "Big-UD-Q4_K_XL.gguf") == str(
        folder / "Big-UD-Q4_K_XL.gguf"
    )
    assert chosen(call, "-hf", REPO) == str(cache(tmp_path) / "snapshots" / hub_commit() / FILE)
    hub.status = 500
    assert chosen(call, "-hf", f"{REPO}:Q4_K_M") == str(cache(tmp_path) / "snapshots" / hub_commit() / FILE)
    assert (
        one_line(call("info", "-hf", f"{REPO}:Q8_0").err)
        == f"{REPO}: {hub.url} answered with 500: try again later"
    )
    assert (
        call("info", "-hf", "qwen3").err
        == "qwencli: error: qwen3: not a repository of the hub, expected user/repo or user/repo:QUANT\n"
    )


def hub_commit() -> str:
    from hub_server import COMMIT

    return COMMIT


@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in ("list", "pull", "rm", "devices")]
)
def test_all_commands_have_the_options(call: Call, command: str) -> None:
    out = call(command, "--help").out
    assert re.search(r"-hf, -hfr, --hf-repo USER/REPO\[:QUANT\]", out)
    assert re.search(r"-y, --yes ", out)
    assert call(command, "-h").out == out


@pytest.mark.parametrize("args", ["-m x -hf a/b", "-hff x", "-m x -hff y"])
def test_options_that_contradict(call: Call, args: str) -> None:
    code, out, err = call("tokenize", "x", *args.split())
    assert (code, out) == (2, "")
    assert err.startswith("Usage: qwencli tokenize")


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
@pytest.mark.parametrize(
    ("answer", "code"), [("y\n", 0), ("\n", 0), ("n\n", 1), ("\x03", 130), ("\x04", 130)]
)
def test_at_a_terminal_one_is_asked(hub: Hub, tmp_path: Path, answer: str, code: int) -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        QWENCLI,
        ["tokenize", "-m", REPO, "the"],
        timeout=60,
        preexec_fn=allow_ctrl_c,
        encoding="utf-8",
        dimensions=(24, 200),
    )
    child.expect_exact(f"{REPO}:Q4_K_M is not on this machine. Fetch 174.1 kB? [Y/n]: ")
    child.send(answer)
    child.expect(pexpect.EOF)
    child.wait()
    child.close()
    assert child.exitstatus == code
    assert ("257 -> ' the'" in child.before or "257 -> 'he'" in child.before) == (code == 0)
    assert bool(list(cache(tmp_path).glob("snapshots/*/*"))) == (code == 0)


@pytest.mark.parametrize(
    "args", [["info", "FILE"], ["info", f"{REPO}:Q4_K_M"], ["list"], ["tokenize", "-hf", REPO, "x"], ["info"]]
)
def test_what_is_here_needs_no_hub_library(machine: Path, args: list[str]) -> None:
    path = str(cache(machine) / "snapshots" / OTHER / FILE)
    code = (
        "import sys; from qwencli.cli import main; code = main(sys.argv[1:])\n"
        "print(sorted({'huggingface_hub', 'httpx2', 'httpx', 'requests'} & sys.modules.keys()), code, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, *(path if arg == "FILE" else arg for arg in args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=machine)
    assert done.stderr.splitlines()[-1] == "[] 0"


# -- rm -----------------------------------------------------------------------------------------------------------------


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def test_rm_removes_one_quant_and_keeps_the_others(machine: Path, call: Call) -> None:
    before = files(machine)
    assert call("rm", "-y", f"{REPO}:Q4_K_M") == (0, "", f"removed {REPO}:Q4_K_M, 174.1 kB freed\n")
    folder = cache(machine).relative_to(machine)
    assert before - files(machine) == {
        f"{folder}/snapshots/{OTHER}/{FILE}",
        f"{folder}/blobs/{hashlib.sha256(MODEL).hexdigest()}",
    }
    assert list(listed(call)) == [name for name in map(str, map(Path, NAMES)) if name != f"{REPO}:Q4_K_M"]


def test_rm_takes_all_revisions_and_keeps_blobs_that_are_in_use(hub: Hub, call: Call, tmp_path: Path) -> None:
    in_cache(tmp_path, REPO, {FILE: MODEL, "Copy-Q8_0.gguf": MODEL}, "aa" * 20)
    in_cache(tmp_path, REPO, {FILE: MODEL + b"newer"}, "bb" * 20, main=False)
    assert (
        call("rm", "-y", f"{REPO}:Q4_K_M").err == f"removed {REPO}:Q4_K_M, 174.1 kB freed\n"
    )  # the newer one's
    assert {Path(name).name for name in files(cache(tmp_path))} == {
        "main",
        "Copy-Q8_0.gguf",
        hashlib.sha256(MODEL).hexdigest(),
    }
    assert Path(str(listed(call)[f"{REPO}:Q8_0"]["path"])).read_bytes() == MODEL


def test_rm_of_the_last_model_removes_the_repository(hub: Hub, call: Call, tmp_path: Path) -> None:
    in_cache(tmp_path, REPO, {FILE: MODEL})
    in_cache(tmp_path, "maker/Other", {FILE: MODEL})
    (cache(tmp_path) / "blobs" / "x.incomplete").write_bytes(bytes(10**6))
    assert call("rm", "-y", REPO).err == f"removed {REPO}:Q4_K_M, 1.2 MB freed\n"
    assert not cache(tmp_path).exists()
    assert list(listed(call)) == ["maker/Other:Q4_K_M", "demo"]


def test_rm_of_files_in_models(machine: Path, call: Call) -> None:
    before, target = files(machine), machine / "target.gguf"
    target.write_bytes(MODEL)
    Path("models", "link.gguf").symlink_to(target)
    for i, part in enumerate(parts(reciter(), 2)):
        part.write(Path("models", f"s-{i + 1:05}-of-00002.gguf"))
    assert call("rm", "-y", "models/link.gguf", "./models/s-00001-of-00002.gguf").code == 0
    assert files(machine) == before | {"target.gguf"}
    assert (
        call("rm", "-y", "models/damaged.gguf").err
        == f"removed {Path('models/damaged.gguf')}, 173.1 kB freed\n"
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("story:0.6b", "story:0.6b: belongs to Ollama, remove it with `ollama rm story:0.6b`"),
        ("demo", "demo: comes with qwencli and is removed with it"),
        (
            REPO,
            f"{REPO}: no model of that name, see `qwencli list`; similar names: {REPO}:Q4_K_M, {REPO}:Q8_0",
        ),
        (
            "models/on.gguf",
            "models/on.gguf: no model of that name, see `qwencli list`; similar names: models/one.gguf",
        ),
        ("models/notes.txt", "models/notes.txt: no model of that name, see `qwencli list`"),
        (
            "models/../models/one.gguf",
            "models/../models/one.gguf: no model of that name, see `qwencli list`; similar names: models/one.gguf",
        ),
        ("OUTSIDE", "OUTSIDE: is neither in the hub's cache nor in ./models, remove the file itself"),
    ],
)
def test_what_rm_leaves_alone(
    machine: Path, call: Call, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    outside = machine / "outside.gguf"
    outside.write_bytes(MODEL)
    monkeypatch.setenv("QWENCLI_MODEL", str(outside))
    before = files(machine)
    code, out, err = call("rm", "-y", f"{REPO}:Q8_0", name.replace("OUTSIDE", str(outside)))
    assert (code, out) == (1, "")
    assert err.startswith(f"qwencli: error: {expected}".replace("OUTSIDE", str(outside)))
    assert files(machine) == before  # nothing of what else was named either


def test_rm_asks(machine: Path, call: Call) -> None:
    before = files(machine)
    assert call("rm", "maker/Big:BF16") == (
        1,
        "",
        "qwencli: error: there is nobody to ask, add -y to remove without asking\n",
    )
    assert files(machine) == before
    assert call("rm").code == 2


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX terminals")
@pytest.mark.parametrize(("answer", "code"), [("y\n", 0), ("\n", 1), ("\x03", 130)])
def test_rm_asks_at_a_terminal(machine: Path, answer: str, code: int) -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        QWENCLI,
        ["rm", "maker/Big:BF16"],
        timeout=60,
        preexec_fn=allow_ctrl_c,
        encoding="utf-8",
        dimensions=(24, 200),
    )
    n_bytes = sum(len(part.build()) for part in parts(reciter(), 2))
    child.expect_exact(f"Remove maker/Big:BF16 ({n_bytes / 1000:.1f} kB)? [y/N]: ")
    child.send(answer)
    child.expect(pexpect.EOF)
    child.wait()
    child.close()
    assert child.exitstatus == code
    assert bool(list(cache(machine, "maker/Big").glob("snapshots/*/BF16/*"))) == (code != 0)


def test_rm_follows_no_links_out_of_the_cache(hub: Hub, call: Call, tmp_path: Path) -> None:
    target = tmp_path / "precious.gguf"
    target.write_bytes(MODEL)
    link = cache(tmp_path) / "snapshots" / OTHER / FILE
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    assert call("rm", "-y", REPO).err == f"removed {REPO}:Q4_K_M, 0 bytes freed\n"
    assert target.read_bytes() == MODEL
