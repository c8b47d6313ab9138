"""llama-bench's options, where they aren't llama-server's."""

from .entries import different, no_meaning, prints, refused, same

NO_GPU = "there is no GPU to use"
LIKE_OTHERS = {
    "--model",
    "--hf-repo",
    "--hf-file",
    "--hf-token",
    "--offline",
    "--numa",
    "--prio",
    "--cpu-mask",
    "--cpu-strict",
    "--poll",
    "--threads",
    "--batch-size",
    "--ubatch-size",
    "--cache-type-k",
    "--cache-type-v",
    "--device",
    "--override-tensor",
    "--tensor-split",
    "--load-mode",
    "--lazy-mode",
    "--gpu-layers",
    "--n-cpu-moe",
    "--split-mode",
    "--main-gpu",
    "--flash-attn",
    "--list-devices",
    "--version",
}
"""Those that are the same in both, by the names that the table has for them."""
BENCH = [
    prints("-h, --help", "the options"),
    same("-p, --n-prompt N"),
    same("-n, --n-gen N"),
    same("-pg PP,TG"),
    same("-d, --n-depth N"),
    same("-r, --repetitions N"),
    different("-o, --output FORMAT", None, "md, json, jsonl and csv only"),
    no_meaning("-oe, --output-err FORMAT", None, "results go to stdout only", nothing="none"),
    no_meaning("--delay N", None, "tests follow each other at once", nothing="0"),
    no_meaning("--progress", None, "a bar shows it", nothing="--progress"),
    no_meaning("-v, --verbose", None, "there is nothing more to show"),
    no_meaning("--no-warmup", None, "kernels are compiled before anything is measured"),
    refused(
        "-fitt, --fit-target MIB", None, "what is free is used: --no-fit doesn't check whether tests fit"
    ),
    refused("-fitc, --fit-ctx N", None, "what is free is used: --no-fit doesn't check whether tests fit"),
    no_meaning("-nkvo, --no-kv-offload <0|1>", None, NO_GPU),
    refused("-embd, --embeddings <0|1>", None, "only generation is measured: leave it out", nothing="0"),
    no_meaning("-nopo, --no-op-offload <0|1>", None, NO_GPU),
    no_meaning("--no-host <0|1>", None, NO_GPU),
    no_meaning("--repack <0|1>", None, "weights are multiplied as they lie in the file", nothing="0"),
]
