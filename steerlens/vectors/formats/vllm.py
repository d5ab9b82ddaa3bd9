"""Declarative interventions for TransformerLens's vLLM source.

A model in vLLM has no hooks in this process. TransformerLens 4.3 (``boot_vllm``) takes data
instead: ``forward(…, intervene={hook name: specification})``, one affine map ``x · scale + bias``
of the coordinates per hook, the same for every token. That is enough for ``add`` on all tokens: the
value is strength · g · u at ``blocks.{layer}.hook_out``, several at one layer summed in float64.
Operations that read a projection, and scopes, cannot be expressed.

    bridge = RemoteBridge.boot_vllm(...)
    bridge.forward(tokens, intervene=vllm_interventions(vector.at(20, operation="add")))
"""

from typing import Any

import torch

from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering

__all__ = ["vllm_interventions"]


def vllm_interventions(steering: Steering) -> dict[str, dict[str, Any]]:
    """A steering of ``add`` interventions on all tokens as JSON for TransformerLens's vLLM source.

    Returns:
        ``{"blocks.20.hook_out": {"op": "add", "value": [d_model floats]}}``, one entry per layer.

    Raises:
        SteeringError: An operation or scope that cannot be expressed, vectors of different widths
            at one layer, or a sum that does not fit float32.
    """
    sums: dict[int, torch.Tensor] = {}
    for each in steering.interventions:
        if each.operation != "add":
            raise SteeringError(
                f"vLLM's interventions cannot express {each.operation} (at layer {each.layer}): "
                "they scale and shift coordinates, and it depends on a projection; use operation "
                "'add'"
            )
        if each.scope != "all":
            raise SteeringError(
                f"vLLM's interventions cannot express scope {each.scope!r} (at layer "
                f"{each.layer}): they touch every token; use scope 'all'"
            )
        shift = each.amount(0.0) * each.unit.detach().cpu().double()
        total = sums.setdefault(each.layer, torch.zeros_like(shift))
        if total.shape != shift.shape:
            raise SteeringError(
                f"{each.label} has d_model {len(shift)}, another vector at layer {each.layer} "
                f"{len(total)}; they are for different models"
            )
        sums[each.layer] = total + shift
    for layer, total in sums.items():
        if not bool(torch.isfinite(total.float()).all()):
            raise SteeringError(f"what is to be added at layer {layer} does not fit float32")
    return {
        f"blocks.{layer}.hook_out": {"op": "add", "value": total.float().tolist()}
        for layer, total in sorted(sums.items())
    }
