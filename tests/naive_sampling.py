"""Samplers as their papers define them, on unordered lists of (token, logit): twins for the tests, with no regard for speed."""

import math
from collections import Counter
from collections.abc import Sequence

Pairs = list[tuple[int, float]]


def softmax(pairs: Pairs) -> dict[int, float]:
    largest = max(x for _, x in pairs)
    total = math.fsum(math.exp(x - largest) for _, x in pairs)
    return {i: math.exp(x - largest) / total for i, x in pairs}


def sort(pairs: Pairs) -> Pairs:
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))


def keep(pairs: Pairs, tokens: Sequence[int]) -> Pairs:
    kept = set(tokens)
    return [(i, x) for i, x in pairs if i in kept]


def top_k(pairs: Pairs, k: int) -> Pairs:
    return sort(pairs)[:k] if k else pairs


def shortest(tokens: list[int], p: dict[int, float], enough: float, min_keep: int, more: bool) -> list[int]:
    """The first tokens, up to the one with which the sum of their probabilities reaches `enough`, or exceeds it if `more`."""
    total = 0.0
    for n, i in enumerate(tokens, 1):
        total += p[i]
        if (total > enough if more else total >= enough) and n >= min_keep:
            return tokens[:n]
    return tokens


def top_p(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    return (
        pairs
        if p >= 1
        else keep(pairs, shortest([i for i, _ in sort(pairs)], softmax(pairs), p, min_keep, more=False))
    )


def min_p(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    probabilities = softmax(pairs)
    most = max(probabilities.values())
    return [pair for n, pair in enumerate(sort(pairs)) if probabilities[pair[0]] >= p * most or n < min_keep]


def typical_p(pairs: Pairs, p: float, min_keep: int = 0) -> Pairs:
    if p >= 1:
        return pairs
    probabilities = softmax(pairs)
    entropy = -math.fsum(q * math.log(q) for q in probabilities.values() if q > 0)
    order = sorted(probabilities, key=lambda i: abs(-math.log(probabilities[i]) - entropy))
    return keep(pairs, shortest(order, probabilities, p, min_keep, more=True))


def top_n_sigma(pairs: Pairs, n: float) -> Pairs:
    logits = [x for _, x in pairs]
    mean = math.fsum(logits) / len(logits)
    sigma = math.sqrt(math.fsum((x - mean) ** 2 for x in logits) / len(logits))
    least = max(logits) - n * sigma
    return [(i, x) for i, x in pairs if n <= 0 or x >= least]


def xtc(pairs: Pairs, threshold: float, min_keep: int = 0) -> Pairs:
    probabilities = softmax(pairs)
    removed = {i for i, _ in sort([pair for pair in pairs if probabilities[pair[0]] >= threshold])[:-1]}
    return [(i, x) for i, x in pairs if i not in removed] if len(pairs) - len(removed) >= min_keep else pairs


def temperature(pairs: Pairs, temp: float) -> Pairs:
    return [(i, x / temp) for i, x in pairs] if temp > 0 else sort(pairs)[:1]


def dynamic_temperature(pairs: Pairs, temp: float, spread: float, exponent: float) -> Pairs:
    if len(pairs) == 1:
        return pairs
    entropy = -math.fsum(q * math.log(q) for q in softmax(pairs).values() if q > 0)
    low, high = max(0.0, temp - spread), temp + spread
    return temperature(pairs, low + (high - low) * (entropy / math.log(len(pairs))) ** exponent)


def penalties(pairs: Pairs, recent: Sequence[int], repeat: float, frequency: float, presence: float) -> Pairs:
    counts = Counter(recent)
    return [
        (i, (x * repeat if x <= 0 else x / repeat) - counts[i] * frequency - presence)
        if i in counts
        else (i, x)
        for i, x in pairs
    ]


def logit_bias(pairs: Pairs, bias: Sequence[tuple[int, float]]) -> Pairs:
    changed = [(i, x + math.fsum(value for token, value in bias if token == i)) for i, x in pairs]
    return [pair for pair in changed if pair[1] > -math.inf]


def repetitions(
    tokens: Sequence[int], allowed_length: int, breakers: dict[int, list[tuple[int, ...]]]
) -> dict[int, int]:
    """For each token that followed an earlier occurrence of the text's end, the length of the longest one after the last breaker."""
    start = 0
    for i, head in enumerate(tokens):
        complete = [
            len(tail) for tail in breakers.get(head, []) if tuple(tokens[i + 1 : i + 1 + len(tail)]) == tail
        ]
        start = i + 1 + max(complete) if complete else start
    found: dict[int, int] = {}
    for place in range(1, len(tokens)):
        length = 0
        while length < min(place, len(tokens) - start) and tokens[place - 1 - length] == tokens[-1 - length]:
            length += 1
        if length >= allowed_length:
            found[tokens[place]] = max(found.get(tokens[place], 0), length)
    return found


def mirostat_2(pairs: Pairs, mu: float) -> Pairs:
    probabilities = softmax(pairs)
    return keep(pairs, [i for i, q in probabilities.items() if -math.log2(q) <= mu]) or sort(pairs)[:1]
