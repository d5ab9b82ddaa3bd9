"""Declarative interventions for TransformerLens's vLLM source.

A model that vLLM runs has no hooks in this process. TransformerLens 4.3 (``boot_vllm``) takes data
instead: ``forward(…, intervene={hook name: specification})``, with the operations ``add``, ``set``,
``scale`` and ``suppress``, each an affine map ``x · scale + bias`` on the coordinates, one a hook
and the same for every token. That is enough for ``add``: the specification's value is
strength · g · u at ``blocks.{layer}.hook_out``. It is not enough for the rest:

- ``set_projection`` and ``ablate`` depend on the projection x·u, which mixes the coordinates;
- scope ``prompt`` or ``response`` would need positions, which change from prompt to prompt (a
  specification's ``pos`` is a fixed list, and decoding has none);
- a hook has room for one specification: several ``add`` at one layer become their sum, in float64
  and rounded once, which differs from adding one after the other by rounding.

**Caveat.** TransformerLens's driver runs one forward pass a call, and its hooks add to every
position the engine computes.

    bridge = RemoteBridge.boot_vllm(...)
    bridge.forward(tokens, intervene=vllm_interventions(vector.at(20, operation="add")))
"""

from typing import Any

import torch

from steerlens.errors import SteeringError
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

__all__ = ["vllm_interventions"]


def vllm_interventions(steering: Steering) -> dict[str, dict[str, Any]]:
    """A steering as TransformerLens's vLLM source takes it, ready for JSON as well.

    Args:
        steering: ``add`` interventions with scope ``all``.

    Returns:
        ``{"blocks.20.hook_out": {"op": "add", "value": [d_model floats]}}``; an intervention at
        every layer the steering touches.

    Raises:
        SteeringError: an operation or scope that such a specification cannot express, vectors of
            different widths at one layer, or a sum that does not fit float32.
    """
    sums: dict[int, torch.Tensor] = {}
    for one in steering.interventions:
        _check(one)
        amount, _ = one.coefficients
        shift = amount * one.unit.detach().cpu().double()
        if one.layer in sums and sums[one.layer].shape != shift.shape:
            raise SteeringError(
                f"{one.label} has d_model {len(shift)}, another vector at layer {one.layer} "
                f"{len(sums[one.layer])}; they are for different models"
            )
        sums[one.layer] = sums[one.layer] + shift if one.layer in sums else shift
    for layer, total in sums.items():
        if not bool(torch.isfinite(total.float()).all()):
            raise SteeringError(f"what is to be added at layer {layer} does not fit float32")
    return {
        f"blocks.{layer}.hook_out": {"op": "add", "value": total.float().tolist()}
        for layer, total in sorted(sums.items())
    }


def _check(one: Intervention) -> None:
    if one.operation != "add":
        raise SteeringError(
            f"vLLM's interventions cannot express {one.operation} (at layer {one.layer}): they "
            "scale and shift coordinates, and it depends on a projection; use operation 'add'"
        )
    if one.scope != "all":
        raise SteeringError(
            f"vLLM's interventions cannot express scope {one.scope!r} (at layer {one.layer}): "
            "they touch every token; use scope 'all'"
        )
