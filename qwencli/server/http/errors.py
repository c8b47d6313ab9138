"""What is answered to a request that cannot be done: a status and each API's own JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from ...errors import ContextFull, InputError, NoMemory, QwenError
from ..service.generation import Busy, Ending

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""llama.cpp's and OpenAI's names for errors, by status; the rest of 4xx is "invalid_request_error", of 5xx "server_error"."""


class ApiError(QwenError):
    """A request that is refused, with the status to answer. `param` names the field at fault, `code` is for programs.

    `details` are llama.cpp's further fields.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after, self.details = (
            status,
            param,
            code,
            retry_after,
            details or {},
        )
        self.type = type or TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")


def context_full(n_prompt: int, n_ctx: int, or_more: bool = False) -> ApiError:
    """The refusal of a prompt that leaves no room for an answer."""
    n_tokens = f"{n_prompt} tokens{' or more' if or_more else ''}"
    return ApiError(
        f"the prompt has {n_tokens}, which leaves no room for an answer in the context of {n_ctx}",
        code="context_length_exceeded",
        type="exceed_context_size_error",
        details={"n_prompt_tokens": n_prompt, "n_ctx": n_ctx},
    )


def api_error(error: BaseException) -> ApiError:
    """Any error as one that may be shown: neither paths of this machine nor anything of Python's is in it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Ending):
        return ApiError(str(error), 503, retry_after=error.retry_after)
    if isinstance(error, Busy):
        return ApiError(str(error), 429, code="queue_full", retry_after=error.retry_after)
    if isinstance(error, ContextFull):
        return ApiError(str(error), 400, code="context_length_exceeded", type="exceed_context_size_error")
    if isinstance(error, InputError):
        return ApiError(str(error))
    if isinstance(error, NoMemory):
        return ApiError(str(error), 503, code="no_memory")
    if isinstance(error, HTTPException):
        return ApiError(
            {404: "there is nothing at this path", 405: "this path has other methods"}.get(
                error.status_code, error.detail
            ),
            error.status_code,
        )
    if isinstance(error, QwenError) and not {"/", "\\"} & set(str(error)):
        return ApiError(str(error), 500)
    return ApiError("the server failed to answer this request; its log has the reason", 500)


def error_object(path: str, error: BaseException) -> dict[str, Any]:
    """The JSON that a client of this path understands: OpenAI's form under /v1, llama.cpp's elsewhere."""
    e = api_error(error)
    if path.startswith("/v1/"):
        return {"error": {"message": str(e), "type": e.type, "param": e.param, "code": e.code, **e.details}}
    return {"error": {"code": e.status, "message": str(e), "type": e.type, **e.details}}


def error_response(path: str, error: BaseException) -> JSONResponse:
    e = api_error(error)
    headers = (
        dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    )  # Allow, of a method that is not there
    if e.retry_after is not None:
        headers["Retry-After"] = str(e.retry_after)
    if e.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_object(path, e), e.status, headers)
