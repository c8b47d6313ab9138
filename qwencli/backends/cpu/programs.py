"""The programs of a model, or of a part of it: each is lowered, and its kernels loaded, when it is first needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...errors import QwenError
from ...kernels.jit import KernelError, Kernels
from ...kernels.tiles import Tiles
from ...network.graph import N_OUTPUTS, N_TOKENS
from ...network.model import Model
from ...system.memory import Meter
from ..protocol import Part
from .cache import CacheLayout
from .inputs import Inputs
from .lower import lower
from .program import Program
from .team import RUNTIME

PROGRAMS = "programs and kernels"
"""What has no address that is known: the objects of programs, and machine code."""


class Programs:
    """Programs for steps of one token on `n_threads` threads, and for other steps on `n_threads_batch`.

    `usual` is what steps usually compute: if kernels have to be compiled, all of these are.
    """

    def __init__(
        self,
        model: Model,
        kernels: Kernels,
        n_threads: int,
        n_threads_batch: int,
        tiles: Tiles,
        cache: CacheLayout,
        usual: Sequence[Part],
    ) -> None:
        self._model = model
        self._kernels = kernels
        self._n_threads = n_threads
        self._n_threads_batch = n_threads_batch
        self._tiles = tiles
        self._cache = cache
        self._usual = usual
        self._programs: dict[tuple[Part, int, int], Program] = {}
        self._meter = Meter()

    @property
    def made(self) -> list[Program]:
        """The programs that there are."""
        return list(self._programs.values())

    @property
    def grown(self) -> Mapping[str, int]:
        """By how many bytes the process grew while programs were made, as PROGRAMS."""
        return self._meter.grown

    def get(self, part: Part, counts: Mapping[str, int]) -> Program:
        """Return the program for a part of the graph and this many tokens and outputs. Raises QwenError."""
        key = part, room_for(counts[N_TOKENS]), room_for(counts[N_OUTPUTS])
        if key not in self._programs:
            with self._meter.during(PROGRAMS):
                program = self._lower(*key)
                self.load([*RUNTIME, *program.specs])
                program.link(self._kernels)
            self._programs[key] = program
        return self._programs[key]

    def kernels_for(self, part: Part, n_tokens: int, n_outputs: int) -> list[str]:
        """Return the names of the kernels that a step with that many tokens and outputs runs."""
        return [*RUNTIME, *self._lower(part, room_for(n_tokens), room_for(n_outputs)).specs]

    def load(self, specs: Iterable[str]) -> None:
        """Load kernels. If some have to be compiled, compile all that the model will need in one go. Raises QwenError."""
        specs = list(specs)
        if self._kernels.missing(specs):
            programs = (self._lower(part, room_for(n), room_for(1)) for part in self._usual for n in (1, 2))
            specs += [spec for program in programs for spec in program.specs]
        try:
            self._kernels.load(specs)
        except KernelError as error:
            raise QwenError(f"{error} (please report this; --backend numpy runs without kernels)") from error

    def _lower(self, part: Part, n_tokens: int, n_outputs: int) -> Program:
        """Return a program with room for that many tokens and outputs."""
        rooms = {N_TOKENS: n_tokens, N_OUTPUTS: n_outputs}
        return lower(
            self._model,
            self._model.graph.subgraph(part.fetch, part.feed),
            part.fetch,
            part.feed,
            Inputs(max(rooms.values()), self._model.config.rope.n_rot),
            rooms,
            self._n_threads if max(rooms.values()) == 1 else self._n_threads_batch,
            part.ending,
            self._tiles,
            self._cache,
        )


def room_for(n: int) -> int:
    """Return the room of a program for n rows: one, or a power of two, so that a handful of programs serves all steps."""
    return 1 if n <= 1 else max(8, 1 << (n - 1).bit_length())
