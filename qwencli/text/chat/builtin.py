"""The chat templates that llama.cpp knows by name, as Jinja.

A model that came without a template is given one of these by `--chat-template NAME`. Each lays the messages out in the form that its models
were trained on, and ends where an answer begins; tools have no place in them. A message of several parts is their texts, a line each, and a
BOS token that stands before all is the tokenizer's to add.
"""

from __future__ import annotations

from collections.abc import Mapping

TEXT, TRIMMED = "{{ text }}", "{{ text | trim }}"
ROLE = "{{ message.role }}"
USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"
OPENS = "loop.first or loop.previtem.role not in ['system', 'user']"
"""Where a message begins a turn, in forms whose turns hold a question, what the system says before it, and its answer."""
NOTHING_KEPT = "{% set kept = namespace(system='') %}"
KEEP = "{% set kept.system = kept.system + text %}"
KEPT = "{% if kept.system %}{{ kept.system }}{{ '\\n\\n' }}{% set kept.system = '' %}{% endif %}"
"""What the system says, put before the next question."""


def _template(message: str, answer: str = "", start: str = "") -> str:
    """Jinja that writes `start`, each message by `message`, which sees its `text` and the `loop`, and before an answer `answer`."""
    return (
        f"{start}{{% for message in messages %}}"
        "{% set text = message.content if message.content is string"
        " else (message.content or []) | map(attribute='text') | join('\\n') %}"
        f"{message}{{% endfor %}}{{% if add_generation_prompt %}}{answer}{{% endif %}}"
    )


def _roles(pieces: Mapping[str, str], others: str = "") -> str:
    """Jinja for a message: the piece of its role, or `others`."""
    tests = "".join(
        f"{{% {'elif' if n else 'if'} message.role == '{r}' %}}{pieces[r]}" for n, r in enumerate(pieces)
    )
    return f"{tests}{{% else %}}{others}{{% endif %}}"


def _llama2(system: str = f"<<SYS>>\n{TEXT}\n<</SYS>>\n\n", bos: str = "", text: str = TEXT) -> str:
    opens = f"{{% if not loop.first and ({OPENS}) %}}{bos}[INST] {{% endif %}}"
    pieces = {SYSTEM: system.replace(TEXT, text), USER: f"{text} [/INST]"}
    return _template(opens + _roles(pieces, f"{text}</s>"), start="[INST] ")


def _mistral(before: str = "", after: str = " ", answer: str = TEXT) -> str:
    opens = f"{{% if {OPENS} %}}{{{{ '{before}[INST]{after}' }}}}{{% endif %}}"
    pieces = {SYSTEM: f"{TEXT}\n\n", USER: f"{TEXT}{before}[/INST]"}
    return _template(opens + _roles(pieces, f"{after}{answer}</s>"))


def _mistral7(space: str = "") -> str:
    pieces = {SYSTEM: f"[SYSTEM_PROMPT]{space}{TEXT}[/SYSTEM_PROMPT]", USER: f"[INST]{space}{TEXT}[/INST]"}
    return _template(_roles(pieces, f"{space}{TEXT}</s>"))


def _gemma() -> str:
    model = f"<start_of_turn>model\n{TRIMMED}<end_of_turn>\n"
    other = f"<start_of_turn>{ROLE}{{{{ '\\n' }}}}{KEPT}{TRIMMED}<end_of_turn>\n"
    message = _roles({SYSTEM: KEEP.replace("text", "text | trim"), ASSISTANT: model}, other)
    return _template(message, "<start_of_turn>model\n", NOTHING_KEPT)


def _orion() -> str:
    pieces = {SYSTEM: KEEP, USER: f"Human: {KEPT}{TEXT}\n\nAssistant: </s>"}
    return _template(_roles(pieces, f"{TEXT}</s>"), start=NOTHING_KEPT)


def _vicuna(system: str) -> str:
    pieces = {SYSTEM: system, USER: f"USER: {TEXT}\n", ASSISTANT: f"ASSISTANT: {TEXT}</s>\n"}
    return _template(_roles(pieces), "ASSISTANT:")


def _command_r() -> str:
    names = {SYSTEM: "SYSTEM", USER: "USER", ASSISTANT: "CHATBOT"}
    begins = {role: f"<|START_OF_TURN_TOKEN|><|{name}_TOKEN|>" for role, name in names.items()}
    pieces = {role: f"{begin}{TRIMMED}<|END_OF_TURN_TOKEN|>" for role, begin in begins.items()}
    return _template(_roles(pieces), begins[ASSISTANT])


def _exaone(with_tools: bool) -> str:
    ended = [SYSTEM, ASSISTANT, *[TOOL] * with_tools]
    pieces = {role: f"[|{role}|]{TRIMMED}[|endofturn|]\n" for role in ended}
    return _template(_roles({**pieces, USER: f"[|user|]{TRIMMED}\n"}), "[|assistant|]")


def _exaone_moe() -> str:
    pieces = {role: f"<|{role}|>\n{TRIMMED}<|endofturn|>\n" for role in (SYSTEM, USER, ASSISTANT, TOOL)}
    return _template(_roles(pieces), "<|assistant|>\n")


def _gigachat() -> str:
    functions = "available functions<|role_sep|>[]<|message_sep|>"
    pieces = {
        SYSTEM: f"{{% if loop.first %}}{TEXT}<|message_sep|>{{% endif %}}",
        USER: f"user<|role_sep|>{TEXT}<|message_sep|>{functions}",
        ASSISTANT: f"assistant<|role_sep|>{TEXT}<|message_sep|>",
    }
    return _template(_roles(pieces), "assistant<|role_sep|>", "<s>")


def _bailing(ends: str = "", thinks: str = "", start: str = "") -> str:
    name = "{{ 'HUMAN' if message.role == 'user' else message.role | upper }}"
    return _template(f"<role>{name}</role>{TEXT}{ends}", f"<role>ASSISTANT</role>{thinks}", start)


BAILING2_SYSTEM = (
    "{% if not messages or messages[0].role != 'system' %}"
    "<role>SYSTEM</role>detailed thinking off<|role_end|>{% endif %}"
)


def _hunyuan_dense() -> str:
    pieces = {
        SYSTEM: f"{{% if loop.first %}}{TEXT}<｜hy_place▁holder▁no▁3｜>{{% endif %}}",
        ASSISTANT: f"<｜hy_Assistant｜>{TEXT}<｜hy_place▁holder▁no▁2｜>",
        USER: f"<｜hy_User｜>{TEXT}<｜hy_Assistant｜>",
    }
    return _template(_roles(pieces))


def _hunyuan_vl() -> str:
    pieces = {
        SYSTEM: f"{{% if loop.first %}}{TEXT}<｜hy_place▁holder▁no▁3｜>{{% endif %}}",
        USER: f"{TEXT}<｜hy_User｜>",
        ASSISTANT: f"{TEXT}<｜hy_Assistant｜>",
    }
    return _template(_roles(pieces), start="<｜hy_begin▁of▁sentence｜>")


def _kimi_k2() -> str:
    names = {SYSTEM: "system", USER: "user", ASSISTANT: "assistant", TOOL: "system"}
    pieces = {role: f"<|im_{name}|>{role}<|im_middle|>{TEXT}<|im_end|>" for role, name in names.items()}
    return _template(_roles(pieces), "<|im_assistant|>assistant<|im_middle|>")


def _pangu() -> str:
    names = {SYSTEM: "系统", USER: "用户", ASSISTANT: "助手", TOOL: "工具", "function": "方法"}
    pieces = {role: f"[unused9]{name}：{TEXT}[unused10]" for role, name in names.items()}
    system = "{% if loop.first and message.role != 'system' %}[unused9]系统：[unused10]{% endif %}"
    return _template(system + _roles(pieces), "[unused9]助手：")


def _granite() -> str:
    turn = f"<|start_of_role|>{ROLE}<|end_of_role|>"
    return _template(f"{turn}{TEXT}<|end_of_text|>\n", turn.replace(ROLE, ASSISTANT))


def _of_roles(turn: str, answer: str, pieces: Mapping[str, str]) -> str:
    return _template(_roles(pieces, turn), answer)


_GRANITE = _granite()
_NAMED = f"<|{ROLE}|>"
TEMPLATES = {
    "llama2": _llama2(f"{TEXT}\n"),
    "llama2-sys": _llama2(),
    "llama2-sys-bos": _llama2(bos="<s>"),
    "llama2-sys-strip": _llama2(text=TRIMMED),
    "mistral-v1": _mistral(" "),
    "mistral-v3": _mistral(answer=TRIMMED),
    "mistral-v3-tekken": _mistral(after=""),
    "mistral-v7": _mistral7(" "),
    "mistral-v7-tekken": _mistral7(),
    "phi3": _template(f"{_NAMED}{{{{ '\\n' }}}}{TEXT}<|end|>\n", "<|assistant|>\n"),
    "phi4": _template(f"<|im_start|>{ROLE}<|im_sep|>{TEXT}<|im_end|>", "<|im_start|>assistant<|im_sep|>"),
    "falcon3": _template(f"{_NAMED}\n{TEXT}\n", "<|assistant|>\n"),
    "zephyr": _template(f"{_NAMED}\n{TEXT}<|endoftext|>\n", "<|assistant|>\n"),
    "monarch": _template(f"{{% if not loop.first %}}<s>{{% endif %}}{ROLE}\n{TEXT}</s>\n", "<s>assistant\n"),
    "gemma": _gemma(),
    "orion": _orion(),
    "openchat": _of_roles(
        f"GPT4 Correct {{{{ message.role[:1] | upper }}}}{{{{ message.role[1:] }}}}: {TEXT}<|end_of_turn|>",
        "GPT4 Correct Assistant:",
        {SYSTEM: f"{TEXT}<|end_of_turn|>"},
    ),
    "vicuna": _vicuna(f"{TEXT}\n\n"),
    "vicuna-orca": _vicuna(f"SYSTEM: {TEXT}\n"),
    "deepseek": _of_roles(
        "",
        "### Response:\n",
        {SYSTEM: TEXT, USER: f"### Instruction:\n{TEXT}\n", ASSISTANT: f"### Response:\n{TEXT}\n<|EOT|>\n"},
    ),
    "deepseek2": _of_roles(
        "",
        "Assistant:",
        {
            SYSTEM: f"{TEXT}\n\n",
            USER: f"User: {TEXT}\n\n",
            ASSISTANT: f"Assistant: {TEXT}<｜end▁of▁sentence｜>",
        },
    ),
    "deepseek3": _of_roles(
        "",
        "<｜Assistant｜>",
        {
            SYSTEM: f"{TEXT}\n\n",
            USER: f"<｜User｜>{TEXT}",
            ASSISTANT: f"<｜Assistant｜>{TEXT}<｜end▁of▁sentence｜>",
        },
    ),
    "deepseek-ocr": _template(TEXT),
    "command-r": _command_r(),
    "llama3": _template(
        f"<|start_header_id|>{ROLE}<|end_header_id|>\n\n{TRIMMED}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "llama4": _template(
        f"<|header_start|>{ROLE}<|header_end|>\n\n{TRIMMED}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n",
    ),
    "chatglm3": _template(f"{_NAMED}\n {TEXT}", "<|assistant|>", "[gMASK]sop"),
    "chatglm4": _template(f"{_NAMED}\n{TEXT}", "<|assistant|>\n", "[gMASK]<sop>"),
    "glmedge": _template(f"{_NAMED}\n{TEXT}", "<|assistant|>"),
    "minicpm": _of_roles(TRIMMED, "", {USER: f"<用户>{TRIMMED}<AI>"}),
    "exaone3": _exaone(with_tools=False),
    "exaone4": _exaone(with_tools=True),
    "exaone-moe": _exaone_moe(),
    "rwkv-world": _of_roles(
        "",
        "",
        {
            SYSTEM: f"System: {TRIMMED}\n\n",
            USER: f"User: {TRIMMED}\n\n{{% if loop.last %}}Assistant:{{% endif %}}",
            ASSISTANT: f"Assistant: {TRIMMED}\n\n",
        },
    ),
    "granite": _GRANITE,
    "granite-4.0": _GRANITE,
    "granite-4.1": _GRANITE,
    "gigachat": _gigachat(),
    "megrez": _template(
        f"<|role_start|>{ROLE}<|role_end|>{TEXT}<|turn_end|>", "<|role_start|>assistant<|role_end|>"
    ),
    "yandex": _of_roles(
        "", " Ассистент:[SEP]", {USER: f" Пользователь: {TEXT}\n\n", ASSISTANT: f" Ассистент: {TEXT}\n\n"}
    ),
    "bailing": _bailing(),
    "bailing-think": _bailing(thinks="<think>"),
    "bailing2": _bailing("<|role_end|>", start=BAILING2_SYSTEM),
    "smolvlm": _template(
        _roles(
            {SYSTEM: f"{TEXT}\n\n", USER: f"User: {TEXT}<end_of_utterance>\n"},
            f"Assistant: {TEXT}<end_of_utterance>\n",
        ),
        "Assistant:",
        "<|im_start|>",
    ),
    "hunyuan-moe": _of_roles(
        f"<|startoftext|>{TEXT}<|extra_0|>",
        "",
        {SYSTEM: f"<|startoftext|>{TEXT}<|extra_4|>", ASSISTANT: f"{TEXT}<|eos|>"},
    ),
    "hunyuan-dense": _hunyuan_dense(),
    "hunyuan-vl": _hunyuan_vl(),
    "gpt-oss": _of_roles(
        f"<|start|>{ROLE}<|message|>{TEXT}<|end|>",
        "<|start|>assistant",
        {ASSISTANT: f"<|start|>assistant<|message|>{TEXT}<|return|>"},
    ),
    "kimi-k2": _kimi_k2(),
    "seed_oss": _of_roles(
        f"<seed:bos>{ROLE}\n{TEXT}<seed:eos>",
        "<seed:bos>assistant\n",
        {ASSISTANT: f"<seed:bos>assistant\n{TRIMMED}<seed:eos>"},
    ),
    "grok-2": _of_roles(
        "",
        "Assistant:",
        {
            SYSTEM: f"System: {TRIMMED}<|separator|>\n\n",
            USER: f"Human: {TRIMMED}<|separator|>\n\n",
            ASSISTANT: f"Assistant: {TEXT}<|separator|>\n\n",
        },
    ),
    "pangu-embedded": _pangu(),
    "solar-open": _template(f"<|begin|>{ROLE}<|content|>{TEXT}<|end|>", "<|begin|>assistant"),
}
"""Each template by its name in llama.cpp."""
