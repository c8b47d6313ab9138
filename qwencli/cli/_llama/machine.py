"""Threads, memory and devices."""

from .entries import different, no_meaning, refused, same

TEAM = "the threads that answer also read prompts: give {}"
NO_GPU = "there is no GPU to use"
ON_CPU = "all of the model is on the CPU"

MACHINE = [
    different(
        "-t, --threads N",
        "LLAMA_ARG_THREADS",
        "0 and -1 are the default: one thread a core, not one a hardware thread",
    ),
    same("-tb, --threads-batch N"),
    same("-C, --cpu-mask M"),
    same("-Cr, --cpu-range LO-HI"),
    same("--cpu-strict <0|1>"),
    same("--prio N"),
    same("--poll <0...100>"),
    refused("-Cb, --cpu-mask-batch M", None, TEAM.format("-C"), same_as="--cpu-mask"),
    refused("-Crb, --cpu-range-batch LO-HI", None, TEAM.format("-Cr"), same_as="--cpu-range"),
    refused("--cpu-strict-batch <0|1>", None, TEAM.format("--cpu-strict"), same_as="--cpu-strict"),
    refused("--prio-batch N", None, TEAM.format("--prio"), same_as="--prio"),
    refused("--poll-batch <0|1>", None, TEAM.format("--poll"), same_as="--poll"),
    same("--numa TYPE", "LLAMA_ARG_NUMA"),
    different(
        "-lm, --load-mode MODE",
        "LLAMA_ARG_LOAD_MODE",
        "`dio`, direct I/O, is refused: `none` reads the file too",
    ),
    no_meaning(
        "-lzm, --lazy-mode MODE",
        "LLAMA_ARG_LAZY_MODE",
        "every weight is read when it is first needed",
        nothing="auto",
    ),
    same("-b, --batch-size N", "LLAMA_ARG_BATCH"),
    same("-ub, --ubatch-size N", "LLAMA_ARG_UBATCH"),
    different("-ctk, --cache-type-k TYPE", "LLAMA_ARG_CACHE_TYPE_K", "f32, f16, bf16, q8_0 and q4_0 only"),
    different("-ctv, --cache-type-v TYPE", "LLAMA_ARG_CACHE_TYPE_V", "f32, f16, bf16, q8_0 and q4_0 only"),
    no_meaning("-kvo, --kv-offload / -nkvo, --no-kv-offload", "LLAMA_ARG_KV_OFFLOAD", NO_GPU),
    no_meaning(
        "--repack / -nr, --no-repack",
        "LLAMA_ARG_REPACK",
        "weights are multiplied as they lie in the file",
        nothing="-nr --no-repack",
    ),
    no_meaning("--no-host", "LLAMA_ARG_NO_HOST", NO_GPU),
    no_meaning(
        "-dt, --defrag-thold N", "LLAMA_ARG_DEFRAG_THOLD", "the KV cache has pages; llama.cpp ignores it too"
    ),
    no_meaning("--op-offload / --no-op-offload", None, NO_GPU),
    refused("--rpc SERVERS", "LLAMA_ARG_RPC", "a model can't be divided among machines yet: leave it out"),
    different(
        "-dev, --device DEV1,DEV2,...",
        "LLAMA_ARG_DEVICE",
        "the names are those of `qwencli devices`, such as `cpu:0`; `none` asks for nothing",
    ),
    different(
        "-ot, --override-tensor PATTERN=TYPE,...",
        "LLAMA_ARG_OVERRIDE_TENSOR",
        "in place of a buffer type a device is named; `CPU` asks for nothing",
    ),
    different(
        "-ts, --tensor-split N0,N1,...",
        "LLAMA_ARG_TENSOR_SPLIT",
        "the shares of the devices that `-dev` names; without `-dev` it has no meaning",
    ),
    no_meaning("-cmoe, --cpu-moe", "LLAMA_ARG_CPU_MOE", ON_CPU),
    no_meaning("-ncmoe, --n-cpu-moe N", "LLAMA_ARG_N_CPU_MOE", ON_CPU, nothing="0"),
    no_meaning("-ncffn, --n-cpu-ffn N", "LLAMA_ARG_N_CPU_FFN", ON_CPU, nothing="0"),
    no_meaning("-ngl, --gpu-layers, --n-gpu-layers N", "LLAMA_ARG_N_GPU_LAYERS", NO_GPU, nothing="0 auto"),
    no_meaning("-sm, --split-mode MODE", "LLAMA_ARG_SPLIT_MODE", NO_GPU, nothing="none"),
    no_meaning("-mg, --main-gpu INDEX", "LLAMA_ARG_MAIN_GPU", NO_GPU),
    different(
        "-fit, --fit [on|off]",
        "LLAMA_ARG_FIT",
        "`on` takes the longest context up to `-c` that fits into memory, `off` doesn't check whether it fits; by default a `-c` that"
        " doesn't fit is an error",
    ),
    refused(
        "-fitt, --fit-target MIB0,MIB1,...",
        "LLAMA_ARG_FIT_TARGET",
        "what is free is used: set a shorter context with -c",
    ),
    refused(
        "-fitc, --fit-ctx N",
        "LLAMA_ARG_FIT_CTX",
        "set the context with -c, which is an error where it doesn't fit",
    ),
]
