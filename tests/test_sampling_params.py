"""The settings of all samplers: what they may be, how they are written, what a file may recommend, and the commands' options."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from command_line import Call
from gguf_builder import reciter

from qwencli.errors import InputError, ModelError
from qwencli.gguf.file import GGUFFile
from qwencli.sampling import (
    NUMBERS,
    SAMPLERS,
    SamplingParams,
    parse_logit_bias,
    parse_sampler_letters,
    parse_samplers,
)

LLAMA_CPP = {
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
    "dry_penalty_last_n": 64,
    "dry_sequence_breakers": ("\n", ":", '"', "*"),
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "adaptive_target": -1.0,
    "adaptive_decay": 0.9,
    "logit_bias": (),
    "min_keep": 0,
    "n_probs": 0,
    "samplers": ("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"),
}
"""common_params_sampling (common/common.h), with the names of llama-server's requests."""


def test_the_defaults_are_those_of_llama_cpp() -> None:
    assert vars(SamplingParams()) == LLAMA_CPP | {
        "explain": False,
        "post_sampling_probs": False,
        "seed": None,
    }


def test_every_number_has_limits() -> None:
    numbers = {f.name for f in fields(SamplingParams) if type(f.default) in (int, float)}
    assert numbers == NUMBERS.keys()


@pytest.mark.parametrize("name", NUMBERS)
def test_limits_are_kept(name: str) -> None:
    low, high = NUMBERS[name].least, NUMBERS[name].most
    kind = type(LLAMA_CPP[name])
    for value in low, high:
        assert getattr(SamplingParams(**{name: kind(value)}), name) == value
    for value in (low - 1, high + 1, *((math.nan, math.inf, -math.inf) if kind is float else ())):
        with pytest.raises(InputError, match=f"^{name} is .*, expected a value from {low} to {high}$"):
            SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("temp", "0.5", "expected a number"),
        ("temp", True, "expected a number"),
        ("top_k", 2.5, "expected a whole number"),
        ("top_k", None, "expected a whole number"),
        ("mirostat", False, "expected a whole number"),
        ("top_k", math.nan, "expected a whole number"),
        ("seed", -1, "expected a whole number"),
        ("seed", 2**64, "expected a whole number"),
        ("seed", 1.0, "expected a whole number"),
        ("explain", 1, "expected True or False"),
        ("samplers", ["top_k", "topmost"], "there is no sampler 'topmost', expected some of penalties;"),
        ("samplers", 3, "expected a list"),
        ("samplers", [3], "there is no sampler 3"),
        ("logit_bias", 3, "expected a list"),
        ("logit_bias", [3], "expected a list"),
        ("logit_bias", [(1, 2, 3)], "expected a token and its bias"),
        ("logit_bias", [(-1, 1.0)], "expected a token id"),
        ("logit_bias", [(1.5, 1.0)], "expected a token id"),
        ("logit_bias", [(1, math.nan)], "logit_bias is nan for token 1"),
        ("logit_bias", [(1, math.inf)], "logit_bias is inf for token 1"),
        ("logit_bias", [(1, 1e30)], "expected a value from -10000 to 10000, or -inf"),
        ("logit_bias", [(1, "2")], "logit_bias is '2'"),
        ("dry_sequence_breakers", "ab", "expected a list"),
        ("dry_sequence_breakers", [""], "expected a text of 1 to 40 bytes"),
        ("dry_sequence_breakers", ["a" * 41], "expected a text of 1 to 40 bytes"),
        ("dry_sequence_breakers", [1], "expected a text"),
        ("dry_sequence_breakers", ["\ud800"], "expected a text"),
    ],
)
def test_values_that_make_no_sense(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        SamplingParams(**{name: value})


def test_lists_become_tuples_so_that_settings_can_be_compared() -> None:
    params = SamplingParams(samplers=["Top-K", "temp"], logit_bias=[[1, 2]], dry_sequence_breakers=["x"])  # type: ignore[arg-type]
    assert params == SamplingParams(
        samplers=("top_k", "temperature"), logit_bias=((1, 2.0),), dry_sequence_breakers=("x",)
    )
    assert hash(params) == hash(
        SamplingParams(
            samplers=("top_k", "temperature"), logit_bias=((1, 2.0),), dry_sequence_breakers=("x",)
        )
    )
    assert SamplingParams(logit_bias={1: 2.0, 3: -math.inf}).logit_bias == ((1, 2.0), (3, -math.inf))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature", SAMPLERS),
        ("", ()),
        ("top_p", ("top_p",)),
        (
            "top-p;topk;min-p;nucleus;temp;typ;typ-p;top-n-sigma;TOP_K; xtc ",
            (
                "top_p",
                "top_k",
                "min_p",
                "top_p",
                "temperature",
                "typ_p",
                "typ_p",
                "top_n_sigma",
                "top_k",
                "xtc",
            ),
        ),
        ("dry;dry", ("dry", "dry")),
    ],
)
def test_names_of_samplers(text: str, names: tuple[str, ...]) -> None:
    assert parse_samplers(text) == names


def test_letters_of_samplers() -> None:
    assert parse_sampler_letters("edskypmxt") == SAMPLERS
    assert parse_sampler_letters("") == ()
    with pytest.raises(
        InputError, match="no sampler with the letter 'z', expected some of e penalties, d dry,"
    ):
        parse_sampler_letters("kz")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("15043+1", (15043, 1.0)),
        ("15043-1", (15043, -1.0)),
        ("7-1.5", (7, -1.5)),
        ("7+.5", (7, 0.5)),
        ("0-inf", (0, -math.inf)),
        (" 5 + 2 ", (5, 2.0)),
    ],
)
def test_biases_as_written(text: str, pair: tuple[int, float]) -> None:
    assert parse_logit_bias(text) == pair


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "+1",
        "-5+1",
        "5*2",
        "5+",
        "5+nan",
        "5+inf",
        "5+1e9",
        "5+-1",
        "x+1",
        "5+99999",
        "٥+1",
        "1" * 5000 + "+1",
        "1+0." + "1" * 5000 + "x",
    ],
)
def test_biases_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match=r"bias|logit_bias"):
        parse_logit_bias(text)


# Files


def recommending(path: Path, **values: tuple[str, Any]) -> Path:
    file = reciter()
    file.metadata |= {f"general.sampling.{key}": value for key, value in values.items()}
    return file.write(path)


def test_a_file_may_recommend_more_samplers(tmp_path: Path) -> None:
    path = recommending(
        tmp_path / "m.gguf",
        sequence=("str", "temp;top-k"),
        xtc_probability=("f32", 0.5),
        xtc_threshold=("f32", 0.25),
        mirostat=("i32", 2),
        mirostat_tau=("f32", 3.0),
        mirostat_eta=("f32", 0.5),
        penalty_last_n=("i32", -1),
    )
    expected = SamplingParams(
        samplers=("temperature", "top_k"),
        xtc_probability=0.5,
        xtc_threshold=0.25,
        mirostat=2,
        mirostat_tau=3.0,
        mirostat_eta=0.5,
        penalty_last_n=-1,
    )
    metadata = GGUFFile(path).metadata
    assert SamplingParams.from_metadata(metadata) == expected
    assert SamplingParams.from_metadata(metadata, samplers=("xtc",), mirostat=0).samplers == ("xtc",)
    assert SamplingParams.from_metadata(metadata, samplers=()).samplers == ()


def test_a_sequence_that_a_file_recommends_in_vain(tmp_path: Path) -> None:
    metadata = GGUFFile(recommending(tmp_path / "m.gguf", sequence=("str", "top_k;infill"))).metadata
    with pytest.raises(
        ModelError, match=r"m\.gguf: metadata key 'general\.sampling\.sequence': there is no sampler 'infill'"
    ):
        SamplingParams.from_metadata(metadata)
    assert SamplingParams.from_metadata(metadata, samplers=("top_k",)).samplers == ("top_k",)


# Options


OPTIONS = {
    "--temperature 0.5": {"temp": 0.5},
    "--top-nsigma 1": {"top_n_sigma": 1.0},
    "--top-n-sigma 2": {"top_n_sigma": 2.0},
    "--typical 0.5": {"typical_p": 0.5},
    "--typical-p 0.6": {"typical_p": 0.6},
    "--xtc-probability 0.5": {"xtc_probability": 0.5},
    "--xtc-threshold 0.2": {"xtc_threshold": 0.2},
    "--repeat-last-n -1": {"penalty_last_n": -1},
    "--frequency-penalty 1": {"frequency_penalty": 1},
    "--dry-multiplier 0.8": {"dry_multiplier": 0.8},
    "--dry-base 2": {"dry_base": 2.0},
    "--dry-allowed-length 3": {"dry_allowed_length": 3},
    "--dry-penalty-last-n 99": {"dry_penalty_last_n": 99},
    "--dry-sequence-breaker none": {"dry_sequence_breakers": ()},
    r"--dry-sequence-breaker \n --dry-sequence-breaker ab": {"dry_sequence_breakers": ("\n", "ab")},
    "--dynatemp-range 0.3 --dynatemp-exp 2": {"dynatemp_range": 0.3, "dynatemp_exponent": 2.0},
    "--mirostat 2 --mirostat-lr 0.2 --mirostat-ent 4": {
        "mirostat": 2,
        "mirostat_eta": 0.2,
        "mirostat_tau": 4.0,
    },
    "-l 5+1 --logit-bias 7-inf": {"logit_bias": ((5, 1.0), (7, -math.inf))},
    "--samplers top-k;temp": {"samplers": ("top_k", "temperature")},
    "--sampler-seq kt": {"samplers": ("top_k", "temperature")},
    "--samplers=": {"samplers": ()},
    "--sampling-seq pm": {"samplers": ("top_p", "min_p")},
    "-s 5": {"seed": 5},
}


@pytest.mark.parametrize("options", OPTIONS)
def test_options_by_llama_cpps_names(
    call: Call, story: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    from qwencli.llm import LLM

    given: dict[str, Any] = {}
    monkeypatch.setattr(
        LLM, "sampling", lambda llm, **chosen: given.update(chosen) or SamplingParams(temp=0.0)
    )
    assert call("run", "-m", story, "-p", "hi", "-n", "1", "-q", *options.split()).code == 0
    assert {name: value for name, value in given.items() if value is not None} == OPTIONS[options]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--temp nan", "nan is not in the range"),
        ("--mirostat 3", "3 is not in the range"),
        ("--samplers top", "there is no sampler 'top'"),
        ("-l 5", "the bias '5' is not understood"),
        ("--sampler-seq q", "no sampler with the letter 'q'"),
        ("--samplers temp --sampler-seq t", "give --samplers or --sampler-seq, not both"),
        ("--top-k 1.5", "not a valid integer"),
        ("-l 99999999+1", "logit_bias has a token outside the vocabulary"),
        ("--dry-sequence-breaker " + "a" * 41, "expected a text of 1 to 40"),
    ],
)
def test_options_that_make_no_sense(call: Call, story: Path, options: str, message: str) -> None:
    result = call("run", "-m", story, "-p", "hi", "-q", *options.split())
    assert result.code != 0
    assert result.out == ""
    assert message in result.err
    assert "Traceback" not in result.err


def test_help_keeps_the_seldom_needed_apart(call: Call) -> None:
    usual, more = call("run", "--help").out, call("run", "--help-sampling").out
    assert "--top-k" in usual
    assert "--mirostat" not in usual
    assert "--top-k" not in more
    for name in "--mirostat-ent", "--dry-sequence-breaker", "--logit-bias", "--sampling-seq", "Default: 1.75":
        assert name in more


def test_every_sampler_runs_to_the_end_of_an_answer(call: Call, story: Path) -> None:
    everything = (
        "--repeat-penalty 1.01 --dry-multiplier 0.01 --top-n-sigma 3 --typical 0.99 --xtc-probability 0.01 --dynatemp-range 0.1 "
        "-l 3+0.1 --seed 1 --json --logprobs 2"
    )
    answer = json.loads(call("run", "-m", story, "-p", "hi", "-q", *everything.split()).out)
    assert len(answer["logprobs"]) == len(answer["tokens"]) > 0
    assert all(len(one["top_logprobs"]) == 2 for one in answer["logprobs"])
