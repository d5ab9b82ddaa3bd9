"""The command that runs lm-eval's tasks: `harness`."""

import json
from pathlib import Path
from typing import Annotated, Literal

from steerlens.cli.options import RunModelOptions
from steerlens.cli.values import Json, Seed, count, local_path, option, print_json, refuse_unused
from steerlens.errors import SteerlensError

__all__ = ["harness"]


def harness(
    model: RunModelOptions,
    *,
    tasks: Annotated[
        list[str], option("a task of lm-eval by name, or a YAML file (repeats)", "--tasks")
    ],
    vector: Annotated[Path | None, option("steer with a vector in any known format")] = None,
    layer: Annotated[int | None, option("with --vector: the layer to steer")] = None,
    operation: Annotated[str | None, option("with --vector: add, set_projection or ablate")] = None,
    strength: Annotated[float | None, option("with --vector: how hard (default: 1)")] = None,
    scope: Annotated[
        str | None, option("with --vector: all (default), prompt, response or first:N")
    ] = None,
    plan: Annotated[Path | None, local_path("or steer as the plan in this folder says")] = None,
    task: Annotated[
        str | None, option("with --plan: which of its tasks, if it has several")
    ] = None,
    context: Annotated[
        Literal["uninstructed", "instructed"], option("with --plan: which of its two choices")
    ] = "uninstructed",
    no_placebo: Annotated[bool, option("leave out the placebo", "--no-placebo")] = False,
    limit: Annotated[int | None, count("documents per task; all by default")] = None,
    num_fewshot: Annotated[
        int | None, option("examples before each document; as the task says by default")
    ] = None,
    apply_chat_template: Annotated[
        bool, option("render contexts as conversations", "--apply-chat-template")
    ] = False,
    include_path: Annotated[
        Path | None, local_path("a folder of task files, to be named in --tasks")
    ] = None,
    out: Annotated[Path | None, local_path("write table, settings and results here (JSON)")] = None,
    batch_size: Annotated[int | None, count("rows per forward pass")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Run tasks of lm-eval unsteered, steered, and under a placebo."""
    parts = {"--layer": layer, "--operation": operation, "--strength": strength, "--scope": scope}
    if vector is None:
        refuse_unused(parts, "is for --vector")
    if plan is None:
        refuse_unused({"--task": task}, "names a task of --plan; lm-eval's are given by --tasks")
    from steerlens.files import check_writable, write_text
    from steerlens.harness import run_tasks, saved_steering
    from steerlens.harness.saved import require_lm_eval

    require_lm_eval()
    if out is not None:
        check_writable(out)
    loaded = model.load()
    steering = saved_steering(
        loaded,
        vector=vector,
        layer=layer,
        operation=operation,
        strength=1.0 if strength is None else strength,
        scope=scope or "all",
        plan=plan,
        task=task,
        context=context,
    )
    if plan is not None and steering is None:
        raise SteerlensError("the plan chose no steering for this task, so there is nothing to run")
    result = run_tasks(
        loaded,
        tasks,
        steering,
        placebo=not no_placebo,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=apply_chat_template,
        include_path=include_path,
        batch_size=batch_size,
        seed=seed,
    )
    record = {**result.settings, "table": json.loads(result.table.to_json(orient="records"))}
    if out is not None:
        results = {name: each["results"] for name, each in result.results.items()}
        write_text(out, json.dumps({**record, "results": results}, default=str))
    if as_json:
        print_json(record)
        return
    shown = result.table.drop(columns=["filter"])
    print(shown.to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    if out is not None:
        print(f"results written to {out}")
