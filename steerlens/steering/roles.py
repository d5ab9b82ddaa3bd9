"""Which tokens of a forward pass are prompt, which response, and which padding.

Roles come from the attention mask of each pass, never from token ids, because chat models often pad
with their end-of-turn token. A token counts as *response* when it lies beyond `prompt_lengths`, or,
without these, when it is fed with a KV cache (as every generation loop does).

>>> mask = torch.tensor([[0, 1, 1, 1]])
>>> roles = TokenRoles.of_mask(mask, 4, prompt_lengths=torch.tensor([2]))
>>> roles.prompt.tolist(), roles.response.tolist()
([[False, True, True, False]], [[False, False, False, True]])
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError

__all__ = ["TokenRoles", "observed_roles"]


@dataclass(frozen=True, eq=False)
class TokenRoles:
    """Which tokens of a forward pass are prompt, which response; padding is neither.

    `place` is where in its response each response token stands, from 0; ``None`` if unknown.
    """

    prompt: Bool[Tensor, "batch pos"]
    response: Bool[Tensor, "batch pos"]
    place: Int[Tensor, "batch pos"] | None = None

    def to(self, device: torch.device) -> "TokenRoles":
        """These roles on a device; themselves when they are there already."""
        if self.prompt.device == device:
            return self
        place = None if self.place is None else self.place.to(device)
        return TokenRoles(self.prompt.to(device), self.response.to(device), place)

    def of_rows(self, rows: slice | Int[Tensor, "some"]) -> "TokenRoles":
        """The roles of some rows."""
        place = None if self.place is None else self.place[rows]
        return TokenRoles(self.prompt[rows], self.response[rows], place)

    def where(self, allowed: Bool[Tensor, "batch #pos"]) -> "TokenRoles":
        """These roles for the tokens that are allowed; the others have none."""
        return TokenRoles(self.prompt & allowed, self.response & allowed, self.place)

    @classmethod
    def of_mask(
        cls,
        mask: Int[Tensor, "batch total"],
        n_new: int,
        prompt_lengths: Int[Tensor, "lengths"] | None,
        n_read: Int[Tensor, "batch"] | None = None,
    ) -> "TokenRoles":
        """Roles of the last `n_new` columns of an attention mask.

        Without `prompt_lengths`, a pass without cached tokens is all prompt, any other all
        response, whose places are counted from `n_read`, how many tokens the prompt had.
        """
        if prompt_lengths is not None and len(prompt_lengths) != len(mask):
            raise SteeringError(
                f"prompt_lengths must hold one number per row; got {len(prompt_lengths)} for "
                f"{len(mask)} rows"
            )
        real = mask[:, mask.shape[1] - n_new :] != 0
        order = (mask != 0).long().cumsum(-1)[:, mask.shape[1] - n_new :] - 1
        is_cached, place = n_new < mask.shape[1], None
        if prompt_lengths is not None:
            n_read = prompt_lengths
        elif not is_cached:
            n_read = (mask != 0).sum(-1)
        if n_read is not None and len(n_read) == len(mask):
            place = order - n_read[:, None]
        is_response = torch.full_like(real, is_cached)
        if prompt_lengths is not None and place is not None:
            is_response = place >= 0
        return cls(prompt=real & ~is_response, response=real & is_response, place=place)

    @classmethod
    def of_forward(
        cls,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prompt_lengths: Int[Tensor, "lengths"] | None,
        n_read: Int[Tensor, "batch"] | None = None,
    ) -> "TokenRoles":
        """Roles of the tokens of one call of a Hugging Face causal model."""
        new = kwargs.get("input_ids")
        if new is None:
            new = args[0] if args else kwargs.get("inputs_embeds")
        if new is None:
            raise SteeringError("cannot tell which tokens are steered: the call has no input_ids")
        batch, n_new = new.shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is None:
            past = kwargs.get("past_key_values")
            n_past = past.get_seq_length() if past is not None else 0
            mask = torch.ones(batch, n_past + n_new, dtype=torch.long, device=new.device)
        if mask.ndim != 2:
            raise SteeringError(
                f"steering needs a [batch pos] attention mask to leave padding alone; got shape "
                f"{tuple(mask.shape)}"
            )
        return cls.of_mask(mask, n_new, prompt_lengths, n_read)


@contextmanager
def observed_roles(
    model: TransformerBridge, prompt_lengths: Sequence[int] | None = None
) -> Iterator[Callable[[], TokenRoles]]:
    """While open, yields a function that returns the roles of the forward pass in progress."""
    device = model.cfg.device
    lengths = None if prompt_lengths is None else torch.tensor(prompt_lengths, device=device)
    latest: list[TokenRoles] = []
    n_read: Tensor | None = None

    def observe(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal n_read
        latest[:] = [roles := TokenRoles.of_forward(args, kwargs, lengths, n_read)]
        if lengths is None and bool(roles.prompt.any()):
            n_read = roles.prompt.sum(-1)

    handle = model.original_model.register_forward_pre_hook(observe, with_kwargs=True)
    try:
        yield lambda: latest[0]
    finally:
        handle.remove()
