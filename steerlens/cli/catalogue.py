"""What there is: `models` and `tasks`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from steerlens.cli.values import Json, option, print_json

if TYPE_CHECKING:
    from steerlens.tasks import Task

__all__ = ["models", "tasks"]

# What a check should tell apart from the behaviour, where a task file gives no samples of its own.
_SAMPLES = ("Yes.", "I do not know much about this, but I can look it up for you.")


def models(*, as_json: Json = False) -> None:
    """List the models that can be loaded here and now."""
    from steerlens.models.loading import available_models

    listings = available_models()
    if as_json:
        print_json([vars(model) for model in listings])
        return
    for model in listings:
        state = "ready" if model.installed else "not installed"
        print(f"{model.name:32} {model.kind:10} {state:14} {model.how}")


def tasks(
    *,
    check: Annotated[
        Path | None, option("show what a task file of your own makes", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the tasks of the catalogue, or check a task file."""
    if check is not None:
        from steerlens.tasks.task_files import load_task

        found = _described(load_task(check))
        if as_json:
            print_json(found)
        else:
            _print(found)
        return
    from steerlens.tasks import catalogue

    if not as_json:
        for task in catalogue.values():
            print(f"{task.id:48} {task.group:8} {task.description}")
        return
    names = ("id", "ifeval_id", "group", "description", "phrasings", "has_rewrite")
    print_json([{name: getattr(task, name) for name in names} for task in catalogue.values()])


def _described(task: "Task") -> dict[str, Any]:
    """What a task makes: sizes, an example, what its check says, what is missing."""
    from steerlens.models.conversations import shown
    from steerlens.tasks import SPLITS

    example = task.pairs(2)[0] if task.n_pairs("fit") >= 2 else None
    samples = [*(task.samples or _SAMPLES)]
    if example is not None:
        samples += [text for text in (example.instructed_response,) if text]
    kwargs = {} if example is None else example.kwargs
    missing = list(task.notices)
    if not task.has_check and task.group != "choices":
        missing.append("no check: causal recovery is measured instead of a rate of passing")
    if task.has_check and not task.samples:
        missing.append("no samples: give some answers that should pass and some that should not")
    return {
        "id": task.id,
        "group": task.group,
        "splits": {
            split: {
                "phrasings": len(task.phrasings_for(split)),
                "queries": len(task.queries(split)),
                "pairs": task.n_pairs(split),
            }
            for split in SPLITS
        },
        "example": example
        and {
            "instructed": shown(example.instructed),
            "uninstructed": shown(example.uninstructed),
            "instructed_response": example.instructed_response,
            "uninstructed_response": example.uninstructed_response,
        },
        "samples": {text: task.score(text, **kwargs) for text in samples if task.has_check},
        "missing": missing,
        "hash": task.hash,
    }


def _print(found: dict[str, Any]) -> None:
    print(f"{found['id']} ({found['group']}), {found['hash'][:19]}…")
    for split, sizes in found["splits"].items():
        print(f"  {split:8} " + ", ".join(f"{n} {what}" for what, n in sizes.items()))
    for name, text in (found["example"] or {}).items():
        if text:
            print(f"  {name}: {text!r}")
    for text, score in found["samples"].items():
        print(f"  the check gives {score:.2f} to {text!r}")
    for sentence in found["missing"]:
        print(f"  note: {sentence}")
