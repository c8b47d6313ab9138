"""What a next turn begins with is read while nobody waits: less is left to do then, and answers are as they would be without."""

from collections.abc import Iterator
from typing import Any

import pytest

from qwencli.backends.cpu.backend import CPUBackend
from qwencli.backends.protocol import Batch
from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.local import LocalChat
from qwencli.errors import QwenError
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Content, Reasoning
from qwencli.text.chat.template import ChatTemplate

QUESTION, NEXT = (
    {"role": "user", "content": text} for text in ("What is the capital of France?", "And of Italy?")
)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


@pytest.fixture
def chat(llm: LLM) -> Iterator[LocalChat]:
    while llm.engine.prefixes.make_room():
        pass
    chat = LocalChat(llm, look_ahead=True)
    yield chat
    chat.close()
    assert llm.engine.running == []


def ask(chat: LocalChat, *messages: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """The answer as a message."""
    events = list(chat.answer(messages, Settings(SamplingParams(temp=0), **settings)))
    said, thought = ("".join(e.text for e in events if isinstance(e, kind)) for kind in (Content, Reasoning))
    return {"role": "assistant", "content": said, "reasoning_content": thought}


@pytest.mark.parametrize("settings", [{}, {"think": False}, {"reasoning_budget": 3}])
def test_only_the_question_is_left_to_read(chat: LocalChat, settings: dict[str, Any]) -> None:
    """The template leaves the thinking of past answers out, so that without it the last answer is read again."""
    answer = ask(chat, QUESTION, **settings)
    chat.wait()
    again = ask(chat, QUESTION, answer, NEXT, **settings)
    new = chat.sequence.tokens[chat.sequence.n_cached : chat.sequence.n_prompt]
    assert chat.llm.tokenizer.decode(new).startswith(
        "<|im_start|>user\nAnd of Italy?<|im_end|>\n<|im_start|>assistant\n"
    )

    plain = LocalChat(LLM(EMBEDDED))
    assert ask(plain, QUESTION, **settings) == answer
    assert ask(plain, QUESTION, answer, NEXT, **settings) == again
    assert plain.sequence.tokens == chat.sequence.tokens
    assert plain.sequence.n_cached < chat.sequence.n_cached


def test_a_question_that_comes_at_once_waits_for_a_step_at_most(
    chat: LocalChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks stops it: what is read by then counts."""
    sizes: list[int] = []
    sample = CPUBackend.sample

    def counted(self: CPUBackend, batch: Batch, draws: Any) -> Any:
        sizes.append(len(batch.tokens))
        if len(sizes) == first + 1:
            chat._look_ahead._stopping = True  # type: ignore[union-attr]
        return sample(self, batch, draws)

    system = {"role": "system", "content": "Be kind. " * 60}
    first = 10**9
    monkeypatch.setattr(CPUBackend, "sample", counted)
    answer = ask(chat, system, QUESTION)
    chat.wait()
    while chat.llm.engine.prefixes.make_room():
        pass
    first = len(sizes)
    chat._look_ahead.start(lambda: chat.sequence.tokens)  # type: ignore[union-attr]
    chat.wait()
    assert sizes[first:] == [64]
    ask(chat, system, QUESTION, answer, NEXT)
    assert chat.sequence.n_cached == 64


@pytest.mark.parametrize("error", [QwenError("no memory"), MemoryError()])
def test_what_fails_there_is_the_next_turns_to_tell(
    chat: LocalChat, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answer = ask(chat, QUESTION)
    chat.wait()

    def fail(*args: Any) -> Any:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(CPUBackend, "sample", fail)
        chat._look_ahead.start(lambda: [1, 2, 3])  # type: ignore[union-attr]
        chat.wait()
        assert chat.llm.engine.running == []
    assert ask(chat, QUESTION, answer, NEXT)["content"]


def test_an_answer_that_was_stopped_is_not_looked_behind(chat: LocalChat) -> None:
    events = chat.answer([QUESTION], Settings(SamplingParams(temp=0)))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(chat.llm.engine.prefixes.kept) == 1
    assert ask(chat, QUESTION)["content"]


@pytest.mark.filterwarnings("error")  # of an error in the thread
@pytest.mark.parametrize(
    "source",
    ["{{ messages | map(attribute='content') | join | upper }}", "{{ messages[0].content }}", "{{ 'x' }}"],
)
def test_a_template_that_writes_questions_otherwise_or_not_at_all(llm: LLM, source: str) -> None:
    chat = LocalChat(llm, ChatTemplate(source), look_ahead=True)
    answer = ask(chat, QUESTION, max_tokens=4)
    chat.wait()
    assert ask(chat, QUESTION, answer, NEXT, max_tokens=4)
    chat.close()


def test_a_conversation_that_fills_the_context() -> None:
    chat = LocalChat(LLM(EMBEDDED, n_ctx=40), look_ahead=True)
    answer = ask(chat, QUESTION)
    assert chat.stop_reason == "context"
    chat.wait()
    assert answer["reasoning_content"]
    chat.close()
