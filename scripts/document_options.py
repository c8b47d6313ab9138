"""Write the table of llama-server's options in docs/server.md, from the one in the code: `python scripts/document_options.py`."""

from __future__ import annotations

from pathlib import Path

from qwencli.cli._llama.entries import Entry, Kind
from qwencli.cli._llama.older import OLDER
from qwencli.cli._llama.table import TABLE

DOCS = Path(__file__).resolve().parents[1] / "docs/server.md"
BEGIN, END = "<!-- written by scripts/document_options.py -->\n", "<!-- until here -->\n"
ORDER = [Kind.SAME, Kind.DIFFERENT, Kind.NO_MEANING, Kind.REFUSED, Kind.PRINTS]


def described() -> str:
    """The table, in Markdown: options that have no meaning or are refused for the same reason are in one row."""
    rows: dict[object, list[Entry]] = {}
    for entry in sorted([*TABLE, *OLDER], key=lambda entry: ORDER.index(entry.kind)):
        together = entry.kind in (Kind.NO_MEANING, Kind.REFUSED)
        rows.setdefault((entry.kind, entry.note) if together else entry.names, []).append(entry)
    return "\n".join(["| option | variable | |", "|---|---|---|", *map(row, rows.values())]) + "\n"


def row(entries: list[Entry]) -> str:
    names = "; ".join(
        ", ".join(f"`{name}`" for name in (*entry.names, *entry.negations)) for entry in entries
    )
    variables = ", ".join(f"`{entry.variable}`" for entry in entries if entry.variable)
    kind, note = entries[0].kind, entries[0].note
    return f"| {names} | {variables} | {kind + (': ' + note if note else '')} |"


def written(docs: str) -> str:
    """The text with the table in its place."""
    before, _, rest = docs.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + described() + END + after


if __name__ == "__main__":
    DOCS.write_text(written(DOCS.read_text(encoding="utf-8")), encoding="utf-8")
