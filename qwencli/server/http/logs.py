"""One line in the log for each request, and what is tied to a request from its first byte to its last."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...errors import QwenError
from ..service.config import Config
from ..service.generation import Generation
from ..service.service import Service
from .errors import error_response

KEY = "qwencli.record"
REQUEST_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
PLAIN = re.compile(r"[\w./:+-]+", re.ASCII)
POLLED = {"/health", "/v1/health", "/metrics", "/slots"}
"""What programs ask every second; logged only where it fails."""
CLIENT_LEFT = 499
"""As nginx logs requests whose client was gone before the answer."""


@dataclass
class Record:
    """A request, as the log will have it."""

    id: str
    method: str
    path: str
    created: float = field(default_factory=time.monotonic)
    status: int = CLIENT_LEFT
    error: str | None = None
    cut_off: bool = False
    """Whether the server failed behind the answer's begin."""
    generations: list[Generation] = field(default_factory=list)


def record_of(scope: Mapping[str, Any]) -> Record:
    return cast(Record, scope[KEY])


class Recorded:
    """The outermost middleware: gives a request its id, makes answers of errors, ends what the request started, and logs it."""

    def __init__(self, app: ASGIApp, service: Service, config: Config, headers: Mapping[str, str]) -> None:
        self._app, self._service, self._config = app, service, config
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        id = given.decode() if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        record = scope[KEY] = Record(id, scope["method"], scope["path"])
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started, record.status = True, message["status"]
                message["headers"] = [
                    *message["headers"],
                    *self._headers,
                    (b"x-request-id", record.id.encode()),
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
                raise ConnectionAbortedError from None  # nothing can be said any more but that this is not all
            await error_response(record.path, error)(scope, receive, send_with_headers)
        finally:
            for generation in record.generations:
                generation.cancel()
            failed = (
                record.status >= 500
                or record.cut_off
                or any(generation.error for generation in record.generations)
            )
            wanted = self._config.log_format != "none" and (record.path not in POLLED or record.status >= 400)
            if wanted or failed:
                write(line(record, self._service, self._config))


class ClientLeft(Exception):
    """The client is gone: there is nobody to answer."""


def reason(error: BaseException) -> str:
    """What was wrong: in words where that was foreseen, else with all that Python knows."""
    if isinstance(error, HTTPException) or (isinstance(error, QwenError) and error.__cause__ is None):
        return str(error)
    return "".join(traceback.format_exception(error))


def line(record: Record, service: Service, config: Config) -> str:
    """What the log says of a request: of all its generations together, the longest times."""
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
            "model": config.name,
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
    if config.log_prompts and sequences:
        decode = service.llm.tokenizer.decode
        fields |= {
            "prompts": [decode(s.tokens[: s.n_prompt]) for s in sequences],
            "answers": [decode(s.generated) for s in sequences],
        }
    if config.log_format == "json":
        return json.dumps(fields, ensure_ascii=False)
    return " ".join(
        f"{name}={value if PLAIN.fullmatch(str(value)) else json.dumps(value)}"
        for name, value in fields.items()
    )


def write(text: str) -> None:
    """To stderr. Nobody who reads it is no reason to fail."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
