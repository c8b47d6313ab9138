"""How tokens are chosen."""

from .entries import no_meaning, refused, same

IN_REQUESTS = "a server takes it from requests: give {} in each of them"

SAMPLING = [
    same("--keep N"),
    same("-n, --predict, --n-predict N", "LLAMA_ARG_N_PREDICT"),
    same("-e, --escape / --no-escape"),
    same("--samplers SAMPLERS"),
    same("-s, --seed SEED"),
    same("--sampler-seq, --sampling-seq SEQUENCE"),
    same("--ignore-eos"),
    same("--temp, --temperature N", "LLAMA_ARG_TEMPERATURE"),
    same("--top-k N", "LLAMA_ARG_TOP_K"),
    same("--top-p N", "LLAMA_ARG_TOP_P"),
    same("--min-p N", "LLAMA_ARG_MIN_P"),
    same("--top-nsigma, --top-n-sigma N"),
    same("--xtc-probability N"),
    same("--xtc-threshold N"),
    same("--typical, --typical-p N"),
    same("--repeat-last-n N"),
    same("--repeat-penalty N", "LLAMA_ARG_REPEAT_PENALTY"),
    same("--presence-penalty N", "LLAMA_ARG_PRESENCE_PENALTY"),
    same("--frequency-penalty N", "LLAMA_ARG_FREQUENCY_PENALTY"),
    same("--dry-multiplier N"),
    same("--dry-base N"),
    same("--dry-allowed-length N"),
    same("--dry-penalty-last-n N"),
    same("--dry-sequence-breaker STRING"),
    same("--adaptive-target N"),
    same("--adaptive-decay N"),
    same("--dynatemp-range N"),
    same("--dynatemp-exp N"),
    same("--mirostat N"),
    same("--mirostat-lr N"),
    same("--mirostat-ent N"),
    same("-l, --logit-bias TOKEN_ID(+/-)BIAS"),
    no_meaning("-bs, --backend-sampling", "LLAMA_ARG_BACKEND_SAMPLING", "the CPU samples in any case"),
]
GRAMMARS_OF_SERVERS = [
    refused("--grammar GRAMMAR", None, IN_REQUESTS.format("grammar")),
    refused("--grammar-file FNAME", None, IN_REQUESTS.format("grammar")),
    refused("-j, --json-schema SCHEMA", None, IN_REQUESTS.format("json_schema")),
    refused("-jf, --json-schema-file FILE", None, IN_REQUESTS.format("json_schema")),
]
GRAMMARS = [
    same("--grammar GRAMMAR"),
    same("--grammar-file FNAME"),
    same("-j, --json-schema SCHEMA"),
    same("-jf, --json-schema-file FILE"),
]
"""The same for a program with a single prompt or chat."""
