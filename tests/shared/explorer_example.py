"""Explorers for tests: without evidence in the background unless a test asks for it."""

from typing import Any

from steerlens.explorer import explore


def quiet_explorer(model: Any, *args: Any, **kwargs: Any) -> Any:
    """An explorer that answers and records, and stops there."""
    explorer = explore(model, *args, **kwargs)
    explorer.curves.gathers.value = False
    return explorer


def answered(explorer: Any, seconds: float = 60.0) -> Any:
    """The run that is shown when the worker has ended."""
    explorer.worker.wait(seconds)
    assert explorer.run is not None, explorer.message.value
    return explorer.run
