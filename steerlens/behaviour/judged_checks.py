r"""A judge as a check: a language model is asked a question about the response.

The score is the probability of *yes* among *yes* and *no* as the first token of the judge's answer,

.. math:: \frac{p(\text{Yes})}{p(\text{Yes}) + p(\text{No})}

to the prompt "{question}", followed by the response in quotation marks. The judge is loaded when it
is first asked, once per process.

**Caveat.** A small judge answers by how a text looks. Try the check on responses whose answer you
know (``steerlens tasks --check FILE``).
"""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.errors import SteerlensError
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import load_model, tokenize_prompts

__all__ = ["judged_check", "yes_probability"]

PROMPT = '{question} Answer with Yes or No.\n\n"{response}"'


def judged_check(model: str, question: str) -> Any:
    """The check that asks `question` of the model with this reference."""

    def check(response: str, **_: Any) -> float:
        return yes_probability(_judge(model), question, response)

    return check


def yes_probability(model: TransformerBridge, question: str, response: str) -> float:
    """The probability that the model answers the question about the response with yes.

    Raises:
        SteerlensError: The model's tokenizer writes yes and no with the same first token.
    """
    prompt = PROMPT.format(question=question.strip(), response=response.strip())
    (tokens,) = tokenize_prompts(model, [prompt])
    tokenizer = attached_tokenizer(model)
    yes, no = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    if yes == no:
        raise SteerlensError("the judge's tokenizer writes Yes and No with the same first token")
    result = [0.0]

    def visit(rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]) -> None:
        result[0] = float(torch.sigmoid((logits[0, yes] - logits[0, no]).float()))

    score_rows(model, [ForcedRow(0, tuple(tokens), (0,), None)], visit)
    return result[0]


@functools.lru_cache(maxsize=4)
def _judge(model: str) -> TransformerBridge:
    return load_model(model)
