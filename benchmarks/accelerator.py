"""The engine on an accelerator: is it right there, how fast is it, and what memory does it take?

    python -m benchmarks.accelerator                       CUDA or MPS, whichever torch finds
    python -m benchmarks.accelerator --device cpu --quick  a tiny shape, to see that it runs

Two shapes: SmolLM2's (its own weights where they are installed, else random ones) and an 8B
Llama's with random weights in bfloat16, drawn on the device. For each:

equality
    float32, prompts under mixed steering, the engine with all rows together against the bridge one
    prompt at a time: rows whose greedy tokens are all the same, the largest difference of a
    log-probability along the same tokens, and of a cached residual, in shares of its norm. Of the
    8B shape the first blocks are compared.
rounding
    bfloat16, as `benchmarks.rounding`: mean KL per token between every two paths.
speed
    generation of many rows and of one, a steered sweep, and caching, against Hugging Face's
    `generate` and forward pass on the same weights; contenders take turns within a round.
memory
    the most that was allocated during a run, above what was before it.

The last line printed is all of it as one JSON object.
"""

import argparse
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

import steerlens as sl
from benchmarks import contenders, rounding
from benchmarks.contenders import Contender
from benchmarks.measure import Run, allocated, processor, summary, timed
from benchmarks.models import SHAPES, InstalledModel, RandomModel
from benchmarks.work import Sizes, Work, inputs
from steerlens.engine import running
from steerlens.engine.modules import fast_modules
from steerlens.engine.residuals import residuals_shared, residuals_unshared
from steerlens.files import library_versions
from steerlens.models.sources import DEFAULT_MODEL

SMALL, LARGE, TINY = "smollm2-135m", "llama-8b", "tiny"
NONE = (
    "There is no accelerator here: torch finds neither CUDA nor MPS. (`python -m benchmarks` "
    "measures the CPU; --device cpu --quick shows that this one runs.)"
)
SIZES = Sizes(n_new_tokens=64, n_pairs=128, caching_batches=(64, 64))
QUICK = Sizes(
    n_prompts=6, n_new_tokens=4, n_sweep_prompts=2, n_pairs=4, batch_limit=6, caching_batches=(4, 4)
)
OURS, HF = "steerlens", "Hugging Face"
# Rows × new tokens of the checks.
EQUALITY, ROUNDING = (64, 8), (12, 8)
EQUALITY_QUICK, ROUNDING_QUICK = (8, 3), (4, 2)


def main(given: list[str] | None = None) -> None:
    """Measure, and print one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help="by default the accelerator that torch finds")
    parser.add_argument("--shapes", default=f"{SMALL},{LARGE}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="the tiny shape, one round")
    arguments = parser.parse_args(given)
    if arguments.device is None and not torch.accelerator.is_available():
        print(NONE)
        return
    device = torch.device(arguments.device or torch.accelerator.current_accelerator())
    shapes = [TINY] if arguments.quick else arguments.shapes.split(",")
    results: dict[str, Any] = {
        "device": _name(device),
        "processor": processor(),
        "versions": library_versions(),
        "rounds": 1 if arguments.quick else arguments.rounds,
        "shapes": {},
    }
    for name in shapes:
        results["shapes"][name] = measure(name, device, results["rounds"], arguments.quick)
    print(json.dumps(results, ensure_ascii=False))


def measure(name: str, device: torch.device, n_rounds: int, quick: bool) -> dict[str, Any]:
    """Everything about one shape."""
    checked = _source(name, device, SHAPES[name].n_checked)
    _say(f"{name}: equality in float32")
    result: dict[str, Any] = {"weights": checked.weights, "checked_blocks": SHAPES[name].n_checked}
    result["equality"] = equality(checked, *(EQUALITY_QUICK if quick else EQUALITY))
    _say(f"{name}: {result['equality']}")
    scores = rounding.measure(checked, *(ROUNDING_QUICK if quick else ROUNDING))
    result["rounding"] = rounding.matrix(scores)
    del checked, scores
    _forget(device)
    _say(f"{name}: speed")
    before = allocated(device)
    source = _source(name, device)
    started = time.perf_counter()
    model = (
        source.hooked(source.drawn(torch.bfloat16, "eager"))
        if isinstance(source, RandomModel)
        else source.bridge(torch.bfloat16)
    )
    result["seconds_to_build"] = time.perf_counter() - started
    result["bytes_of_the_model"] = allocated(device) - before
    work = inputs(model, model.original_model, QUICK if quick else SIZES)
    with running(model, 64) as path:
        result["path"] = {"attention": path.attention, "reason": path.reason}
    return result | speed(work, device, n_rounds)


def equality(
    source: InstalledModel | RandomModel, n_rows: int, n_new: int
) -> dict[str, float | int]:
    """Engine and bridge in float32."""
    model = source.bridge(torch.float32)
    vector = rounding.fitted(model)

    def rows() -> list[Any]:
        return rounding.mixed_rows(model, vector, n_rows, n_new)

    forced, free = rows(), rows()
    theirs = rounding.recorded(rounding.bridge(model, forced, 1))
    rounding.recorded(rounding.engine(model, free, n_rows))
    ours = rounding.recorded(rounding.engine(model, rows(), n_rows), forced)
    tokens = [row.tokens for row in forced]
    spans = [(len(row) - 1, len(row)) for row in tokens]
    layers = range(model.cfg.n_layers)
    cached = residuals_shared(model, tokens, spans, layers, n_rows)
    expected = residuals_unshared(model, tokens, spans, layers, 1)
    errors = (cached - expected).norm(dim=-1) / expected.norm(dim=-1)
    return {
        "rows": n_rows,
        "new_tokens": n_new,
        "rows_with_the_same_tokens": sum(
            row.produced == other.produced for row, other in zip(free, forced, strict=True)
        ),
        "largest_log_probability_difference": max(
            float((ours[key] - one).abs().max()) for key, one in theirs.items()
        ),
        "largest_residual_difference": float(errors.max()),
    }


def speed(work: Work, device: torch.device, n_rounds: int) -> dict[str, Any]:
    """Rates, ratios and peaks of all tasks, a round of each to warm up."""
    tasks, runs = _tasks(work), {}
    left_out: dict[str, str] = {}
    for number in range(n_rounds + 1):
        for task, members in tasks.items():
            for name, contender in members.items():
                key = f"{task}: {name}"
                if key in left_out:
                    continue
                try:
                    run = timed(contender, device)
                except Exception as error:
                    left_out[key] = f"{type(error).__name__}: {error}"[:200]
                    _say(f"{key} left out: {left_out[key]}")
                    continue
                if number:
                    runs.setdefault(task, {}).setdefault(name, []).append(run)
                    _say(f"round {number} {key}: {run.rate:.1f} tokens/s")
    return {
        "speed": {
            task: {name: summary(its) for name, its in members.items()}
            for task, members in runs.items()
        },
        "over_hugging_face": {
            task: _ratios(members) for task, members in runs.items() if HF in members
        },
        "peak_bytes": {
            task: {name: max(run.peak_bytes for run in its) for name, its in members.items()}
            for task, members in runs.items()
        },
        "left_out": left_out,
    }


def _tasks(work: Work) -> dict[str, dict[str, Callable[[], int]]]:
    """What is run, by task and contender; Hugging Face runs on the bridge's own model."""
    single = replace(work, rows=work.rows[:1])
    n_new = work.sizes.n_new_tokens

    def static(work: Work) -> int:
        answers = contenders.hf_answers(work, work.rows, n_new, cache_implementation="static")
        return sum(map(len, answers))

    many, one = f"generation of {len(work.rows)}", "generation of 1"
    members: dict[str, dict[str, tuple[Contender, Work]]] = {
        many: {
            f"{OURS}, unsteered": (contenders.ours_unsteered, work),
            f"{OURS}, steered": (contenders.ours_steered, work),
            HF: (_plainly(contenders.hf_generate), work),
        },
        one: {
            f"{OURS}, steered": (contenders.ours_steered, single),
            HF: (_plainly(contenders.hf_generate), single),
            f"{HF}, static cache": (_plainly(static), single),
        },
        "sweep": {
            OURS: (contenders.ours_sweep, work),
            HF: (_plainly(contenders.hf_sweep), work),
        },
        "caching": {
            OURS: (contenders.ours_caching, work),
            HF: (_plainly(contenders.hf_caching), work),
        },
    }
    return {
        task: {name: lambda run=run, its=its: run(its) for name, (run, its) in named.items()}
        for task, named in members.items()
    }


def _plainly(contender: Contender) -> Contender:
    """A contender on the Hugging Face model that the bridge has in its parts, put together."""

    def run(work: Work) -> int:
        with fast_modules(work.model):
            return contender(work)

    return run


def _ratios(members: dict[str, list[Run]]) -> dict[str, float]:
    """Medians of ratios within rounds."""
    return {
        name: statistics.median(
            run.rate / other.rate for run, other in zip(runs, members[HF], strict=False)
        )
        for name, runs in members.items()
        if name != HF
    }


def _source(
    name: str, device: torch.device, n_layers: int | None = None
) -> InstalledModel | RandomModel:
    if name == SMALL and any(one.name == DEFAULT_MODEL for one in sl.available_models()):
        return InstalledModel(device)
    return RandomModel(SHAPES[name], device, n_layers)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda: {torch.cuda.get_device_name(device)}"
    return f"{device.type}: {platform.machine()}"


def _forget(device: torch.device) -> None:
    """Give memory that torch keeps for later back to the device, where free memory is asked for."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
