"""The commands that apply a vector: `steer` and `calibrate`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.decoding import DecodingOptions
from steerlens.cli.options import InterventionOptions, ModelOptions
from steerlens.cli.values import (
    Json,
    Seed,
    count,
    local_path,
    option,
    parse_token_ids,
    print_json,
    refuse_unused,
    seed_of,
)
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.models.conversations import Prompt

__all__ = ["calibrate", "steer"]


def steer(
    model: ModelOptions,
    intervention: InterventionOptions,
    decoding: DecodingOptions,
    *,
    prompt: Annotated[
        str | None,
        option("the prompt to answer; without one, --messages ends with what is answered"),
    ] = None,
    token_ids: Annotated[
        str | None, option("instead of --prompt: comma-separated token ids, read as they are")
    ] = None,
    strength: Annotated[float, option("how hard to steer")] = 1.0,
    max_new_tokens: Annotated[int, count("longest response")] = 64,
    seed: Annotated[int | None, option("seed of sampling (default: 0)")] = None,
    as_json: Json = False,
) -> None:
    """Answer a prompt with and without steering."""
    from steerlens.effects import steer as run_steer
    from steerlens.engine.sampling import Decoding
    from steerlens.models.conversations import continued, conversation_of

    before = decoding.conversation()
    asked: Prompt
    if token_ids is not None:
        if prompt is not None or before:
            raise SteerlensError("--token-ids are the whole prompt; leave out --prompt, --messages")
        asked = parse_token_ids(token_ids)
    elif prompt is not None:
        asked = continued(before, prompt)
    else:
        if not before:
            raise SteerlensError(
                "give --prompt TEXT, or --messages FILE that ends with a user's message, or an "
                "assistant's to go on with"
            )
        asked = conversation_of(before, str(decoding.messages))
    _, steering = intervention.steering(strength)
    greedy = None if decoding.temperature else "at --temperature 0: no token is drawn"
    run = run_steer(
        model.load(),
        asked,
        steering,
        max_new_tokens=max_new_tokens,
        decoding=decoding.decoding(seed_of(seed, unused=greedy)),
        chat_format=model.chat_format,
    )
    table = run.effects.table
    if as_json:
        print_json(
            {
                "prompt": run.prompt,
                "baseline": run.baseline,
                "steered": run.steered,
                "finish_reasons": run.finish_reasons,
                "samples": run.samples,
                "parts_at": run.parts_at,
                "mean_kl": run.effects.mean_kl,
                "settings": run.settings,
                "effects": table.to_dict("records"),
            }
        )
        return
    print(f"decoding: {Decoding(**run.settings['decoding']).describe()}")
    for i, (baseline, steered) in enumerate(run.samples):
        number = f"sample {i}, " if len(run.samples) > 1 else ""
        print(f"{number}baseline:\n{baseline}\n")
        print(f"{number}steered ({steering.interventions[0].describe()}):\n{steered}\n")
    print(f"mean KL over the response: {run.effects.mean_kl:.3f} nats")
    print("largest effects:")
    columns = ["position", "token", "role", "kl", "projection_before", "projection_after"]
    largest = table.nlargest(10, "kl")[columns].sort_values("position")
    largest["token"] = largest["token"].map(repr)
    print(largest.to_string(index=False, float_format="{:.3f}".format))


def calibrate(
    model: ModelOptions,
    intervention: InterventionOptions,
    *,
    target_kl: Annotated[float | None, option("budget in nats per token (default: 0.1)")] = None,
    quantile: Annotated[
        float | None, option("the quantile over tokens that meets it; the mean by default")
    ] = None,
    task: Annotated[
        str | None,
        option(
            "find the strength at which responses follow this task, not a KL budget",
            "--task",
            "--instruction",
            metavar="ID|FILE",
        ),
    ] = None,
    target_rate: Annotated[
        float | None, option("share that must follow it; as many as possible by default")
    ] = None,
    n: Annotated[int | None, option("prompts of the select split (default: 24)")] = None,
    max_new_tokens: Annotated[
        int | None, count("longest response (default: 64, or 128 with --task)")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, local_path("write the vector with its calibration to this file")
    ] = None,
    as_json: Json = False,
) -> None:
    """Find the strength that meets a KL budget, or at which responses follow a task."""
    from steerlens.behaviour.calibration import calibrate as run_calibrate
    from steerlens.behaviour.calibration import calibrate_rate
    from steerlens.effects.divergence import check_statistic
    from steerlens.engine.generation import generate
    from steerlens.files import check_writable
    from steerlens.tasks.drawing import contrast_pairs
    from steerlens.tasks.task_files import load_task

    if task is None and target_rate is not None:
        raise SteerlensError("--target-rate needs --task, whose check counts the responses")
    if task is not None:
        reason = "belongs to a KL budget, and with --task the strength is found by its check"
        refuse_unused({"--quantile": quantile, "--target-kl": target_kl}, reason)
    vector, steering = intervention.steering()
    if out is not None:
        check_writable(out)
    budget = 0.1 if target_kl is None else target_kl
    # Answers take minutes: what cannot be met is refused before the model is loaded.
    if task is None:
        queries = _queries(24 if n is None else n)
        if not 0 < budget < math.inf:
            raise SteerlensError(f"--target-kl must be a positive number of nats; got {budget:g}")
        check_statistic(quantile, 1, seed)
    else:
        if not load_task(task).has_check:
            raise SteerlensError(f"{task} has no check, so passes cannot be counted")
        contrast_pairs(task, n=n, seed=seed, split="select")
        if target_rate is not None and not 0 < target_rate <= 1:
            raise SteerlensError(
                f"--target-rate must be above 0 and at most 1; got {target_rate:g}"
            )
    loaded = model.load()
    vector.check_model(loaded)
    result: Any
    if task is None:
        answers = generate(
            loaded, queries, max_new_tokens=max_new_tokens or 64, chat_format=model.chat_format
        )
        result = run_calibrate(
            loaded, steering, answers, target_kl=budget, quantile=quantile, seed=seed
        )
    else:
        result = calibrate_rate(
            loaded,
            steering,
            task,
            target_rate,
            n_prompts=n,
            max_new_tokens=max_new_tokens or 128,
            seed=seed,
            chat_format=model.chat_format,
        )
    if out is not None:
        result.saved_with(vector).save(out)
    if as_json:
        print_json({**result.record, "reason": result.reason})
        return
    print(result)
    if out is not None:
        print(f"vector with its calibration written to {out}")


def _queries(n: int) -> list[str]:
    from steerlens.models.conversations import shown
    from steerlens.tasks import base_queries

    queries = [shown(query.text) for query in base_queries("select")]
    if not 2 <= n <= len(queries):
        raise SteerlensError(
            f"--n must be 2 to {len(queries)}, the queries of the select split; got {n}"
        )
    return queries[:n]
