"""The inputs of a program's step, at fixed addresses: token ids, positions, where keys and values are, how tokens are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ...kernels import layout
from ...kernels.arguments import DRAW, ITEM, LIKELIHOOD, PARTS, POINTERS, STATE, Record
from ...network.config import Config
from ...network.graph import N_OUTPUTS, N_TOKENS
from ...sampling.sampler import Draw
from ..protocol import Batch, Segment
from .cache import PageMemory
from .memory import I64, address_of

COUNTS = Record("counts", f"{N_TOKENS} {N_OUTPUTS} attend")
"""The number of tokens, of outputs and of attention's chunks in a step."""


class Inputs:
    """The data that changes from step to step, at addresses that a program knows. It has room for `n_tokens` tokens and their outputs."""

    def __init__(self, n_tokens: int, n_rot: int) -> None:
        self.counts = COUNTS.zeros(1)
        self._counts_at = address_of(self.counts)
        self._multiples: dict[tuple[str, int], I64] = {}
        self.tokens = np.zeros(n_tokens, np.int32)
        self.outputs = np.zeros(n_tokens, np.int32)
        self.pages = np.zeros(n_tokens, np.int64)
        self.slots = np.zeros(n_tokens, np.int64)
        self.angles = np.zeros((n_tokens, n_rot), np.float32)  # cosines, then sines
        self.draws = DRAW.zeros(n_tokens)
        self.chosen = np.zeros(n_tokens, np.int64)
        self.targets = np.zeros(n_tokens, np.int64)
        self.scores = LIKELIHOOD.zeros(n_tokens)
        self.pointers = POINTERS.zeros(1)

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """All memory of the inputs."""
        return [
            *(array for array in vars(self).values() if isinstance(array, np.ndarray)),
            *self._multiples.values(),
        ]

    def count(self, which: str) -> int:
        """Return the address of the number of tokens, of outputs or of attention's chunks."""
        return self._counts_at + int(COUNTS.offset(which))

    def multiple(self, what: str, k: int) -> int:
        """Return the address of k times the number of tokens, of outputs or of the batch's "segments"."""
        return address_of(self._multiples.setdefault((what, k), np.zeros(1, np.int64)))

    def set_counts(self, n_tokens: int, n_outputs: int, n_segments: int) -> None:
        """Fill in the counts of a step. The number of attention's chunks is set with the batch."""
        self.counts[N_TOKENS] = n_tokens
        self.counts[N_OUTPUTS] = n_outputs
        self.counts["attend"] = 0
        numbers = {N_TOKENS: n_tokens, N_OUTPUTS: n_outputs, "segments": n_segments}
        for (what, k), multiple in self._multiples.items():
            multiple[0] = k * numbers[what]

    def set_draws(self, draws: Sequence[Draw]) -> list[I64]:
        """Fill in how the tokens of the outputs are chosen. Returns arrays that have to stay alive until the step is done.

        Raises InputError for a top_k that is too large for kernels.
        """
        arrays = []
        for i, d in enumerate(draws):
            limit = d.top_k if d.temp > 0 else 1
            if not 0 < limit <= layout.MAX_TOP_K:
                raise InputError(
                    f"top_k is {limit}, expected a value from 1 to {layout.MAX_TOP_K} for machine code"
                )
            recent = np.array([*d.recent], np.int64)
            counts = np.array([*d.recent.values()], np.int64)
            arrays += [recent, counts]
            self.draws[i] = DRAW.values(
                temp=d.temp,
                top_p=d.top_p,
                min_p=d.min_p,
                repeat=d.repeat_penalty,
                frequency=d.frequency_penalty,
                presence=d.presence_penalty,
                chance=d.chance,
                top_k=limit,
                n_recent=len(recent),
                recent=address_of(recent),
                counts=address_of(counts),
            )
        return arrays


def tokens_at_once(c: Config) -> int:
    """Return the tokens in an item of attention, for a segment with many."""
    return max(1, int(layout.QUERIES_AT_ONCE) * c.n_head_kv // c.n_head)


def queries_at_once(c: Config) -> int:
    """Return the most queries that an item of attention has for a key-value head."""
    return tokens_at_once(c) * (c.n_head // c.n_head_kv)


class BatchWriter:
    """Fills in a batch's tokens, where they go in the cache, and how attention is divided among the threads."""

    def __init__(self, config: Config, pages: PageMemory, states: PageMemory) -> None:
        self._config = config
        self._pages = pages
        self._states = states
        self._frequencies, self._magnitude = config.rope.frequencies()
        self._partials = np.zeros(0, np.float32)

    @property
    def partials(self) -> NDArray[np.float32]:
        """The memory of attention's partial results."""
        return self._partials

    def write(self, batch: Batch, inputs: Inputs) -> list[NDArray[Any]]:
        """Fill in a batch whose positions have been reserved. Returns arrays that have to stay alive until the step is done."""
        n = len(batch.tokens)
        inputs.tokens[:n] = batch.tokens
        inputs.outputs[: len(batch.outputs)] = batch.outputs
        self._write_angles(batch.positions, inputs.angles)
        inputs.slots[:n] = batch.positions % layout.PAGE
        tables = [self._page_table(segment) for segment in batch.segments]
        start = 0
        for segment, table in zip(batch.segments, tables):
            end = start + len(segment.tokens)
            inputs.pages[start:end] = table[batch.positions[start:end] // layout.PAGE]
            start = end
        items, parts = self._items(batch, tables)
        states = self._states_of(batch) if self._config.delta_nets else STATE.zeros(0)
        inputs.pointers[0] = POINTERS.values(
            items=address_of(items),
            parts=address_of(parts),
            partials=address_of(self._partials),
            states=address_of(states),
        )
        inputs.counts["attend"] = len(items) * self._config.n_head_kv
        return [*tables, items, parts, states]

    def _write_angles(self, positions: NDArray[np.int32], angles: NDArray[np.float32]) -> None:
        turns = positions[:, None] * self._frequencies  # float64: positions reach hundreds of thousands
        half = turns.shape[1]
        angles[: len(turns), :half] = np.cos(turns) * self._magnitude
        angles[: len(turns), half:] = np.sin(turns) * self._magnitude

    def _page_table(self, segment: Segment) -> I64:
        """Return the addresses of a sequence's pages."""
        return np.array([self._pages.address(page) for page in segment.seq.pages], np.int64)

    def _items(self, batch: Batch, tables: Sequence[I64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return attention's items, and the PARTS of each token. Makes room for the partial results.

        For a single token each split is an item, so that the threads share a long context. Several tokens are divided among items instead.
        Without causal attention each token is an item that is placed at the sequence's end, and so sees all of it.
        """
        items = []
        parts = PARTS.zeros(len(batch.tokens))
        start = n_partials = 0
        for segment, table in zip(batch.segments, tables):
            n, position = len(segment.tokens), segment.seq.length
            pages = address_of(table)
            n_splits = splits_until(position + n)
            if n == 1 and n_splits > 1:
                items += [item(start, 1, position, i, i + 1, n_partials + i, pages) for i in range(n_splits)]
                parts[start] = PARTS.values(first_slot=n_partials, n_slots=n_splits)
                n_partials += n_splits
            elif not self._config.causal:
                end = position + n
                items += [item(start + i, 1, end - 1, 0, n_splits, -1, pages) for i in range(n)]
            else:
                step = tokens_at_once(self._config)
                for first in range(0, n, step):
                    count = min(step, n - first)
                    end_split = splits_until(position + first + count)
                    items.append(item(start + first, count, position + first, 0, end_split, -1, pages))
            start += n
        c = self._config
        size = n_partials * c.n_head * (c.head_dim + layout.LANES)
        if size > len(self._partials):
            self._partials = np.zeros(size, np.float32)
        return np.array(items, ITEM.dtype), parts

    def _states_of(self, batch: Batch) -> NDArray[Any]:
        """Return a STATE for each segment, for recurrent layers."""
        records: NDArray[Any] = STATE.zeros(len(batch.segments))
        first = 0
        for i, (seq, tokens, _) in enumerate(batch.segments):
            n = len(tokens)
            addresses = {p - seq.length: self._states.address(state) for p, state in seq.states.items()}
            border = next((done for done in addresses if 0 < done < n), 0)
            records[i] = STATE.values(
                first=first,
                n=n,
                before=addresses[0] if seq.length else 0,
                after=addresses[n],
                border=border,
                at_border=addresses[border] if border else 0,
            )
            first += n
        return records


def splits_until(position: int) -> int:
    """Return the number of splits that the positions before `position` take."""
    return -(-position // int(layout.SPLIT))


def item(
    first_token: int, n_tokens: int, position: int, first_split: int, end_split: int, slot: int, pages: int
) -> tuple[float, ...]:
    """Return an ITEM of attention."""
    values: tuple[float, ...] = ITEM.values(
        first_token=first_token,
        n_tokens=n_tokens,
        first_position=position,
        first_split=first_split,
        end_split=end_split,
        slot=slot,
        pages=pages,
    )
    return values
