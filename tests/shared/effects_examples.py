"""Effects computed by hand: a plain Hugging Face model with hooks of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class ByHand:
    """One forward pass over one text."""

    logprobs: Tensor  # [pos vocab], of the token after each position
    resid: list[Tensor]  # [pos d_model] after each block


def by_hand(
    hf_model: LlamaForCausalLM,
    ids: Sequence[int],
    layer: int | None = None,
    shift: Tensor | None = None,
    on: Tensor | None = None,
) -> ByHand:
    """Run a plain model, with `shift` added after one block at the positions `on` (all)."""
    resid: list[Tensor] = []

    def hook(number):
        def after(_module, _args, out):
            if number == layer:
                moved = shift if on is None else on[:, None] * shift
                out = out + moved
            resid.append(out[0].double())
            return out

        return after

    handles = [
        block.register_forward_hook(hook(number))
        for number, block in enumerate(hf_model.model.layers)
    ]
    try:
        with torch.inference_mode():
            logits = hf_model(torch.tensor([list(ids)])).logits[0].double()
    finally:
        for handle in handles:
            handle.remove()
    return ByHand(logits.log_softmax(-1), resid)
