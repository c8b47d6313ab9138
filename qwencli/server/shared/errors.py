"""What OpenAI's and llama.cpp's APIs call errors."""

from __future__ import annotations

from ..http.errors import CONTEXT_FULL, ApiError

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    501: "not_supported_error",
    503: "unavailable_error",
}
"""By status. All other errors of 4xx are an "invalid_request_error", of 5xx a "server_error"."""


def error_type(error: ApiError) -> str:
    """The name of its kind."""
    if error.code == CONTEXT_FULL:
        return "exceed_context_size_error"
    return TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
