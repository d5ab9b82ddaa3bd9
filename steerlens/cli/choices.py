"""`steerlens rank --evidence choices`: how far steering moves choices, layer by layer."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steerlens.cli.options import ModelOptions, PairOptions
from steerlens.cli.values import print_json, seed_of
from steerlens.errors import SteerlensError

if TYPE_CHECKING:
    from steerlens.attribution.choices import ChoiceCurve

__all__ = ["rank_choices"]

_COLUMNS = ("slope", "slope_low", "slope_high", "wrong_way", "placebo_slope")


def rank_choices(model: ModelOptions, pairs: PairOptions, out: Path | None, as_json: bool) -> None:
    """Log odds of the matching answer over layers and strengths, for each task of choices."""
    pairs.check_position()
    tasks = pairs.tasks()
    for task in tasks:
        if task.group != "choices":
            raise SteerlensError(
                f"--evidence choices is for tasks of choices, and {task.id!r} has none"
            )
    from steerlens.attribution.choices import choice_curve
    from steerlens.files import check_writable, without_nan, write_text
    from steerlens.vectors import difference_of_means, random_direction

    if out is not None:
        check_writable(out / "choices.json")
    loaded = model.load()
    # Every second layer: neighbours differ little, and all would take twice as long.
    layers = range(0, loaded.cfg.n_layers, 2)
    records = []
    for task, fit in zip(tasks, pairs.sets_of(tasks), strict=True):
        cache = pairs.cache(loaded, fit, model.chat_format)
        placebo = random_direction(cache, seed=seed_of(pairs.seed))
        vector = difference_of_means(cache)
        curve = choice_curve(
            loaded, task, vector, layers, placebo=placebo, batch_size=pairs.batch_size,
            chat_format=model.chat_format,
        )  # fmt: skip
        records.append(_record(task.id, curve))
        if out is not None:
            name = task.id.replace(":", "-")
            write_text(out / f"{name}.csv", curve.table.to_csv(index=False))
            write_text(out / f"{name}.html", curve.plot().to_html())
            vector.save(out / f"{name}.safetensors")
        if not as_json:
            print(f"{task.id}: {curve!r}")
            print(
                curve.slopes[["layer", *_COLUMNS]].to_string(
                    index=False, float_format="{:.3f}".format
                )
            )
    if out is not None:
        write_text(out / "choices.json", json.dumps(without_nan(records), indent=1))
    if as_json:
        print_json(records[0] if len(records) == 1 else records)


def _record(task: str, curve: "ChoiceCurve") -> dict[str, Any]:
    return {
        "task": task,
        "n_items": curve.n_items,
        "best_layer": curve.best_layer,
        "layers": curve.slopes.to_dict("records"),
        "curve": curve.table.to_dict("records"),
        "metadata": dict(curve.metadata),
    }
