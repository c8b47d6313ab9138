"""What the table says of an option of llama-server's."""

from __future__ import annotations

from collections.abc import Collection

YES = "1", "on", "true", "enabled"
NO = "0", "off", "false", "disabled"
"""How llama.cpp writes booleans."""
AUTO = "-1", "auto"


class Kind:
    """What becomes of an option, in the words of docs/server.md."""

    SAME = "the same"
    DIFFERENT = "different"
    NO_MEANING = "no meaning here"
    REFUSED = "refused"
    PRINTS = "prints and exits"


class Entry:
    """An option of llama-server's, and what becomes of it here.

    `names` are its spellings, `negations` those that say no; `values` names the values that it takes, none for a switch. `words` are the
    only values that it takes, and it may stand without any. `note` says what is different, why it has no meaning, or why it is refused and
    what to do instead. Values and spellings in `nothing` ask for nothing, so they are taken silently; so is the value of the option
    `same_as`, where both are given.
    """

    def __init__(
        self, kind: str, spec: str, variable: str | None, note: str, nothing: str, same_as: str | None
    ) -> None:
        """`spec` is written as in llama.cpp's help: `-fa, --flash-attn [on|off|auto]`, `-kvo, --kv-offload / -nkvo, --no-kv-offload`."""
        positive, _, negative = spec.partition(" / ")
        words = positive.split()
        n_names = sum(word[0] == "-" for word in words)
        self.kind, self.variable, self.note, self.same_as = kind, variable, note, same_as
        self.names = tuple(word.rstrip(",") for word in words[:n_names])
        self.values = tuple(words[n_names:])
        self.negations = tuple(negative.replace(",", "").split())
        self.nothing = frozenset(nothing.split(" ")) if nothing else frozenset[str]()
        self.words = (
            tuple(self.values[0][1:-1].split("|")) if self.values and self.values[0][0] == "[" else ()
        )

    @property
    def name(self) -> str:
        """The spelling that says most: the first long one."""
        return next((name for name in self.names if name.startswith("--")), self.names[0])

    @property
    def negated_variable(self) -> str | None:
        """The variable that says no, whatever its value, as in llama.cpp."""
        if not self.variable or not self.negations or not self.variable.startswith("LLAMA_ARG_"):
            return None
        return self.variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")

    def asks_for_nothing(self, spelling: str, values: Collection[str]) -> bool:
        return spelling in self.nothing or any(value.strip() in self.nothing for value in values)


def same(spec: str, variable: str | None = None) -> Entry:
    """It means what it means there."""
    return Entry(Kind.SAME, spec, variable, "", "", None)


def different(spec: str, variable: str | None = None, note: str = "") -> Entry:
    return Entry(Kind.DIFFERENT, spec, variable, note, "", None)


def no_meaning(spec: str, variable: str | None = None, note: str = "", nothing: str = "") -> Entry:
    """It is taken with a warning. `nothing`: values and spellings, with spaces between them, that are taken without."""
    return Entry(Kind.NO_MEANING, spec, variable, note, nothing, None)


def refused(
    spec: str, variable: str | None = None, note: str = "", nothing: str = "", same_as: str | None = None
) -> Entry:
    return Entry(Kind.REFUSED, spec, variable, note, nothing, same_as)


def prints(spec: str, note: str) -> Entry:
    return Entry(Kind.PRINTS, spec, None, note, "", None)
