r"""Sums taken apart through norms.

A norm is not linear, but it scales each vector by one number. With that number held at its value
for the vector in question (the norm is *frozen*), a sum that goes in comes out as a sum. That is
needed where a norm follows attention (Gemma 2 and 3: heads sum before it) and for the final norm
(components sum before it, logits are linear after it).

The number is taken from what came out, by least squares, not from the norm's formula. What does not
fit is refused, so an architecture that does something else is not misread.
"""

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.modules import dtype_of
from steerlens.errors import ModelError
from steerlens.models.adapter.bridge import norm_after, own_module

__all__ = ["HeadContributions", "head_contributions", "through_final_norm", "tolerance"]

# Relative error of a sum of parts that counts as rounding.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_TOLERANCE_HALF = 0.05
# Keeps quotients of vanishing vectors finite; no float32 vector that is not zero is shorter.
_TINY = 1e-100


def tolerance(model: TransformerBridge) -> float:
    """Relative error of a sum of parts that counts as rounding in the model's dtype."""
    return _TOLERANCE.get(dtype_of(model), _TOLERANCE_HALF)


@dataclass(frozen=True, eq=False)
class HeadContributions:
    """What attention wrote along some directions, head by head, in float64 on the CPU.

    Attributes:
        heads: Contribution of each head.
        bias: That of the output projection's bias; ``None`` when it has none.
    """

    heads: Float[Tensor, "row head direction"]
    bias: Float[Tensor, "row direction"] | None


@torch.inference_mode()
def head_contributions(
    model: TransformerBridge,
    layer: int,
    z: Float[Tensor, "row width"],
    written: Float[Tensor, "row d_model"],
    directions: Float[Tensor, "direction d_model"],
) -> HeadContributions:
    r"""Split what attention wrote along directions among its heads.

    With :math:`a = \sum_h z_h W_O^h + b_O`, what is written is :math:`s\,\gamma \odot a`: the gain
    :math:`\gamma` and, for each row, the scale *s* of the norm that follows; ones where none does.
    With *s* frozen the heads' parts are linear in :math:`z_h` and sum to the whole.

    Args:
        model: A hooked model, outside `fast_modules`.
        layer: The block.
        z: Concatenated head outputs before the output projection.
        written: What attention added to the stream.
        directions: What to project on.

    Raises:
        ModelError: What is written is no such scaling.
    """
    block = model.blocks[layer]
    weight = block.attn.W_O.cpu().double()  # [head d_head d_model]
    bias = getattr(own_module(block.attn.o), "bias", None)
    n_heads, d_head, _ = weight.shape
    per_head = z.cpu().double().reshape(-1, n_heads, d_head)
    entered = einsum(per_head, weight, "row head d, head d d_model -> row d_model")
    if bias is not None:
        bias = bias.cpu().double()
        entered = entered + bias
    norm = norm_after(block, "hook_attn_out")
    gain = torch.ones_like(entered[0]) if norm is None else _gain(norm)
    scale, error = _scale(entered * gain, written.cpu().double())
    if not error <= tolerance(model):
        raise ModelError(
            f"block {layer} of this model does more than scale its attention's output before it "
            f"enters the residual stream (off by {error:.2g} of its norm), so heads have no part "
            "of their own in it; patching works without them"
        )
    aimed = directions.cpu().double() * gain
    by_head = einsum(weight, aimed, "head d d_model, direction d_model -> head d direction")
    heads = einsum(per_head, by_head, "row head d, head d direction -> row head direction")
    return HeadContributions(
        heads=heads * scale[:, None, None],
        bias=None if bias is None else scale[:, None] * (aimed @ bias),
    )


@torch.inference_mode()
def through_final_norm(
    model: TransformerBridge,
    direction: Float[Tensor, "d_model"],
    resid: Float[Tensor, "row d_model"],
) -> tuple[Float[Tensor, "d_model"], Float[Tensor, "row"]]:
    r"""A direction after the final norm as one before it, with the norm frozen.

    For a vector *t* after the norm *N* and a residual *x* before it, :math:`t \cdot N(x) =
    s(x)\, d \cdot x + c` with *d* the gain-weighted (and for a layer norm centred) *t*, and *s*
    the scale that the norm gives *x*.

    Args:
        model: A hooked model, outside `fast_modules`.
        direction: *t*, for example a difference of unembedding columns.
        resid: Residuals *x* after the last block.

    Returns:
        *d* and the scale *s* of each row, in float64 on the CPU.

    Raises:
        ModelError: The final norm is neither an RMS norm nor a layer norm.
    """
    final = getattr(model, "ln_final", None)
    if final is None:
        return direction.cpu().double(), torch.ones(len(resid), dtype=torch.float64)
    norm = own_module(final)
    entered, left = resid.cpu().double(), norm(resid[None])[0].cpu().double()
    if isinstance(norm, nn.LayerNorm):
        gain = norm.weight.cpu().double()
        aimed = direction.cpu().double() * gain
        aimed = aimed - aimed.mean()
        entered = entered - entered.mean(-1, keepdim=True)
        left = left if norm.bias is None else left - norm.bias.cpu().double()
    else:
        gain = _gain(norm)
        aimed = direction.cpu().double() * gain
    scale, error = _scale(entered * gain, left)
    if not error <= tolerance(model):
        raise ModelError(
            "the final norm of this model is neither an RMS norm nor a layer norm, so directions "
            "of logits cannot be followed through it; patching works without"
        )
    return aimed, scale


def _gain(norm: nn.Module) -> Float[Tensor, "d_model"]:
    """Gain of an RMS norm, an offset included: what it makes of a vector of ones."""
    weight = next(norm.parameters())
    gain: Tensor = norm(torch.ones_like(weight)[None, None])[0, 0]
    return gain.cpu().double()


def _scale(
    entered: Float[Tensor, "row d_model"], left: Float[Tensor, "row d_model"]
) -> tuple[Float[Tensor, "row"], float]:
    """Each row's factor from what entered to what left, and the largest relative misfit."""
    scale = (entered * left).sum(-1) / (entered * entered).sum(-1).clamp_min(_TINY)
    misfit = (left - scale[:, None] * entered).norm(dim=-1) / left.norm(dim=-1).clamp_min(_TINY)
    return scale, float(misfit.max())
