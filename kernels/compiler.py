"""Compile a kernel's Python function to an object file. Numba's and LLVM's options are set only here.

Numba types and lowers the function; a target machine of our own then optimizes the IR and turns it into machine code. So `generic` and
`avx2` really are compiled for a lesser CPU, or for one of another kind, and other code that the process compiles with Numba is not
affected.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import codegen, compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from .isa import ISA, Target, target
from .simd.emitter import set_isa
from .specs import find, symbol

SIGNATURE = (types.int64,) * 3


class KernelLibrary(codegen.CPUCodeLibrary):
    """A library that becomes an object file; it isn't loaded into Numba's own engine."""

    _is_optimized = False

    def finalize(self) -> None:
        self._raise_if_finalized()
        for library in self._linking_libraries:
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalized = True

    def object_code(self, entry: str) -> bytes:
        """Return the object file, optimized with only `entry` visible."""
        return bytes(self._codegen.machine.emit_object(self._optimized(entry)))

    def assembly(self, entry: str) -> str:
        return str(self._codegen.machine.emit_assembly(self._optimized(entry)))

    def _optimized(self, entry: str) -> Any:
        machine, module = self._codegen.machine, self._final_module
        if self._is_optimized:
            return module
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        for function in module.functions:
            if not function.is_declaration and function.name != entry:
                function.linkage = "internal"
        options = llvm.create_pipeline_tuning_options(speed_level=3)
        options.loop_vectorization = False  # code that should use vectors is written with vectors
        options.slp_vectorization = False
        options.loop_unrolling = False
        passes = llvm.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        module.verify()
        self._is_optimized = True
        return module

    def _optimize_functions(self, ll_module: Any) -> None:
        """Skip Numba's passes over single functions, which come before those over the module: they take a quarter of the time and change no
        inner loop."""

    def _finalize_specific(self) -> None:
        pass


class KernelCodegen(codegen.CPUCodegen):
    """Numba's code generator for this machine, but with a target machine for `isa`, which may be that of another machine."""

    _library_class = KernelLibrary

    def __init__(self, isa: ISA) -> None:
        super().__init__(f"qwencli.{isa.name}")
        self.machine = target_machine(target(isa))

    def _customize_tm_features(self) -> str:
        return ""

    def _customize_tm_options(self, options: dict[str, Any]) -> None:
        pass

    def _add_module(self, module: Any) -> None:
        pass


def target_machine(kind: Target) -> Any:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()
    options = {"cpu": kind.cpu, "features": kind.features, "reloc": "pic", "codemodel": "small", "opt": 3}
    return llvm.Target.from_triple(kind.triple).create_target_machine(**options)


@global_compiler_lock
def lower(isa: ISA, spec: str) -> KernelLibrary:
    """Type and lower a kernel and add a plain C entry point. Raises whatever Numba or the kernel's module raises."""
    typing = registry.cpu_target.typing_context
    typing.refresh()
    base = registry.cpu_target.target_context
    base.refresh()
    context = base.subtarget(_internal_codegen=KernelCodegen(isa))
    flags = compiler.Flags()
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    flags.error_model = "numpy"
    library: KernelLibrary = context.codegen().create_library(symbol(spec))
    set_isa(isa.name)
    result = compiler.compile_extra(
        typing, context, find(spec), SIGNATURE, types.void, flags, {}, library=library
    )
    library.add_ir_module(_entry_point(context, result.fndesc.llvm_func_name, symbol(spec)))
    library.finalize()
    return library


def _entry_point(context: Any, kernel: str, name: str) -> ir.Module:
    """Return a module with the function `name`, which calls the kernel by Numba's calling convention."""
    module = context.create_module("entry")
    callee = ir.Function(module, context.call_conv.get_function_type(types.void, SIGNATURE), kernel)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 3), name)
    builder = ir.IRBuilder(function.append_basic_block())
    context.call_conv.call_function(builder, callee, types.void, SIGNATURE, function.args)
    builder.ret_void()
    return module


@global_compiler_lock
def compile_kernel(isa: ISA, spec: str) -> bytes:
    """Return the object file of a kernel. Raises what `lower` does."""
    return lower(isa, spec).object_code(symbol(spec))


@global_compiler_lock
def assembly(isa: ISA, spec: str) -> str:
    """Return the machine code of a kernel as text, for tests. Raises what `lower` does."""
    return lower(isa, spec).assembly(symbol(spec))
