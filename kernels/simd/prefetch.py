"""Prefetches that stay where they are put.

LLVM's scheduler moves the prefetches of a loop to its end, since nothing depends on them. There they fill the queue of misses all at once,
and what is read meanwhile has to wait. So a prefetch is tied to a vector: what uses the vector comes after it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .. import isa
from ..specs import KernelError
from .vectors import F32, I64


def on_x86(e: Any, vector: Any, address: Any, offset: int, register: int) -> Any:
    """Prefetch the line at address + offset into the L2 cache. Returns the vector, which is available only then.

    The prefetch is inline assembly that seems to change one of the vector's registers, of `register` bytes. Raises KernelError on another
    kind of machine: LLVM could not assemble it there, and would end the process.
    """
    if isa.machine() not in isa.X86:
        raise KernelError(f"kernels for x86 can't be assembled on {isa.machine()}")
    element = vector.type.element
    if vector.type.count * (4 if element == F32 else element.width // 8) > register:
        tied = on_x86(e, e.half(vector, 0), address, offset, register)
        return e.concat(tied, e.half(vector, 1))
    kind = ir.FunctionType(vector.type, [vector.type, I64])
    return e.b.asm(
        kind, f"prefetcht1 {offset}($2)", f"={'v' if register == 64 else 'x'},0,r", [vector, address], False
    )


def anywhere(e: Any, vector: Any, address: Any, offset: int) -> Any:
    """`on_x86` for any kind of machine: later reads stay after the prefetch because of a fence, for which no instruction is emitted."""
    e.prefetch(e.at(address, offset), level=2)
    e.b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], True)
    return vector
