"""Log-likelihoods of given continuations, each row under its own steering.

For a row with prompt *p* and continuation :math:`c_1 \\dots c_n`, from its first step *k* on,

.. math:: \\log P = \\sum_{t > k} \\log q(c_t \\mid p, c_1 \\dots c_{t-1})

in nats, with *q* the steered model. NaN where logits are no numbers.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.scoring import ForcedRow, score_rows

__all__ = ["log_likelihoods"]

Array = np.ndarray


def log_likelihoods(
    model: TransformerBridge,
    rows: Sequence[ForcedRow],
    batch_size: int | None = None,
    done: Callable[[int], object] = lambda n: None,
) -> tuple[Float[Array, "row"], Bool[Array, "row"]]:
    """The log-likelihood of each row in nats, and whether greedy decoding would write the same.

    Args:
        model: A hooked model.
        rows: Their indices are their places in this list.
        batch_size: Most rows per forward pass; by default as many as a pass holds.
        done: Called with the number of tokens scored since it was last called.

    Raises:
        SteeringError: A steering does not fit the model, or its strength is adaptive.
        SteerlensError: A row without a prompt or continuation, or longer than the context.
    """
    totals, greedy = np.zeros(len(rows)), np.ones(len(rows), dtype=bool)

    def visit(at: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]) -> None:
        targets = [rows[i].continuation[step] for i, step in zip(at, steps, strict=True)]
        wanted = torch.tensor(targets, device=logits.device)[:, None]
        logprobs = torch.log_softmax(logits, -1, dtype=torch.float32).gather(1, wanted)[:, 0]
        np.add.at(totals, at, logprobs.cpu().double().numpy())
        is_top = (logits.argmax(-1) == wanted[:, 0]).cpu().numpy()
        np.logical_and.at(greedy, at, is_top)
        done(len(at))

    score_rows(model, rows, visit, batch_size)
    return totals, greedy
