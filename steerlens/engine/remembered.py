"""What names remembered results: the model's identity, and whether it is only the model.

A hook, a replaced forward or a parametrisation changes results in a way that nothing can be read
off. What is computed on such a model gets a name of its own each time: it is kept, and never taken
for the result of another call.
"""

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
    """What the name of a piece says of the model; all weights are read.

    Args:
        model: A hooked model.
    """
    with exclusively(model):
        key = model_identity(model).key
        change = outside_change(model)
    return key if change is None else {**key, "outside": [change, uuid.uuid4().hex]}


def rendered_example(model: TransformerBridge) -> dict[str, str]:
    """How the model reads a fixed prompt at this moment: for a run to note, not to insist on.

    A template may write the date. That must not keep a run from being resumed, but shows here.
    """
    try:
        return {"prompt": EXAMPLE, "rendered": render_prompt(model, EXAMPLE)}
    except ModelError as error:  # a template that refuses this conversation, not others perhaps
        return {"prompt": EXAMPLE, "refused": str(error)}
