"""What is logged, and where."""

from .entries import different, no_meaning, same

LOGS = [
    different("--log-disable", None, "as `-q`: errors are still written"),
    same("--log-file FNAME", "LLAMA_ARG_LOG_FILE"),
    different(
        "--log-jsonl / --no-log-jsonl",
        "LLAMA_ARG_LOG_JSONL",
        "as `--log-format json`: a line for each request, on stderr",
    ),
    no_meaning(
        "--log-colors [on|off|auto]",
        "LLAMA_ARG_LOG_COLORS",
        "the log has no colours",
        nothing="off auto 0 -1 false disabled",
    ),
    different(
        "-v, --verbose, --log-verbose",
        None,
        "shows how the model is divided and what is in memory; `--log-prompts` shows prompts",
    ),
    different(
        "-lv, --verbosity, --log-verbosity N", "LLAMA_ARG_LOG_VERBOSITY", "below 3 as `-q`, above 3 as `-v`"
    ),
    no_meaning(
        "--log-prefix / --no-log-prefix", "LLAMA_ARG_LOG_PREFIX", "every line of the log names its fields"
    ),
    no_meaning(
        "--log-timestamps / --no-log-timestamps",
        "LLAMA_ARG_LOG_TIMESTAMPS",
        "every line of the log has its time",
        nothing="--log-timestamps",
    ),
]
