"""What `qwencli serve` was told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sampling import SamplingParams
from ..text.chat.template import ChatTemplate


@dataclass(frozen=True)
class ServerOptions:
    """How the model is served. Seconds and bytes are limits of one request."""

    name: str
    """The model's name in answers: the first alias, else the file's name."""
    aliases: tuple[str, ...] = ()
    """All its names, where some were given."""
    tags: tuple[str, ...] = ()
    """Shown to clients, without effect."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """For what a request leaves open, as all up to `cache_prompt`."""
    max_tokens: int | None = None
    """None: as many as the context holds."""
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    template: ChatTemplate | None = None
    """For chats; None where the model has none."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template."""
    think: bool | None = None
    reasoning_budget: int | None = None
    reasoning_message: str = ""
    """What ends the thinking at its budget, before the closing tag."""
    reasoning_effort: str | None = None
    """A variable of the template."""
    reasoning_format: str = "auto"
    """Where thinking stands in answers: see shared/conversations.py."""
    parse_answers: bool = True
    """Whether thinking and tool calls are told apart from an answer's text."""
    prefill_assistant: bool = True
    """Whether a last message of the assistant's is gone on with."""
    context_shift: bool = False
    """Whether an answer goes on where the context is full, without the oldest part of it."""
    n_keep: int = 0
    """How many tokens of the prompt are kept then, -1 for all."""
    cache_prompt: bool = True
    embd_normalize: int = 2
    """As the field of llama.cpp's /embedding."""
    n_batch: int = 2048
    """How many tokens of the text around a gap /infill takes, as the option -b of llama.cpp."""
    suffix_first: bool = False
    """Whether what follows a gap comes before what precedes it, in a prompt to fill it."""
    only: str | None = None
    """What alone is served: "embeddings", or "rerank"; None for everything."""
    metrics: bool = False
    slots: bool = True
    props: bool = False
    """Which endpoints there are: /metrics, /slots, and POST /props."""
    slot_save_path: Path | None = None
    """The folder to which slots are saved; None: they aren't."""
    sleep_idle_seconds: float | None = None
    """After how long without a request the model is unloaded; None: never."""
    sse_ping: float | None = 30.0
    """After how many silent seconds a stream carries a comment, so that nobody takes it for dead; None: never."""
    api_keys: tuple[str, ...] = ()
    """A client has to know one of them, if there are any."""
    cors_origins: tuple[str, ...] = ()
    """Pages from there may use the server; "*" for all, "localhost" for those of this machine."""
    api_prefix: str = ""
    """A path that stands before all others, such as "/v2/qwen"."""
    max_body: int = 2 << 20
    timeout: float = 60.0
    """How long a client may take to send its request, and to take a piece of the answer."""
    hosts: tuple[str, ...] = ("127.0.0.1",)
    """What the server listens on: names, addresses, and paths of unix sockets."""
    ui: bool = True
    ui_config: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the page."""
    static_path: Path | None = None
    """A folder whose files are served in place of the page."""
    predict_path: str | None = None
    """Where Vertex AI asks for predictions; None: nowhere."""
    health_path: str | None = None
    """Another path of /health."""
    log_format: str = "text"
    """text, json or none; with none only what failed in the server itself is logged, as text."""
    log_prompts: bool = False
    verbose: bool = False
    """Whether answers to chats come with what stood in the prompt and came back, word for word."""
