"""What `qwencli serve` was told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..sampling import SamplingParams
from ..text.chat.template import ChatTemplate


@dataclass(frozen=True)
class ServerOptions:
    """How the model is served. Seconds and bytes are limits of one request."""

    name: str
    """The model's name in answers: the alias, else the file's name."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """For what a request leaves open, as the next four."""
    max_tokens: int | None = None
    """None: as many as the context holds."""
    template: ChatTemplate | None = None
    """For chats; None where the model has none."""
    think: bool | None = None
    reasoning_budget: int | None = None
    api_keys: tuple[str, ...] = ()
    """A client has to know one of them, if there are any."""
    cors_origins: tuple[str, ...] = ()
    """Pages from there may use the server; "*" for all."""
    max_body: int = 2 << 20
    timeout: float = 60.0
    """How long a client may take to send its request, and to take a piece of the answer."""
    host: str = "127.0.0.1"
    ui: bool = True
    log_format: str = "text"
    """text, json or none; with none only what failed in the server itself is logged, as text."""
    log_prompts: bool = False
