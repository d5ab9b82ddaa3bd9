"""A made-up report: the shape of a real one, with numbers from a seeded generator.

Layers are readable early (AUROC rises by layer 3) and steer late (recovery peaks near 80 % depth),
which is the pattern real reports show.
"""

import math
import random
from typing import Any

INSTRUCTIONS = (
    ("change_case:english_lowercase", "format", "Write everything in lowercase letters."),
    ("detectable_format:title", "format", "Give the answer a title in double angular brackets."),
    ("detectable_format:json_format", "format", "Wrap the whole answer in JSON."),
    ("length_constraints:number_sentences_at_most", "length", "Use at most a few sentences."),
    ("keywords:forbidden_words", "words", "Leave out certain words."),
    ("detectable_format:number_bullet_lists", "format", "Answer with a number of bullet points."),
)
_WORDS = (
    *(" the", " city", " of", " Rome", " was", " built", " on", " seven", " hills", ",", "."),
    *("\n", " Its", " roads", " led", " every", "where", " and", " traders", " came"),
)
HOSTILE = "</script><img src=x onerror=alert(1)>"


def report_example(
    n_instructions: int = 4,
    n_layers: int = 30,
    n_samples: int = 2,
    n_tokens: int = 48,
    seed: int = 0,
) -> dict[str, Any]:
    """Report data with the sizes asked for, the same for the same seed."""
    rng = random.Random(seed)
    instructions = [
        _instruction(i, n_layers, n_samples, n_tokens, rng) for i in range(n_instructions)
    ]
    ids = [instruction["id"] for instruction in instructions]
    return {
        "schema": "steerlens-report/1",
        "model": {
            "reference": "smollm2-135m-instruct",
            "n_layers": n_layers,
            "d_model": 576,
            "weights_hash": "sha256:" + "0123456789abcdef" * 4,
            "dtype": "bfloat16",
            "device": "cpu",
            "chat_format": "template",
        },
        "provenance": {
            "command": "steerlens report --model smollm2-135m-instruct --all --n 64 --out report",
            "created": "2026-01-31T12:00:00+00:00",
            "seed": seed,
            "n_pairs": 64,
            "position": "last_prompt",
            "versions": {"steerlens": "0.1.0", "torch": "2.13.0", "plotly": "7.1.0"},
            "data_hash": {name: f"sha256:{index:064x}" for index, name in enumerate(ids)},
            "settings": {"max_new_tokens": 64, "operations": ["set_projection"], "scope": "prompt"},
            "seconds": {"load": 1.25, "cache": 31.5, "rank": 4.0, "generate": 88.0},
        },
        "instructions": instructions,
        "cosines": {"layer": 24, "ids": ids, "matrix": _cosines(n_instructions, rng)},
    }


def hostile_report() -> dict[str, Any]:
    """A small report in which every text from outside tries to be markup or script."""
    data = report_example(n_instructions=2, n_layers=6, n_samples=1, n_tokens=6)
    data["model"]["reference"] = HOSTILE
    data["provenance"]["command"] = f"steerlens report {HOSTILE}"
    data["provenance"]["settings"][HOSTILE] = HOSTILE
    for instruction in data["instructions"]:
        instruction["id"] = f'{HOSTILE}"{instruction["id"]}'
        for field in ("group", "description", "best_layer_rule"):
            instruction[field] = HOSTILE
        for field in ("operation", "scope", "rule"):
            instruction["steering"][field] = HOSTILE
        for sample in instruction["samples"]:
            sample["prompt"] = HOSTILE
            sample["kwargs"] = {HOSTILE: HOSTILE}
            for condition in ("baseline", "steered", "placebo"):
                sample[condition]["text"] = HOSTILE
            for token in (*sample["steered"]["tokens"], *sample["placebo"]["tokens"]):
                token["token"] = HOSTILE
                token["promoted"] = [[HOSTILE, 1.0]]
    data["cosines"]["ids"] = [instruction["id"] for instruction in data["instructions"]]
    return data


def _instruction(
    index: int, n_layers: int, n_samples: int, n_tokens: int, rng: random.Random
) -> dict[str, Any]:
    name, group, description = INSTRUCTIONS[index % len(INSTRUCTIONS)]
    strength = rng.uniform(0.1, 0.9)
    best = rng.randrange(n_layers // 3, n_layers)
    return {
        "id": name if index < len(INSTRUCTIONS) else f"{name}_{index}",
        "group": group,
        "description": description,
        "n_pairs": 64,
        "best_layer": best,
        "best_layer_rule": "highest AUROC on held-out pairs, ties to the larger d′",
        "layers": [_layer(layer, n_layers, best, rng) for layer in range(n_layers)],
        "recovery": [_recovery(layer, n_layers, strength, rng) for layer in range(0, n_layers, 3)],
        "steering": {
            "layer": 3 * (4 * n_layers // 5 // 3),
            "operation": "set_projection",
            "strength": 1.0,
            "scope": "prompt",
            "rule": "layer with the highest recovery among those measured",
        },
        "samples": [_sample(n, n_tokens, rng) for n in range(n_samples)],
    }


def _layer(layer: int, n_layers: int, best: int, rng: random.Random) -> dict[str, float | int]:
    auroc = min(1.0, 0.55 + 0.43 * (1 - math.exp(-layer / 3)) + rng.gauss(0, 0.01))
    d_prime = 6 * (1 - math.exp(-layer / 6)) + rng.gauss(0, 0.2)
    cosine = min(0.99, 0.5 + 0.45 * (1 - math.exp(-layer / 4)) + rng.gauss(0, 0.01))
    return {
        "layer": layer,
        "auroc": auroc,
        "auroc_low": auroc - 0.05,
        "auroc_high": min(1.0, auroc + 0.03),
        "d_prime": d_prime,
        "d_prime_low": d_prime - 0.7,
        "d_prime_high": d_prime + 0.8,
        "accuracy": min(1.0, auroc - 0.03),
        "relative_gap": 0.1 + 0.3 * layer / n_layers,
        "split_half_cosine": cosine,
        "split_half_cosine_low": cosine - 0.08,
        "split_half_cosine_high": min(1.0, cosine + 0.05),
        "selection_frequency": max(0.0, 0.4 - 0.15 * abs(layer - best)),
    }


def _recovery(
    layer: int, n_layers: int, strength: float, rng: random.Random
) -> dict[str, float | int]:
    depth = layer / n_layers
    recovery = strength * math.exp(-(((depth - 0.8) / 0.15) ** 2)) + rng.gauss(0, 0.02)
    placebo = rng.gauss(0, 0.02)
    return {
        "layer": layer,
        "recovery": recovery,
        "low": recovery - 0.12,
        "high": recovery + 0.08,
        "placebo": placebo,
        "placebo_low": placebo - 0.05,
        "placebo_high": placebo + 0.05,
    }


def _cosines(size: int, rng: random.Random) -> list[list[float]]:
    matrix = [[1.0] * size for _ in range(size)]
    for row in range(size):
        for column in range(row):
            matrix[row][column] = matrix[column][row] = max(-1.0, min(1.0, rng.gauss(0.1, 0.3)))
    return matrix


def _sample(index: int, n_tokens: int, rng: random.Random) -> dict[str, Any]:
    passed = [rng.random() < rate for rate in (0.1, 0.7, 0.15)]
    baseline = "".join(rng.choice(_WORDS) for _ in range(n_tokens // 2))
    steered = _tokens(n_tokens, 0.8, rng)
    placebo = _tokens(n_tokens, 0.1, rng)
    return {
        "prompt": f"Tell me about Rome, in the {index + 1}. century of its empire.",
        "kwargs": {"num_words": 50, "relation": "at most"} if index % 2 else {},
        "baseline": {"text": baseline.strip(), "passed": passed[0]},
        "steered": {"text": _text(steered), "passed": passed[1], "tokens": steered, "parts_at": 2},
        "placebo": {"text": _text(placebo), "passed": passed[2], "tokens": placebo, "parts_at": 5},
    }


def _text(tokens: list[dict[str, Any]]) -> str:
    return "".join(token["token"] for token in tokens if token["role"] == "response").strip()


def _tokens(n_tokens: int, size: float, rng: random.Random) -> list[dict[str, Any]]:
    n_prompt = n_tokens // 4
    return [
        _token(position, position < n_prompt, rng.expovariate(1 / size), rng)
        for position in range(n_tokens)
    ]


def _rare(rng: random.Random) -> str:
    """One of 3,000 words, few of them frequent: what the ends of a vocabulary look like."""
    rank = int(3000 ** rng.random())
    return f"{_WORDS[rank % len(_WORDS)]}{rank:x}"


def _token(position: int, prompt: bool, kl: float, rng: random.Random) -> dict[str, Any]:
    before = rng.gauss(-2, 1.5)
    return {
        "position": position,
        "token": rng.choice(_WORDS),
        "role": "prompt" if prompt else "response",
        "steered": prompt,
        "kl": kl,
        "logprob_baseline": None if position == 0 else -rng.expovariate(0.5),
        "logprob_steered": None if position == 0 else -rng.expovariate(0.5),
        "projection_before": before,
        "projection_after": 4.2 if prompt else before,
        "entropy_change": rng.gauss(0, 0.4),
        "promoted": [[_rare(rng), rng.expovariate(0.5)] for _ in range(5)],
        "suppressed": [[_rare(rng), -rng.expovariate(0.5)] for _ in range(5)],
    }


def evidence_example(n_layers: int = 12, components: bool = True) -> dict[str, Any]:
    """An instruction's evidence as `Evidence.to_json` gives it."""
    kinds = ["auroc", "first_token_recovery", "response_recovery_all"]
    layers = [
        {"layer": layer, "selection_frequency": 0.25}
        | {f"{kind}{end}": 0.5 + 0.01 * layer for kind in kinds for end in ("", "_low", "_high")}
        for layer in range(n_layers)
    ]
    record: dict[str, Any] = {
        "kinds": kinds,
        "p_value": 0.001,
        "layers": layers,
        "best_layer": 7,
        "best_layer_rule": "highest first_token_recovery",
        "agreement": [
            {
                "one": "auroc",
                "other": "first_token_recovery",
                "spearman": -0.09,
                "low": -0.65,
                "high": 0.34,
                "n_layers": n_layers,
            }
        ],
    }
    if components:
        record["components"] = [
            {"component": "L5 MLP", "contribution": 1.5},
            {"component": "L6H1", "contribution": -0.5},
        ]
    return record
