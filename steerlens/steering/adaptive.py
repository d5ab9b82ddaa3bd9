r"""Adaptive strength: steer only as far as the unsteered model finds the next token plausible.

With :math:`\ell^u_t` and :math:`\ell^s_t` the logits of the unsteered and of the steered model
after the same tokens, :math:`p^u_t` the unsteered distribution and a threshold :math:`\alpha`,

.. math:: \ell_t(\lambda) = \ell^u_t + \lambda\,(\ell^s_t - \ell^u_t), \qquad
   \lambda_t = \max\Bigl\{\lambda \in \{1, \tfrac12, \tfrac14, 0\} :
   p^u_t\bigl(\arg\max \ell_t(\lambda)\bigr) \ge \alpha \max_y p^u_t(y)\Bigr\}

and the next token is chosen from :math:`\ell_t(\lambda_t)`. Lowering the strength step by step is
after arXiv 2603.06745; what counts as plausible is the constraint of contrastive decoding (Li et
al., arXiv 2210.15097, §3.3), known as min p. To first order in the strength *s*,
:math:`\ell_t(\lambda)` are the logits at strength :math:`\lambda s`, so :math:`\lambda_t` is a
share of the strength. Both models read the same text; they differ from the first steered layer on,
and only from there on is there a second pass. At α = 0 nothing is lowered; at α = 1 a greedy text
is the unsteered one.

Caveat: the steered stream is steered in full at every token read. What is lowered is what it says,
not what it remembers.

>>> unsteered, steered = torch.tensor([[2.0, 1.0, -3.0]]), torch.tensor([[2.0, 1.0, 9.0]])
>>> logits, share = adapted(steered, unsteered, torch.tensor([0.1]))
>>> share.tolist(), logits.tolist()
([0.25], [[2.0, 1.0, 0.0]])
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError

__all__ = ["adapted", "adapted_output"]

SHARES = (1.0, 0.5, 0.25, 0.0)


def adapted(
    steered: Float[Tensor, "row vocab"],
    unsteered: Float[Tensor, "row vocab"],
    thresholds: Float[Tensor, "#row"],
) -> tuple[Float[Tensor, "row vocab"], Float[Tensor, "row"]]:
    """Logits with the strength lowered where it must be, and the share of it that is left.

    Args:
        steered: Logits of the steered model.
        unsteered: Logits of the unsteered one after the same tokens.
        thresholds: α of each row, or of all.
    """
    logits, shares = steered.clone(), torch.ones(len(steered), device=steered.device)
    least = unsteered.max(-1).values.float() + thresholds.float().log().to(unsteered.device)
    left = torch.arange(len(steered), device=steered.device)
    for share in SHARES:
        u, s = unsteered[left], steered[left]
        # Logits that are -inf in both have no difference. NaN stays: the engine ends the row.
        mixed = s if share == 1.0 else torch.where(s == u, u, torch.lerp(u, s, share))
        logits[left], shares[left] = mixed, share
        peak = mixed.max(-1).indices[:, None]
        left = left[~(u.gather(-1, peak)[:, 0] >= least[left])]
        if not len(left):
            break
    return logits, shares


@contextmanager
def adapted_output(model: TransformerBridge, thresholds: Sequence[float]) -> Iterator[list[bool]]:
    """While open, every forward pass gives adapted logits; not for beam search.

    Each pass is run again, unsteered, with keys and values of its own.

    Args:
        model: A model whose forward passes are steered.
        thresholds: α of each row, or one for all; nothing is done where all are 0.

    Yields:
        A list that is not empty while the unsteered pass runs: nothing may be steered then.
    """
    unsteered_now: list[bool] = []
    if not any(thresholds):
        yield unsteered_now
        return
    alphas, cache = torch.tensor(thresholds), None

    def hook(root: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        nonlocal cache
        if unsteered_now:
            return None
        tokens = kwargs.get("input_ids", args[0] if args else None)
        past = kwargs.get("past_key_values")
        # The caller's cache holds the new tokens by now.
        n_read = 0 if past is None or tokens is None else past.get_seq_length() - tokens.shape[1]
        if n_read and (cache is None or cache.get_seq_length() != n_read):
            raise SteeringError(
                "adaptive steering reads the text unsteered as well, and its beginning was read "
                "elsewhere; read it while the steering is applied"
            )
        unsteered_now.append(True)
        try:
            plain = root(*args, **{**kwargs, "past_key_values": cache if n_read else None})
        finally:
            unsteered_now.clear()
        cache = plain.get("past_key_values")
        rows = alphas.to(output.logits.device)
        n_pos, vocab = output.logits.shape[1:]
        logits, _ = adapted(
            output.logits.reshape(-1, vocab),
            plain.logits.reshape(-1, vocab),
            rows.expand(len(output.logits)).repeat_interleave(n_pos),
        )
        output.logits = logits.view_as(output.logits)
        return output

    handle = model.original_model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield unsteered_now
    finally:
        handle.remove()
