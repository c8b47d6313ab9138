"""Compiling what a model's steps need before its first run: for container images, and for those who don't want to wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..backends.cpu import stopwatch, tuning
from ..backends.cpu.backend import CPUBackend, kernels_of
from ..backends.cpu.lower import without_kernels
from ..backends.kv_cache import DEFAULT_TYPES, CacheTypes
from ..backends.protocol import HIDDEN, LOGITS
from ..errors import InputError, ModelError, QwenError
from ..gguf.file import GGUFFile, TensorInfo
from ..gguf.types import GGML_TYPES, GGMLType
from ..kernels.formats import FORMATS
from ..kernels.isa import available
from ..kernels.jit import KernelError
from ..network.load import load_model
from ..network.model import Model
from . import peak

MOST_TOKENS = 512
"""Tokens of a step: more need no other kernels."""
USUAL_HEADS = 64, 128
"""Sizes of heads that Qwen's models have."""


class Warmth(NamedTuple):
    """What was done for an ISA: how many kernels were compiled, how many were there already, and in which folder they are."""

    isa: str
    compiled: int
    present: int
    seconds: float
    folder: Path


def warm_up(
    models: Sequence[Model],
    isas: Sequence[str] = (),
    all_formats: bool = False,
    report: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
    tune: bool = True,
    cache_types: CacheTypes = DEFAULT_TYPES,
) -> Iterator[Warmth]:
    """Compile the kernels that the models need, for the named ISAs or the one that is used by default, and with `tune` find out which
    tiles and prefetches are fastest on this CPU.

    `all_formats` adds those for the same models in every other format, and for the usual sizes of heads. `report` and `progress` are told
    what is compiled, `cache_types` is passed to CPUBackend. Raises InputError for an ISA that this CPU lacks, ModelError for a model that
    has no compiled kernels, QwenError if kernels can't be compiled or kept.
    """
    known = [isa.name for isa in available()]
    for isa in isas:
        if isa not in known:
            raise InputError(
                f"the instruction set '{isa}' is not available on this CPU, which has {', '.join(known)}"
            )
    for isa in isas or [CPUBackend(models[0], 1).isa]:
        specs = sorted(
            {spec for model in models for spec in kernels_of_model(model, isa, all_formats, cache_types)}
        )
        columns = tuning.columns_by_format(specs) if tune else {}
        specs = sorted({*specs, *tuning.kernels_to_try(isa, columns)})
        kernels = kernels_of(isa)
        kernels.report, kernels.progress = report, progress
        start = time.perf_counter()
        try:
            kernels.check_folder()
            missing = kernels.missing(specs)
            kernels.load(specs)
            if tune:
                tuning.tune(kernels, columns, peak.buffer_bytes())
        except OSError as error:
            raise QwenError(
                f"{kernels.folder}: compiled kernels can't be kept there: {error.strerror or error}"
            ) from None
        except KernelError as error:
            raise QwenError(str(error)) from error
        yield Warmth(
            isa, len(missing), len(specs) - len(missing), time.perf_counter() - start, kernels.folder
        )


def kernels_of_model(
    model: Model, isa: str, all_formats: bool, cache_types: CacheTypes = DEFAULT_TYPES
) -> set[str]:
    """The specs of the kernels for whatever the commands do with a model on an ISA. Raises ModelError for a model that has none."""
    if missing := without_kernels(model):
        raise ModelError(f"{model.file.path}: there are no compiled kernels for {', '.join(missing)}")
    found = {*peak.SPECS, *stopwatch.SPECS}
    for each in [
        model,
        *(
            load_model(InFormat(model.file, kind))
            for kind in GGML_TYPES.values()
            if all_formats and kind.name in FORMATS
        ),
    ]:
        backend = CPUBackend(each, 1, isa=isa, cache_types=cache_types)
        for n in {1, *(1 << i for i in range(MOST_TOKENS.bit_length()))}:
            for fetch, feed, n_tokens, n_outputs, ending in (
                (LOGITS, (), n, 1, "choose"),
                (LOGITS, (), n, n, "choose"),
                (HIDDEN, (), n, n, None),
                (LOGITS, (HIDDEN,), 0, n, "score"),
            ):
                found.update(backend.kernels_for([fetch], feed, n_tokens, n_outputs, ending))
    if all_formats:
        own = f":{model.config.head_dim}"
        found |= {
            spec.replace(own, f":{size}")
            for spec in found
            if spec.startswith("attention:")
            for size in USUAL_HEADS
        }
    return found


class InFormat(GGUFFile):
    """A file as if its matrices were stored in another format, as far as their rows can be. Its weights are zeros."""

    def __init__(self, file: GGUFFile, kind: GGMLType) -> None:
        self.__dict__.update(file.__dict__)
        self.tensors = {
            name: self._stored_as(info, kind)
            for name, info in file.tensors.items()
            if not name.endswith("scale")
        }
        if kind.scaled:
            scales = {
                name.removesuffix("weight") + "scale": info.shape[:-2] or (1,)
                for name, info in self.tensors.items()
                if info.type == kind and name != "token_embd.weight"
            }
            self.tensors |= {
                name: TensorInfo(name, shape, GGML_TYPES[0], 0, 4 * shape[0], 0)
                for name, shape in scales.items()
            }

    @staticmethod
    def _stored_as(info: TensorInfo, kind: GGMLType) -> TensorInfo:
        """Convolutions are always F32, as vectors are."""
        if len(info.shape) < 2 or info.shape[-1] % kind.block_size or info.name.endswith("conv1d.weight"):
            return info
        return replace(info, type=kind, n_bytes=kind.n_bytes(info.n_weights))

    def data(self, tensor: TensorInfo) -> NDArray[np.uint8]:
        return np.broadcast_to(np.uint8(0), (*tensor.shape[:-1], tensor.type.n_bytes(tensor.shape[-1])))
