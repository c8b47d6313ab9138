"""Options that llama.cpp had until lately, and that stand in many start lines."""

from .entries import different, refused, same

OLDER = [
    same("--mlock", "LLAMA_ARG_MLOCK"),
    different("--mmap / --no-mmap", "LLAMA_ARG_MMAP", "`--load-mode none` is its name today"),
    refused(
        "-dio, --direct-io / -ndio, --no-direct-io",
        "LLAMA_ARG_DIO",
        "direct I/O doesn't exist here: --no-mmap reads the file into memory",
        nothing="-ndio --no-direct-io",
    ),
]
