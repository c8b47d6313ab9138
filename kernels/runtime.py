"""The executor, in machine code: a team of threads runs the rows of a program. A row is a kernel and a number of chunks.

A row is done when its chunks are done, not when all threads have arrived. Chunks are claimed and counted in words tagged with the step's
number. So a thread that the system holds up delays nobody unless it has claimed a chunk, and a thread that is late from an earlier step
does nothing.

A program's rows are arguments.ROW; each has an arguments.CLAIM. Rows of a group may run side by side; the next group waits for all of them.
The team's state is a TEAM, see arguments.py.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit

from .arguments import CLAIM, ROW, STATUS, TEAM
from .reading import reader
from .simd import I32, I64, Emitter, i64, intrinsic_of, load_i64, store_i64, void

EPOCH, ABORT, STOP = map(TEAM.offset, ("epoch", "abort", "stop"))
ROWS, N_ROWS, CLAIMS, YIELD = map(TEAM.offset, ("rows", "n_rows", "claims", "yield_"))
RESUME, FINISHED, SPINS, PATIENCE = map(TEAM.offset, ("resume", "finished", "spins", "patience"))
ROW_BYTES, CLAIM_BYTES = ROW.n_bytes, CLAIM.n_bytes
LEFT, UNDONE = CLAIM.offset("left"), CLAIM.offset("undone")
STEP, PARKED = STATUS.offset("step"), STATUS.offset("parked")
NUMBER = 0xFFFFFFFF
"""The mask of a claim's count; the upper half of the word is the step."""
read_row = reader(ROW)


def _pointer(e: Emitter, address: Any) -> Any:
    return e.b.inttoptr(address, I64.as_pointer())


@intrinsic_of(i64, i64)
def load_acquire(e: Emitter, address: Any) -> Any:
    return e.b.load_atomic(_pointer(e, address), "seq_cst", 8)


@intrinsic_of(void, i64, i64)
def store_release(e: Emitter, address: Any, value: Any) -> None:
    e.b.store_atomic(value, _pointer(e, address), "seq_cst", 8)


@intrinsic_of(void)
def fence(e: Emitter) -> None:
    e.b.fence("seq_cst")


@intrinsic_of(i64, i64, i64, i64)
def swap_if(e: Emitter, address: Any, expected: Any, value: Any) -> Any:
    """Compare and exchange. Returns 1 if `value` was stored, else 0."""
    result = e.b.cmpxchg(_pointer(e, address), expected, value, "seq_cst", "seq_cst")
    return e.b.zext(e.b.extract_value(result, 1), I64)


@intrinsic_of(void, i64, i64, i64, i64)
def call_kernel(e: Emitter, kernel: Any, args: Any, chunk: Any, scratch: Any) -> None:
    e.b.call(
        e.b.inttoptr(kernel, ir.FunctionType(ir.VoidType(), [I64] * 3).as_pointer()), [args, chunk, scratch]
    )


@intrinsic_of(void, i64)
def call_yield(e: Emitter, function: Any) -> None:
    e.b.call(e.b.inttoptr(function, ir.FunctionType(I32, []).as_pointer()), [])


@intrinsic_of(void)
def pause(e: Emitter) -> None:
    e.isa.pause(e)


@njit(inline="always")
def wait_a_little(team, turns):
    """Spin for the first turns, after that yield the CPU."""
    if turns < load_i64(team + SPINS):
        pause()
    else:
        call_yield(load_i64(team + YIELD))


@njit(inline="always")
def n_chunks(row):
    return (load_i64(row.count) + row.divisor - 1) // row.divisor


@njit(inline="always")
def claim_chunk(claim, epoch, total):
    """Claim a chunk. Returns the number of chunks that were left before, 0 if there were none, -1 if the step is over."""
    while True:
        left = load_acquire(claim + LEFT)
        tag = left >> 32
        if tag == epoch:
            if left & NUMBER == 0:
                return 0
            if swap_if(claim + LEFT, left, left - 1):
                return left & NUMBER
        elif tag > epoch:
            return -1
        else:  # the first to arrive opens the row: the chunks that aren't done, then those to claim
            undone = load_acquire(claim + UNDONE)
            if undone >> 32 < epoch:
                swap_if(claim + UNDONE, undone, epoch << 32 | total)
            swap_if(claim + LEFT, left, epoch << 32 | total)


@njit(inline="always")
def wait_for(team, claim, epoch):
    """Wait until the row of this claim is done. Returns 1, or -1 if the step is over or aborted."""
    turns = 0
    while True:
        undone = load_acquire(claim + UNDONE)
        if undone == epoch << 32:
            return 1
        if undone >> 32 > epoch or load_acquire(team + ABORT):
            return -1
        wait_a_little(team, turns)
        turns += 1


@njit(inline="always")
def run_rows(team, rows, total_rows, epoch, number, scratch, budget):
    """Run the rows from `number` on for the step `epoch`, at most `budget` chunks; a negative budget is unlimited.

    Returns the number of rows if all are done, -1 if the step is over or aborted, else the row at which to resume.
    """
    claims = load_i64(team + CLAIMS)
    while number < total_rows:
        row = read_row(rows + ROW_BYTES * number)
        claim = claims + CLAIM_BYTES * number
        total = n_chunks(row)
        mine = 0
        while True:
            left = 0
            if budget != 0 and load_acquire(team + ABORT) == 0:
                left = claim_chunk(claim, epoch, total)
                if left < 0:
                    return -1
            if left == 0:
                break
            call_kernel(row.kernel, row.args, total - left, scratch)
            mine += 1
            budget -= 1
        while mine:  # counted once per row: each count moves a cache line between cores
            undone = load_acquire(claim + UNDONE)
            if swap_if(claim + UNDONE, undone, undone - mine):
                mine = 0
        if load_acquire(team + ABORT):
            return -1
        if budget == 0:
            return number
        if row.last:
            for earlier in range(row.first, number + 1):
                if wait_for(team, claims + CLAIM_BYTES * earlier, epoch) < 0:
                    return -1
        number += 1
    return number


def build_publish() -> Any:
    """kernel(address, value, unused): store a word. A thread that sees it also sees everything that was stored before.

    Python's later reads and writes, which aren't atomic, come after it: on aarch64 they could overtake the store without the fence.
    """

    def publish(address, value, unused):
        store_release(address, value)
        fence()

    return publish


def build_step() -> Any:
    """kernel(team, chunks to do before returning, scratch): the part of the thread that drives the step.

    It returns now and then, so that Python can handle signals. FINISHED says whether the step is done.
    """

    def step(team, budget, scratch):
        total = load_i64(team + N_ROWS)
        row = run_rows(
            team,
            load_i64(team + ROWS),
            total,
            load_i64(team + EPOCH),
            load_i64(team + RESUME),
            scratch,
            budget,
        )
        store_i64(team + FINISHED, 1 if row == total else 0)
        store_i64(team + RESUME, row)

    return step


def build_worker() -> Any:
    """kernel(team, address of the thread's STATUS, scratch): runs steps until there has been none for a while, then returns to be
    parked."""

    def worker(team, status, scratch):
        last, turns = 0, 0
        while True:
            if load_acquire(team + STOP):
                return
            epoch = load_acquire(team + EPOCH)
            if epoch != last and epoch & 1 == 0:
                store_release(status + STEP, epoch)
                # in this order: both are read before the epoch is read again
                rows = load_acquire(team + ROWS)
                total = load_acquire(team + N_ROWS)
                # otherwise a step has begun meanwhile, and rows and total may belong to either
                if load_acquire(team + EPOCH) == epoch:
                    run_rows(team, rows, total, epoch, 0, scratch, -1)
                    last, turns = epoch, 0
                store_release(status + STEP, 0)
            elif turns < load_i64(team + PATIENCE):
                wait_a_little(team, turns)
                turns += 1
            else:
                store_release(status + PARKED, 1)
                if load_acquire(team + EPOCH) == epoch or swap_if(status + PARKED, 1, 0) == 0:
                    return
                turns = 0

    return worker
