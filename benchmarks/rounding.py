"""How far apart two right computations are in bfloat16.

    python -m benchmarks.rounding

Every path scores the same tokens (the bridge's greedy ones, one prompt at a time) of the same rows:
prompts of the `report` split, one in four unsteered, the others under a real vector with every
operation and scope, spread over layers. The result is the mean KL per token between every two
paths; it joins the other results of `make bench`. Plain Hugging Face paths run one prompt at a time
with forward hooks written here: all tokens in one pass, or token by token with a key-value cache.
"float32" is the engine in float32, whose greedy tokens are those of the bridge (a test).

What it is for: a bound on the distance between engine and bridge means something only above the
distance between two computations that nobody doubts.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

import steerlens as sl
from benchmarks import table
from benchmarks.models import InstalledModel, RandomModel
from benchmarks.work import INSTRUCTION, layer_of
from steerlens.engine import Row, decode_rows
from steerlens.engine.plain import decode_rows_plainly
from steerlens.models.loading import tokenize_prompts
from steerlens.steering.operations import Intervention

Scores = dict[tuple[int, int], Tensor]
_OPERATIONS = ("add", "set_projection", "ablate")
_SCOPES = ("all", "prompt", "response")
_LAYERS = (4, 12, 20, 24, 27)


def mixed_rows(model: Any, vector: sl.SteeringVector, n_rows: int, n_new: int) -> list[Row]:
    """Fresh rows, one in four unsteered, with every operation and scope; the same at every call."""
    queries = [query.text for query in sl.base_queries("report")[:n_rows]]
    rows = []
    for i, tokens in enumerate(tokenize_prompts(model, queries)):
        layer = layer_of(model.cfg.n_layers, _LAYERS[i % len(_LAYERS)])
        steering = vector.at(layer, _OPERATIONS[i % 3], 1.0, _SCOPES[i // 3 % 3])
        rows.append(Row(i, tuple(tokens), None if i % 4 == 0 else steering, n_new))
    return rows


def recorded(decode: Callable[[Any], None], forced: Sequence[Row] | None = None) -> Scores:
    """Log-probabilities by row and step of a decoding run, greedy or along `forced`."""
    scores: Scores = {}
    steps: dict[int, int] = {}

    def choose(logits: Tensor, rows: Sequence[Row]) -> Tensor:
        picked = logits.max(-1).indices
        for place, (row, own) in enumerate(zip(rows, logits, strict=True)):
            i = row.index
            steps[i] = steps.get(i, -1) + 1
            scores[i, steps[i]] = _log_probabilities(own)
            if forced is not None:
                picked[place] = forced[i].produced[steps[i]]
        return picked

    decode(choose)
    return scores


def _log_probabilities(logits: Tensor) -> Tensor:
    """In float64, on the CPU: not every device has it."""
    return logits.cpu().double().log_softmax(-1)


def _changed(one: Intervention, resid: Tensor) -> Tensor:
    u, x = one.direction.to(resid.device).float(), resid.float()
    along = (x @ u)[..., None]
    size: Any = {
        "add": one.strength * one.gap,
        "set_projection": one.strength * (one.target - along),
        "ablate": -one.strength * along,
    }[one.operation]
    return (x + size * u).to(resid.dtype)


@contextmanager
def _hooked(hf: Any, row: Row, seen: list[int]) -> Iterator[None]:
    """Forward hooks for a row's steering; `seen` holds how many tokens are in the cache."""

    def hook(one: Intervention) -> Callable[[Any, Any, Tensor], Tensor]:
        def after(_module: Any, _args: Any, out: Tensor) -> Tensor:
            places = torch.arange(out.shape[1], device=out.device) + seen[0]
            on_prompt = places < len(row.tokens)
            touched = {"all": on_prompt | True, "prompt": on_prompt, "response": ~on_prompt}
            return torch.where(touched[one.scope][:, None], _changed(one, out), out)

        return after

    interventions = row.steering.interventions if row.steering else ()
    handles = [hf.model.layers[o.layer].register_forward_hook(hook(o)) for o in interventions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def plain_scores(hf: Any, rows: Sequence[Row], forced: Sequence[Row], by_token: bool) -> Scores:
    """Plain Hugging Face, one prompt at a time."""
    scores: Scores = {}
    for row in rows:
        response, n_prompt, seen = forced[row.index].produced, len(row.tokens), [0]
        parts = [[*row.tokens, *response[:-1]]]
        if by_token:
            parts = [list(row.tokens), *([token] for token in response[:-1])]
        cache, logits = DynamicCache(), []
        with _hooked(hf, row, seen):
            for part in parts:
                out = hf(
                    torch.tensor([part], device=hf.device), past_key_values=cache, use_cache=True
                )
                logits.append(out.logits[0])
                seen[0] += len(part)
        for step, own in enumerate(torch.cat(logits)[n_prompt - 1 :]):
            scores[row.index, step] = _log_probabilities(own)
    return scores


def mean_kl(one: Scores, other: Scores) -> float:
    """Mean over tokens of KL(one‖other), in nats."""
    kls = [(p.exp() * (p - other[key])).sum() for key, p in one.items()]
    return float(torch.stack(kls).mean())


def engine(model: Any, rows: list[Row], slots: int) -> Callable[[Any], None]:
    """The engine's decoding of some rows, for `recorded`."""
    return lambda choose: decode_rows(model, rows, slots, frozenset(), choose, lambda row: None)


def bridge(model: Any, rows: list[Row], together: int) -> Callable[[Any], None]:
    """The bridge's."""
    return lambda choose: decode_rows_plainly(
        model, rows, together, frozenset(), choose, lambda row: None
    )


def measure(source: InstalledModel | RandomModel, n_rows: int, n_new: int) -> dict[str, Scores]:
    """All paths' scores of the same tokens.

    Args:
        source: The model.
        n_rows: How many prompts.
        n_new: Tokens that each is answered with.
    """
    model, exact = source.bridge(torch.bfloat16), source.bridge(torch.float32)
    vector = fitted(exact)

    def rows() -> list[Row]:
        return mixed_rows(model, vector, n_rows, n_new)

    forced = rows()
    found = {"bridge, one at a time": recorded(bridge(model, forced, 1))}
    found["bridge, all together"] = recorded(bridge(model, rows(), n_rows), forced)
    found["engine, all together"] = recorded(engine(model, rows(), n_rows), forced)
    found["engine, 5 together"] = recorded(engine(model, rows(), 5), forced)
    found["engine, one at a time"] = recorded(engine(model, rows(), 1), forced)
    for attention in ("eager", "sdpa"):
        hf = source.plain(torch.bfloat16, attention)
        for way, by_token in (("one pass", False), ("by token", True)):
            name = f"Hugging Face {attention}, {way}"
            found[name] = plain_scores(hf, rows(), forced, by_token)
        del hf
    found["float32"] = recorded(engine(exact, rows(), n_rows), forced)
    return found


def fitted(model: Any) -> sl.SteeringVector:
    """A vector to steer a model by."""
    pairs = sl.contrast_pairs(INSTRUCTION, n=32)
    return sl.difference_of_means(sl.cache_residuals(model, pairs, show_progress=False))


def matrix(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Mean KL of every path from every other."""
    return {
        name: {other: mean_kl(one, theirs) for other, theirs in scores.items()}
        for name, one in scores.items()
    }


def main() -> None:
    """Measure, add it to the results, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--new-tokens", type=int, default=16)
    arguments = parser.parse_args()
    found = measure(InstalledModel(), arguments.rows, arguments.new_tokens)
    results = table.read()
    results["rounding"] = {
        "n_rows": arguments.rows,
        "n_new_tokens": arguments.new_tokens,
        "mean_kl": matrix(found),
    }
    table.write(results)
    print(json.dumps(results["rounding"], indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
