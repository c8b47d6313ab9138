"""The server: slots, addresses, endpoints, who may use it."""

from .entries import different, no_meaning, refused, same

IMAGES = "models with images, sound or video come later: leave it out"
ROUTER = "a server has one model: start one server for each, with -m and --port"
ACTS = "a web page could act on this machine through it, so it doesn't exist here: leave it out"
PRESET = "give the model and its settings: {}"

CACHES = [
    no_meaning(
        "-ctxcp, --ctx-checkpoints, --swa-checkpoints N",
        "LLAMA_ARG_CTX_CHECKPOINTS",
        "states are kept as memory allows",
    ),
    no_meaning(
        "-cms, --checkpoint-min-step N",
        "LLAMA_ARG_CHECKPOINT_MIN_SPACING_NT",
        "states are kept as memory allows",
    ),
    no_meaning(
        "-cram, --cache-ram N",
        "LLAMA_ARG_CACHE_RAM",
        "all prompts share the KV cache, so there is no second cache to hold them",
    ),
    refused("--log-prompts-dir PATH", None, "--log-prompts writes prompts and answers to the log"),
    refused("--gpt-oss-20b-default", None, "it isn't a Qwen model: give -hf and the settings"),
    refused("--gpt-oss-120b-default", None, "it isn't a Qwen model: give -hf and the settings"),
    refused("--vision-gemma-4b-default", None, "it isn't a Qwen model: give -hf and the settings"),
    refused("--vision-gemma-12b-default", None, "it isn't a Qwen model: give -hf and the settings"),
]
"""What programs that answer in a terminal have too."""

SERVING = [
    same("--kv-unified-per-slot N", "LLAMA_ARG_KV_UNIFIED_PER_SLOT"),
    different(
        "-kvu, --kv-unified / -no-kvu, --no-kv-unified",
        "LLAMA_ARG_KV_UNIFIED",
        "it decides what -c means, as there; memory is shared in any case, and requests never fail because others fill the context",
    ),
    no_meaning(
        "--cache-idle-slots / --no-cache-idle-slots",
        "LLAMA_ARG_CACHE_IDLE_SLOTS",
        "what is kept belongs to no slot",
        nothing="--cache-idle-slots",
    ),
    no_meaning("--warmup / --no-warmup", None, "all is ready before the first request", nothing="--warmup"),
    same("--spm-infill"),
    same("--pooling {none,mean,cls,last,rank}", "LLAMA_ARG_POOLING"),
    same("-np, --parallel N", "LLAMA_ARG_N_PARALLEL"),
    no_meaning(
        "-cb, --cont-batching / -nocb, --no-cont-batching",
        "LLAMA_ARG_CONT_BATCHING",
        "answers don't depend on what runs next to them",
        nothing="-cb --cont-batching",
    ),
    refused("-mm, --mmproj FILE", "LLAMA_ARG_MMPROJ", IMAGES),
    refused("-mmu, --mmproj-url URL", "LLAMA_ARG_MMPROJ_URL", IMAGES),
    no_meaning(
        "--mmproj-auto / --no-mmproj, --no-mmproj-auto",
        "LLAMA_ARG_MMPROJ_AUTO",
        "only the text model is loaded",
        nothing="--mmproj-auto --no-mmproj --no-mmproj-auto",
    ),
    no_meaning(
        "--mmproj-offload / --no-mmproj-offload", "LLAMA_ARG_MMPROJ_OFFLOAD", "there is no GPU to use"
    ),
    refused("-mmdev, --mmproj-device DEVICE", "MTMD_BACKEND_DEVICE", IMAGES, nothing="none"),
    refused("--image-min-tokens N", "LLAMA_ARG_IMAGE_MIN_TOKENS", IMAGES),
    refused("--image-max-tokens N", "LLAMA_ARG_IMAGE_MAX_TOKENS", IMAGES),
    refused("--mtmd-batch-max-tokens N", "LLAMA_ARG_MTMD_BATCH_MAX_TOKENS", IMAGES),
    refused("--video-fps N", "LLAMA_ARG_VIDEO_FPS", IMAGES),
    refused("--video-timestamp-interval N", "LLAMA_ARG_VIDEO_TIMESTAMP_INTERVAL", IMAGES),
    refused("--video-ffmpeg-dir DIR", "LLAMA_ARG_VIDEO_FFMPEG_DIR", IMAGES),
    same("-a, --alias STRING", "LLAMA_ARG_ALIAS"),
    same("--tags STRING", "LLAMA_ARG_TAGS"),
    same("--embd-normalize N"),
    same("--host HOST", "LLAMA_ARG_HOST"),
    same("--port PORT", "LLAMA_ARG_PORT"),
    same("--reuse-port", "LLAMA_ARG_REUSE_PORT"),
    same("--path PATH", "LLAMA_ARG_STATIC_PATH"),
    different(
        "--cors-origins ORIGINS",
        "LLAMA_ARG_CORS_ORIGINS",
        "by default no other site's page may use the server; `*` allows all, `localhost` those of this machine",
    ),
    refused(
        "--cors-methods METHODS", "LLAMA_ARG_CORS_METHODS", "allowed sites may use all methods: leave it out"
    ),
    refused(
        "--cors-headers HEADERS",
        "LLAMA_ARG_CORS_HEADERS",
        "allowed sites may send all headers: leave it out",
        nothing="*",
    ),
    refused(
        "--cors-credentials / --no-cors-credentials",
        "LLAMA_ARG_CORS_CREDENTIALS",
        "the server knows no cookies, and keys come in headers: leave it out",
        nothing="--no-cors-credentials",
    ),
    same("--api-prefix PREFIX", "LLAMA_ARG_API_PREFIX"),
    same("--ui-config, --webui-config JSON", "LLAMA_ARG_UI_CONFIG"),
    same("--ui-config-file, --webui-config-file PATH", "LLAMA_ARG_UI_CONFIG_FILE"),
    same("--ui, --webui / --no-ui, --no-webui", "LLAMA_ARG_UI"),
    refused(
        "--ui-mcp-proxy, --webui-mcp-proxy / --no-ui-mcp-proxy, --no-webui-mcp-proxy",
        "LLAMA_ARG_UI_MCP_PROXY",
        ACTS,
        nothing="--no-ui-mcp-proxy --no-webui-mcp-proxy",
    ),
    refused("--tools TOOL1,TOOL2,...", "LLAMA_ARG_TOOLS", ACTS, nothing=" "),
    refused("--tools-runtime OPTION", "LLAMA_ARG_TOOLS_RUNTIME", ACTS, nothing="none"),
    refused("--mcp-servers-config PATH", "LLAMA_ARG_MCP_SERVERS_CONFIG", ACTS),
    refused("--mcp-servers-json JSON", "LLAMA_ARG_MCP_SERVERS_JSON", ACTS),
    refused("-ag, --agent / -no-ag, --no-agent", "LLAMA_ARG_AGENT", ACTS, nothing="-no-ag --no-agent"),
    same("--embedding, --embeddings", "LLAMA_ARG_EMBEDDINGS"),
    same("--rerank, --reranking", "LLAMA_ARG_RERANKING"),
    different(
        "--api-key KEY",
        "LLAMA_API_KEY",
        "`/v1/models` asks for a key too; the option replaces the variable's keys",
    ),
    same("--api-key-file FNAME", "LLAMA_ARG_API_KEY_FILE"),
    same("--ssl-key-file FNAME", "LLAMA_ARG_SSL_KEY_FILE"),
    same("--ssl-cert-file FNAME", "LLAMA_ARG_SSL_CERT_FILE"),
    different(
        "-to, --timeout N",
        "LLAMA_ARG_TIMEOUT",
        "60 seconds by default; how long a client may take to send a request or to read an answer, never how long the model may take",
    ),
    same("--sse-ping-interval N", "LLAMA_ARG_SSE_PING_INTERVAL"),
    no_meaning("--threads-http N", "LLAMA_ARG_THREADS_HTTP", "one thread answers all connections"),
    same("--cache-prompt / --no-cache-prompt", "LLAMA_ARG_CACHE_PROMPT"),
    no_meaning(
        "--cache-reuse N",
        "LLAMA_ARG_CACHE_REUSE",
        "what two prompts have in common after their first difference is computed again, so that it is exact",
        nothing="0",
    ),
    same("--metrics", "LLAMA_ARG_ENDPOINT_METRICS"),
    same("--props", "LLAMA_ARG_ENDPOINT_PROPS"),
    same("--slots / --no-slots", "LLAMA_ARG_ENDPOINT_SLOTS"),
    same("--slot-save-path PATH"),
    no_meaning("--media-path PATH", None, "no model here takes files"),
    refused("--models-dir PATH", "LLAMA_ARG_MODELS_DIR", ROUTER),
    refused("--models-preset PATH", "LLAMA_ARG_MODELS_PRESET", ROUTER),
    refused("--models-max N", "LLAMA_ARG_MODELS_MAX", ROUTER, nothing="1"),
    refused(
        "--models-autoload / --no-models-autoload",
        "LLAMA_ARG_MODELS_AUTOLOAD",
        ROUTER,
        nothing="--no-models-autoload",
    ),
    no_meaning(
        "-sps, --slot-prompt-similarity SIMILARITY", None, "every slot can use every prompt that is kept"
    ),
    refused("--lora-init-without-apply", None, "adapters can't be applied yet: leave it out"),
    same("--sleep-idle-seconds SECONDS"),
    refused("--embd-gemma-default", None, "it isn't a Qwen model: give -hf and --embedding"),
    refused(
        "--fim-qwen-1.5b-default",
        None,
        PRESET.format("-hf ggml-org/Qwen2.5-Coder-1.5B-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
    refused(
        "--fim-qwen-3b-default",
        None,
        PRESET.format("-hf ggml-org/Qwen2.5-Coder-3B-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
    refused(
        "--fim-qwen-7b-default",
        None,
        PRESET.format("-hf ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
    refused(
        "--fim-qwen-7b-spec",
        None,
        PRESET.format("-hf ggml-org/Qwen2.5-Coder-7B-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
    refused(
        "--fim-qwen-14b-spec",
        None,
        PRESET.format("-hf ggml-org/Qwen2.5-Coder-14B-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
    refused(
        "--fim-qwen-30b-default",
        None,
        PRESET.format("-hf ggml-org/Qwen3-Coder-30B-A3B-Instruct-Q8_0-GGUF --port 8012 -ub 1024 -b 1024"),
    ),
]
