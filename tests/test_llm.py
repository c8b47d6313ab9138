"""The library's entry: text out of the engine, where stop strings cut it, and how a answer ends."""

import re
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models

import qwencli
from qwencli.errors import ContextFull, InputError, ModelError
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM, MOST_BREAKERS
from qwencli.request.request import Request
from qwencli.request.stop_strings import StopStrings
from qwencli.sampling import SamplingParams

GREEDY = SamplingParams(temp=0)


# Stop strings


def naive_cut(text: str, stops: list[str]) -> str:
    """Read on until some stop string is complete, and cut where it began; of two that end together the longer counts."""
    for end in range(len(text) + 1):
        if found := [stop for stop in stops if stop and text[:end].endswith(stop)]:
            return text[: end - max(map(len, found))]
    return text


@pytest.mark.parametrize("seed", range(200))
def test_stop_strings_cut_the_same_however_the_text_comes_in_pieces(seed: int) -> None:
    rs = np.random.RandomState(seed)

    def some(longest: int) -> str:
        return "".join(rs.choice(list("ab\n"), rs.randint(0, longest)))

    text, stops = some(40), [some(6) for _ in range(rs.randint(0, 4))]
    cuts = sorted(rs.randint(0, len(text) + 1, 12))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)])]
    for parts in pieces, list(text), [text]:
        strings = StopStrings(stops)
        assert "".join([*map(strings.add, parts), strings.end()]) == naive_cut(text, stops)
        assert bool(strings.found) == (
            naive_cut(text, stops) != text or any(stop and text.endswith(stop) for stop in stops)
        )


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    strings = StopStrings(["END", "<x>"])
    passed_on = {"hello": "hello", " E": " ", "N": "", "d E": "ENd ", "<": "E", "x": "", "y": "<xy", "EN": ""}
    for piece, expected in passed_on.items():
        assert strings.add(piece) == expected
    assert strings.end() == "EN"
    assert not strings.found


def test_nothing_is_passed_on_after_a_stop_string() -> None:
    strings = StopStrings(["b"])
    assert [strings.add("abc"), strings.add("d"), strings.end()] == ["a", "", ""]
    assert strings.found


def test_empty_stop_strings_stop_nothing() -> None:
    strings = StopStrings(["", ""])
    assert strings.add("text") + strings.end() == "text"


# Completions on the embedded model


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


@pytest.fixture(scope="module")
def continued(llm: LLM) -> tuple[list[int], list[int], str]:
    """A prompt, the 40 tokens that follow, and their text."""
    prompt = llm.tokenizer.encode("Once upon a time")
    answer = llm.begin(Request(prompt, GREEDY, 40, ignore_eos=True))
    text = "".join(llm.run(answer))
    tokens = answer.sequence.generated
    assert len(tokens) == 40
    assert text == llm.tokenizer.decode(tokens, special=False)
    return prompt, tokens, text


def chat(llm: LLM, text: str) -> list[int]:
    assert llm.chat_template is not None
    return llm.chat_template.encode(llm.tokenizer, [{"role": "user", "content": text}], enable_thinking=False)


def test_an_answer_ends_by_itself(llm: LLM) -> None:
    answer = llm.begin(Request(chat(llm, "hello"), GREEDY, 200))
    text = "".join(llm.run(answer))
    assert text
    assert answer.sequence.stop_reason == "eos"
    assert not set(answer.sequence.generated) & llm.tokenizer.eog_ids
    longer = llm.begin(
        Request(chat(llm, "hello"), GREEDY, len(answer.sequence.generated) + 5, ignore_eos=True)
    )
    assert "".join(llm.run(longer)).startswith(text)
    assert longer.sequence.stop_reason == "length"
    assert set(longer.sequence.generated) & llm.tokenizer.eog_ids


def test_a_stop_string_ends_the_answer_and_is_left_out(
    llm: LLM, continued: tuple[list[int], list[int], str]
) -> None:
    prompt, tokens, text = continued
    stop = text[len(text) // 2 :][:7]
    answer = llm.begin(Request(prompt, GREEDY, 40, stop=["never this", stop]))
    assert "".join(llm.run(answer)) == text[: text.index(stop)]
    assert answer.sequence.stop_reason == "stop"
    assert tokens[: len(answer.sequence.generated)] == answer.sequence.generated
    assert len(answer.sequence.generated) < 40
    assert llm.engine.running == []


def test_a_stop_string_that_the_last_token_completes(
    llm: LLM, continued: tuple[list[int], list[int], str]
) -> None:
    prompt, tokens, _ = continued
    first = llm.tokenizer.decode(tokens[:1])
    answer = llm.begin(Request(prompt, GREEDY, 1, stop=[first]))
    assert "".join(llm.run(answer)) == ""
    assert answer.sequence.stop_reason == "stop"


def test_what_only_might_have_been_a_stop_string_comes_out_at_the_end(
    llm: LLM, continued: tuple[list[int], list[int], str]
) -> None:
    prompt, _, text = continued
    answer = llm.begin(Request(prompt, GREEDY, 40, stop=[text[-5:] + "\0"], ignore_eos=True))
    assert "".join(llm.run(answer)) == text
    assert answer.sequence.stop_reason == "length"


def test_half_a_character_at_the_end_becomes_a_replacement_character(llm: LLM) -> None:
    halves = 0
    for seed in range(80):  # random tokens often end inside a character
        anything = SamplingParams(temp=100, top_k=0, top_p=1, min_p=0, seed=seed)
        answer = llm.begin(Request(llm.tokenizer.encode("é🦙"), anything, 1, ignore_eos=True))
        text = "".join(llm.run(answer))
        assert text == llm.tokenizer.decode(answer.sequence.generated, special=False)
        halves += text.endswith("\ufffd")
    assert halves


def test_the_context_ends_an_answer(continued: tuple[list[int], list[int], str]) -> None:
    prompt, tokens, _ = continued
    llm = LLM(EMBEDDED, n_ctx=len(prompt) + 6)
    answer = llm.begin(Request(prompt, GREEDY, ignore_eos=True))
    list(llm.run(answer))
    assert (answer.sequence.generated, answer.sequence.stop_reason) == (tokens[:6], "context")


def test_no_tokens_asked_for(llm: LLM, continued: tuple[list[int], list[int], str]) -> None:
    answer = llm.begin(Request(continued[0], GREEDY, 0))
    assert list(llm.run(answer)) == []
    assert answer.sequence.stop_reason == "length"


def test_who_stops_reading_stops_the_work(llm: LLM, continued: tuple[list[int], list[int], str]) -> None:
    answer = llm.begin(Request(continued[0], GREEDY))
    run = llm.run(answer)
    next(run)
    assert llm.engine.running == [answer.sequence]
    run.close()
    assert answer.sequence.stop_reason == "cancelled"
    assert llm.engine.running == []


def test_two_completions_in_turn_keep_their_own_text(
    llm: LLM, continued: tuple[list[int], list[int], str]
) -> None:
    prompts = [continued[0], chat(llm, "hello")]
    alone = ["".join(llm.stream(prompt, 30, GREEDY)) for prompt in prompts]
    streams, texts = [llm.stream(prompt, 30, GREEDY) for prompt in prompts], ["", ""]
    while (pieces := [next(stream, "") for stream in streams]) != ["", ""]:
        texts = [text + piece for text, piece in zip(texts, pieces)]
    assert texts == alone


def test_progress_is_told_after_each_step(llm: LLM) -> None:
    prompt = llm.tokenizer.encode("a story " * 300)
    done: list[int] = []
    list(llm.run(llm.begin(Request(prompt, GREEDY, 3)), on_step=lambda n, total: done.append(n)))
    assert done[0] < len(prompt) == done[-1]
    assert done == sorted(done)


def test_an_empty_prompt(llm: LLM) -> None:
    with pytest.raises(InputError, match="the prompt is empty"):
        list(llm.stream([]))


def test_seeds_repeat(llm: LLM, continued: tuple[list[int], list[int], str]) -> None:
    a, b, c = (
        "".join(llm.stream(continued[0], 20, qwencli.SamplingParams(temp=2.0, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert a == b != c


def test_sampling_starts_from_what_the_file_recommends(llm: LLM) -> None:
    recommended = {
        key.removeprefix("general.sampling."): field.contents()
        for key, field in gguf.GGUFReader(EMBEDDED).fields.items()
        if key.startswith("general.sampling.")
    }
    defaults = {"temp": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    for name, default in defaults.items():
        assert getattr(llm.sampling(), name) == pytest.approx(recommended.get(name, default))
    assert llm.sampling(temp=0.25, top_k=None, seed=3) == SamplingParams(
        **{**vars(llm.sampling()), "temp": 0.25, "seed": 3}
    )


def test_of_ever_new_breakers_few_are_kept(llm: LLM) -> None:
    params = [
        SamplingParams(dry_multiplier=1, dry_sequence_breakers=(f"{i}",)) for i in range(2 * MOST_BREAKERS)
    ]
    found = [llm.breakers(each) for each in params]
    assert len(llm._breakers) == MOST_BREAKERS
    assert llm.breakers(params[0]) == found[0] != found[1]


def test_the_context_is_the_models_own_by_default(llm: LLM) -> None:
    trained = gguf.GGUFReader(EMBEDDED).fields["qwen3.context_length"].contents()
    assert llm.engine.n_ctx == llm.model.config.n_ctx == trained


def test_a_file_without_a_chat_template(tmp_path: Path) -> None:
    """Nor with a vocabulary: the error names what is missing."""
    c = tiny_models.config()
    tiny_models.write_gguf(tmp_path / "m.gguf", c, tiny_models.weights(c, 1))
    with pytest.raises(
        qwencli.QwenError,
        match=re.escape(f"{tmp_path / 'm.gguf'}: metadata key 'tokenizer.ggml.model' is missing"),
    ):
        LLM(tmp_path / "m.gguf")


# Tensors


def test_values_of_tensors(llm: LLM) -> None:
    """The likeliest next token is the one that the answer begins with, however much of the graph is given; nothing is left in the cache."""
    prompt = llm.tokenizer.encode("Once upon a time")
    answer = llm.begin(Request(prompt, GREEDY, 1))
    list(llm.run(answer))
    taken = llm.engine.backend.cache._pages.n_taken
    values = llm.values(prompt, ["l_out-2", "result_norm", "result_output"])
    assert values["l_out-2"].shape == (len(prompt), llm.model.config.n_embd)
    logits = values["result_output"]
    assert [int(logits.argmax())] == answer.sequence.generated
    for name in "l_out-2", "result_norm":
        tokens = prompt if name == "l_out-2" else []
        again = llm.values(tokens, ["result_output"], {name: values[name]})
        assert np.array_equal(again["result_output"], logits)
    assert llm.engine.backend.cache._pages.n_taken == taken


def test_values_that_there_are_not(llm: LLM) -> None:
    with pytest.raises(ModelError, match="no tensor is named 'l_out-99'"):
        llm.values([1], ["l_out-99"])
    with pytest.raises(ModelError, match="a handle"):
        llm.values([1], ["kv-0"])
    with pytest.raises(InputError, match="outside the vocabulary"):
        llm.values([llm.model.config.n_vocab], ["result_output"])
    with pytest.raises(InputError, match="needs a batch"):
        llm.values([], ["result_output"])
    with pytest.raises(ContextFull, match="1025 tokens, more than the context of 1024"):
        llm.values([1] * 1025, ["result_output"])
