"""What a request that cannot be done is answered with: a status, and JSON in the form of the API that was asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ...errors import ContextFull, InputError, NoMemory, QwenError
from ..service.generation import Busy, Ending, NotServed

CONTEXT_FULL, QUEUE_FULL, NO_MEMORY = "context_length_exceeded", "queue_full", "no_memory"
"""Codes."""
TOO_LONG = "it exceeds the available context size"
"""Words of llama-server's message, for which clients look, to shorten the conversation and try again."""
MESSAGES = {404: "there is nothing at this path", 405: "this path has other methods"}


class ApiError(QwenError):
    """A request that is refused, with the status to answer. `param` names the field at fault, `code` is for programs.

    `details` are figures for programs, which some APIs show. `retry_after` is in seconds.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.request_id = ""
        """Of the request that it is the answer to, as soon as that is known."""
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.details = details or {}


ErrorForm = Callable[[ApiError], dict[str, Any]]
"""The JSON object that an API has for an error."""


class ErrorForms(dict[str, ErrorForm]):
    """The forms by the prefixes of the paths that have them, with one for all other paths."""

    def __init__(self, forms: Mapping[str, ErrorForm]) -> None:
        super().__init__({"": plain_form, **forms})

    def prefix_of(self, path: str) -> str:
        """The longest prefix that fits."""
        return max((prefix for prefix in self if path.startswith(prefix)), key=len)

    def of(self, path: str) -> ErrorForm:
        return self[self.prefix_of(path)]


def with_id(form: ErrorForm, request_id: str) -> ErrorForm:
    """The same form for the errors of one request, which it may name."""

    def form_of(error: ApiError) -> dict[str, Any]:
        error.request_id = request_id
        return form(error)

    return form_of


def plain_form(error: ApiError) -> dict[str, Any]:
    """For paths that belong to no API."""
    return {"error": {"message": str(error), "code": error.code}}


def api_error(error: BaseException) -> ApiError:
    """Any error as one that may be shown: it has neither paths of this machine nor anything of Python's in it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Ending):
        return ApiError(str(error), 503, retry_after=error.retry_after)
    if isinstance(error, Busy):
        return ApiError(str(error), 429, code=QUEUE_FULL, retry_after=error.retry_after)
    if isinstance(error, NotServed):
        return ApiError(str(error), 501)
    if isinstance(error, ContextFull):
        if error.n_ctx is None:
            return ApiError(str(error), code=CONTEXT_FULL)
        known = {"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx}
        return ApiError(f"{error} ({TOO_LONG})", code=CONTEXT_FULL, details=known)
    if isinstance(error, InputError):
        return ApiError(str(error))
    if isinstance(error, NoMemory):
        return ApiError(str(error), 503, code=NO_MEMORY)
    if isinstance(error, HTTPException):
        return ApiError(MESSAGES.get(error.status_code, error.detail), error.status_code)
    if isinstance(error, QwenError) and not {"/", "\\"} & set(str(error)):
        return ApiError(str(error), 500)
    return ApiError("the server failed to answer this request; its log has the reason", 500)


def error_response(form: ErrorForm, error: BaseException) -> JSONResponse:
    """The answer to a request that failed, in an API's form."""
    e = api_error(error)
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}  # such as Allow, for 405
    if e.retry_after is not None:
        headers["Retry-After"] = str(e.retry_after)
    if e.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(form(e), e.status, headers)
