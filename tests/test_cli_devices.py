"""The options of the commands that divide a model among devices."""

import json
from pathlib import Path

import pytest
from command_line import TEXT, Call
from divided import ALLOWED

from qwencli.data import __path__ as data_folder

DEMO = Path(data_folder[0]) / "demo-q4_k_m.gguf"
TWO_CPUS = f"cpus:{ALLOWED[0]},cpus:{ALLOWED[-1]}"
RUN = ["run", "-p", "hi", "--temp", "0"]
STORY = "Once upon a time there was a little fox who lived at the edge of a wood. "

needs_two_cpus = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two CPUs")


@pytest.mark.parametrize(
    "options",
    [
        ["--device", "cpu"],
        ["--device", f"cpus:{ALLOWED[0]}"],
        ["-dev", "cpu,numpy", "-ts", "1,1"],
        ["--device", "numpy,cpu", "--layers-per-device", "1,1"],
        ["-ot", "ffn_up=numpy,attn_q=numpy", "-ot", "down=numpy"],
        pytest.param(["--device", TWO_CPUS, "--tensor-split", "3,1"], marks=needs_two_cpus),
    ],
)
def test_the_answer_is_the_same_on_any_devices(call: Call, story: Path, options: list[str]) -> None:
    code, out, err = call(*RUN, "-m", story, *options)
    assert (code, out) == (0, TEXT), err


def test_verbose_lists_the_splits(call: Call, story: Path) -> None:
    code, _, err = call(*RUN, "-m", story, "-v", "--device", "cpu,numpy", "--layers-per-device", "1,1")
    assert code == 0
    lines = [line for line in err.splitlines() if line.startswith("##")]
    assert lines == ["## SPLIT #0: cpu # 0 inputs", "## SPLIT #1: numpy # 1 inputs: [l_out-0 (128 bytes)]"]
    assert "## SPLIT" not in call(*RUN, "-m", story, "-v").err


WRONG = [
    (["--device", "gpu"], "unknown device 'gpu'; known are cpu"),
    (["--device", "cpu,cpu"], "the device cpu is named twice"),
    (["--device", ""], "no device is named"),
    (["--device", "cpu,numpy", "-ts", "1"], "expected one share per device, 2, not 1"),
    (["--device", "cpu,numpy", "-ts", "x"], "'x': expected numbers such as 3,1"),
    (
        ["--device", "cpu,numpy", "--layers-per-device", "9,9"],
        "9,9, are 18 in all, but the model has 2 layers",
    ),
    (["-ot", "nothing=numpy"], "the pattern 'nothing' matches no tensor"),
    (["-ot", "\x1b[31m=numpy"], r"'\x1b[31m' is not a regular expression"),
    (["--device", "cpu,numpy", "--backend", "numpy"], "both devices and the backend numpy are given"),
]


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_options_end_with_one_line(
    call: Call, story: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "text").write_text("the and in a " * 30)
    commands: list[list[object]] = [
        [*RUN],
        ["chat"],
        ["serve", "--port", "0"],
        ["perplexity", "-f", tmp_path / "text", "-c", "16"],
    ]
    if "--backend" not in options:
        commands.append(["bench", "-p", "1", "-n", "1", "-r", "1"])
    for command in commands:
        code, out, err = call(*command, "-m", story, *options)
        last = err.splitlines()[-1]
        assert (code, out) == (1, ""), command
        assert last.startswith("qwencli: error: "), command
        assert message in last, command
        assert "Traceback" not in err


@pytest.mark.parametrize("command", ["run", "chat", "serve", "perplexity", "bench"])
def test_help_names_the_options(call: Call, command: str) -> None:
    code, out, _ = call(command, "--help")
    assert code == 0
    for option in "-dev, --device", "-ts, --tensor-split", "--layers-per-device", "-ot, --override-tensor":
        assert option in out


@needs_two_cpus
def test_perplexity_of_a_divided_model_is_the_same(call: Call, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(STORY * 40)
    command = ["perplexity", "-m", DEMO, "-f", tmp_path / "text", "-c", "128", "--chunks", "3", "--json"]
    found = [json.loads(call(*command, *options).out) for options in ([], ["--device", TWO_CPUS])]
    assert found[0]["ppl"] == found[1]["ppl"]


@needs_two_cpus
def test_bench_shows_what_copies_take(call: Call, story: Path) -> None:
    command = ["bench", "-m", story, "-p", "8", "-n", "2", "-r", "1", "--profile"]
    code, out, err = call(*command, "--device", TWO_CPUS, "--layers-per-device", "1,1")
    assert code == 0, err
    assert TWO_CPUS.replace(",", " 1, ") + " 1" in out
    copies = [line.split("|") for line in out.splitlines() if line.startswith("| copies ")]
    assert [int(row[2]) for row in copies] == [2, 4]  # of both devices, in one step and in two
    assert "| copies " not in call(*command).out


def test_bench_counts_the_threads_that_work_at_once(call: Call, story: Path) -> None:
    """Devices of one CPU each take turns."""
    out = call("bench", "-m", story, "-p", "2", "-n", "0", "-r", "1", "-o", "json", "--device", TWO_CPUS).out
    (found,) = json.loads(out)
    assert (found["n_threads"], found["devices"]) == (1, TWO_CPUS.replace(",", ", "))


def test_numpy_has_no_profile(call: Call, story: Path) -> None:
    code, out, err = call(
        "bench", "-m", story, "-p", "2", "-n", "0", "-r", "1", "--profile", "--device", "numpy"
    )
    assert (code, out) == (1, "")
    assert "only the CPU backend has a profile, but it isn't among the devices" in err
