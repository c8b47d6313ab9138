"""Another rotation than the file's: llama.cpp's options about RoPE, as values of metadata."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import InputError
from ..gguf.metadata import Metadata
from ..gguf.overrides import Scalar
from .rope import file_factor

NONE, LINEAR, YARN = "none", "linear", "yarn"
SCALINGS = (NONE, LINEAR, YARN)
MOST_CONTEXT = 2**31 - 1
RANGES: dict[str, tuple[float, float]] = {
    "scale": (1e-6, 1e6),
    "freq_base": (2.0, 1e12),
    "freq_scale": (1e-6, 1e6),
    "yarn_orig_ctx": (1, MOST_CONTEXT),
    "yarn_ext_factor": (0.0, 1.0),
    "yarn_attn_factor": (1e-6, 1e6),
    "yarn_beta_slow": (1e-6, 1e6),
    "yarn_beta_fast": (1e-6, 1e6),
}
UNSET: dict[str, tuple[float, ...]] = {"freq_base": (0.0,), "freq_scale": (0.0,), "yarn_orig_ctx": (0,)}
"""What asks for the file's value in llama.cpp; so does any negative number for the `yarn_` factors."""


@dataclass(frozen=True)
class RopeOptions:
    """What llama.cpp's options of the same names say: `--rope-scaling` and so on. None leaves what the file says.

    - `scaling`: none, linear or yarn.
    - `scale` stretches the context by a factor; `freq_scale` is its inverse, and only one of them can be given. Without scaling they mean
      nothing.
    - `freq_base`: the base of the frequencies.
    - `yarn_orig_ctx`: the context that the model was trained for, before YaRN.
    - `yarn_ext_factor`: how much YaRN extrapolates; above 0 it is YaRN, whatever `scaling` says.
    - `yarn_attn_factor`: a factor of cosine and sine where `yarn_ext_factor` is 0; else YaRN's own counts.
    - `yarn_beta_fast`, `yarn_beta_slow`: see RopeParams.

    Raises InputError for other values.
    """

    scaling: str | None = None
    scale: float | None = None
    freq_base: float | None = None
    freq_scale: float | None = None
    yarn_orig_ctx: int | None = None
    yarn_ext_factor: float | None = None
    yarn_attn_factor: float | None = None
    yarn_beta_slow: float | None = None
    yarn_beta_fast: float | None = None

    def __post_init__(self) -> None:
        if self.scaling not in (None, *SCALINGS):
            raise InputError(f"unknown RoPE scaling {self.scaling[:40]!r}, expected {', '.join(SCALINGS)}")
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            if value in UNSET.get(name, ()) or (name.startswith("yarn_") and value < 0 and "ctx" not in name):
                value = None
            elif not low <= value <= high:  # false for NaN
                option = name.replace("_", "-") if "yarn" in name else f"rope-{name.replace('_', '-')}"
                raise InputError(f"--{option} is {value:g}, expected a value from {low:g} to {high:g}")
            else:
                value = int(value) if name == "yarn_orig_ctx" else float(value)
            object.__setattr__(self, name, value)
        if self.scale is not None and self.freq_scale is not None:
            raise InputError("--rope-scale and --rope-freq-scale are given: one is the inverse of the other")

    @property
    def factor(self) -> float | None:
        """By how much the context is stretched, if that is given."""
        return 1 / self.freq_scale if self.freq_scale is not None else self.scale

    def overrides(self, metadata: Metadata) -> dict[str, Scalar]:
        """The values of metadata that make a file's model rotate like this. Raises ModelError for metadata of the wrong type.

        As in llama.cpp (src/llama-context.cpp), a scaling that is YaRN and not the file's makes the model's context longer.
        """
        if self == AS_IN_FILE:
            return {}
        arch = metadata.string("general.architecture")
        key = f"{arch}.rope."
        own_kind = metadata.string(f"{key}scaling.type", LINEAR)
        kind = self.scaling or own_kind
        ext = self.yarn_ext_factor
        if ext is None:
            ext = metadata.number(f"{key}scaling.yarn_ext_factor", 1.0) if kind == YARN else 0.0
        found: dict[str, Scalar | None] = {
            key + "freq_base": self.freq_base,
            key + "scaling.factor": self.factor,
            key + "scaling.yarn_ext_factor": self.yarn_ext_factor,
            key + "scaling.yarn_beta_fast": self.yarn_beta_fast,
            key + "scaling.yarn_beta_slow": self.yarn_beta_slow,
            key + "scaling.original_context_length": self.yarn_orig_ctx,
        }
        if (new_kind := NONE if kind == NONE else YARN if ext else LINEAR) != own_kind:
            found[f"{key}scaling.type"] = new_kind
        if self.yarn_attn_factor is not None and not ext:
            own = metadata.number(f"{key}scaling.attn_factor", 1.0)
            found[f"{key}scaling.attn_factor"] = own * self.yarn_attn_factor
        if kind == YARN and self.factor and not math.isclose(self.factor, file_factor(metadata, arch)):
            n_ctx = metadata.integer(f"{arch}.context_length", low=1)
            before = self.yarn_orig_ctx or metadata.integer(f"{key}scaling.original_context_length", n_ctx, 1)
            found[f"{key}scaling.original_context_length"] = before
            found[f"{arch}.context_length"] = max(1, min(MOST_CONTEXT, int(before * self.factor)))
        return {name: value for name, value in found.items() if value is not None}


AS_IN_FILE = RopeOptions()
"""What the file says."""
