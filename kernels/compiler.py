"""From a kernel's Python function to an object file: the only place where Numba's and LLVM's options are set.

Numba types and lowers the function; its IR is then optimized and turned into machine code by our own target machine, so that `generic`
and `avx2` really are compiled for a lesser CPU, and nothing that the process compiles with Numba otherwise is affected.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import codegen, compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from . import jit, simd
from .isa import ISA, choose, target

SIGNATURE = (types.int64,) * 3


class KernelLibrary(codegen.CPUCodeLibrary):
    """A library that becomes an object file instead of being loaded into Numba's own engine."""

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in self._linking_libraries:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def object_code(self, entry: str) -> tuple[bytes, str]:
        """Optimize with only `entry` visible. Returns the object file and the assembly."""
        module = self._final_module
        for function in module.functions:
            if not function.is_declaration and function.name != entry:
                function.linkage = "internal"
        machine = self._codegen._tm
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = options.slp_vectorization = False  # what should be vectors is written as vectors
        options.loop_unrolling = False
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        module.verify()
        return machine.emit_object(module), module

    def _finalize_specific(self) -> None:
        pass


class KernelCodegen(codegen.CPUCodegen):
    """Numba's code generator with a target machine for `isa`."""
    _library_class = KernelLibrary

    def __init__(self, isa: ISA) -> None:
        self._isa = isa
        super().__init__(f"qwencli.{isa.name}")

    def _customize_tm_features(self) -> str:
        return target(self._isa)[1]

    def _customize_tm_options(self, options: dict[str, Any]) -> None:
        options.update(cpu=target(self._isa)[0], features=self._tm_features, reloc="pic", codemodel="small", opt=3)

    def _add_module(self, module: Any) -> None:
        pass


def _lower(isa: ISA, spec: str) -> tuple[KernelLibrary, str]:
    """Type and lower a kernel and put a plain C entry point beside it."""
    description = registry.cpu_target
    base = description.target_context
    base.refresh()
    context = base.subtarget(_internal_codegen=KernelCodegen(isa))
    description.typing_context.refresh()
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.nrt = False
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    library = context.codegen().create_library(jit.symbol(spec))
    simd.set_isa(isa.name)
    result = compiler.compile_extra(description.typing_context, context, jit.find(spec), SIGNATURE, types.void, flags, {}, library=library)
    entry = jit.symbol(spec)
    module = context.create_module("entry")
    i64 = ir.IntType(64)
    callee = ir.Function(module, context.call_conv.get_function_type(types.void, SIGNATURE), result.fndesc.llvm_func_name)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [i64] * 3), entry)
    builder = ir.IRBuilder(function.append_basic_block())
    context.call_conv.call_function(builder, callee, types.void, SIGNATURE, function.args)
    builder.ret_void()
    library.add_ir_module(module)
    library.finalize()
    return library, entry


@global_compiler_lock
def compile_kernel(isa: ISA, spec: str) -> bytes:
    """The object file of a kernel."""
    library, entry = _lower(isa, spec)
    return library.object_code(entry)[0]


@global_compiler_lock
def assembly(isa: ISA, spec: str) -> str:
    """The machine code of a kernel as text, for tests that look at it."""
    library, entry = _lower(isa, spec)
    _, module = library.object_code(entry)
    return str(library._codegen._tm.emit_assembly(module))


def main() -> None:
    """A worker of jit.py: python -m qwencli.kernels.compiler ISA FOLDER SPEC..."""
    name, folder, *specs = sys.argv[1:]
    for spec in specs:
        path = Path(folder, jit.symbol(spec))
        part = path.with_suffix(".part")
        part.write_bytes(compile_kernel(choose(name), spec))
        part.replace(path)


if __name__ == "__main__":
    main()
