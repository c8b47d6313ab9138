"""What may be asked of the Hugging Face hub, and as whom."""

from __future__ import annotations

from typing import NamedTuple


class Access(NamedTuple):
    """`token` is who asks, by default the one in HF_TOKEN or of `hf auth login`. `offline`: nothing is asked or fetched at all."""

    token: str | None = None
    offline: bool = False


USUAL = Access()
