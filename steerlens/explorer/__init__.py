"""Steering by hand in Jupyter: `explore` shows what steering does while it is being changed.

Moving a slider cancels what is running and starts anew; answers stream in side by side, then their
tokens appear, shaded, each with its numbers at a click. Beside the sliders, evidence about layers
is gathered in the background. A map of strengths × layers can be filled in, two settings compared,
and trials kept, or saved as a vector file, a figure, or the Python that gives them again.

Needs ipywidgets and anywidget: ``pip install 'steerlens[notebook]'``.
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteerlensError
from steerlens.models.conversations import Conversation
from steerlens.tasks import Task

if TYPE_CHECKING:
    from steerlens.explorer.explorer import Explorer

__all__ = ["explore"]

GivenTask = Task | str | os.PathLike[str]


def explore(
    model: TransformerBridge,
    tasks: Sequence[GivenTask] | GivenTask = (),
    n_pairs: int = 32,
    conversation: Conversation = (),
) -> "Explorer":
    """Controls for steering a model by hand; show the result as a cell's last line.

    Args:
        model: A hooked model; while the explorer is answering, other calls wait for it.
        tasks: Tasks of your own (a `Task` or its file), offered before those of the catalogue.
        n_pairs: Contrast pairs a task's vector is fitted on.
        conversation: Messages to begin with; the last user's is the prompt.

    Raises:
        ModelError: Messages that are none.
        SteerlensError: ipywidgets or anywidget is not installed, two tasks have one id, or as
            `load_task`.
    """
    try:
        import_module("ipywidgets")
        import_module("anywidget")
    except ImportError as error:
        raise SteerlensError(
            "the explorer needs ipywidgets and anywidget: pip install 'steerlens[notebook]'"
        ) from error
    from steerlens.explorer.explorer import Explorer

    return Explorer(model, tasks, n_pairs, conversation)
