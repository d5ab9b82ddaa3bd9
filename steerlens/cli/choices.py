"""`steerlens rank --evidence choices`: how far steering moves choices, layer by layer."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.cli.options import ModelOptions, PairOptions
from steerlens.cli.values import print_json, seed_of
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.runs import Run
    from steerlens.tasks import Task

__all__ = ["rank_choices"]

_SHOWN = ("slope", "above_placebo")


def rank_choices(
    model: ModelOptions,
    pairs: PairOptions,
    scope: str,
    out: Path | None,
    resume: bool,
    as_json: bool,
) -> None:
    """Log odds of the matching answer over layers and strengths, for each task of choices."""
    pairs.check_position()
    tasks = pairs.tasks()
    for task in tasks:
        if task.group != "choices":
            raise SteerlensError(
                f"--evidence choices is for tasks of choices, and {task.id!r} has none"
            )
    positions = [pairs.read_at(each) for each in pairs.sets_of(tasks)]
    from steerlens.attribution.choice_evidence import choices_table
    from steerlens.files import check_writable, without_nan, write_text
    from steerlens.models.loading import model_info

    if out is not None:
        check_writable(out / "choices.json")
    loaded = model.load()
    info = model_info(loaded, exact=True)
    settings = {
        "model": info.reference,
        "weights_hash": info.weights_hash,
        "dtype": info.dtype,
        "chat_format": model.chat_format,
        "tasks": {task.id: task.hash for task in tasks},
        "n": pairs.n,
        "seed": seed_of(pairs.seed),
        "positions": positions,
        "scope": scope,
        "batch_size": pairs.batch_size,
    }
    with nullcontext() if out is None else _opened(out, settings, resume) as run:
        records = [
            without_nan(_record(loaded, task, pairs, model.chat_format, scope, at, run))
            for task, at in zip(tasks, positions, strict=True)
        ]
        table = choices_table(records)
        if run is not None:
            write_text(run.folder / "choices.csv", table.to_csv(index=False))
            run.write_json("choices.json", records)
            run.conclude()
    if as_json:
        print_json(records[0] if len(records) == 1 else records)
        return
    _print(records, table)


def _opened(out: Path, settings: dict[str, Any], resume: bool) -> "Run":
    from steerlens.runs import Run

    return Run.open(out, kind="rank choices", settings=settings, resume=resume)


def _record(
    model: Any,
    task: "Task",
    pairs: PairOptions,
    chat_format: str,
    scope: str,
    position: int | str,
    run: "Run | None",
) -> dict[str, Any]:
    """The evidence about one task; of a resumed run, what it has already measured."""
    from steerlens.attribution.choice_evidence import choice_evidence
    from steerlens.files import write_text
    from steerlens.runs import piece_name

    piece = piece_name({"task": task.id})
    name = task.id.replace(":", "-")
    finished = None if run is None else run.finished(piece)
    if finished is not None:
        return finished[0]
    evidence = choice_evidence(
        model, task, pairs.n, scope=scope, position=position, seed=seed_of(pairs.seed),
        batch_size=pairs.batch_size, chat_format=chat_format,
    )  # fmt: skip
    record = evidence.to_json()
    if run is None:
        return record
    evidence.vector.save(run.folder / f"{name}.safetensors")
    write_text(run.folder / f"{name}.csv", evidence.curve.table.to_csv(index=False))
    write_text(run.folder / f"{name}.html", evidence.plot().to_html())
    return run.finish(piece, [record])[0]


def _print(records: list[dict[str, Any]], table: Any) -> None:
    import pandas as pd

    for record in records:
        layers = pd.DataFrame(record["layers"])
        columns = ["layer", "slope", "slope_low", "slope_high", "placebo_slope", "wrong_way"]
        shown = layers[[*columns, *(["select_slope"] if "select_slope" in layers else [])]]
        print(record["task"])
        print(shown.to_string(index=False, float_format="{:.3f}".format))
        print(f"best layer: {record['best_layer']} ({record['best_layer_rule']})\n")
    columns = [f"{name}{end}" for name in _SHOWN for end in ("", "_low", "_high")]
    shown = table[["task", "steerable", "layer", *columns, "wrong_way", "neither"]]
    print(shown.to_string(index=False, float_format="{:.3f}".format))
    scope = records[0]["metadata"]["scope"]
    print(f"slopes in nats of log odds per unit of strength, on held-out items; scope {scope}")
