"""Which tokens llama.cpp's own samplers keep, to test ours against: random settings in several orders, and runs of Mirostat."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

N_LOGITS = 70
"""Only the first tokens of the tiny vocabulary have logits: they are single characters."""
SAMPLERS = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
DEFAULTS: dict[str, Any] = {
    "temp": 0.8,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "repeat_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "penalty_last_n": 64,
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "dry_sequence_breakers": ["\n", ":", '"', "*"],
    "logit_bias": [],
    "samplers": SAMPLERS,
    "min_keep": 0,
}
"""llama.cpp's defaults (common_params_sampling in common/common.h)."""
ALL_TOKENS = 10_000  # -1 in the settings


def sampling_cases(vocabulary: Path) -> dict[str, Any]:
    """Return settings, logits, earlier tokens and the tokens that are kept; and runs of Mirostat. The vocabulary is needed for DRY's
    breakers."""
    rnd, samplers = random.Random(2), Samplers(vocabulary)
    chains = []
    for i in range(120):
        params = random_params(rnd, i) if i else {}
        logits, tokens = random_logits(rnd), random_tokens(rnd)
        chains.append(
            {
                "params": params,
                "logits": logits,
                "tokens": tokens,
                "left": samplers.left(params, logits, tokens),
            }
        )
    runs = []
    for i in range(8):
        params = {
            "mirostat": 1 + i % 2,
            "mirostat_tau": rnd.choice([2.0, 3.0, 5.0]),
            "mirostat_eta": rnd.choice([0.1, 1.0]),
            "temp": rnd.choice([0.8, 1.5]),
        }
        runs.append(
            {"params": params, "steps": samplers.run_mirostat(params, [random_logits(rnd) for _ in range(4)])}
        )
    return {"chains": chains, "mirostat": runs}


def random_logits(rnd: random.Random) -> list[float]:
    return [value / 1000 for value in rnd.sample(range(-6000, 6000), N_LOGITS)]


def random_tokens(rnd: random.Random) -> list[int]:
    """Return tokens with repetitions, also of whole passages, some of which have DRY's breakers in them."""
    some = [rnd.randrange(N_LOGITS) for _ in range(rnd.choice([3, 12]))]
    return [
        token
        for _ in range(rnd.choice([0, 3, 15]))
        for token in rnd.choice([some, some[:4], [rnd.randrange(N_LOGITS)]])
    ]


def random_params(rnd: random.Random, i: int) -> dict[str, Any]:
    params: dict[str, Any] = {
        "temp": rnd.choice([0.3, 0.8, 1.0, 2.5]),
        "top_k": rnd.choice([0, 1, 5, 20, 40, 200]),
        "top_p": rnd.choice([0.0, 0.5, 0.9, 0.95, 1.0]),
        "min_p": rnd.choice([0.0, 0.05, 0.3]),
        "repeat_penalty": rnd.choice([1.0, 1.3, 0.7]),
        "presence_penalty": rnd.choice([0.0, 1.5, -1.0]),
        "penalty_last_n": rnd.choice([0, 4, 64, -1]),
    }
    if i < 40:
        return params
    params |= rnd.choice(
        [
            {"top_n_sigma": rnd.choice([0.5, 1.0, 2.0])},
            {"typical_p": rnd.choice([0.2, 0.7, 0.95])},
            {"dynatemp_range": rnd.choice([0.2, 2.0]), "dynatemp_exponent": rnd.choice([0.5, 1.0, 2.0])},
            {},
        ]
    )
    if rnd.random() < 0.5:
        params |= {"xtc_probability": 1.0, "xtc_threshold": rnd.choice([0.02, 0.05, 0.1])}
    if rnd.random() < 0.5:
        params |= {
            "dry_multiplier": rnd.choice([0.8, 2.0]),
            "dry_base": rnd.choice([1.0, 1.2, 1.75]),
            "dry_allowed_length": rnd.choice([1, 2, 4]),
            "dry_penalty_last_n": rnd.choice([-1, 8, 0]),
        }
        params |= rnd.choice(
            [{"dry_sequence_breakers": texts} for texts in ([], ["AB", "!"], ["ABC", "BA"])] + [{}]
        )
    if rnd.random() < 0.3:
        params |= {"frequency_penalty": rnd.choice([0.4, -0.2])}
    if rnd.random() < 0.3:
        params |= {"logit_bias": [[rnd.randrange(N_LOGITS), rnd.choice([-3.0, 2.5, 8.0])] for _ in range(3)]}
    if rnd.random() < 0.3:
        params |= {"min_keep": rnd.choice([2, 7])}
    if rnd.random() < 0.6:
        params |= {"samplers": rnd.sample(SAMPLERS, rnd.choice([3, 6, 9]))}
    return params


class Samplers:
    """llama.cpp's samplers, put together as in common/sampling.cpp."""

    def __init__(self, vocabulary: Path) -> None:
        import llama_cpp

        self.cpp = llama_cpp
        self._llama = llama_cpp.Llama(model_path=str(vocabulary), vocab_only=True, verbose=False)

    def left(self, chosen: dict[str, Any], logits: list[float], tokens: list[int]) -> list[tuple[int, float]]:
        """The tokens that the chain keeps, and their probabilities, the likeliest first."""
        p = DEFAULTS | chosen
        chain = self._chain(
            [self._logit_bias(p)] * bool(p["logit_bias"])
            + [getattr(self, f"_{name}")(p) for name in p["samplers"]]
        )
        for token in tokens:
            self.cpp.llama_sampler_accept(chain, token)
        return self._apply(chain, logits)[0]

    def run_mirostat(self, p: dict[str, Any], steps: list[list[float]]) -> list[dict[str, Any]]:
        """Return the tokens that are kept in each step, and the chosen one."""
        cpp = self.cpp
        if p["mirostat"] == 1:
            last = cpp.llama_sampler_init_mirostat(N_LOGITS, 1, p["mirostat_tau"], p["mirostat_eta"], 100)
        else:
            last = cpp.llama_sampler_init_mirostat_v2(1, p["mirostat_tau"], p["mirostat_eta"])
        chain = self._chain([cpp.llama_sampler_init_temp(p["temp"]), last])
        results = []
        for logits in steps:
            left, token = self._apply(chain, logits)
            results.append({"logits": logits, "left": left, "token": token})
        return results

    def _chain(self, samplers: list[Any]) -> Any:
        chain = self.cpp.llama_sampler_chain_init(self.cpp.llama_sampler_chain_default_params())
        for sampler in samplers:
            self.cpp.llama_sampler_chain_add(chain, sampler)
        return chain

    def _apply(self, chain: Any, logits: list[float]) -> tuple[list[tuple[int, float]], int]:
        """Return the tokens that are kept, with probabilities, and the chosen token, -1 if the chain doesn't choose one."""
        cpp = self.cpp
        data = (cpp.llama_token_data * len(logits))(
            *(cpp.llama_token_data(i, logit, 0.0) for i, logit in enumerate(logits))
        )
        array = cpp.llama_token_data_array(data, len(logits), -1, False)
        cpp.llama_sampler_apply(chain, array)
        found = [(d.id, d.logit) for d in array.data[: array.size]]
        token = found[array.selected][0] if array.selected >= 0 else -1
        left = sorted((pair for pair in found if pair[1] > float("-inf")), key=lambda pair: -pair[1])
        weights = np.exp([logit - left[0][1] for _, logit in left])
        return [(i, float(f"{weight / weights.sum():.7g}")) for (i, _), weight in zip(left, weights)], token

    def _logit_bias(self, p: dict[str, Any]) -> Any:
        pairs = [self.cpp.llama_logit_bias(token, bias) for token, bias in p["logit_bias"]]
        return self.cpp.llama_sampler_init_logit_bias(
            N_LOGITS, len(pairs), (self.cpp.llama_logit_bias * len(pairs))(*pairs)
        )

    def _penalties(self, p: dict[str, Any]) -> Any:
        last_n = ALL_TOKENS if p["penalty_last_n"] < 0 else p["penalty_last_n"]
        return self.cpp.llama_sampler_init_penalties(
            N_LOGITS, last_n, p["repeat_penalty"], p["frequency_penalty"], p["presence_penalty"]
        )

    def _dry(self, p: dict[str, Any]) -> Any:
        from ctypes import c_char_p

        texts = [text.encode() for text in p["dry_sequence_breakers"]]
        last_n = ALL_TOKENS if p["dry_penalty_last_n"] < 0 else p["dry_penalty_last_n"]
        return self.cpp.llama_sampler_init_dry(
            self._llama._model.vocab,
            p["dry_multiplier"],
            p["dry_base"],
            p["dry_allowed_length"],
            last_n,
            (c_char_p * len(texts))(*texts),
            len(texts),
        )

    def _top_n_sigma(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_top_n_sigma(p["top_n_sigma"])

    def _top_k(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_top_k(p["top_k"])

    def _typ_p(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_typical(p["typical_p"], p["min_keep"])

    def _top_p(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_top_p(p["top_p"], p["min_keep"])

    def _min_p(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_min_p(p["min_p"], p["min_keep"])

    def _xtc(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_xtc(p["xtc_probability"], p["xtc_threshold"], p["min_keep"], 1)

    def _temperature(self, p: dict[str, Any]) -> Any:
        return self.cpp.llama_sampler_init_temp_ext(p["temp"], p["dynatemp_range"], p["dynatemp_exponent"])
