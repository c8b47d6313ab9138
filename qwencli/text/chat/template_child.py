"""The process in which a chat template runs: jinja2's sandbox, inside limits that the system keeps.

A template comes with a model file, so it may be hostile. The sandbox keeps it from Python's insides, as far as is known; it does not keep
it from computing without end or filling the memory. So it runs in a process of its own that may use little of either, open no file and
start no process, and that template_process.py ends and starts again at will. Nothing but jinja2 and the standard library is imported here.

Requests come on stdin: 4 bytes of length (big-endian) and JSON, a list of a verb and its argument. Answers go to stdout: a letter that says
what it is, 4 bytes of length and text. Both texts are UTF-8 in which lone surrogates are let through.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from ...system import confined

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

MAX_BYTES = 1 << 25
"""Of a request, and of an answer: some 8 million tokens."""
EXTRA_MEMORY = 1 << 29
"""Bytes of address space for rendering. A conversation of MAX_BYTES needs about half of it."""
BYTES_PER_SECOND = 1e6
"""Longer conversations have more processor time: they get a tenth of what Qwen's templates render here."""

READY, TEXT, REFUSED, FAILED, INVALID, NO_MEMORY = b"R", b"T", b"X", b"F", b"I", b"M"
"""Started; what was asked for; the template's own refusal; an error in it; no valid Jinja; out of memory."""


class Refusal(Exception):
    """What a template says by `raise_exception`."""


def serve(cpu_seconds: float) -> None:
    """Answer requests until stdin ends. Each may use `cpu_seconds` of processor time, else a signal kills the process."""
    confined.reset_signals()
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    templates = Templates()
    confined.limit_resources(EXTRA_MEMORY, alone=True)
    _send(answers, READY, "")
    while len(header := requests.read(4)) == 4:
        request = requests.read(int.from_bytes(header, "big"))
        _send(answers, *templates.answer(request, cpu_seconds))
        confined.limit_time(0)


def _send(answers: BinaryIO, kind: bytes, text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_BYTES:
        kind, data = NO_MEMORY, b""
    answers.write(kind + len(data).to_bytes(4, "big") + data)
    answers.flush()


def _line(error: Exception) -> str:
    return str(error)[:1000].replace("\n", "\\n")


class Templates:
    """Compiles one template at a time and renders it."""

    def __init__(self) -> None:
        import jinja2.constants
        import jinja2.debug  # what jinja2 would import only when it is needed is imported here, while that is possible
        import jinja2.meta

        self._environment = make_environment()
        self._find_variables = jinja2.meta.find_undeclared_variables
        self._environment.from_string(
            r"{{ '\n' | wordwrap | striptags | pprint }}"
        ).render()  # imports what these need

    def answer(self, request: bytes, cpu_seconds: float) -> tuple[bytes, str]:
        verb = ""
        try:
            verb, argument = json.loads(request)
            confined.limit_time(cpu_seconds + (len(request) / BYTES_PER_SECOND if verb == "render" else 0))
            return TEXT, getattr(self, verb)(argument) or ""
        except Refusal as error:
            return REFUSED, _line(error)
        except MemoryError:
            return NO_MEMORY, ""
        except (
            Exception
        ) as error:  # TemplateError, and whatever Python's compiler, operators and methods raise
            return (
                (INVALID, _line(error))
                if verb == "compile"
                else (FAILED, f"{type(error).__name__}: {_line(error)}")
            )

    def compile(self, source: str) -> None:
        self._source, self._template = source, self._environment.from_string(source)

    def render(self, variables: dict[str, Any]) -> str:
        return self._template.render(variables)

    def variables(self, _: None) -> str:
        """The names that the template reads, one a line."""
        return "\n".join(self._find_variables(self._environment.parse(self._source)))


def make_environment() -> Environment:
    """What templates expect: the same functions, filters and settings as in transformers (utils/chat_template_utils.py)."""
    import datetime

    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class PlainNamespace(Namespace):
        """Has no names with an underscore in front, by which Python's own protocols go."""

        def __init__(*args: Any, **names: Any) -> None:
            values = dict(*args[1:], **names)
            for name in values:
                check(name)
            Namespace.__init__(args[0], values)

        def __setitem__(self, name: str, value: Any) -> None:
            check(name)
            super().__setitem__(name, value)

    def check(name: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"access to attribute {name!r} of 'Namespace' object is unsafe.")

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()]
    )
    env.filters["tojson"] = _to_json
    env.globals["namespace"] = PlainNamespace
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return env


def _generation_tag() -> type[Extension]:
    """Lets templates mark answers for training, by `{% generation %}` ... `{% endgeneration %}`; what is between them is rendered."""
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationTag


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates get it, with its parameters in its order: jinja's own filter would escape for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise Refusal(message)
