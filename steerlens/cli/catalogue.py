"""What there is: `models` and `tasks`."""

from steerlens.cli.values import Json, print_json

__all__ = ["models", "tasks"]


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


def tasks(*, as_json: Json = False) -> None:
    """List the tasks of the catalogue."""
    from steerlens.tasks import catalogue

    if not as_json:
        for task in catalogue.values():
            print(f"{task.id:48} {task.group:8} {task.description}")
        return
    names = ("id", "ifeval_id", "group", "description", "phrasings", "has_rewrite")
    print_json([{name: getattr(task, name) for name in names} for task in catalogue.values()])
