"""What names remembered results: the model's identity, and whether it is only the model."""

import uuid
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.outside import outside_change
from steerlens.errors import ModelError
from steerlens.models.chat import render_prompt
from steerlens.models.exclusion import exclusively
from steerlens.models.identity import model_identity

__all__ = ["naming_key", "rendered_example"]

EXAMPLE = "Tell me about Rome."


def naming_key(model: TransformerBridge) -> dict[str, Any]:
    """What names a result of this model; all weights are read.

    A hook, a replaced forward or a parametrisation changes results in a way that cannot be read
    off it. On such a model every call gets a name of its own: its results are kept, but never taken
    for those of another call.

    Args:
        model: A hooked model.
    """
    with exclusively(model):
        key = model_identity(model).key
        change = outside_change(model)
    return key if change is None else {**key, "outside": [change, uuid.uuid4().hex]}


def rendered_example(model: TransformerBridge) -> dict[str, str]:
    """How the model's template renders a fixed prompt now: noted by a run, but not compared.

    A template may write the date, which must not keep a run from being resumed.
    """
    try:
        return {"prompt": EXAMPLE, "rendered": render_prompt(model, EXAMPLE)}
    except ModelError as error:  # a template that refuses this conversation, perhaps not others
        return {"prompt": EXAMPLE, "refused": str(error)}
