"""Schemas, grammars and regular expressions: which texts they let through, and what is refused before anything is generated."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny_vocabulary

from qwencli.errors import InputError, QwenError
from qwencli.gguf.file import GGUFFile
from qwencli.hub.places import EMBEDDED
from qwencli.llm import LLM
from qwencli.system import confined
from qwencli.text.grammar import child as grammar_child
from qwencli.text.grammar import constraints as grammar
from qwencli.text.grammar.constraints import Start, gbnf, json_object, json_schema, lark, regex
from qwencli.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(EMBEDDED, backend="numpy")


@pytest.fixture
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """Grammars are not tried in a process first: where there are many."""

    class Child:
        returncode = 0

        def communicate(self, *args: object) -> tuple[bytes, None]:
            return b"", None

        def kill(self) -> None:
            pass

    monkeypatch.setattr(confined, "start", lambda *args: Child())


@cache
def ids(tokenizer: Tokenizer) -> dict[bytes, int]:
    return {tokenizer.token_bytes(i): i for i in range(tokenizer.n_vocab)}


def bytes_of(llm: LLM, text: str) -> list[int]:
    """A text as tokens of a byte each: what is let through does not depend on how it is cut."""
    return [ids(llm.tokenizer)[bytes((byte,))] for byte in text.encode()]


def passes(llm: LLM, start: Start, text: str) -> bool:
    """Whether a text may be a whole answer."""
    constraint, tokens = start(), bytes_of(llm, text)
    try:
        if constraint.ended(tokens):
            return True
        mask = constraint.mask(tokens)
    except QwenError:
        return False
    assert mask is not None
    ends = {bool(mask[end]) for end in llm.tokenizer.eog_ids}
    assert len(ends) == 1
    return ends.pop()


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "n": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name"],
    "additionalProperties": False,
}
JSON_TEXTS = [
    (
        SCHEMA,
        [
            '{"name":"x"}',
            '{"name": "Zoë 東京 😀", "n": 150}',
            '{\n  "name" : "a\\n\\"b\\"" ,\n  "n" : 0\n}',
            '{"name": "<|im_end|>"}',
        ],
        [
            "{}",
            '{"n":1,"name":"x"}',
            '{"name":"x","n":151}',
            '{"name":"x","n":-1}',
            '{"name":"x"',
            '{"name":"x"}}',
            '{"name":"x"} ',
            '{"name":"a\nb"}',
            '{"name":1}',
            '{"name":"x","y":1}',
            "{'name':'x'}",
            '{"name":"x",}',
            '{"name":"x","name":"y"}',
            "{" + "\n" * 9 + '"name":"x"}',
        ],
    ),
    ({"enum": ["a", 1, None, ["b"]]}, ['"a"', "1", "null", '["b"]'], ['"b"', "2", "true", "[ ]", '"a" ']),
    (
        {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ["[true]", "[true, false]"],
        ["[]", "[true,true,true]", "[1]"],
    ),
    (
        {
            "$ref": "#/$defs/t",
            "$defs": {"t": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"$ref": "#/$defs/t"}}]}},
        },
        ["null", "[]", "[[null],[]]"],
        ["[[]", "1"],
    ),
    ({"type": "string", "pattern": "^[a-z]+[0-9]$"}, ['"ab1"'], ['"ab"', '"1"', '"ab1 "']),
    ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
    ({"type": "string", "maxLength": 2}, ['""', '"日本"', '"\\n\\n"'], ['"abc"', '"日本語"']),
    (
        {"type": "number", "exclusiveMinimum": 1.5, "maximum": 2},
        ["2", "1.75", "2.0"],
        ["1.5", "2.01", "1", "02"],
    ),
    (True, ["1", "[{}]", '"x"', '{"a":[1,2.5e3]}'], ["", "tru", "1,"]),
]


@pytest.mark.parametrize(("schema", "right", "wrong"), JSON_TEXTS)
def test_json_of_a_schema(llm: LLM, schema: Any, right: list[str], wrong: list[str]) -> None:
    start = json_schema(llm.vocabulary, schema)
    assert [text for text in right if not passes(llm, start, text)] == []
    assert [text for text in wrong if passes(llm, start, text)] == []
    assert passes(llm, json_schema(llm.vocabulary, json.dumps(schema)), right[0])


def test_any_object(llm: LLM) -> None:
    start = json_object(llm.vocabulary)
    assert [passes(llm, start, text) for text in ("{}", '{"a": [1, {"b": null}]}', "[]", "1", '{"a"}')] == [
        True,
        True,
        False,
        False,
        False,
    ]


PATTERNS = [
    r"[a-z]+@[a-z]+\.(com|org)",
    r"(\+\d{2} )?\d{3}-\d{4}",
    r"[あ-ん]{2,4}!?",
    r"(?:a|ab)(?:c|bcd)*",
    "",
    r"[^\n]*\n",
    r"\w+ \w+",
    r".{0,3}",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_regular_expressions_match_as_a_whole(llm: LLM, pattern: str) -> None:
    """The oracle is `re`."""
    start, rng = regex(llm.vocabulary, pattern), random.Random(1)
    samples = [
        "me@here.org",
        "me@here.org ",
        "+49 555-1234",
        "555-1234",
        "あいう",
        "あいう!!",
        "abbcdc",
        "ac",
        "",
        "ß z",
        "line\n",
        "a b",
    ]
    samples += ["".join(rng.choices("ab cd@.é\n", k=rng.randint(0, 4))) for _ in range(40)]
    matching = [text for text in samples if re.fullmatch(pattern, text)]
    assert matching
    assert [text for text in samples if passes(llm, start, text)] == matching


# GBNF


GBNF_TEXTS = [
    ('root ::= "yes" | "no"', ["yes", "no"], ["ye", "yesno", ""]),
    ('root ::= word "ing"\nword ::= [a-z]+', ["testing", "ingsing"], ["ing", "test"]),
    (
        '# a list\nroot ::= item ("," ws item)* # of numbers\nws ::= " "?\nitem ::= [0-9]+ | "[" root "]"\n',
        ["1", "1, 22,3", "[1,[2]]"],
        ["1,", "[1", "a"],
    ),
    ('root ::= "\\u00e9\\x41\\U0001F600\\n\\t\\"\\\\"', ['éA😀\n\t"\\'], ["éA😀"]),
    ('root ::= [^"\\\\\\x00-\\x1f]{2,3} [\\]\\-a^]+', ["é[]-a^", "ab]"], ['""]', "abcd]", "abb"]),
    ('root ::= (\n  "a" |\n  "b"\n)+\n  c\nc ::= . | ""\n', ["ab", "b", "aé", "a\n"], ["c", "acc"]),
    ('root ::= a-b aB\na-b ::= "x"\naB ::= "y" | a-b', ["xy", "xx"], ["yx"]),
    ('root ::= "(" root ")" | ""', ["", "()", "((()))"], ["(", "())"]),
    (
        'root ::= [a-c]{3} "-" [0-9]{2,} ("/" [0-9]{0,1})*',
        ["abc-12", "abc-123//4"],
        ["ab-12", "abc-1", "abc-12/34"],
    ),
    ('root ::= "a" | start\nstart ::= "b"', ["a", "b"], ["ab"]),
    (
        'root ::= expr\nexpr ::= term ([-+*/] term)*\nterm ::= [a-z] | [0-9]+ | "(" expr ")"',
        ["a+12*(b-3)", "((x))"],
        ["a+", "(a", "1a"],
    ),
]


@pytest.mark.parametrize(("text", "right", "wrong"), GBNF_TEXTS)
def test_gbnf(llm: LLM, text: str, right: list[str], wrong: list[str]) -> None:
    start = gbnf(llm.vocabulary, text)
    assert [each for each in right if not passes(llm, start, each)] == []
    assert [each for each in wrong if passes(llm, start, each)] == []


def random_regular(rng: random.Random, depth: int, rules: list[str]) -> tuple[str, str]:
    """A random expression as GBNF, with rules of its own, and as a regular expression."""
    kind = rng.choice(
        ["char", "class"] if depth > 3 else ["char", "class", "all", "any", "repeat", "rule", "rule"]
    )
    if kind == "char":
        text = "".join(rng.choices("abé", k=rng.randint(1, 2)))
        return f'"{text}"', text
    if kind == "class":
        return (chars := rng.choice(["[ab]", "[^a]", "[a-b]", "[é]"])), chars
    if kind == "rule":
        inner, expression = random_regular(rng, depth + 1, rules)
        rules.append(f"r{len(rules)} ::= {inner}")
        return f"r{len(rules) - 1}", f"(?:{expression})"
    if kind == "repeat":
        inner, expression = random_regular(rng, depth + 1, rules)
        times = rng.choice(["*", "+", "?", "{2}", "{1,2}"])
        return f"({inner}){times}", f"(?:{expression}){times}"
    parts = [random_regular(rng, depth + 1, rules) for _ in range(rng.randint(2, 3))]
    joint = " " if kind == "all" else " | "
    return f"({joint.join(a for a, _ in parts)})", f"(?:{joint.strip().join(b for _, b in parts)})"


@pytest.mark.usefixtures("no_child")
@pytest.mark.parametrize("seed", range(40))
def test_gbnf_without_recursion_is_a_regular_expression(llm: LLM, seed: int) -> None:
    """The oracle is `re`: words end where they must and not where they could go on."""
    rng, rules = random.Random(seed), list[str]()
    root, expression = random_regular(rng, 0, rules)
    start = gbnf(llm.vocabulary, "\n".join([f"root ::= {root}", *rules]))
    samples = ["".join(rng.choices("abé", k=rng.randint(0, 5))) for _ in range(40)]
    assert [text for text in samples if passes(llm, start, text)] == [
        text for text in samples if re.fullmatch(expression, text)
    ]


def test_lark(llm: LLM) -> None:
    start = lark(
        llm.vocabulary, 'start: greeting ("," " " NAME)+ "!"\ngreeting: "Hello" | "Hi"\nNAME: /[A-Z][a-z]+/'
    )
    texts = ["Hello, Bob!", "Hi, Bob, Eve!", "Hello!", "Hello, bob!", "hi, Bob!"]
    assert [passes(llm, start, text) for text in texts] == [True, True, False, False, False]


def test_the_language_of_a_grammar_is_seen(llm: LLM) -> None:
    in_lark = ['start: "a"', 'A: "a"\nstart : A', 'start[lazy]: "a"']
    in_gbnf = ['root ::= start\nstart ::= "a"', 'start ::= "b"\nroot ::= "a"']
    assert [
        text for text in in_lark + in_gbnf if not passes(llm, grammar.grammar(llm.vocabulary, text), "a")
    ] == []


# Tokens


def test_no_control_token_is_text(llm: LLM) -> None:
    """Not even where its text may stand."""
    start = json_schema(llm.vocabulary, {"const": "<|im_end|><|im_start|><|endoftext|>"})
    tokens = bytes_of(llm, '"<|im_end|><|im_start|><|endoftext|>"')
    constraint, free = start(), regex(llm.vocabulary, "(.|\n)*")()
    for n in range(len(tokens)):
        for each in constraint, free:
            mask = each.mask(tokens[:n])
            assert mask is not None
            assert not mask[[i for i in llm.tokenizer.control_ids if i not in llm.tokenizer.eog_ids]].any()
            assert mask[list(llm.tokenizer.eog_ids)].all() == (each is free)
        assert len(llm.tokenizer.control_ids) == 3
    assert constraint.ended(tokens)


def test_a_character_may_be_split_over_tokens(llm: LLM) -> None:
    constraint, tokens = regex(llm.vocabulary, "[😀😁]")(), bytes_of(llm, "😀")
    for n in range(4):
        mask = constraint.mask(tokens[:n])
        assert mask is not None
        texts = {llm.tokenizer.token_bytes(int(i)) for i in mask.nonzero()[0]}
        assert texts <= {c.encode()[n:m] for c in "😀😁" for m in range(n + 1, 5)}
        assert "😀".encode()[n : n + 1] in texts
    assert constraint.ended(tokens)


@pytest.mark.parametrize("marks", [("<|endoftext|>", None), (None, None)])
def test_vocabularies_with_tokens_of_all_kinds(tmp_path: Path, marks: tuple[str | None, str | None]) -> None:
    """Those that only fill up have no text, and are never let through; user-defined ones are text."""
    tiny_vocabulary.write_gguf(tmp_path / "v.gguf", eos=marks[0])
    tokenizer = Tokenizer(GGUFFile(tmp_path / "v.gguf"))
    words = [tokenizer.token_bytes(i) for i in range(tokenizer.n_vocab)]
    assert tokenizer.all_bytes() == words
    mask = regex(grammar.Vocabulary(tokenizer), "(.|\n)+")().mask([])
    assert mask is not None
    assert len(mask) == tokenizer.n_vocab
    assert not mask[words.index(b"")]
    for text, allowed in {
        "<think>": True,
        "= =": True,
        "<|im_start|>": False,
        "<|endoftext|>": False,
        "<unk>": False,
    }.items():
        assert mask[tokenizer.encode(text, parse_special=True)[0]] == allowed, text


def test_the_vocabulary_of_qwen(shared: Path) -> None:
    tokenizer = Tokenizer(GGUFFile(shared / "data" / "ggml-vocab-qwen2.gguf"))
    words = tokenizer.all_bytes()
    assert [words[i] for i in range(0, tokenizer.n_vocab, 7)] == [
        tokenizer.token_bytes(i) for i in range(0, tokenizer.n_vocab, 7)
    ]
    constraint = json_schema(grammar.Vocabulary(tokenizer), {"type": "object"})()
    text = tokenizer.encode('{"a": [true, null, "Zoë 東京"]}')
    for n in range(len(text)):
        mask = constraint.mask(text[:n])
        assert mask is not None
        assert mask[text[n]]
    assert constraint.ended(text)


# What cannot be used


REFUSED: list[tuple[Callable[..., Start], Any, str]] = [
    (json_schema, "{", "isn't JSON: Expecting property name"),
    (json_schema, "[1]", r"is \[1\], expected an object"),
    (json_schema, False, "is false, expected an object"),
    (json_schema, {"type": "text"}, "Invalid type: text"),
    (json_schema, {"not": {"type": "string"}}, 'Unimplemented keys: \\["not"\\]'),
    (json_schema, {"type": "array", "uniqueItems": True}, "uniqueItems"),
    (json_schema, {"x-guidance": {"lenient": True}, "if": {}, "then": {}}, "if"),
    (json_schema, {"$ref": "#/$defs/none"}, "none"),
    (json_schema, {"$ref": "http://localhost/x.json"}, "localhost"),
    (json_schema, {"$ref": "#"}, "no token can follow"),
    (json_schema, {"minimum": float("nan")}, "isn't JSON"),
    (json_schema, {"allOf": [{"type": "string"}, {"type": "null"}]}, "nsatisfiable"),
    (json_schema, {"type": "string", "pattern": "("}, "regex"),
    (json_schema, {"const": "x" * 300_000}, "has 3000.. characters, expected 262144 at most"),
    (regex, "(", "invalid regex"),
    (regex, "a(?=b)", "invalid regex"),
    (regex, "a" * 20_000, "20000 characters"),
    (lark, "", "Empty"),
    (lark, "start: a", "a"),
    (lark, "start: start", "no token can follow"),
    (lark, 'begin: "a"', "start"),
    (gbnf, "", "no rule 'root'"),
    (gbnf, 'start ::= "a"', "no rule 'root'"),
    (gbnf, 'root ::= "a" b', "rule 'root' refers to 'b'"),
    (gbnf, 'root ::= "a', "isn't GBNF in line 1, at '\"a'"),
    (gbnf, 'root ::= "a"\n\n b ::= ("x"', "isn't GBNF in line 3"),
    (gbnf, 'root ::= "a")', "isn't GBNF in line 1, at '\\)'"),
    (gbnf, "root ::= * ", "isn't GBNF"),
    (gbnf, "root ::= [b-a]", "from 'b' to 'a'"),
    (gbnf, "root ::= []", "isn't GBNF"),
    (gbnf, 'root ::= "\\q"', "isn't GBNF"),
    (gbnf, 'root ::= "\\ud800"', "isn't a character"),
    (gbnf, "root ::= " + "(" * 60 + '"a"' + ")" * 60, "parentheses nested 51 deep"),
    (gbnf, 'root ::= "a"' + "*" * 5000, "151 deep"),
    (gbnf, "root ::= " + "(" * 45 + '"a"' + ")****" * 45, "151 deep"),
    (gbnf, "root ::= " + '| "a" ' * 30_000, "has 180009 characters, expected 131072 at most"),
    (gbnf, "root ::= root", "no token can follow"),
    (gbnf, "root ::= <think>", "isn't GBNF"),
]


@pytest.mark.parametrize(("kind", "text", "error"), REFUSED)
def test_what_cannot_be_used_is_refused_in_a_line(
    llm: LLM, kind: Callable[..., Start], text: Any, error: str
) -> None:
    with pytest.raises(InputError, match=error) as info:
        kind(llm.vocabulary, text)
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 500


def nested(n: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(n):
        schema = {"items": schema}
    return schema


CHAIN = "\n".join(f"A{i}: A{i + 1}" for i in range(5000))
HOSTILE: list[tuple[Callable[..., Start], Any]] = [
    (lark, f'start: A0\n{CHAIN}\nA5000: "x"'),  # the stack
    (
        json_schema,
        {
            "$ref": "#/$defs/0",
            "$defs": {f"{i}": {"$ref": f"#/$defs/{i + 1}"} for i in range(5000)} | {"5000": {}},
        },
    ),
    (json_schema, nested(200)),
    (json_schema, nested(100_000)),
    (json_schema, "[" * 100_000),
    (
        gbnf,
        "root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1} a{i + 1}" for i in range(3000)) + '\na3000 ::= "x"',
    ),
    (gbnf, 'root ::= "a"' + "(" * 60_000),
    (gbnf, "root ::= " + "a" * 100_000),
    (gbnf, 'root ::= "' + "\\" * 50_000),
    (lark, 'start: "a"{1000000}'),
    (regex, "(a{1000}){1000}"),
    (regex, "(" * 8000),
    (lark, "start: " + "(" * 50_000),
    (
        json_schema,
        {
            "allOf": [
                {"anyOf": [{"properties": {f"{i}{j}": {"pattern": f"x{i}"}}} for i in range(30)]}
                for j in range(5)
            ]
        },
    ),
    (json_schema, {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}),
]


@pytest.mark.parametrize(("kind", "text"), HOSTILE)
def test_a_hostile_grammar_takes_nothing_down(llm: LLM, kind: Callable[..., Start], text: Any) -> None:
    with pytest.raises(InputError):
        kind(llm.vocabulary, text)


def test_a_grammar_that_takes_forever_to_compile(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "CPU_SECONDS", 60)  # which a busy machine's clock would let it have
    monkeypatch.setattr(grammar, "CLOCK_SECONDS", 0.5)
    with pytest.raises(InputError, match="takes too long to compile"):
        json_schema(llm.vocabulary, {"type": "integer", "multipleOf": 99999989})


@pytest.mark.usefixtures("no_child")
def test_requests_share_no_limit(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one found out of a grammar, up to a limit, takes nothing from the next."""
    monkeypatch.setitem(
        grammar_child.LIMITS, "max_lexer_states", 500
    )  # twelve texts together have more, four have not
    for i in range(12):
        constraint, tokens = (
            regex(llm.vocabulary, "[ab]*a[ab]{10}!")(),
            bytes_of(llm, "".join(random.Random(i).choices("ab", k=40))),
        )
        for n in range(len(tokens)):
            assert constraint.mask(tokens[:n]) is not None


def test_a_grammar_is_tried_once(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    regex(llm.vocabulary, "once")
    monkeypatch.setattr(confined, "start", lambda *args: pytest.fail("tried again"))
    assert passes(llm, regex(llm.vocabulary, "once"), "once")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(QwenError, match=r"need the package llguidance: pip install 'qwencli\[grammar\]'$"):
        regex(LLM(EMBEDDED, backend="numpy").vocabulary, "a")
