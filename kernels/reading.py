"""How kernels read and write what arguments.py describes: by name, as plain loads and stores."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .arguments import Record
from .simd import F32, I64, Address, Emitter

KINDS = {"i64": (I64, types.int64), "f32": (F32, types.float32), "f64": (ir.DoubleType(), types.float64)}
"""The LLVM type and the Numba type of each kind of field."""


def load(e: Emitter, record: Record, address: Address) -> Any:
    """Load the record at an address: its fields by name, as LLVM values. A field that isn't used costs nothing."""
    return record.tuple(
        *(e.load(KINDS[kind][0], address, record.offset(field)) for field, kind in record.kinds.items())
    )


def reader(record: Record) -> Any:
    """Return f(address) for Numba code, which loads the record there: its fields by name, as Numba values."""
    kinds = [KINDS[kind][1] for kind in record.kinds.values()]
    result = types.BaseTuple.from_types(kinds, record.tuple)

    def read(typing_context: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return context.make_tuple(
                builder, signature.return_type, load(Emitter(builder), record, values[0])
            )

        return result(types.int64), codegen

    return intrinsic(read)


def writer(record: Record) -> Any:
    """Return f(address, field=value, ...) for Numba code, which stores all fields of a record."""
    kinds = [KINDS[kind][1] for kind in record.kinds.values()]

    def typing(typing_context: Any, *arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            address, *fields = values
            e = Emitter(builder)
            for field, value in zip(record.kinds, fields):
                e.store(value, address, record.offset(field))
            return context.get_dummy_value()

        return types.void(types.int64, *kinds), codegen

    names = ", ".join(("typing_context", "address", *record.kinds))
    scope: dict[str, Any] = {"typing": typing}
    exec(f"def write({names}):\n    return typing({names})", scope)  # Numba wants named parameters
    return intrinsic(scope["write"])
