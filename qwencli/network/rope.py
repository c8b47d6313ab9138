"""Rotary position embedding: its settings, read from a file's metadata as llama.cpp reads them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ModelError, shown
from ..gguf.file import GGUFFile
from ..gguf.metadata import Metadata

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class RopeParams:
    """NeoX-style RoPE over the first `n_rot` values of a head: value i is rotated with value i + n_rot/2.

    `freq_scale` multiplies positions; linear scaling by a factor is 1/factor. `ext_factor` above 0 blends in YaRN
    (https://arxiv.org/abs/2309.00071): dimensions that turn more than `beta_fast` times in the original context of `n_ctx_orig` keep
    their frequency, those that turn fewer than `beta_slow` times are interpolated, and those in between are mixed. `attn_factor`
    multiplies cosine and sine, in addition to YaRN's own factor 1 + 0.1 ln(1/freq_scale), which is at least 1.
    """

    n_rot: int
    freq_base: float
    freq_scale: float = 1.0
    ext_factor: float = 0.0
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    n_ctx_orig: int = 0

    def frequencies(self) -> tuple[NDArray[np.float64], float]:
        """The angle by which each pair of values turns from one position to the next, [n_rot / 2], and the factor of cosine and sine.

        YaRN is as in its paper, section 3.2, with the boundaries rounded outwards as in its authors' code.
        """
        import numpy as np

        i = np.arange(self.n_rot // 2)
        extrapolated = self.freq_base ** (-2.0 * i / self.n_rot)
        interpolated = extrapolated * self.freq_scale
        if not self.ext_factor:
            return interpolated, self.attn_factor

        def dimension(n_turns: float) -> float:
            return (
                self.n_rot
                * math.log(self.n_ctx_orig / (n_turns * 2 * math.pi))
                / (2 * math.log(self.freq_base))
            )

        low = max(0, math.floor(dimension(self.beta_fast)))
        high = min(self.n_rot - 1, math.ceil(dimension(self.beta_slow)))
        keep = (1 - np.clip((i - low) / max(0.001, high - low), 0, 1)) * self.ext_factor
        magnitude = max(1.0, 1 - 0.1 * math.log(self.freq_scale))
        return interpolated * (1 - keep) + extrapolated * keep, self.attn_factor * magnitude


def read_rope(file: GGUFFile, arch: str, head_dim: int, n_ctx: int, sections: bool = False) -> RopeParams:
    """Read the settings. Raises ModelError for metadata that is missing, has the wrong type or is out of range.

    With `sections`, each pair of values turns by one of several positions, as the file says (M-RoPE, https://arxiv.org/abs/2409.12191).
    In text all of these positions are equal, so the sections are only checked.
    """
    get, key = file.metadata, f"{arch}.rope."
    n_rot = get.integer(key + "dimension_count", head_dim, 2, head_dim)
    if n_rot % 2:
        raise ModelError(f"{file.path}: {key}dimension_count is {n_rot}, expected an even number")
    if sections:
        named = (
            key + "dimension_sections",
            key + "mrope_section",
            f"{arch}.mrope_sections",
        )  # the others are Ollama's
        check_sections(file, next((name for name in named if name in get), named[0]), n_rot)
    freq_base = get.number(key + "freq_base", 10000.0, 2.0, 1e12)  # YaRN divides by its logarithm
    kind = get.string(key + "scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"{file.path}: {key}scaling.type is '{shown(kind)}', expected none, linear or yarn")
    attn_factor = get.number(key + "scaling.attn_factor", 1.0, 1e-6, 1e6)
    if kind == "none":
        return RopeParams(n_rot, freq_base, attn_factor=attn_factor)
    factor = file_factor(get, arch)
    if kind == "linear":
        return RopeParams(n_rot, freq_base, 1 / factor, attn_factor=attn_factor)
    return RopeParams(
        n_rot,
        freq_base,
        1 / factor,
        ext_factor=get.number(key + "scaling.yarn_ext_factor", 1.0, 0.0, 1.0),
        attn_factor=attn_factor,
        beta_fast=get.number(key + "scaling.yarn_beta_fast", 32.0, 1e-6, 1e6),
        beta_slow=get.number(key + "scaling.yarn_beta_slow", 1.0, 1e-6, 1e6),
        n_ctx_orig=get.integer(key + "scaling.original_context_length", n_ctx, 1),
    )


def check_sections(file: GGUFFile, key: str, n_rot: int) -> None:
    """Raise ModelError unless time, height and width share all the pairs; text has no fourth position."""
    sections = file.metadata.array(key, int)
    if (
        len(sections) not in (3, 4)
        or min(sections) < 0
        or sum(sections[:3]) != n_rot // 2
        or sum(sections[3:])
    ):
        raise ModelError(
            f"{file.path}: {key} is {sections[:8]}, expected three numbers whose sum is {n_rot // 2}, and 0"
        )


def file_factor(metadata: Metadata, arch: str) -> float:
    """By how much a file's model stretches its context, 1.0 if it says nothing; `scale_linear` is the key's old name."""
    factor: float = (
        metadata.number(f"{arch}.rope.scaling.factor", None, 0.0, 1e6)
        or metadata.number(f"{arch}.rope.scale_linear", None, 0.0, 1e6)
        or 1.0
    )
    return factor
