"""The model, its context, and what is logged."""

from .entries import different, no_meaning, prints, refused, same

ADAPTERS = "adapters can't be applied yet: merge them into the model's file with llama-export-lora"
VECTORS = "control vectors don't exist here yet: leave it out"
REWRITES = "it is given to the model as metadata"

MODEL = [
    prints("-h, --help, --usage", "the options"),
    prints("--version", "qwencli's version"),
    prints("-cl, --cache-list", "the models that are here, as `qwencli list`"),
    prints("--completion-bash", "a script for bash, which completes commands and options"),
    prints("--list-devices", "the devices, as `qwencli devices`"),
    different(
        "-m, --model FNAME", "LLAMA_ARG_MODEL", "also a folder with one model, or a name as in `qwencli list`"
    ),
    different("-mu, --model-url URL", "LLAMA_ARG_MODEL_URL", "of a file on huggingface.co only"),
    refused(
        "-dr, --docker-repo REPO",
        "LLAMA_ARG_DOCKER_REPO",
        "models come from the Hugging Face hub: give -hf USER/REPO:QUANT, or the file with -m",
    ),
    same("-hf, -hfr, --hf-repo USER/REPO[:QUANT]", "LLAMA_ARG_HF_REPO"),
    same("-hff, --hf-file FILE", "LLAMA_ARG_HF_FILE"),
    same("-hft, --hf-token TOKEN", "HF_TOKEN"),
    same("--offline", "LLAMA_ARG_OFFLINE"),
    same("--check-tensors"),
    same("--override-kv KEY=TYPE:VALUE,..."),
    different(
        "-c, --ctx-size N",
        "LLAMA_ARG_CTX_SIZE",
        "without it, and with 0, each request has the model's own context, or what fits into memory",
    ),
    same("--rope-scaling {none,linear,yarn}", "LLAMA_ARG_ROPE_SCALING_TYPE"),
    same("--rope-scale N", "LLAMA_ARG_ROPE_SCALE"),
    same("--rope-freq-base N", "LLAMA_ARG_ROPE_FREQ_BASE"),
    same("--rope-freq-scale N", "LLAMA_ARG_ROPE_FREQ_SCALE"),
    same("--yarn-orig-ctx N", "LLAMA_ARG_YARN_ORIG_CTX"),
    same("--yarn-ext-factor N", "LLAMA_ARG_YARN_EXT_FACTOR"),
    same("--yarn-attn-factor N", "LLAMA_ARG_YARN_ATTN_FACTOR"),
    same("--yarn-beta-slow N", "LLAMA_ARG_YARN_BETA_SLOW"),
    same("--yarn-beta-fast N", "LLAMA_ARG_YARN_BETA_FAST"),
    no_meaning("--swa-full", "LLAMA_ARG_SWA_FULL", "no model here has a sliding window"),
    no_meaning(
        "-fa, --flash-attn [on|off|auto]",
        "LLAMA_ARG_FLASH_ATTN",
        "attention never needs more memory for longer contexts, so there is nothing to turn off",
        nothing="on auto 1 true enabled -1",
    ),
    no_meaning("--perf / --no-perf", "LLAMA_ARG_PERF", "timings are always taken", nothing="--perf"),
    refused("--lora FNAME", None, ADAPTERS),
    refused("--lora-scaled FNAME:SCALE,...", None, ADAPTERS),
    refused("--control-vector FNAME", None, VECTORS),
    refused("--control-vector-scaled FNAME:SCALE,...", None, VECTORS),
    refused("--control-vector-layer-range START END", None, VECTORS),
]
