"""Speculative decoding, which doesn't exist here yet: all of its options are refused, but for values that turn it off."""

from .entries import Entry, refused

NOT_YET = "speculative decoding doesn't exist here yet: leave it out"
REMOVED = "llama.cpp has removed it, and speculative decoding doesn't exist here yet: leave it out"


def _draft(spec: str, variable: str | None = None, nothing: str = "") -> Entry:
    return refused(spec, variable, NOT_YET, nothing)


DRAFT_CACHES = [
    _draft("--spec-draft-type-k, -ctkd, --cache-type-k-draft TYPE", "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_K"),
    _draft("--spec-draft-type-v, -ctvd, --cache-type-v-draft TYPE", "LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_V"),
]
DRAFTS = [
    _draft("--spec-draft-model, -md, --model-draft FNAME", "LLAMA_ARG_SPEC_DRAFT_MODEL"),
    _draft("--spec-draft-hf, -hfd, -hfrd, --hf-repo-draft USER/REPO[:QUANT]", "LLAMA_ARG_SPEC_DRAFT_HF_REPO"),
    _draft("--spec-type TYPE,...", "LLAMA_ARG_SPEC_TYPE", nothing="none"),
    _draft("--spec-default"),
    _draft("--spec-draft-threads, -td, --threads-draft N"),
    _draft("--spec-draft-threads-batch, -tbd, --threads-batch-draft N"),
    _draft("--spec-draft-cpu-mask, -Cd, --cpu-mask-draft M"),
    _draft("--spec-draft-cpu-range, -Crd, --cpu-range-draft LO-HI"),
    _draft("--spec-draft-cpu-strict, --cpu-strict-draft <0|1>"),
    _draft("--spec-draft-prio, --prio-draft N"),
    _draft("--spec-draft-poll, --poll-draft <0|1>"),
    _draft("--spec-draft-cpu-mask-batch, -Cbd, --cpu-mask-batch-draft M"),
    _draft("--spec-draft-cpu-strict-batch, --cpu-strict-batch-draft <0|1>"),
    _draft("--spec-draft-prio-batch, --prio-batch-draft N"),
    _draft("--spec-draft-poll-batch, --poll-batch-draft <0|1>"),
    _draft("--spec-draft-override-tensor, -otd, --override-tensor-draft PATTERN=TYPE,..."),
    _draft("--spec-draft-cpu-moe, -cmoed, --cpu-moe-draft", "LLAMA_ARG_SPEC_DRAFT_CPU_MOE"),
    _draft(
        "--spec-draft-n-cpu-moe, --spec-draft-ncmoe, -ncmoed, --n-cpu-moe-draft N",
        "LLAMA_ARG_SPEC_DRAFT_N_CPU_MOE",
    ),
    _draft("--spec-draft-n-max N", "LLAMA_ARG_SPEC_DRAFT_N_MAX"),
    _draft("--spec-draft-n-min N", "LLAMA_ARG_SPEC_DRAFT_N_MIN"),
    _draft("--spec-synth-len L", "LLAMA_ARG_SPEC_SYNTH_LEN"),
    _draft("--spec-synth-rates P0,P1,...", "LLAMA_ARG_SPEC_SYNTH_RATES"),
    _draft("--spec-draft-p-split, --draft-p-split P", "LLAMA_ARG_SPEC_DRAFT_P_SPLIT"),
    _draft("--spec-draft-p-min, --draft-p-min P", "LLAMA_ARG_SPEC_DRAFT_P_MIN"),
    _draft(
        "--spec-draft-backend-sampling / --no-spec-draft-backend-sampling",
        "LLAMA_ARG_SPEC_DRAFT_BACKEND_SAMPLING",
        nothing="--no-spec-draft-backend-sampling",
    ),
    _draft("--spec-draft-device, -devd, --device-draft DEV1,DEV2,...", nothing="none"),
    _draft(
        "--spec-draft-ngl, -ngld, --gpu-layers-draft, --n-gpu-layers-draft N", "LLAMA_ARG_N_GPU_LAYERS_DRAFT"
    ),
    _draft("--spec-ngram-mod-n-min N"),
    _draft("--spec-ngram-mod-n-max N"),
    _draft("--spec-ngram-mod-n-match N"),
    _draft("--spec-ngram-simple-size-n N"),
    _draft("--spec-ngram-simple-size-m N"),
    _draft("--spec-ngram-simple-min-hits N"),
    _draft("--spec-ngram-map-k-size-n N"),
    _draft("--spec-ngram-map-k-size-m N"),
    _draft("--spec-ngram-map-k-min-hits N"),
    _draft("--spec-ngram-map-k4v-size-n N"),
    _draft("--spec-ngram-map-k4v-size-m N"),
    _draft("--spec-ngram-map-k4v-min-hits N"),
    _draft("-lcs, --lookup-cache-static FNAME"),
    _draft("-lcd, --lookup-cache-dynamic FNAME"),
    refused("--draft, --draft-n, --draft-max N", "LLAMA_ARG_DRAFT_MAX", REMOVED, nothing="0"),
    refused("--draft-min, --draft-n-min N", "LLAMA_ARG_DRAFT_MIN", REMOVED, nothing="0"),
    refused("--spec-ngram-size-n N", None, REMOVED),
    refused("--spec-ngram-size-m N", None, REMOVED),
    refused("--spec-ngram-min-hits N", None, REMOVED),
]
