"""Does a steering vector work on another model than the one it was made for?

Three targets, each with the vector of SmolLM2-135M-Instruct (or, last, of Gemma):

* a copy of SmolLM2 fine-tuned here on the docstrings of Python's standard library: same shape,
  other weights, the direction as it is and its target measured on the copy;
* Gemma-3-270M, a base model of another width and depth, through maps fitted on prompts of *other*
  instructions;
* SmolLM2, with a vector of Gemma's.

Beside the transferred vector stand the target's own vector and a placebo (a random direction pushed
as far). The layer is the one at which the *own* vector recovers most on the ``select`` split, which
favours the control; the strength is for each vector that at which most of its responses pass there,
for the placebo the own vector's. Numbers are from the ``report`` split. ``recovery`` is first-token
causal recovery at strength 1, ``rate`` the share of greedy responses that pass the task's
check (loose), with Wilson intervals. ``kept`` is transferred over own: of the recovery, and of the
gain in rate over no steering, with percentile bootstrap intervals over queries.

    python -m analyses.transfer --out DIR                   # all of it
    python -m analyses.transfer --out DIR --part same-shape
"""

import argparse
import ast
import itertools
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import steerlens as sl
from steerlens.attribution.causal import first_token_recovery
from steerlens.attribution.teacher_forcing import kl_to_instructed
from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.files import write_text
from steerlens.models.loading import model_info, tokenize_prompts
from steerlens.models.weights import cache_folder
from steerlens.stats.rates import wilson
from steerlens.tasks import Task
from steerlens.tasks.checks import verdict
from steerlens.tasks.task_files import load_task
from steerlens.vectors import SteeringVector
from steerlens.vectors.transfer import Transfer, fit_layer_maps, map_texts, paired_residuals

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
INSTRUCTIONS = (
    "detectable_format:title",
    "language:response_language_de",
    "detectable_format:number_highlighted_sections",
)
_STRENGTHS = (1.0, 1.5, 2.0, 3.0)
MAPS = (("ridge", "depth"), ("ridge", "cka"), ("procrustes", "depth"))


# --- a relative of the same shape ---


def docstrings() -> Iterator[str]:
    """English prose that every Python has: the longer docstrings of its standard library."""
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                text = ast.get_docstring(node)
                if text and len(text) > 200:
                    yield text


def fine_tuned(source: Any, folder: Path, steps: int, length: int = 64, batch: int = 4) -> dict:
    """Write a copy of SmolLM2 after some steps of AdamW on docstrings; what it took and changed.

    A copy that is there already, after as many steps, is kept.
    """
    told = folder / "training.json"
    if told.exists() and (known := json.loads(told.read_text()))["steps"] == steps:
        return dict(known)
    weights = model_info(source).weights_hash.removeprefix("sha256:")
    origin = cache_folder() / "weights" / weights
    model = AutoModelForCausalLM.from_pretrained(origin, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(origin)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    texts = list(docstrings())
    random.Random(0).shuffle(texts)
    stream = torch.tensor([i for text in texts for i in tokenizer(text)["input_ids"]])
    n_rows = min(len(stream) // length, steps * batch)
    rows = stream[: n_rows * length].view(n_rows, length)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
    losses = []
    model.train()
    for step in range(steps):
        chosen = rows[[(step * batch + i) % n_rows for i in range(batch)]]
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(chosen, labels=chosen).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        if not step % 20:
            print(f"step {step} of {steps}: loss {losses[-1]:.2f}", flush=True)
    change = sum(
        float((new.detach() - old).square().sum())
        for new, old in zip(model.parameters(), before, strict=True)
    )
    size = sum(float(old.square().sum()) for old in before)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    end = max(len(losses) // 10, 1)
    record = {
        "steps": steps,
        "tokens": steps * batch * length,
        "loss of the first tenth": float(np.mean(losses[:end])),
        "loss of the last tenth": float(np.mean(losses[-end:])),
        "relative change of weights": (change / size) ** 0.5,
    }
    write_text(told, json.dumps(record, indent=1))
    return record


# --- measuring ---


def best_layer(model: Any, own: SteeringVector, task: Task | str, n: int) -> int:
    """Where the target's own vector recovers most on the select split."""
    layers = range(model.cfg.n_layers // 3, model.cfg.n_layers, 2)
    pairs = sl.contrast_pairs(task, n=n, split="select")
    return first_token_recovery(
        model, pairs, own, layers=list(layers), show_progress=False
    ).best_layer


def best_strength(
    model: Any, vector: SteeringVector, layer: int, task: Task | str, length: int
) -> float:
    """At which most responses of the select split pass; the weakest of several."""
    curve = sl.calibrate_rate(
        model, vector.at(layer), load_task(task), strengths=_STRENGTHS, max_new_tokens=length
    ).table
    tried = curve[curve.strength > 0]
    return float(tried.strength.iloc[int(tried.passed.to_numpy().argmax())])


def ratio_interval(
    above: np.ndarray, below: np.ndarray, seed: int = 0
) -> tuple[float, float, float]:
    """Sum of `above` over sum of `below`, with its percentile bootstrap interval over rows."""
    draws = np.random.default_rng(seed).integers(len(above), size=(4000, len(above)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above[draws].sum(1) / below[draws].sum(1)
        value = above.sum() / below.sum()
    known = ratios[np.isfinite(ratios)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (np.nan, np.nan)
    return float(value), float(low), float(high)


def recoveries(
    model: Any, vectors: dict[str, SteeringVector], layer: int, task: Task | str, n: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each vector what it recovers of the first token's KL, and the whole KL, pair by pair."""
    pairs = sl.contrast_pairs(task, n=n, split="report")
    prompts = [pair.instructed for pair in pairs] + [pair.uninstructed for pair in pairs]
    rows = tokenize_prompts(model, prompts)
    steerings = [None, *(one.at(layer) for one in vectors.values())]
    kl = kl_to_instructed(model, rows[:n], rows[n:], [(0,)] * n, steerings, False)[:, :, 0]
    return {name: (kl[0] - one, kl[0]) for name, one in zip(vectors, kl[1:], strict=True)}


def passes(
    model: Any,
    vectors: dict[str, SteeringVector],
    layer: int,
    strengths: dict[str, float],
    task: Task | str,
    n: int,
    length: int,
) -> dict[str, np.ndarray]:
    """Which report prompts' responses pass, under each vector, under none, and when told."""
    prompts = catalogue_prompts([task], n)
    bare = [one.prompt_without_instruction or "" for one in prompts]
    asked = [*bare, *(one.prompt for one in prompts)]
    steerings: list[Any] = [None] * (2 * n)
    for name, one in vectors.items():
        asked += bare
        steerings += [one.at(layer, strength=strengths[name])] * n
    texts = sl.generate(model, asked, steerings, max_new_tokens=length, show_progress=False).texts
    passed = [
        verdict(text, row.instruction_ids, row.kwargs, tasks=row.tasks).all_loose
        for text, row in zip(texts, itertools.cycle(prompts), strict=False)
    ]
    return dict(zip(["none", "instructed", *vectors], np.array(passed).reshape(-1, n), strict=True))


def compared(
    model: Any, target: str, task: Task | str, found: dict[str, Transfer], cache: Any, sizes: Any
) -> list[dict[str, Any]]:
    """A row a vector: the target's own, the transferred ones, the placebo."""
    own = next(iter(found.values())).own
    layer = best_layer(model, own, task, sizes.pairs // 2)
    usable = {name: one for name, one in found.items() if layer in one.vector.layers}
    vectors = {"own": own, **{name: one.vector for name, one in usable.items()}}
    length = sizes.max_new_tokens
    strengths = {
        name: best_strength(model, one, layer, task, length) for name, one in vectors.items()
    }
    vectors["placebo"] = sl.random_direction(cache, like=own)
    strengths["placebo"] = strengths["own"]
    recovered = recoveries(model, vectors, layer, task, sizes.pairs // 2)
    passed = passes(model, vectors, layer, strengths, task, sizes.prompts, length)
    rows = []
    for name in ("none", "instructed", *vectors):
        rate = wilson(int(passed[name].sum()), sizes.prompts)
        row: dict[str, Any] = {"target": target, "instruction": load_task(task).id, "layer": layer}
        row |= {"vector": name, "strength": strengths.get(name), "n": sizes.prompts}
        row |= {"rate": rate.value, "rate_low": rate.low, "rate_high": rate.high}
        if name in vectors:
            row |= _three("recovery", ratio_interval(*recovered[name]))
            row |= _three("kept_recovery", ratio_interval(recovered[name][0], recovered["own"][0]))
            gain, own_gain = (passed[one] * 1.0 - passed["none"] for one in (name, "own"))
            row |= _three("kept_rate", ratio_interval(gain, own_gain))
        if name in usable:
            table = usable[name].table
            at = table[table.layer == layer].iloc[0]
            row |= {
                key: at[key]
                for key in ("source_layer", "cosine_own", "r2", "r2_median")
                if key in at
            }
        rows.append(row)
    for name in found.keys() - usable.keys():
        rows.append(
            {
                "target": target,
                "instruction": load_task(task).id,
                "layer": layer,
                "vector": f"{name}: no gap",
            }
        )
    return rows


def _three(name: str, values: Sequence[float]) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), values, strict=True))


# --- the parts ---


def vector_of(model: Any, task: Task | str, n: int) -> tuple[SteeringVector, Any]:
    """The model's own vector, and the residuals it is from."""
    pairs = sl.contrast_pairs(task, n=n)
    cache = sl.cache_residuals(model, pairs, show_progress=False)
    return sl.difference_of_means(cache), cache


def same_shape(source: Any, sizes: Any, out: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """SmolLM2 to its fine-tuned copy."""
    folder = out / "fine-tuned"
    training = fine_tuned(source, folder, sizes.steps)
    print(training, flush=True)
    target = sl.load_model(folder, dtype="auto")
    rows = []
    for task in sizes.task:
        vector, _ = vector_of(source, task, sizes.pairs)
        _, cache = vector_of(target, task, sizes.pairs)
        found = {"same-shape": sl.transfer_vector(vector, cache)}
        rows += compared(target, "fine-tuned copy", task, found, cache, sizes)
        show(rows)
    return rows, training


def across(source: Any, target: Any, sizes: Any) -> list[dict[str, Any]]:
    """One model to another of another shape."""
    rows: list[dict[str, Any]] = []
    name = model_info(target).reference
    for task in sizes.task:
        vector, _ = vector_of(source, task, sizes.pairs)
        _, cache = vector_of(target, task, sizes.pairs)
        texts, groups = map_texts(sizes.texts, without=load_task(task).id)
        paired = paired_residuals(source, target, texts, groups, show_progress=False)
        found = {}
        for method, match in MAPS:
            maps = fit_layer_maps(paired, method, match)
            found[f"{method}, {match}"] = sl.transfer_vector(vector, cache, maps)
            print(name, task, maps, flush=True)
        rows += compared(target, name, task, found, cache, sizes)
        show(rows)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """The table so far."""
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.2f}".format), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and the copy")
    parser.add_argument("--part", choices=("all", "same-shape", "to-gemma", "from-gemma"))
    parser.add_argument(
        "--task", action="append", help="an id or a file; repeats; three by default"
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of fine-tuning")
    parser.add_argument("--pairs", type=int, default=64, help="pairs fitted on; half are scored")
    parser.add_argument("--prompts", type=int, default=48, help="report prompts per task")
    parser.add_argument("--texts", type=int, default=256, help="texts a map is fitted on")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    sizes = parser.parse_args()
    sizes.task = sizes.task or list(INSTRUCTIONS)
    part, started = sizes.part or "all", time.monotonic()
    sizes.out.mkdir(parents=True, exist_ok=True)
    smollm2 = sl.load_model(SMOLLM2, dtype="auto")
    rows: list[dict[str, Any]] = []
    record: dict[str, Any] = {"sizes": {k: str(v) for k, v in vars(sizes).items() if k != "out"}}
    if part in ("all", "same-shape"):
        rows, record["fine-tuning"] = same_shape(smollm2, sizes, sizes.out)
    if part in ("all", "to-gemma", "from-gemma"):
        gemma = sl.load_model(GEMMA, dtype="auto")
        if part != "from-gemma":
            rows += across(smollm2, gemma, sizes)
        if part != "to-gemma":
            rows += across(gemma, smollm2, sizes)
    table = pd.DataFrame(rows)
    record["seconds"] = round(time.monotonic() - started)
    write_text(sizes.out / f"transfer-{part}.csv", table.to_csv(index=False))
    write_text(sizes.out / f"transfer-{part}.json", json.dumps(record, indent=1))
    print(record)


if __name__ == "__main__":
    main()
