#!/usr/bin/env python3
"""Write the expected values in tests/oracles, computed by transformers and llama.cpp, so that the tests need neither.

    python scripts/make_oracles.py models [FOLDER SEED]     hidden states and logits of tiny Qwen2 and Qwen3 models, by transformers
    python scripts/make_oracles.py tokenizer VOCABULARY     token ids of some texts, by llama.cpp; VOCABULARY is its ggml-vocab-qwen2.gguf
    python scripts/make_oracles.py sampling                 which tokens llama.cpp's samplers keep, in several orders
    python scripts/make_oracles.py perplexity TEXT MODEL... perplexities of a text after each chunk of 256, from llama.cpp's logits
    python scripts/make_oracles.py cache TEXT MODEL         the same with each type of keys and values
    python scripts/make_oracles.py dequantize               weights of random blocks, of types that the `gguf` package lacks, by GGML
    python scripts/make_oracles.py architectures            logits and perplexities of a tiny model of each architecture, by llama.cpp
    python scripts/make_oracles.py states                   hidden states of these models, by transformers
    python scripts/make_oracles.py completions MODEL        continuations of some prompts by the demo model, and embeddings, by llama.cpp
    python scripts/make_oracles.py templates                conversations in each of llama.cpp's built-in templates

Needs the extra `oracle`.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

import tiny_models  # noqa: E402  (these are next to the tests, which use them too)
import tiny_vocabulary  # noqa: E402
from make_formats import ggml_library, running_perplexity  # noqa: E402

ORACLES = ROOT / "tests" / "oracles"

FIRST = [*range(24)]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
MODELS: dict[str, tuple[dict[str, Any], list[int]]] = {
    "qwen3-gqa-tied": (tiny_models.config(tie_word_embeddings=True), FIRST),
    "qwen3-output": (
        tiny_models.config(
            num_attention_heads=6, num_key_value_heads=3, head_dim=10, rope_theta=1e6, rms_norm_eps=1e-6
        ),
        FIRST,
    ),
    "qwen3-linear": (
        tiny_models.config(rope_scaling={"rope_type": "linear", "factor": 4.0}),
        [*range(0, 160, 9)],
    ),
    "qwen3-yarn": (
        tiny_models.config(head_dim=32, max_position_embeddings=4096, rope_scaling=YARN),
        [0, 1, 63, 500, 1023, 1024, 1025, 1099],
    ),
    "qwen2-biases": (tiny_models.config("qwen2"), FIRST),
    "qwen2-tied-mqa": (tiny_models.config("qwen2", num_key_value_heads=1, tie_word_embeddings=True), FIRST),
    "qwen2-yarn-betas": (
        tiny_models.config(
            "qwen2",
            hidden_size=128,
            rope_theta=1e6,
            max_position_embeddings=512,
            rope_scaling=YARN
            | {"original_max_position_embeddings": 256, "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.25},
        ),
        [0, 1, 63, 255, 256, 300],
    ),
}
"""By name: the config, and the positions whose hidden states are kept. The prompt ends at the last of these."""


def run_transformers(
    c: tiny_models.Config, tensors: dict[str, tiny_models.F32], tokens: list[int]
) -> dict[str, tiny_models.F32]:
    """The hidden states after each layer (`l_out-0` ...) and after the last norm, and the logits, each float32 [n_tokens, ...]."""
    import torch
    import transformers

    kind = {"qwen2": "Qwen2", "qwen3": "Qwen3"}[c["model_type"]]
    values = {key: value for key, value in c.items() if key != "model_type"}
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**values, attn_implementation="eager")
    )
    state = {hf_name(name): torch.from_numpy(tensor) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=not c["tie_word_embeddings"])
    model.tie_weights()
    model.float().eval()
    found: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            found[name] = (out[0] if isinstance(out, tuple) else out).reshape(len(tokens), -1).numpy()

        return hook

    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(keep(f"l_out-{i}"))
    model.model.norm.register_forward_hook(keep("result_norm"))
    model.lm_head.register_forward_hook(keep("result_output"))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return found


def hf_name(name: str) -> str:
    """The name of a tensor in transformers, as llama.cpp's converter maps it."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in whole:
        return whole[name]
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{parts[part]}.{kind}"


def make_models(folder: str | Path = ORACLES, first_seed: str | int = 1) -> None:
    for seed, (name, (c, rows)) in enumerate(MODELS.items(), int(first_seed)):
        tokens = np.random.RandomState(1000 + seed).randint(0, c["vocab_size"], rows[-1] + 1)
        found = run_transformers(c, tiny_models.weights(c, seed), tokens.tolist())
        np.savez_compressed(
            Path(folder) / f"{name}.npz",
            config=json.dumps(c),
            seed=seed,
            tokens=tokens,
            rows=rows,
            **{key: value[rows] for key, value in found.items()},
        )


TEXTS = [
    "don't DON'T we'Re y'all'D've I'm o'clock 'tis ''s'",
    "the'\u017fs '\u017f \u2019s",
    "a\x85b \x85 c",
    "a\xa0b\xa0\xa0 c",
    "x\u2028y\u2029\nz",
    "\u3000\u65e5\u672c\u3000 \u8a9e",
    "\u200bzero\u200bwidth\ufeff",
    "a\u180eb\u1680c\u202fd\u205fe",
    "1\u0661\u0967\u0e51\uff11\u2460\xbd\u2167\u3007\U0001d7d9",
    "x1y22z333 4444",
    "n\u0303o e\u0301\u0323 \u0301alone",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092e\u0947\u0902 \u0915\u094d\u0937\u0924\u094d\u0930\u093f\u092f",
    "\u0e44\u0e17\u0e22\u0e20\u0e32\u0e29\u0e32 \u0e01\u0e33\u0e25\u0e31\u0e07",
    "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd \u05e2\u05b2\u05dc\u05b5\u05d9\u05db\u05b6\u05dd",
    "\u202b\u0627\u0644\u0633\u064e\u0651\u0644\u0627\u0645\u064f \u0639\u0644\u064a\u0643\u0645\u202c 123",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd \U0001f1e9\U0001f1ea",
    "\ufb01 \u01c6 \u01c5 \u2167 \xaa \xba \u02b0",
    "\x00\x01\x1b[0m\x7f\x80\x9f",
    "\x1c\x1d\x1e\x1f a\x0bb\x0cc",
    "tab\tand\t\ttabs \t mixed",
    "a \n b",
    "a  \n\n  b",
    "\n\n\n \n x",
    "\r\n\r\nx\r y\n\r",
    "   lead and trail   ",
    "a" + 40 * " " + "b" + 30 * "\n",
    "!!!\n\n???\r\n...",
    " .\n .",
    "(a)[b]{c}<d>",
    "--flag=value // comment /* x */",
    "C:\\dir\\file.txt",
    "https://example.org/a?b=c&d=%20",
    "3.14159e-10 1,000,000",
    "$100 \u20ac5 \xa57 \xa33",
    "= = =  = =x",
    "\ud55c\uad6d\uc5b4 \uc870\uc120\ub9d0",
    "\u1f00\u03c1\u03c7\u03ae \u0391\u0392\u0393 \u03c2",
    "\u0395\u03bb\u03bb\u03ac\u03b4\u03b1'S \u0440\u043e\u0441\u0441\u0438\u044f'll",
    "\U00010400\U0001f9ff\U000e0041",
    "\uffff\ufffd\ue000",
    "",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_end|><|im_end|>",
    " <|endoftext|> <think>\n\n</think>",
    "<think><think>x",
    "<|im_end",
    "im_end|>",
    "<|im_<|im_end|>end|>",
    "<a><b>",
    "<a><b><a>",
    "<a<a><b><b><c",
    "<a><c",
    "<ab><c",
    "<a <a> <b>",
    "x<unk>y",
    "\xdf\u20ac\xdf\u20ac",
    "\xdf \u20ac",
    "unused",
    "<|fim_prefix|>def f():",
    "= =<b>= =",
    "<think>'s",
    "a<think> b",
]


def random_texts(n: int, seed: int) -> list[str]:
    """Strings that mix all kinds of characters that are hard to split.

    Run it with Python 3.11, whose Unicode 14 has only characters that llama.cpp's tables know: letters that are new in Unicode 16 are
    letters for us but not for llama.cpp.
    """
    rnd = random.Random(seed)
    known = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
    kinds = [[c for c in known if unicodedata.category(c)[0] == kind] for kind in "LMNPSZ"]
    kinds += [
        known,
        list("\t\n\r \x0b\x85\xa0\u2028\u3000"),
        ["'s", "'RE", "'ll", "’t", "'"],
        list("aB \n'1."),
        ["e\u0301", "n\u0303", "e", "n", "\u0301"],
        [*tiny_vocabulary.SPECIAL, "<", ">"],
    ]
    return [
        "".join(rnd.choice(rnd.choice(some)) for _ in range(rnd.randint(2, 16)))
        for some in (rnd.sample(kinds, 3) for _ in range(n))
    ]


def make_tokenizer(vocabulary: str) -> None:
    from llama_cpp import Llama, llama_token_to_piece

    def load(path: Path | str) -> Llama:
        return Llama(model_path=str(path), vocab_only=True, verbose=False)

    def piece(llama: Llama, token: int, special: bool) -> str:
        from ctypes import create_string_buffer

        buffer = create_string_buffer(256)
        n_bytes = llama_token_to_piece(llama._model.vocab, token, buffer, 256, 0, special)
        return buffer.raw[:n_bytes].hex()

    def both(llama: Llama, text: str) -> list[list[int]]:
        return [llama.tokenize(text.encode(), add_bos=False, special=special) for special in (False, True)]

    with tempfile.TemporaryDirectory() as folder:

        def write(name: str, **settings: Any) -> Llama:
            tiny_vocabulary.write_gguf(Path(folder, name), **settings)
            return load(Path(folder, name))

        tiny = write("tiny")
        vocabularies = {"tiny": tiny, "tiny-qwen35": write("qwen35", pre="qwen35"), "qwen2": load(vocabulary)}
        added = {
            str(add): write(f"add-{add}", bos="<|im_start|>", eos="<|endoftext|>", add=add).tokenize(
                b"Hello<a>", True, True
            )
            for add in (True, False, None)
        }
    n_words = len(tiny_vocabulary.words_and_merges()[0])
    tokens = [*range(0, n_words, 250), *range(n_words, n_words + len(tiny_vocabulary.SPECIAL))]
    answers = {
        "encode": [
            [text, {name: both(llama, text) for name, llama in vocabularies.items()}]
            for text in TEXTS + random_texts(60, 1)
        ],
        "add_special": added,
        "pieces": [[token, piece(tiny, token, False), piece(tiny, token, True)] for token in tokens],
    }
    lines = json.dumps(answers, separators=(",", ":")).replace("}],[", "}],\n[")
    (ORACLES / "tokenizer.json").write_text(lines + "\n")


def make_sampling() -> None:
    from llama_samplers import sampling_cases

    with tempfile.TemporaryDirectory() as folder:
        tiny_vocabulary.write_gguf(Path(folder, "tiny"))
        cases = sampling_cases(Path(folder, "tiny"))
    (ORACLES / "sampling.json").write_text(json.dumps(cases).replace("}, {", "},\n{") + "\n")


def make_perplexity(text: str, *models: str) -> None:
    """What `llama-perplexity -c 256 -f TEXT` prints after each chunk (tools/perplexity/perplexity.cpp), unrounded."""
    path = ORACLES / "perplexity.json"
    running = json.loads(path.read_text()) if path.exists() else {}
    for model in models:
        running.setdefault(Path(text).name, {})[Path(model).name] = running_perplexity(
            Path(model), Path(text).read_bytes()
        )
    path.write_text(json.dumps(running, indent=0).replace(",\n", ",") + "\n")


def make_cache(text: str, model: str) -> None:
    """With flash attention, which llama.cpp needs for quantized values, and without its Hadamard rotation of heads before quantization."""
    os.environ["LLAMA_ATTN_ROT_DISABLE"] = "1"
    kinds = {"f16": 1, "bf16": 30, "f32": 0, "q8_0": 8, "q4_0": 2}
    running = {
        kind: running_perplexity(
            Path(model), Path(text).read_bytes(), flash_attn=True, type_k=number, type_v=number
        )
        for kind, number in kinds.items()
    }
    found = {"text": Path(text).name, "model": Path(model).name, "running": running}
    (ORACLES / "cache_types.json").write_text(json.dumps(found, indent=0).replace(",\n", ",") + "\n")


def make_architectures() -> None:
    from llama_architectures import all_answers

    with tempfile.TemporaryDirectory() as folder:
        found = all_answers(Path(folder))
    (ORACLES / "architectures.json").write_text(
        json.dumps(found, separators=(",", ":")).replace('},"', '},\n"') + "\n"
    )


def make_states() -> None:
    """Every fourth value of the hidden states after each layer and after the last norm, at some positions."""
    from llama_architectures import N_TOKENS, TINIES, draw_tokens, write
    from transformers_architectures import CLASSES, states

    rows = [0, 1, 5, 64, N_TOKENS - 1]
    found: dict[str, Any] = {"rows": rows, "tokens": draw_tokens(1000, TINIES[0])}
    with tempfile.TemporaryDirectory() as folder:
        for s in TINIES:
            if s.arch in CLASSES:
                write(Path(folder, "model.gguf"), s, "F16")
                answers = states(Path(folder, "model.gguf"), s, found["tokens"])
                found |= {f"{s.arch} {name}": value[rows, ::4] for name, value in answers.items()}
    np.savez_compressed(ORACLES / "architectures.npz", **found)


def make_dequantize(n_blocks: int = 6) -> None:
    found = {}
    for kind, (block, n_bytes) in {"q1_0": (128, 18), "q2_0": (64, 18)}.items():
        blocks = np.random.RandomState(block).randint(0, 256, (n_blocks, n_bytes)).astype(np.uint8)
        blocks[:, :2] = np.array([[0.5], [-0.37], [65504], [6e-8], [0], [-1e-5]], np.float16).view(np.uint8)
        weights = np.empty((n_blocks, block), np.float32)
        getattr(ggml_library(), f"dequantize_row_{kind}")(
            ctypes.c_void_p(blocks.ctypes.data),
            ctypes.c_void_p(weights.ctypes.data),
            ctypes.c_int64(weights.size),
        )
        found |= {f"{kind}_blocks": blocks, f"{kind}_weights": weights}
    np.savez_compressed(ORACLES / "dequantize.npz", **found)


QUESTIONS = ["What is the capital of France?", "Hello!", "Who are you?", "What is the opposite of hot?"]
GREEDY = [
    *(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" for question in QUESTIONS),
    "Once upon a time",
]


def make_completions(model: str) -> None:
    """Write the likeliest tokens after some prompts, with the logprobs of the likeliest three; and the embeddings of texts, of length 1.

    A continuation ends before a token that is so nearly as likely as another that rounding may decide between them.
    """
    from llama_cpp import LLAMA_POOLING_TYPE_LAST, Llama

    llama = Llama(model_path=model, n_ctx=256, logits_all=True, n_threads=2, verbose=False)
    completions = []
    for prompt in GREEDY:
        ids = llama.tokenize(prompt.encode(), add_bos=False, special=True)
        llama.reset()
        llama.eval(ids)
        top: list[list[tuple[int, float]]] = []
        while len(top) < 32:
            logits = llama.scores[llama.n_tokens - 1].astype(np.float64)
            logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
            best = np.argsort(-logprobs)[:3]
            if logprobs[best[0]] - logprobs[best[1]] < 0.1:
                break
            top.append([(int(token), round(float(logprobs[token]), 5)) for token in best])
            llama.eval([int(best[0])])
        text = llama.detokenize([step[0][0] for step in top]).decode()
        completions.append({"prompt": prompt, "tokens": ids, "content": text, "top": top})
    llama = Llama(
        model_path=model,
        n_ctx=256,
        embedding=True,
        pooling_type=LLAMA_POOLING_TYPE_LAST,
        n_threads=2,
        verbose=False,
    )
    embeddings = {text: [round(x, 5) for x in llama.embed(text, normalize=True)] for text in GREEDY[-1:]}
    (ORACLES / "completions.json").write_text(
        json.dumps({"completions": completions, "embeddings": embeddings}) + "\n"
    )


ROLES = "u", "su", "sua", "suau", "uau", "suasu", "ssuuaau", "uat", "au", "s"
SAID = {
    "s": ("system", " Be brief.\n"),
    "u": ("user", " Hi\n"),
    "a": ("assistant", " Hello! "),
    "t": ("tool", " 4 "),
}


def make_templates() -> None:
    """Write conversations of a few roles (by their first letters) in each built-in template, and before an answer."""
    import llama_cpp

    def rendered(name: bytes, roles: str, answer: bool) -> str:
        said = [llama_cpp.llama_chat_message(*(part.encode() for part in SAID[letter])) for letter in roles]
        messages = (llama_cpp.llama_chat_message * len(said))(*said)
        text = ctypes.create_string_buffer(1 << 16)
        length = llama_cpp.llama_chat_apply_template(name, messages, len(said), answer, text, len(text))
        return text.raw[:length].decode()

    names = (ctypes.c_char_p * 1000)()
    n_names = llama_cpp.llama_chat_builtin_templates(names, len(names))
    texts = {
        name.decode(): [[rendered(name, roles, answer) for answer in (False, True)] for roles in ROLES]
        for name in names[:n_names]
    }
    told = {
        "conversations": [
            [dict(zip(("role", "content"), SAID[r], strict=True)) for r in roles] for roles in ROLES
        ],
        "texts": texts,
    }
    (ORACLES / "templates.json").write_text(json.dumps(told, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    modes = {
        "models": make_models,
        "tokenizer": make_tokenizer,
        "sampling": make_sampling,
        "perplexity": make_perplexity,
        "cache": make_cache,
        "architectures": make_architectures,
        "states": make_states,
        "dequantize": make_dequantize,
        "completions": make_completions,
        "templates": make_templates,
    }
    if len(sys.argv) < 2 or sys.argv[1] not in modes:
        sys.exit(__doc__)
    modes[sys.argv[1]](*sys.argv[2:])
