"""-b, -ub and -tb on the command line: how many tokens a step has, and that nothing but the speed depends on it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Call

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.protocol import Task
from qwencli.engine.engine import tokens_of_a_step
from qwencli.errors import InputError
from qwencli.hub.places import EMBEDDED

TEXT = "The old king sat on the hill and looked at the sea, and the sea looked back at him. " * 3


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens of each step that a CPU backend runs."""
    found: list[int] = []
    run: Callable[..., Any] = CPUBackend._run

    def recorded(self: CPUBackend, task: Task, *args: Any) -> Any:
        found.append(sum(len(segment.tokens) for segment in task.batch.segments) if task.batch else 0)
        return run(self, task, *args)

    monkeypatch.setattr(CPUBackend, "_run", recorded)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), 512),
        ((100,), 100),
        ((5000,), 512),
        ((None, 100), 100),
        ((None, 5000), 2048),
        ((64, 100), 64),
        ((100, 64), 64),
    ],
)
def test_a_step_is_llama_cpps_micro_batch(given: Sequence[int | None], expected: int) -> None:
    """The defaults of -b and -ub are 2048 and 512 there, and a micro-batch is never larger than a batch."""
    assert tokens_of_a_step(*given) == expected


@pytest.mark.parametrize("wrong", [{"n_batch": 0}, {"n_ubatch": -1}])
def test_no_tokens_are_an_error(wrong: dict[str, int]) -> None:
    (name, number), *_ = wrong.items()
    with pytest.raises(InputError, match=rf"^{name} is {number}, expected at least 1$"):
        tokens_of_a_step(**wrong)


def steps_of_run(call: Call, steps: list[int], *options: str) -> tuple[list[int], str]:
    steps.clear()
    done = call("run", "-m", EMBEDDED, "-p", TEXT, "-n", "4", "--temp", "0", "-q", *options)
    assert done.code == 0, done.err
    return list(steps), done.out


@pytest.mark.parametrize(
    ("options", "most"), [("-b 16", 16), ("-ub 9", 9), ("-b 9 -ub 16", 9), ("-ub 16 -tb 3 -t 1", 16)]
)
def test_run_reads_a_prompt_in_steps(call: Call, steps: list[int], options: str, most: int) -> None:
    whole, expected = steps_of_run(call, steps)
    in_pieces, text = steps_of_run(call, steps, *options.split())
    n_prompt = max(whole)
    assert text == expected
    assert in_pieces[:-3] == [*([most] * (n_prompt // most)), *([n_prompt % most] if n_prompt % most else [])]
    assert in_pieces[-3:] == [1, 1, 1]


def test_variables(call: Call, steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_ARG_UBATCH", "16")
    assert max(steps_of_run(call, steps)[0]) == 16
    assert max(steps_of_run(call, steps, "-ub", "8")[0]) == 8


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ("-b 16", 16),
        ("-b 5", 5),
        ("-b 32", 32),
        ("-b 64 -ub 16", 16),
        ("-b 16 -ub 64", 16),
        ("-ub 7 -tb 2 -t 1", 7),
    ],
)
def test_perplexity_is_the_same_in_any_steps(
    call: Call, steps: list[int], tmp_path: Path, options: str, most: int
) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    command = ["perplexity", "-m", EMBEDDED, "-f", tmp_path / "text", "-c", 16, "--json"]
    expected = json.loads(call(*command).out)["ppl"]
    steps.clear()
    assert json.loads(call(*command, *options.split()).out)["ppl"] == expected
    assert max(steps) == most


def test_bench_has_a_result_for_each_size_of_a_step(call: Call, steps: list[int]) -> None:
    command = ["bench", "-m", EMBEDDED, "-p", "20", "-n", "0", "-r", "1", "-o", "json", "-t", "1"]
    found = json.loads(call(*command, "-b", "7,16", "-ub", "5,100").out)
    assert [facts["n_batch"] for facts in found] == [5, 7, 16]
    assert {5, 7, 16} <= set(steps)
    assert max(steps) == 16


def test_bench_takes_threads_for_prompts(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[int, int]] = []
    make: Callable[..., None] = CPUBackend.__init__

    def noted(self: CPUBackend, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        found.append((self.n_threads, self._team.n_threads))

    monkeypatch.setattr(CPUBackend, "__init__", noted)
    code, *_ = call(
        "bench", "-m", EMBEDDED, "-p", "20", "-n", "1", "-r", "1", "-o", "json", "-t", "1", "-tb", "3"
    )
    assert code == 0
    assert (1, 3) in found
