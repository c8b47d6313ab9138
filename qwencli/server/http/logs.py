"""One line in the log for each request, and what is tied to a request from its first byte to its last."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import QwenError
from ..options import ServerOptions
from ..service.generation import Generation
from ..service.service import Service
from .errors import ErrorForm, ErrorForms, error_response, plain_form, with_id
from .paths import path_under

KEY = "qwencli.record"
ID_HEADERS = b"x-request-id", b"request-id"
"""Of an answer; the second is what Anthropic's clients look for."""
REQUEST_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)
NOT_SUPPORTED = 501
CLIENT_LEFT = 499
"""The status that nginx logs for requests whose client was gone before the answer."""


@dataclass
class RequestRecord:
    """A request, for the log."""

    id: str
    method: str
    path: str
    error_form: ErrorForm = plain_form
    """How the API that was asked writes errors."""
    created: float = field(default_factory=time.monotonic)
    status: int = CLIENT_LEFT
    ping: float | None = None
    """After how many silent seconds a stream of events carries a comment; None: never."""
    error: str | None = None
    cut_off: bool = False
    """Whether the server failed after the start of the answer was sent."""
    generations: list[Generation] = field(default_factory=list)


def record_of(scope: Mapping[str, Any]) -> RequestRecord:
    return cast(RequestRecord, scope[KEY])


class Recorded:
    """The outermost middleware: gives a request its id, makes answers of errors, ends what the request started, and logs it."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        options: ServerOptions,
        headers: Mapping[str, str],
        error_forms: ErrorForms,
        polled_paths: Collection[str],
    ) -> None:
        self._app, self._service, self._options = app, service, options
        self._error_forms = error_forms
        self._polled = polled_paths
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        id = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        path = path_under(self._options.api_prefix, scope["path"])
        form = with_id(self._error_forms.of(path), id)
        record = scope[KEY] = RequestRecord(id, scope["method"], scope["path"], form)
        record.ping = self._options.sse_ping
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, record.status = True, message["status"]
                message["headers"] = [
                    *message["headers"],
                    *self._headers,
                    *((name, record.id.encode()) for name in ID_HEADERS),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except ClientLeft:
            record.error = "the client left"
        except Exception as error:  # whatever it is: it ends this request, and the server goes on
            record.error = reason(error)
            if started:
                record.cut_off = True
                raise ConnectionAbortedError from None  # all that can still be said is that this is not the whole answer
            await error_response(record.error_form, error)(scope, receive, send_with_headers)
        finally:
            for generation in record.generations:
                generation.cancel()
            failed = (
                (record.status >= 500 and record.status != NOT_SUPPORTED)
                or record.cut_off
                or any(generation.error for generation in record.generations)
            )
            quiet = path in self._polled and record.status < 400
            wanted = self._options.log_format != "none" and not quiet
            if wanted or failed:
                write(line(record, self._service, self._options))


class ClientLeft(Exception):
    """The client is gone: there is nobody to answer."""


def reason(error: BaseException) -> str:
    """What went wrong: in words where it was foreseen, else with Python's traceback."""
    if isinstance(error, HTTPException) or (isinstance(error, QwenError) and error.__cause__ is None):
        return str(error)
    return "".join(traceback.format_exception(error))


def line(record: RequestRecord, service: Service, options: ServerOptions) -> str:
    """What the log says of a request. Its generations are counted together; of their times the longest is given."""
    now, sequences = time.monotonic(), [generation.sequence for generation in record.generations]
    fields: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": record.id,
        "method": record.method,
        "path": record.path[:200],
        "status": record.status,
        "seconds": round(now - record.created, 4),
    }
    if sequences:
        waits = [(generation.started or now) - generation.created for generation in record.generations]
        fields |= {
            "model": options.name,
            "prompt": sum(s.n_prompt for s in sequences),
            "cached": sum(s.n_cached for s in sequences),
            "generated": sum(len(s.generated) for s in sequences),
            "queue_seconds": round(max(waits), 4),
            "run_seconds": round(max(s.prompt_seconds + s.generation_seconds for s in sequences), 4),
            "stop": ",".join(dict.fromkeys(s.stop_reason or "cancelled" for s in sequences)),
        }
    errors = (
        [record.error]
        if record.error
        else [reason(generation.error) for generation in record.generations if generation.error]
    )
    if errors:
        fields["error"] = errors[0]
    if options.log_prompts and sequences:
        decode = service.llm.tokenizer.decode
        fields |= {
            "prompts": [decode(s.tokens[: s.n_prompt]) for s in sequences],
            "answers": [decode(s.generated) for s in sequences],
        }
    if options.log_format == "json":
        return json.dumps(fields, ensure_ascii=False)
    return " ".join(
        f"{name}={value if PLAIN.fullmatch(str(value)) else json.dumps(value)}"
        for name, value in fields.items()
    )


def write(text: str) -> None:
    """To stderr, or nowhere if that is closed."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
