"""What the server tells of itself at /props."""

from __future__ import annotations

import asyncio

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from ... import __version__
from ...text.chat.template import ChatTemplate
from ..http.errors import ApiError
from ..http.openapi import describe
from ..options import ServerOptions
from ..service.service import Service
from ..shared.models import file_type
from .answer import settings
from .fields import RANDOM
from .memory import Memory


class Props:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self._service, self._options = service, options
        self._memory = Memory(service)

    @describe("The server's properties")
    async def props(self, request: HTTPRequest) -> Response:
        llm, options = self._service.llm, self._options
        tokenizer, template = llm.tokenizer, options.template
        named = {
            name: tokenizer.decode([token]) if token is not None else ""
            for name, token in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id))
        }
        seed = RANDOM if options.sampling.seed is None else options.sampling.seed
        usual = settings(options.sampling, seed, options.max_tokens)
        return JSONResponse(
            {
                "default_generation_settings": {"params": usual, "n_ctx": llm.engine.n_ctx},
                "total_slots": self._service.n_slots,
                "model_alias": options.name,
                "model_ftype": file_type(llm),
                "model_path": llm.file.path.name,  # where it is concerns nobody
                "modalities": {"vision": False, "video": False, "audio": False},
                "media_marker": "",
                "endpoint_slots": options.slots,
                "endpoint_props": options.props,
                "endpoint_metrics": options.metrics,
                "ui": options.ui,
                "ui_settings": dict(options.ui_config),
                "chat_template": template.source if template else "",
                "chat_template_caps": await asyncio.to_thread(abilities, template) if template else {},
                **named,
                "build_info": f"qwencli {__version__}",
                "is_sleeping": self._service.presence.asleep,
                "cors_proxy_enabled": False,
                "buffers": await self._memory.buffers(),
            }
        )

    @describe("Accepted with --props, and changes nothing: there is nothing that can be changed")
    async def change(self, request: HTTPRequest) -> Response:
        if not self._options.props:
            raise ApiError(
                "This server does not support changing global properties. Start it with `--props`", 501
            )
        return JSONResponse({"success": True})


def abilities(template: ChatTemplate) -> dict[str, bool]:
    """What conversations a template can render, by llama.cpp's names. Slow."""
    tools = template.reads("tools")
    return {
        "supports_object_arguments": tools,
        "supports_parallel_tool_calls": tools,
        "supports_preserve_reasoning": template.thinks,
        "supports_reasoning_effort": template.reads("reasoning_effort"),
        "supports_string_content": True,
        "supports_system_role": True,
        "supports_tool_calls": tools,
        "supports_tools": tools,
        "supports_typed_content": False,
    }
