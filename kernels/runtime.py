"""The executor, in machine code: a team of threads runs the rows of a program. A row is a kernel and a number of chunks.

A row's chunks are divided into shares, one for each thread: neighbouring chunks, so that weights are read in order and what is prefetched
at the end of one chunk is the beginning of the next. A thread that has done its share goes on to the next row of the group; at the end of
the group it does the chunks that others have not claimed yet. While it waits for the last ones it prefetches the first weights that it
will read next.

A row is done when its chunks are done, not when all threads have arrived. Chunks are claimed and counted in words tagged with the step's
number. So a thread that the system holds up delays nobody unless it has claimed a chunk, and a thread that is late from an earlier step
does nothing.

A program's rows are arguments.ROW; each has an arguments.CLAIM, and each thread has a word for its share. Rows of a group may run side by
side; the next group waits for all of them. The team's state is a TEAM, see arguments.py.
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
N_THREADS, SHARES, SHARE_BYTES = map(TEAM.offset, ("n_threads", "shares", "share_bytes"))
STEP, PARKED, THREAD = map(STATUS.offset, ("step", "parked", "thread"))
NUMBER = 0xFFFFFFFF
"""The mask of a claim's count; the upper half of the word is the step."""
LEAST_CHUNKS = 2
"""A row with fewer chunks per thread has a single share: nobody has to look for chunks that others don't come to."""
LINES_A_TURN, TURNS_AHEAD = 4, 64
"""The lines that a waiting thread prefetches of the weights that it reads next in a turn, and the number of turns."""
LINE_BYTES = 64
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


@intrinsic_of(void, i64, i64)
def subtract(e: Emitter, address: Any, n: Any) -> None:
    e.b.atomic_rmw("sub", _pointer(e, address), n, "seq_cst")


prefetch_line = intrinsic_of(void, i64)(lambda e, address: e.prefetch(address, level=2))


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
    """Return a row's number of chunks. Once its step is over it may be that of a later step: see open_row."""
    return (load_acquire(row.count) + row.divisor - 1) // row.divisor


@njit(inline="always")
def n_shares_of(n_threads, total):
    """Return the number of shares into which a row's chunks are divided: one for each thread, or a single one if there are few chunks."""
    return n_threads if total >= LEAST_CHUNKS * n_threads else 1


@njit(inline="always")
def claim_of(team, number):
    return load_i64(team + CLAIMS) + CLAIM_BYTES * number


@njit(inline="always")
def open_row(claim, epoch, total):
    """See to it that a row's chunks are counted for this step. Returns how many are not done yet, or -1 if the step is over.

    If some are not done, `total`, read before, is the number of this step: it changes only after the step.
    """
    while True:
        undone = load_acquire(claim)
        if undone >> 32 == epoch:
            return undone & NUMBER
        if undone >> 32 > epoch:
            return -1
        swap_if(claim, undone, epoch << 32 | total)


@njit(inline="always")
def claim_chunk(left_at, epoch, size):
    """Claim a chunk of a share. Returns the number of chunks that were left before, 0 if there were none, -1 if the step is over."""
    while True:
        left = load_acquire(left_at)
        tag = left >> 32
        if tag == epoch:
            if left & NUMBER == 0:
                return 0
            if swap_if(left_at, left, left - 1):
                return left & NUMBER
        elif tag > epoch:
            return -1
        else:  # the first to come opens the share
            swap_if(left_at, left, epoch << 32 | size)


@njit(inline="always")
def do_share(team, row, number, total, share, n_threads, epoch, scratch, budget):
    """Do the chunks of a share that nobody has claimed, at most `budget`. Returns how many, or -1 if the step is over.

    The row must not have been done after `total` was read. Then a share that has not been opened keeps it from being done, so nobody can
    open one for a step that is over.
    """
    n_shares = n_shares_of(n_threads, total)
    first, end = total * share // n_shares, total * (share + 1) // n_shares
    left_at = load_i64(team + SHARES) + load_i64(team + SHARE_BYTES) * share + 8 * number
    done = 0
    while done != budget and load_acquire(team + ABORT) == 0:
        left = claim_chunk(left_at, epoch, end - first)
        if left < 0:
            return -1
        if left == 0:
            break
        call_kernel(row.kernel, row.args, end - left, scratch)
        done += 1
    if done:  # counted once: each count moves a cache line between cores
        subtract(claim_of(team, number), done)
    return done


@njit(inline="always")
def do_shares(team, rows, number, own, epoch, thread, n_threads, scratch, budget):
    """Do what is left of a row: of the thread's own share, or of the single one, if `own` is 1; else of the others' shares.

    Returns the number of chunks done, at most `budget`, or -1 if the step is over.
    """
    row = read_row(rows + ROW_BYTES * number)
    total = n_chunks(row)
    undone = open_row(claim_of(team, number), epoch, total)
    if undone <= 0:
        return undone
    n_shares, done = n_shares_of(n_threads, total), 0
    for turn in range(1 - own, 1 if own else n_shares):
        share = (thread + turn) % n_shares
        more = do_share(team, row, number, total, share, n_threads, epoch, scratch, budget - done)
        if more < 0:
            return -1
        done += more
    return done


@njit(inline="always")
def fetch_lines(row, thread, n_threads, first):
    """Prefetch some lines of what a thread will read first when it comes to a row, from line `first` on."""
    total = n_chunks(row)
    n_shares = n_shares_of(n_threads, total)
    share = thread if n_shares > 1 else 0
    start = row.data + row.chunk_bytes * (total * share // n_shares) + LINE_BYTES * first
    for i in range(LINES_A_TURN):
        prefetch_line(start + LINE_BYTES * i)


@njit(inline="always")
def wait_for_rows(team, rows, first, last, following, epoch, thread, n_threads):
    """Wait until the rows from `first` to `last` are done. Meanwhile prefetch for the row `following`, unless it is 0.

    Returns 0, or -1 if the step is over or aborted.
    """
    turns = 0
    for number in range(first, last + 1):
        claim = claim_of(team, number)
        while True:
            undone = load_acquire(claim)
            if undone == epoch << 32:
                break
            if undone >> 32 > epoch or load_acquire(team + ABORT):
                return -1
            if following and turns < TURNS_AHEAD:
                fetch_lines(read_row(rows + ROW_BYTES * following), thread, n_threads, LINES_A_TURN * turns)
            wait_a_little(team, turns)
            turns += 1
    return 0


@njit(inline="always")
def run_rows(team, rows, total_rows, epoch, number, thread, n_threads, scratch, budget):
    """Run the rows from `number` on for the step `epoch`, at most `budget` chunks; a negative budget is unlimited.

    Returns the number of rows if all are done, -1 if the step is over or aborted, else the row at which to resume.
    """
    while number < total_rows:
        done = do_shares(team, rows, number, 1, epoch, thread, n_threads, scratch, budget)
        if done < 0 or load_acquire(team + ABORT):
            return -1
        budget -= done
        row = read_row(rows + ROW_BYTES * number)
        if row.last:
            for earlier in range(row.first, number + 1):
                done = do_shares(team, rows, earlier, 0, epoch, thread, n_threads, scratch, budget)
                if done < 0:
                    return -1
                budget -= done
            if budget != 0:
                waited = wait_for_rows(team, rows, row.first, number, row.following, epoch, thread, n_threads)
                if waited < 0:
                    return -1
        if budget == 0:
            return number
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
            0,
            load_i64(team + N_THREADS),
            scratch,
            budget,
        )
        store_i64(team + FINISHED, 1 if row == total else 0)
        store_i64(team + RESUME, row)

    return step


def build_worker() -> Any:
    """kernel(team, address of the thread's STATUS, scratch): runs steps until there has been none for a while, then returns to be
    parked. A step for fewer threads is none for the others."""

    def worker(team, status, scratch):
        last, turns, thread = 0, 0, load_i64(status + THREAD)
        while True:
            if load_acquire(team + STOP):
                return
            epoch = load_acquire(team + EPOCH)
            if epoch != last and epoch & 1 == 0 and thread < load_acquire(team + N_THREADS):
                store_release(status + STEP, epoch)
                # in this order: all are read before the epoch is read again
                rows = load_acquire(team + ROWS)
                total = load_acquire(team + N_ROWS)
                n_threads = load_acquire(team + N_THREADS)
                # otherwise a step has begun meanwhile, and what was read may belong to either
                if load_acquire(team + EPOCH) == epoch:
                    run_rows(team, rows, total, epoch, 0, thread, n_threads, scratch, -1)
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
