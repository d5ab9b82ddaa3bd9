"""The cheap evidence that a search begins with: first-token causal recovery by layer."""

from collections.abc import Mapping

from steerlens.attribution import first_token_recovery
from steerlens.behaviour.plans.fitting import VectorBook
from steerlens.behaviour.search.settings import SearchSettings
from steerlens.errors import SteeringError
from steerlens.tasks import Task
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import SteeringVector

__all__ = ["layer_recovery"]

# Recovery is measured at every second layer.
_EVERY = 2


def layer_recovery(
    book: VectorBook, task: Task, vectors: Mapping[str, SteeringVector], settings: SearchSettings
) -> dict[int, float]:
    """Recovery of the ``last_prompt`` vector on ``select`` pairs, by layer.

    Empty without such a vector, and where the first token does not show the task.
    """
    if "last_prompt" not in vectors:
        return {}
    n = min(settings.n_evidence, task.n_pairs("select"))
    pairs = contrast_pairs(task, n=n, seed=settings.seed, split="select")
    layers = range(0, max(book.model.cfg.n_layers - 1, 1), _EVERY)
    try:
        with book.answerer.alone:
            curve = first_token_recovery(
                book.model, pairs, vectors["last_prompt"], layers=layers, show_progress=False
            )
    except SteeringError:
        return {}
    table = curve.table
    return dict(zip(table["layer"].tolist(), table["recovery"].tolist(), strict=True))
