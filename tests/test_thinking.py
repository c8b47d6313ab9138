"""When a block of thinking is closed, for texts cut into tokens in many ways."""

import re

import numpy as np
import pytest

from qwencli.text.chat.thinking import ReasoningBudget, closing, ends_inside


def forced(tokens: list[str], n: int, inside: bool = False) -> tuple[int, str] | None:
    """After how many tokens thinking is closed, and with which text."""
    budget, found = ReasoningBudget(n, inside), []
    for i, token in enumerate(tokens):
        if text := budget.add(token):
            found.append((i + 1, text))
    assert len(found) < 2, "a block is closed once"
    return found[0] if found else None


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (0, (1, "\n\n</think>\n\n")),
        (1, (2, "\n</think>\n\n")),
        (3, (4, "\n</think>\n\n")),
        (4, None),
        (9, None),
    ],
)
def test_it_is_closed_behind_so_many_tokens(n: int, expected: tuple[int, str] | None) -> None:
    assert forced(["<think>", "\n", "one", "two", "</think>", "\n\n", "answer"], n) == expected


def test_a_block_that_the_prompt_opened() -> None:
    assert forced(["one", "two", "three"], 2, inside=True) == (2, "\n</think>\n\n")
    assert forced(["one", "</think>", "three"], 2, inside=True) is None
    assert forced(["one", "</thi", "nk>three", "four"], 3, inside=True) is None


def test_it_is_not_closed_within_a_character() -> None:
    """A token whose bytes only begin one has no text yet."""
    assert forced(["<think>", "a", "", "", "\N{GRINNING FACE}", "b"], 2) == (5, "\n</think>\n\n")


@pytest.mark.parametrize(
    "tokens", [["hello", "<think>", "x", "y"], ["<", "tag", ">"], [" ", "<thin", "g>", "a"]]
)
def test_an_answer_without_thinking_is_left_alone(tokens: list[str]) -> None:
    assert forced(tokens, 0) is None
    assert forced(tokens, 1) is None


@pytest.mark.parametrize("seed", range(100))
def test_any_cut(seed: int) -> None:
    """Twin: the token that completes the first `<think>` opens it; each one after it counts until `</think>` is complete."""
    rs = np.random.RandomState(seed)
    text = (
        rs.choice(["", "\n", "no "])
        + "<think>"
        + "ab\n<c" * rs.randint(3)
        + rs.choice(["</think>", "</thin", ""])
        + "answer"
    )
    cuts = sorted(set(rs.randint(1, len(text), 8)))
    tokens = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]
    n = int(rs.randint(0, 6))
    ends = np.cumsum([len(token) for token in tokens])
    expected = None
    if text.lstrip().startswith("<think>"):
        opened = int(np.searchsorted(ends, text.index("<think>") + 7))  # the token that completes the tag
        last = opened + n
        end = re.search("</think>", text)
        if last < len(tokens) and not (end and end.end() <= ends[last]):
            expected = last + 1, closing(text[: ends[last]])
    assert forced(tokens, n) == expected


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ("<|im_start|>assistant\n<think>\n", True),
        ("<think>", True),
        ("<think>\n\n</think>\n\n", False),
        ("", False),
    ],
)
def test_prompts_that_begin_the_thinking(prompt: str, inside: bool) -> None:
    assert ends_inside(prompt) == inside
