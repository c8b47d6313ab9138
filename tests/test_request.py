"""A request's rules: what ends its answer, how thinking, its budget and a grammar go together, and how much room a prompt leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from qwencli.errors import ContextFull
from qwencli.gguf.file import GGUFFile
from qwencli.hub.choice import EMBEDDED
from qwencli.request.prompt import chat_prompt, check_length, check_room
from qwencli.request.request import Request, Thinking, may_think
from qwencli.sampling import SamplingParams
from qwencli.server.http.errors import api_error
from qwencli.text.chat.after_thinking import AfterThinking
from qwencli.text.chat.template import ChatTemplate
from qwencli.text.tokenizer import Tokenizer

QUESTION = [{"role": "user", "content": "Who?"}]
PLAIN = "{{ messages[0].content }}"
SWITCHED = PLAIN + "{{ '' if enable_thinking else '!' }}"
ALWAYS = PLAIN + "<think>\n"


class Anything:
    """A Constraint that allows everything."""

    def mask(self, answer: Sequence[int]) -> None:
        return None

    def ended(self, answer: Sequence[int]) -> bool:
        return False


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(GGUFFile(EMBEDDED))


def request(**fields: Any) -> Request:
    return Request([1, 2], SamplingParams(), **fields)


def test_what_ends_an_answer(tokenizer: Tokenizer) -> None:
    ends = tokenizer.eog_ids
    assert set(request().end_ids(tokenizer)) == ends
    assert set(request(ignore_eos=True).end_ids(tokenizer)) == set()
    assert set(request(grammar=Anything).end_ids(tokenizer)) == ends
    assert set(request(grammar=Anything, ignore_eos=True).end_ids(tokenizer)) == ends


def test_a_request_can_be_answered_again(tokenizer: Tokenizer) -> None:
    """Each answer has a budget and a constraint of its own."""
    asked = request(grammar=Anything, thinking=Thinking(limit=1))
    for _ in range(2):
        budget = asked.budget()
        assert budget is not None
        assert [budget.add(text) for text in ("<think>", "a", "b")] == ["", "\n</think>\n\n", ""]
    assert asked.constraint(tokenizer) is not asked.constraint(tokenizer)


def test_a_grammar_holds_from_the_start_or_after_the_thinking(tokenizer: Tokenizer) -> None:
    assert request().constraint(tokenizer) is None
    assert isinstance(request(grammar=Anything).constraint(tokenizer), Anything)
    first = request(grammar=Anything, thinking=Thinking(first=True))
    assert isinstance(first.constraint(tokenizer), AfterThinking)


@pytest.mark.parametrize(
    ("think", "limit", "expected"),
    [
        (None, None, True),
        (True, None, True),
        (None, 5, True),
        (False, None, False),
        (False, 5, False),
        (True, 0, False),
    ],
)
def test_whether_an_answer_may_think(think: bool | None, limit: int | None, expected: bool) -> None:
    assert may_think(think, limit) == expected


@pytest.mark.parametrize(
    ("template", "thinks", "has_grammar", "expected"),
    [
        (PLAIN, True, False, Thinking(limit=9)),
        (PLAIN, True, True, Thinking(limit=9)),  # it knows of no thinking: the grammar holds from the start
        (PLAIN, False, True, Thinking(limit=0)),
        (SWITCHED, True, True, Thinking(first=True, limit=9)),
        (SWITCHED, False, True, Thinking(limit=0)),
        (ALWAYS, True, True, Thinking(first=True, inside=True, limit=9)),
        (ALWAYS, False, True, Thinking(limit=0)),
    ],
)
def test_how_an_answer_thinks(
    tokenizer: Tokenizer, template: str, thinks: bool, has_grammar: bool, expected: Thinking
) -> None:
    prompt = chat_prompt(ChatTemplate(template), tokenizer, QUESTION, None, thinks)
    assert prompt.thinking(9, has_grammar) == expected
    assert prompt.thinking(None, has_grammar).limit == (None if thinks else 0)
    assert prompt.rendered.text.endswith("<think>\n\n</think>\n\n") == (template == ALWAYS and not thinks)


def test_room_for_an_answer(tokenizer: Tokenizer) -> None:
    check_room(9, 10)
    check_room(10, 10, n_answer=0)
    with pytest.raises(
        ContextFull, match=r"^the prompt has 10 tokens, which leaves no room for an answer in the"
    ) as full:
        check_room(10, 10)
    assert api_error(full.value).details == {"n_prompt_tokens": 10, "n_ctx": 10}
    check_length(["a" * 50, "b"], tokenizer, 50)
    longest = max(map(len, tokenizer.all_bytes()))
    with pytest.raises(ContextFull, match=r"^the prompt has 52 tokens or more, which"):
        check_length(["a" * 51 * longest, "b"], tokenizer, 51)
