"""Conversations with the embedded model: what is thought and what is said, and that a next turn costs only what is new."""

from collections.abc import Iterator
from typing import Any

import pytest

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.local import LocalChat
from qwencli.errors import ContextFull
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.request.request import Request
from qwencli.sampling import SamplingParams
from qwencli.text.chat.answers import Content, Reasoning
from qwencli.text.chat.template import ChatTemplate
from qwencli.text.tokenizer import Tokenizer

GREEDY = SamplingParams(temp=0)
QUESTION = {"role": "user", "content": "What is the capital of France?"}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


@pytest.fixture
def chat(llm: LLM) -> Iterator[LocalChat]:
    """With nothing in the cache."""
    while llm.engine.prefixes.make_room():
        pass
    yield LocalChat(llm)
    assert llm.engine.running == []


def ask(chat: LocalChat, *messages: dict[str, Any], **settings: Any) -> tuple[str, str]:
    """What is thought and what is said."""
    events = list(chat.answer(messages, Settings(GREEDY, **settings)))
    return tuple("".join(e.text for e in events if isinstance(e, kind)) for kind in (Reasoning, Content))  # type: ignore[return-value]


def completed(llm: LLM, prompt: list[int], n: int | None = None) -> list[int]:
    answer = llm.begin(Request(prompt, GREEDY, n))
    assert list(llm.run(answer)) or True
    return answer.sequence.generated


def test_thinking_is_told_from_what_is_said(chat: LocalChat) -> None:
    thought, said = ask(chat, QUESTION)
    assert thought
    assert said == "The capital of France is Paris."
    assert chat.llm.tokenizer.decode(chat.sequence.generated) == f"<think>\n{thought}\n</think>\n\n{said}"
    assert chat.stop_reason == "eos"


@pytest.mark.parametrize("settings", [{"think": False}, {"reasoning_budget": 0}])
def test_without_thinking_where_the_template_knows_no_switch(llm: LLM, settings: dict[str, Any]) -> None:
    chat = LocalChat(llm, ChatTemplate.named("chatml"))
    assert ask(chat, QUESTION)[0]
    assert ask(chat, QUESTION, **settings) == ("", "The capital of France is Paris.")
    assert llm.tokenizer.decode(chat.sequence.generated).startswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("settings", [{"think": False}, {"reasoning_budget": 0}])
def test_without_thinking(chat: LocalChat, settings: dict[str, Any]) -> None:
    assert ask(chat, QUESTION, **settings) == ("", "The capital of France is Paris.")
    assert chat.llm.tokenizer.decode(chat.sequence.tokens[: chat.sequence.n_prompt]).endswith(
        "<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("n", [1, 2, 5])
def test_at_its_budget_thinking_is_closed_and_the_answer_follows(chat: LocalChat, n: int) -> None:
    """The answer is the one that a prompt with the shortened thinking would get."""
    free, _ = ask(chat, QUESTION)
    thought, said = ask(chat, QUESTION, reasoning_budget=n)
    tokenizer = chat.llm.tokenizer
    assert free.startswith(thought)
    assert said
    end = tokenizer.encode("</think>")[0]
    tokens = chat.sequence.generated
    begin, rest = tokens[: tokens.index(end)], tokens[tokens.index(end) :]
    assert begin[0] == tokenizer.encode("<think>")[0]
    assert len(begin) - 1 <= n + 1, "a newline may come before the tag"
    closed = tokens[: len(begin)] + tokenizer.encode("</think>\n\n")
    prompt = chat.sequence.tokens[: chat.sequence.n_prompt]
    assert rest == [*tokenizer.encode("</think>\n\n"), *completed(chat.llm, prompt + closed)]


def test_a_budget_that_is_not_reached_changes_nothing(chat: LocalChat) -> None:
    assert ask(chat, QUESTION, reasoning_budget=500) == ask(chat, QUESTION)


def test_a_template_that_begins_the_thinking(llm: LLM) -> None:
    always = ChatTemplate(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n"
    )
    chat = LocalChat(llm, always)
    thought, said = ask(chat, QUESTION)
    assert thought
    assert said == "The capital of France is Paris."
    assert ask(chat, QUESTION, think=False) == ("", "The capital of France is Paris.")
    assert len(llm.tokenizer.encode(ask(chat, QUESTION, reasoning_budget=2)[0])) <= 2


def test_a_next_turn_computes_only_what_is_new(chat: LocalChat) -> None:
    """With a template that writes answers as they were; and as an engine answers that has seen nothing before."""
    plain = ChatTemplate.named("chatml")
    chat = LocalChat(chat.llm, plain)
    ask(chat, QUESTION)
    said = chat.llm.tokenizer.decode(chat.sequence.generated)
    first = len(chat.sequence.tokens)
    assert chat.stats()["cache_n"] == 0
    turns = QUESTION, {"role": "assistant", "content": said}, {"role": "user", "content": "And of Italy?"}
    again = ask(chat, *turns)
    assert chat.stats()["cache_n"] == first, "all that was said, to the last token"
    assert chat.stats()["prompt_n"] == chat.sequence.n_prompt - first
    fresh = LLM(EMBEDDED)
    assert ask(LocalChat(fresh, plain), *turns) == again
    assert completed(fresh, chat.sequence.tokens[: chat.sequence.n_prompt]) == chat.sequence.generated


def test_another_branch_uses_what_it_has_in_common(chat: LocalChat) -> None:
    ask(chat, {"role": "system", "content": "Answer in short sentences."}, QUESTION)
    ask(
        chat,
        {"role": "system", "content": "Answer in short sentences."},
        {"role": "user", "content": "Hello"},
    )
    assert chat.stats()["cache_n"] >= len(chat.llm.tokenizer.encode("Answer in short sentences."))


def test_an_answer_stands_in_the_conversation_with_the_tokens_it_was_written_in(llm: LLM) -> None:
    """A model may write a word in other tokens than the tokenizer cuts it into: here it is made to write single letters."""
    chat = LocalChat(llm, ChatTemplate.named("chatml"))
    letters = [llm.tokenizer.encode(c)[0] for c in " the"]
    assert len(llm.tokenizer.encode(" the")) == 1
    events = chat.answer([QUESTION], Settings(GREEDY, 20, think=False))
    next(events)
    llm.engine.extend(chat.sequence, letters)
    events.close()  # type: ignore[attr-defined]
    written = list(chat.sequence.tokens)
    assert written[-4:] == letters
    said = {"role": "assistant", "content": llm.tokenizer.decode(chat.sequence.generated)}
    list(chat.answer([QUESTION, said, QUESTION], Settings(GREEDY, 1)))
    assert chat.sequence.tokens[: len(written)] == written


def test_a_text_that_no_tokens_could_make_fit_is_not_cut_into_them(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hostile template writes up to 32 MB, which would take half a minute."""
    chat = LocalChat(llm, ChatTemplate("{{ 'a' * 3000000 }}"))
    monkeypatch.setattr(Tokenizer, "encode", None)
    with pytest.raises(
        ContextFull,
        match=r"the conversation has 3000000 characters, more than the context of 1024 tokens can hold",
    ):
        ask(chat, QUESTION)
    with pytest.raises(ContextFull):
        list(chat.go_on("a" * 3000000, Settings(GREEDY)))


def test_a_conversation_that_leaves_no_room_for_an_answer() -> None:
    llm = LLM(EMBEDDED, n_ctx=40)
    with pytest.raises(
        ContextFull,
        match=r"the conversation has \d+ tokens, which leaves no room for an answer in the context of 40",
    ):
        ask(LocalChat(llm), {"role": "user", "content": "word " * 60})


def test_an_answer_that_is_closed_early(chat: LocalChat) -> None:
    events = chat.answer([QUESTION], Settings(GREEDY))
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert chat.stop_reason == "cancelled"
    assert ask(chat, QUESTION)[1] == "The capital of France is Paris."


def test_an_answer_that_cannot_begin_leaves_the_last_one_as_it_is(
    chat: LocalChat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come while the vocabulary is searched for what DRY looks at."""

    def interrupt(sampling: SamplingParams) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chat.llm, "breakers", interrupt)
        with pytest.raises(KeyboardInterrupt):
            ask(chat, QUESTION)
    ask(chat, QUESTION)
    told = chat._told
    monkeypatch.setattr(chat.llm, "breakers", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ask(chat, QUESTION, QUESTION)
    assert chat._told == told


def test_stats_name_the_context(chat: LocalChat) -> None:
    assert chat.stats() == {}
    ask(chat, QUESTION)
    stats = chat.stats()
    assert stats["context_n"] == len(chat.sequence.tokens)
    assert stats["n_ctx"] == chat.llm.engine.n_ctx
    assert stats["predicted_n"] == len(chat.sequence.generated)


def test_templates_get_the_arguments_of_tool_calls_as_objects(llm: LLM) -> None:
    """OpenAI's API, and a saved chat, have them as the text of JSON; Qwen's templates walk through them."""
    template = ChatTemplate(
        "{% for m in messages if m.tool_calls %}{% for name, value in m.tool_calls[0].function.arguments.items() %}"
        "{{ name }}={{ value }};{% endfor %}{% endfor %}"
    )
    call = {
        "id": "call_0",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Köln", "days": 3}'},
    }
    chat = LocalChat(llm, template)
    for arguments in call["function"]["arguments"], {"city": "Köln", "days": 3}:  # type: ignore[index]
        message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [call | {"function": {"name": "weather", "arguments": arguments}}],
        }
        list(chat.answer([QUESTION, message], Settings(GREEDY, 0)))
        assert llm.tokenizer.decode(chat.sequence.tokens) == "city=Köln;days=3;"
