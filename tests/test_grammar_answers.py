"""Answers that are held to something, by the embedded model: always what they have to be, and the same as often as one asks."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from command_line import Call
from engine_runs import finish
from jsonschema import Draft202012Validator
from numpy.typing import NDArray
from random_schemas import random_schema
from serving import serving
from test_grammar import bytes_of, no_child

from qwencli.dialogue.dialogue import Settings
from qwencli.dialogue.local import LocalChat
from qwencli.engine.engine import Sequence as EngineSequence
from qwencli.errors import QwenError
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.request.request import Request
from qwencli.sampling import Constraint, SamplingParams
from qwencli.sampling.sampler import NOT_FINITE, Sampler
from qwencli.text.chat.after_thinking import AfterThinking
from qwencli.text.chat.answers import Content, Reasoning
from qwencli.text.grammar.constraints import Guided, Start, gbnf, json_object, json_schema, regex

__all__ = ["no_child"]
PERSON = {
    "type": "object",
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 1, "maximum": 99},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ü"]}, "maxItems": 3},
    },
}
PROMPT = "<|im_start|>user\nTell me of someone.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED)


def held(
    llm: LLM, constraint: Constraint | None, seed: int = 0, max_tokens: int = 100, **chosen: Any
) -> EngineSequence:
    """A sequence that has to follow a constraint."""
    prompt = llm.tokenizer.encode(PROMPT, parse_special=True)
    sampling = llm.sampling(**{"temp": 1.0, "seed": seed, **chosen})
    return EngineSequence(prompt, sampling, max_tokens, llm.tokenizer.eog_ids, constraint=constraint)


def run(llm: LLM) -> None:
    """All sequences to their ends."""
    while llm.engine.running:
        llm.engine.step()


def text(llm: LLM, seq: EngineSequence) -> str:
    return llm.tokenizer.decode(seq.generated)


@pytest.mark.usefixtures("no_child")
def test_random_schemas(llm: LLM) -> None:
    """The oracle is `jsonschema`. Some models write numbers without end: what ends by itself counts, and that is most."""
    schemas = [random_schema(seed) for seed in range(200)]
    seqs = [held(llm, json_schema(llm.vocabulary, schema)(), seed) for seed, schema in enumerate(schemas)]
    for start in range(0, 200, 50):
        finish(llm.engine, *seqs[start : start + 50])
    assert {seq.stop_reason for seq in seqs} <= {"eos", "length"}
    ended = [(text(llm, seq), schema) for seq, schema in zip(seqs, schemas) if seq.stop_reason == "eos"]
    assert len(ended) > 150
    for answer, schema in ended:
        Draft202012Validator(schema).validate(json.loads(answer))


@pytest.mark.parametrize(
    "pattern",
    [
        r"[A-Z][a-z]{2,9}( [A-Z][a-z]{2,9})?\.",
        r"(\+\d{2} )?\d{3}-\d{4}",
        "[😀-😎日本]{1,3}",
        "yes|no",
        r"a.{0,9}\n?z",
    ],
)
def test_regular_expressions(llm: LLM, pattern: str) -> None:
    start = regex(llm.vocabulary, pattern)
    seqs = [held(llm, start(), seed) for seed in range(8)]
    finish(llm.engine, *seqs)
    assert {seq.stop_reason for seq in seqs} == {"eos"}
    assert [answer for seq in seqs if not re.fullmatch(pattern, answer := text(llm, seq))] == []


def test_an_answer_is_complete_without_a_further_step(llm: LLM) -> None:
    """And at its limit complete is complete."""
    n_yes = len(llm.tokenizer.encode("yes"))
    seq = held(llm, regex(llm.vocabulary, "yes")(), max_tokens=n_yes)
    finish(llm.engine, seq)
    assert (text(llm, seq), seq.stop_reason) == ("yes", "eos")
    seq = held(llm, regex(llm.vocabulary, "yes, of course")(), max_tokens=1)
    finish(llm.engine, seq)
    assert seq.stop_reason == "length"


def test_the_same_alone_and_amid_others(llm: LLM) -> None:
    start, any_json = json_schema(llm.vocabulary, PERSON), json_object(llm.vocabulary)

    def several() -> list[EngineSequence]:
        return [
            held(llm, start(), 1),
            held(llm, start(), 0, temp=0),
            held(llm, None, 3),
            held(llm, any_json(), 4, 30),
        ]

    alone = several()
    for seq in alone:
        finish(llm.engine, seq)
    together = several()
    finish(llm.engine, *together)
    assert [seq.generated for seq in together] == [seq.generated for seq in alone]
    Draft202012Validator(PERSON).validate(json.loads(text(llm, alone[0])))


SAMPLERS: list[dict[str, Any]] = [
    {"temp": 0.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0},
    {"mirostat": 1},
    {"mirostat": 2},
    {"xtc_probability": 1.0, "xtc_threshold": 0.01},
    {"typical_p": 0.5},
    {"dynatemp_range": 0.5},
    {"top_n_sigma": 1.0},
    {"repeat_penalty": 1.5, "presence_penalty": 2.0},
    {"dry_multiplier": 1.0},
    {"logit_bias": ((6, -np.inf), (3, 50.0))},
    {"samplers": ()},
    {"temp": 100.0, "n_probs": 5},
]


class Only:
    """A constraint to some tokens."""

    def __init__(self, allowed: Sequence[int], n_vocab: int) -> None:
        self._mask = np.isin(np.arange(n_vocab), allowed)

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_]:
        return self._mask

    def ended(self, answer: Sequence[int]) -> bool:
        return False


@pytest.mark.parametrize("chosen", SAMPLERS)
def test_every_sampler_sees_allowed_tokens_alone(chosen: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for allowed in [6], [3, 6, 500], list(range(0, 1000, 7)):
        sampler = Sampler(
            SamplingParams(**({"temp": 1.0, "seed": 5} | chosen)), constraint=Only(allowed, 1000)
        )
        assert sampler.draw([], 0) is None
        tokens = [6, 500]
        for index in range(20):
            logits = rng.normal(0, 3, 1000).astype(np.float32)
            token = sampler.choose(logits, tokens, index)
            assert token in allowed
            tokens.append(token)
            if chosen.get("temp") == 0:
                assert token == max(allowed, key=lambda t: logits[t])
            if sampler.report:  # of all tokens, as the model has them
                exact = logits - np.log(np.exp(logits.astype(np.float64)).sum())
                assert sampler.report.logprob == pytest.approx(exact[token], abs=1e-4)
                assert [t for t, _ in sampler.report.top] == np.argsort(-logits)[:5].tolist()
                assert sampler.report.stages[0] == ("grammar", len(allowed))
    assert sampler.choose(np.full(1000, np.nan, np.float32), [], 0) == NOT_FINITE


class Failing(Only):
    def __init__(self, at: int, where: str) -> None:
        super().__init__(range(100), 100_000)
        self._at, self._where = at, where

    def mask(self, answer: Sequence[int]) -> NDArray[np.bool_]:
        if self._where == "mask" and len(answer) == self._at:
            raise QwenError("no way on")
        return super().mask(answer)

    def ended(self, answer: Sequence[int]) -> bool:
        if self._where == "ended" and len(answer) == self._at:
            raise QwenError("no way on")
        return False


@pytest.mark.parametrize("where", ["mask", "ended"])
def test_an_answer_with_no_way_on_fails_alone(llm: LLM, where: str) -> None:
    seqs = [held(llm, Failing(3, where)), held(llm, None, max_tokens=8)]
    finish(llm.engine, *seqs)
    assert (seqs[0].stop_reason, str(seqs[0].error), len(seqs[0].generated)) == ("error", "no way on", 3)
    assert seqs[1].stop_reason in ("eos", "length")
    request = Request(seqs[1].tokens[:5], SamplingParams(temp=0), 20, grammar=lambda: Failing(2, where))
    with pytest.raises(QwenError, match="no way on"):
        list(llm.run(llm.begin(request)))
    assert llm.engine.running == []


def test_tokens_that_are_given_have_to_fit(llm: LLM) -> None:
    seqs = [held(llm, regex(llm.vocabulary, "yes, .{0,5}")()) for _ in range(2)]
    for seq, given in zip(seqs, ("yes, ", "no")):
        llm.engine.submit(seq)
        llm.engine.extend(seq, llm.tokenizer.encode(given))
    run(llm)
    assert re.fullmatch("yes, .{0,5}", text(llm, seqs[0]))
    assert "cannot follow its grammar after 1 tokens" in str(seqs[1].error)


# Steps that are done again


def answer_with_interrupts(llm: LLM, start: Start, at: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """With Ctrl-C after the matcher has worked for the `at`-th time."""
    calls, check = 0, Guided._check

    def interrupted(self: Guided, answer: Sequence[int]) -> None:
        nonlocal calls
        check(self, answer)
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    seq = held(llm, start(), 2)
    with monkeypatch.context() as m:
        m.setattr(Guided, "_check", interrupted)
        llm.engine.submit(seq)
        with pytest.raises(KeyboardInterrupt):
            run(llm)
        run(llm)
    assert seq.stop_reason == "eos"
    return seq.generated


def test_a_step_that_is_done_again_changes_nothing(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    start = json_schema(llm.vocabulary, PERSON)
    whole = held(llm, start(), 2)
    finish(llm.engine, whole)
    for at in range(1, 12):
        found = answer_with_interrupts(llm, start, at, monkeypatch)
        json.loads(llm.tokenizer.decode(found))
        assert found == whole.generated


def test_ctrl_c_while_forced_text_becomes_tokens(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must not get lost in machine code, nor the answer with it."""
    start = regex(llm.vocabulary, "The answer is [a-z]{3}")
    constraint = start()
    with monkeypatch.context() as m:

        def interrupt(*args: object) -> None:
            raise KeyboardInterrupt

        m.setattr(llm.vocabulary._tokenizer, "encode", interrupt)
        with pytest.raises(KeyboardInterrupt):
            constraint.mask([])
    seq = held(llm, constraint)
    finish(llm.engine, seq)
    assert re.fullmatch("The answer is [a-z]{3}", text(llm, seq))


# Thinking


def test_thinking_is_free_but_for_its_end(llm: LLM) -> None:
    tokenizer, inner = llm.tokenizer, json_object(llm.vocabulary)
    opening, closing, blank = (tokenizer.encode(word)[0] for word in ("<think>", "</think>", "\n\n"))
    only_json = inner().mask([])
    assert only_json is not None

    def allowed(answer: list[int], inside: bool = False) -> NDArray[np.bool_]:
        held_to = AfterThinking(inner(), tokenizer, inside)
        mask = held_to.mask(answer)
        assert mask is not None
        assert held_to.ended(answer) == (set(np.flatnonzero(mask)) == tokenizer.eog_ids)
        return mask

    assert np.flatnonzero(allowed([]) != only_json).tolist() == [opening]
    empty = [i for i, word in enumerate(tokenizer.all_bytes()) if not word]
    assert np.flatnonzero(~allowed([opening])).tolist() == sorted(
        {*tokenizer.control_ids, *tokenizer.eog_ids, *empty}
    )
    for end in [closing], bytes_of(llm, "</think>"):
        thought = [opening, *tokenizer.encode("Hm. "), *end]
        assert (allowed(thought) & ~only_json)[blank]
        assert (allowed([*thought, blank]) == only_json).all()
        for answer in [*thought, blank, *tokenizer.encode("{}")], [*thought, *tokenizer.encode("{}")]:
            assert set(np.flatnonzero(allowed(answer))) == tokenizer.eog_ids
    assert set(np.flatnonzero(allowed(tokenizer.encode("{}")))) == tokenizer.eog_ids  # without thinking
    closes = [
        word
        for word, able in zip(tokenizer.all_bytes(), allowed(bytes_of(llm, "x</think"), True))
        if able and word.startswith(b">")
    ]
    assert b">" in closes
    assert {word[1:].strip() for word in closes} == {b""}


@pytest.mark.parametrize("settings", [{}, {"reasoning_budget": 4}, {"think": False}])
def test_a_model_that_thinks_is_held_to_it_behind_its_thinking(llm: LLM, settings: dict[str, Any]) -> None:
    chat = LocalChat(llm, grammar=json_schema(llm.vocabulary, PERSON))
    for seed in range(3):
        chosen = Settings(SamplingParams(temp=1.0, seed=seed), 200, **settings)
        events = list(chat.answer([{"role": "user", "content": "Hello!"}], chosen))
        assert any(isinstance(e, Reasoning) for e in events) == (settings.get("think") is not False)
        if chat.stop_reason == "eos":
            answer = "".join(e.text for e in events if isinstance(e, Content))
            Draft202012Validator(PERSON).validate(json.loads(answer))


def test_a_text_that_goes_on_is_held_to_it_at_once(llm: LLM) -> None:
    chat = LocalChat(llm, grammar=regex(llm.vocabulary, "[0-9]{3}"), ignore_eos=True)
    said = "".join(
        e.text for e in chat.go_on("1 + 1 = ", Settings(SamplingParams(temp=1.0))) if isinstance(e, Content)
    )
    assert re.fullmatch("[0-9]{3}", said)
    assert chat.stop_reason == "eos"


@pytest.mark.parametrize("bias", [0.0, 100.0])
def test_a_grammar_says_where_an_answer_ends_whatever_is_ignored(llm: LLM, bias: float) -> None:
    """The same from the library and from both HTTP APIs: an end token that the grammar allows is never part of the answer."""
    prompt, ends = "1 + 1 = ", sorted(llm.tokenizer.eog_ids)
    grammar, biases = "root ::= [0-9]{1,3}", [(token, bias) for token in ends]
    request = Request(
        llm.tokenizer.encode(prompt),
        llm.sampling(temp=0, logit_bias=biases),
        20,
        ignore_eos=True,
        grammar=gbnf(llm.vocabulary, grammar),
    )
    answer = llm.begin(request)
    said = "".join(llm.run(answer))
    body = {"prompt": prompt, "grammar": grammar, "temperature": 0, "max_tokens": 20}
    body |= {"logit_bias": biases, "ignore_eos": True, "return_tokens": True}
    with serving() as server:
        own = httpx.post(f"{server.url}/completion", json=body, timeout=60).json()
        [choice] = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"]
    assert re.fullmatch("[0-9]{1,3}", said)
    assert not set(answer.sequence.generated) & set(ends)
    assert (own["content"], own["tokens"], own["stop_type"]) == (said, answer.sequence.generated, "eos")
    assert (choice["text"], choice["tokens"], choice["finish_reason"]) == (said, own["tokens"], "stop")


# Commands


def test_commands(call: Call, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(PERSON), encoding="utf-8")
    (tmp_path / "list.gbnf").write_text(
        'root ::= "- " word "\\n" root | "."\nword ::= [a-z]{1,4}', encoding="utf-8"
    )
    ways: list[tuple[list[object], str]] = [
        (["--regex", "[0-9]{2}-[a-z]"], "[0-9]{2}-[a-z]"),
        (["--grammar", 'root ::= "yes" | "no"'], "yes|no"),
        (["--grammar", 'start: "yes" | "no"'], "yes|no"),
        (["--grammar", tmp_path / "list.gbnf"], r"(- [a-z]{1,4}\n){0,9}\.?"),
        (["--json-schema", '{"enum": [1, "x"]}'], '1|"x"'),
    ]
    for options, pattern in ways:
        done = call("run", "-q", "--raw", "-p", "Once", "-n", 30, *options)
        assert (done.code, done.err) == (0, "")
        assert re.fullmatch(pattern, done.out) or len(done.out) > 60, done.out
    done = call(
        "run", "-q", "-p", "Who?", "--no-think", "--json-schema", tmp_path / "schema.json", "--json", "-s", 1
    )
    Draft202012Validator(PERSON).validate(json.loads(json.loads(done.out)["text"]))
    done = call("chat", "-q", "--no-think", "--regex", "[a-z]{3}", stdin=b"Hello\nAnd now?\n")
    assert (done.code, bool(re.fullmatch("[a-z]{3}\n[a-z]{3}\n", done.out))) == (0, True)


@pytest.mark.parametrize(
    ("args", "code", "error"),
    [
        (["run", "--regex", "("], 1, "the regular expression cannot be used: "),
        (["run", "--json-schema", "none.json"], 1, "none.json: cannot be read"),
        (["run", "--json-schema", '{"type": 1}'], 1, "the JSON schema cannot be used"),
        (["chat", "--grammar", "root ::= x"], 1, "refers to 'x'"),
        (
            ["run", "--regex", "a", "--grammar", "root ::= x"],
            2,
            "give one of --json-schema, --grammar and --regex",
        ),
        (
            ["chat", "--url", "http://localhost:1", "--regex", "a"],
            2,
            "are for models on this machine, not for --url",
        ),
    ],
)
def test_commands_say_what_is_wrong_before_they_answer(
    call: Call, args: list[str], code: int, error: str
) -> None:
    done = call(args[0], "-q", *(["-p", "x"] if args[0] == "run" else []), *args[1:])
    assert (done.code, done.out) == (code, "")
    assert error in done.err
