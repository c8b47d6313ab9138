"""What can go wrong, for callers to catch. Every message is one line that names the file or the value and what was expected."""

from __future__ import annotations

SHORT = 60
"""Characters of a name or a value that a message shows."""


def shown(value: object, longest: int = SHORT) -> str:
    """A name or a value for a message: of one line, without control characters, and cut.

    What comes from a file or a request may be of any length and hold whatever it likes; a terminal must not follow it.
    """
    text = value if isinstance(value, str) else str(value)
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1]
    )
    return escaped if len(escaped) <= longest and len(text) <= longest else f"{escaped[:longest]}..."


class QwenError(Exception):
    """Base of all errors that qwencli raises on purpose."""


class FormatError(QwenError):
    """A file is damaged, or is not what it claims to be."""


class ModelError(QwenError):
    """A sound file describes a model that cannot run here: unknown architecture, missing tensors, wrong shapes."""


class InputError(QwenError):
    """The user's text, tokens or settings cannot be used with this model."""


class NoMemory(QwenError):
    """What is asked for would take more memory than there is, now or on this machine."""


class ContextFull(InputError):
    """A prompt or a conversation is longer than the context: `n_prompt` tokens, in a context of `n_ctx`, where these are known."""

    def __init__(self, message: str, n_prompt: int | None = None, n_ctx: int | None = None) -> None:
        super().__init__(message)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx
