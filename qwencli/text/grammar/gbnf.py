"""Translates llama.cpp's grammars (GBNF) to llguidance's Lark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from ...errors import InputError

MAX_TEXT = 128 * 1024
"""Characters. Reading them takes a tenth of a second, in which other threads get little."""
MAX_DEPTH = 50
"""Of parentheses within each other."""
MAX_NODES = 3 * MAX_DEPTH
"""Of nodes within each other: each pair of parentheses may hold alternatives of sequences, and be repeated."""
TOKEN = re.compile(
    r"""
    (?P<rule>[A-Za-z_][\w-]*)\s*::= | (?P<name>[A-Za-z_][\w-]*)
  | "(?P<literal>(?:[^"\\]|\\.)*)" | \[(?P<chars>(?:[^\]\\]|\\.)*)\]
  | (?P<repeat>[*+?]|\{\s*\d+\s*(?:,\s*\d*\s*)?\}) | (?P<mark>[().|])
  | (?P<blank>(?:\s|\#[^\n]*)+) | (?P<other>.)""",
    re.X | re.A | re.S,
)
"""llama.cpp ends a rule at the end of its line; here it ends at the next rule's name, which accepts all that llama.cpp does."""
CHARACTER = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))|(.)", re.S)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", **{c: c for c in "\\\"[]-^/'"}}


class Node(NamedTuple):
    """A part of a rule: what it is, its text, and its own parts.

    literal and chars hold a regular expression, name a rule's name, repeat what says how often, all of a sequence, any of alternatives.
    """

    kind: str
    text: str = ""
    parts: tuple[Node, ...] = ()
    depth: int = 0

    def names(self) -> Iterator[str]:
        """The rules that it refers to."""
        if self.kind == "name":
            yield self.text
        for part in self.parts:
            yield from part.names()


def gbnf_to_lark(text: str) -> str:
    """The grammar in llguidance's Lark. Raises InputError.

    There, words are found before rules are: each the longest that is possible. So that this shows as little as it can, whatever does not
    refer to itself becomes one word, alone and with its neighbours.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"the grammar has {len(text)} characters, expected {MAX_TEXT} at most")
    rules = Parser(text).rules()
    if "root" not in rules:
        raise InputError("the grammar has no rule 'root', where it starts")
    for name, node in rules.items():
        if missing := set(node.names()) - rules.keys():
            raise InputError(f"the grammar's rule {name!r} refers to {min(missing)!r}, which does not exist")
    return Writer(rules).lark()


class Parser:
    """Reads GBNF."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._pieces = TOKEN.finditer(text)
        self._depth = 0
        self._next()

    def _next(self) -> None:
        self._piece = next(self._pieces, None)
        if self._kind == "blank":
            self._next()
        if self._kind == "other":
            raise self._error()

    @property
    def _kind(self) -> str | None:
        return self._piece.lastgroup if self._piece else None

    def _value(self) -> str:
        assert self._piece
        return self._piece[self._piece.lastgroup or 0]

    def _error(self) -> InputError:
        start = self._piece.start() if self._piece else len(self._text)
        line = self._text.count("\n", 0, start) + 1
        return InputError(f"the grammar isn't GBNF in line {line}, at {self._text[start : start + 20]!r}")

    def rules(self) -> dict[str, Node]:
        """All rules by name; of equal names the last counts. Raises InputError for what isn't GBNF."""
        rules = {}
        while self._piece:
            if self._kind != "rule":
                raise self._error()
            name = self._value()
            self._next()
            rules[name] = self._alternatives()
        return rules

    def _alternatives(self) -> Node:
        found = [self._sequence()]
        while self._kind == "mark" and self._value() == "|":
            self._next()
            found.append(self._sequence())
        return found[0] if len(found) == 1 else nested("any", "", found)

    def _sequence(self) -> Node:
        found: list[Node] = []
        while self._kind not in (None, "rule") and not (self._kind == "mark" and self._value() in "|)"):
            if self._kind == "repeat":
                if not found:
                    raise self._error()
                found[-1] = nested("repeat", re.sub(r"\s", "", self._value()), found[-1:])
                self._next()
            else:
                found.append(self._item())
        return found[0] if len(found) == 1 else nested("all", "", found)

    def _item(self) -> Node:
        kind, value = self._kind, self._value()
        if kind == "literal":
            node = Node("literal", "".join(map(escaped, self._characters(value))))
        elif kind == "chars":
            node = Node("chars", self._class(value))
        elif kind == "name":
            node = Node("name", value)
        elif value == ".":
            node = Node("chars", "(?s:.)")
        else:  # an opening parenthesis
            self._depth += 1
            if self._depth > MAX_DEPTH:
                raise InputError(
                    f"the grammar has parentheses nested {self._depth} deep, expected {MAX_DEPTH} at most"
                )
            self._next()
            node = self._alternatives()
            if self._kind != "mark" or self._value() != ")":
                raise self._error()
            self._depth -= 1
        self._next()
        return node

    def _class(self, value: str) -> str:
        """The regular expression of a class of characters."""
        negated = value.startswith("^")
        found = list(CHARACTER.finditer(value, int(negated)))
        texts, i = [], 0
        while i < len(found):
            ranged = i + 2 < len(found) and found[i + 1][0] == "-"
            first, last = self._character(found[i]), self._character(found[i + 2 if ranged else i])
            if last < first:
                raise InputError(
                    f"the grammar has characters from {first!r} to {last!r}, expected the lower one first"
                )
            texts.append(escaped(first) + (f"-{escaped(last)}" if ranged else ""))
            i += 3 if ranged else 1
        if not texts:
            raise self._error()
        return f"[{'^' * negated}{''.join(texts)}]"

    def _characters(self, value: str) -> list[str]:
        return [self._character(match) for match in CHARACTER.finditer(value)]

    def _character(self, match: re.Match[str]) -> str:
        code, escape, plain = match[1] or match[2] or match[3], match[4], match[5]
        if code and (int(code, 16) > 0x10FFFF or 0xD800 <= int(code, 16) < 0xE000):
            raise InputError(f"the grammar has {match[0]}, which isn't a character")
        if code:
            return chr(int(code, 16))
        if escape is not None and escape not in ESCAPES:
            raise self._error()
        return ESCAPES[escape] if escape is not None else plain


def nested(kind: str, text: str, parts: list[Node]) -> Node:
    """A node around others. Raises InputError where they are nested too deeply, as by `"a"****` with a thousand stars."""
    depth = 1 + max((part.depth for part in parts), default=0)
    if depth > MAX_NODES:
        raise InputError(
            f"the grammar has repetitions and parentheses nested {depth} deep, expected {MAX_NODES} at most"
        )
    return Node(kind, text, tuple(parts), depth)


def escaped(character: str) -> str:
    """A character in a regular expression."""
    return character if character.isascii() and character.isalnum() else f"\\x{{{ord(character):x}}}"


class Writer:
    """Writes rules as Lark. Rules that don't refer to themselves, directly or by others, are words, which have names in capitals there."""

    def __init__(self, rules: dict[str, Node]) -> None:
        self._rules, self._lines = rules, list[str]()
        users: dict[str, list[str]] = {name: [] for name in rules}
        left = {name: set(node.names()) for name, node in rules.items()}
        for name, used in left.items():
            for each in used:
                users[each].append(name)
        self._words, todo = set[str](), [name for name, used in left.items() if not used]
        while todo:
            name = todo.pop()
            self._words.add(name)
            for user in users[name]:
                left[user].discard(name)
                if not left[user]:
                    todo.append(user)
        self._ids = {name: i for i, name in enumerate(rules)}

    def lark(self) -> str:
        """The whole grammar."""
        todo, seen = ["root"], {"root"}
        self._lines = [f"start: {self._name('root')}"]
        while todo:
            name = todo.pop()
            node = self._rules[name]
            self._lines.append(
                f"{self._name(name)}: {self._word(node) if name in self._words else self._rule(node)}"
            )
            new = set(node.names()) - seen
            seen |= new
            todo += new
        return "\n".join(self._lines) + "\n"

    def _name(self, name: str) -> str:
        return f"{'W' if name in self._words else 'r'}{self._ids[name]}"

    def _is_word(self, node: Node) -> bool:
        return all(name in self._words for name in node.names())

    def _word(self, node: Node) -> str:
        """A part of a word, as Lark writes it."""
        if node.kind in ("literal", "chars"):
            return f"/{node.text}/" if node.text else '""'
        if node.kind == "name":
            return self._name(node.text)
        return self._joined(node.kind, node.text, map(self._word, node.parts))

    def _rule(self, node: Node) -> str:
        """A part of a rule that isn't a word, with neighbouring words joined."""
        if node.kind == "name":
            return self._name(node.text)
        if node.kind == "repeat":
            return self._joined(node.kind, node.text, map(self._rule, node.parts))
        groups: list[list[Node]] = []
        for part in node.parts if node.kind == "all" else sorted(node.parts, key=self._is_word):
            if groups and self._is_word(part) and self._is_word(groups[-1][0]):
                groups[-1].append(part)
            else:
                groups.append([part])
        return self._joined(
            node.kind,
            "",
            [
                self._new_word(Node(node.kind, "", tuple(group)))
                if self._is_word(group[0])
                else self._rule(group[0])
                for group in groups
            ],
        )

    def _new_word(self, node: Node) -> str:
        name = f"X{len(self._lines)}"
        self._lines.append(f"{name}: {self._word(node)}")
        return name

    def _joined(self, kind: str, text: str, parts: Iterator[str] | list[str]) -> str:
        if kind == "any":
            return f"({' | '.join(parts)})"
        inner = " ".join(parts) or '""'
        return f"({inner}){text}" if kind == "repeat" else f"({inner})" if " " in inner else inner
