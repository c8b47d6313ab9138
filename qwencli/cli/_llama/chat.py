"""Chats: templates, thinking, and what is made of an answer. Only a server has all of them."""

from .entries import different, no_meaning, refused, same

CHAT = [
    no_meaning("--jinja / --no-jinja", "LLAMA_ARG_JINJA", "templates are always Jinja's", nothing="--jinja"),
    different(
        "--chat-template TEMPLATE",
        "LLAMA_ARG_CHAT_TEMPLATE",
        "the names of llama.cpp's built-in templates need no `--no-jinja` here. Also the path of a file",
    ),
    same("--chat-template-file FILE", "LLAMA_ARG_CHAT_TEMPLATE_FILE"),
    same("--chat-template-kwargs JSON", "LLAMA_ARG_CHAT_TEMPLATE_KWARGS"),
    same("--skip-chat-parsing / --no-skip-chat-parsing", "LLAMA_ARG_SKIP_CHAT_PARSING"),
    same("--reasoning-format FORMAT", "LLAMA_ARG_THINK"),
    same("-rea, --reasoning [on|off|auto]", "LLAMA_ARG_REASONING"),
    same("--reasoning-effort LEVEL", "LLAMA_ARG_REASONING_EFFORT"),
    same("--reasoning-budget N", "LLAMA_ARG_THINK_BUDGET"),
    same("--reasoning-budget-message MESSAGE", "LLAMA_ARG_THINK_BUDGET_MESSAGE"),
    same("--reasoning-preserve / --no-reasoning-preserve", "LLAMA_ARG_REASONING_PRESERVE"),
    same("-r, --reverse-prompt PROMPT"),
    refused("-sp, --special", None, "control tokens are never part of an answer: leave it out"),
    same("--context-shift / --no-context-shift", "LLAMA_ARG_CONTEXT_SHIFT"),
]

CHAT_IN_SERVERS = [same("--prefill-assistant / --no-prefill-assistant", "LLAMA_ARG_PREFILL_ASSISTANT")]
