"""Slots: what each one does, and what its last request left, which is saved to a file, restored or erased."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response

from ...engine.engine import Engine
from ...errors import InputError, QwenError
from ...request.timings import n_computed
from ..http.errors import ApiError
from ..http.openapi import describe
from ..http.requests import json_body
from ..options import ServerOptions
from ..service.generation import Slot
from ..service.service import Service
from .answer import settings
from .fields import SlotFields

POLL_SECONDS = 0.02
"""How often a slot is looked at that has to be free."""
WRONG_NAME = re.compile(
    r"[\x00-\x1f\x7f-\x9f/\\\\:*?\"<>|\uff0e\u2215\u2216\ud800-\udfff\ufffd\ufeff]|\.\.|^ |[ .]$"
)
"""Names that aren't those of a file in the folder, or on some system mean another (llama.cpp, common.cpp, fs_validate_filename)."""


class Slots:
    """Each method answers an endpoint, unless its name starts with an underscore."""

    def __init__(self, service: Service, options: ServerOptions) -> None:
        self.service, self.options = service, options

    @describe("What each slot does")
    async def slots(self, request: HTTPRequest) -> Response:
        if not self.options.slots:
            raise ApiError("This server does not support slots endpoint. Start it without `--no-slots`", 501)
        slots = self.service.slots()
        if request.query_params.get("fail_on_no_slot") and all(slot.generation for slot in slots):
            raise ApiError("no slot available", 503)
        return JSONResponse([self._slot(slot) for slot in slots])

    def _slot(self, slot: Slot) -> dict[str, Any]:
        known: dict[str, Any] = {
            "id": slot.id,
            "n_ctx": self.service.llm.engine.n_ctx,
            "speculative": False,
            "is_processing": slot.generation is not None,
        }
        if not slot.generation:
            return known
        seq = slot.generation.sequence
        n = len(seq.generated)
        return known | {
            "n_prompt_tokens": seq.n_prompt,
            "n_prompt_tokens_processed": n_computed(seq),
            "n_prompt_tokens_cache": seq.n_cached,
            "params": settings(seq.sampling, seq.sampler.seed, seq.max_tokens),
            "next_token": [
                {
                    "has_next_token": seq.stop_reason is None,
                    "has_new_line": slot.generation.has_new_line,
                    "n_remain": -1 if seq.max_tokens is None else seq.max_tokens - n,
                    "n_decoded": n,
                }
            ],
        }

    @describe(
        "Save what a slot's last request left, restore or erase it: ?action=save|restore|erase", SlotFields
    )
    async def change(self, request: HTTPRequest) -> Response:
        folder = self.options.slot_save_path
        if folder is None:
            raise ApiError("This server does not support slots action. Start it with `--slot-save-path`", 501)
        slot, action = request.path_params["id_slot"], request.query_params.get("action")
        if not (slot.isascii() and slot.isdigit() and len(slot) < 10 and int(slot) < self.service.n_slots):
            raise ApiError(f"Invalid slot ID: expected one below {self.service.n_slots}")
        if action not in ("save", "restore", "erase"):
            raise ApiError("Invalid action: expected ?action=save, restore or erase")
        known, left = {"id_slot": int(slot)}, self.service.leftovers
        if action == "erase":
            return JSONResponse(known | {"n_erased": await self._done(int(slot), left.erase)})
        name = (await json_body(request, SlotFields)).filename
        if not name or len(name.encode("utf-8", "replace")) > 255 or WRONG_NAME.search(name):
            raise ApiError("Invalid filename: expected the name of a file, without folders", param="filename")
        path, start = folder / name, time.perf_counter()
        work = left.save if action == "save" else left.restore
        try:
            n = await self._done(int(slot), lambda i, engine: work(i, engine, path))
        except QwenError as error:
            # not the path, which is this machine's own
            reason = str(error).replace(f"{path}: ", "").replace(str(path), "the file")
            status = 500 if action == "save" and not isinstance(error, InputError) else 400
            raise ApiError(f"Unable to {action} slot: {reason}", status, param="filename") from None
        size, ms = path.stat().st_size, 1e3 * (time.perf_counter() - start)
        figures: dict[str, Any] = (
            {"n_saved": n, "n_written": size, "timings": {"save_ms": ms}}
            if action == "save"
            else {"n_restored": n, "n_read": size, "timings": {"restore_ms": ms}}
        )
        return JSONResponse(known | {"filename": name} | figures)

    async def _done(self, slot: int, work: Callable[[int, Engine], int]) -> int:
        """Do something with what a slot has left, once it is free. Raises QwenError."""

        def now(engine: Engine) -> int | None:
            return None if self.service.slots()[slot].generation else work(slot, engine)

        while (n := await self.service.between_steps(now)) is None:
            await asyncio.sleep(POLL_SECONDS)
        return n
