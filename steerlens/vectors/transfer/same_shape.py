r"""The same direction on another model of the same shape, its numbers measured there.

The paper's case (Stolfo et al. 2025, transfer between models): a vector computed on an
instruction-tuned model steers the base model it was tuned from. The direction :math:`u_l` stays, in
the hope that tuning has changed the residual stream little; where the projections on it lie cannot
be taken for granted, so they are measured on the target model's own residuals :math:`h^\pm`:

.. math:: z_l = \operatorname{mean}_i u_l \cdot h^+_{il}, \qquad
          b_l = \operatorname{mean}_i u_l \cdot h^-_{il}, \qquad g_l = z_l - b_l

A layer with :math:`g_l \le 0` is one where the direction points the other way on the target model,
or nowhere: there the transfer has failed, and the layer is left out instead of being turned round.

Caveat: equal shapes do not make two models relatives. Nothing in the numbers of a direction says
from which weights it is; the cosine with the target's own vector (`steerlens.vectors.transfer.run`)
does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from steerlens.activations.cache import ResidualCache
from steerlens.errors import SteeringError
from steerlens.vectors import SteeringVector

__all__ = ["check_same_shape", "remeasured"]

# Of the metadata, what stays true of the direction; the rest is the target cache's.
_OF_THE_DIRECTION = ("estimator", "instruction")


def check_same_shape(vector: SteeringVector, cache: ResidualCache) -> None:
    """Refuse residuals of a model of another width or depth, or without the vector's layers.

    Raises:
        SteeringError: "… has d_model 576, the target model 640; fit a map …", and so for layers.
    """
    target = str(cache.metadata.get("model", "the target model"))
    if vector.d_model != cache.d_model:
        raise SteeringError(
            f"this vector has d_model {vector.d_model}, {target} {cache.d_model}; between models "
            "of different shapes fit a map: give the source model as well"
        )
    depths = vector.metadata.get("n_layers"), cache.metadata.get("n_layers")
    if None not in depths and depths[0] != depths[1]:
        raise SteeringError(
            f"this vector was made for a model with {depths[0]} layers, {target} has {depths[1]}; "
            "between models of different shapes fit a map: give the source model as well"
        )
    if not set(vector.layers) & set(cache.layers):
        raise SteeringError(
            f"{vector!r} and {cache!r} have no layer in common; cache the vector's layers"
        )


def remeasured(
    layers: tuple[int, ...],
    directions: Float[Tensor, "layer d_model"],
    cache: ResidualCache,
    metadata: Mapping[str, Any],
) -> tuple[SteeringVector, Float[Tensor, "layer"]]:
    """Directions with gaps, targets and baselines measured on the target model.

    Args:
        layers: The target model's layer of each direction; all cached.
        directions: Unit vectors in the target model's residual stream.
        cache: Both sides of contrast pairs on the target model.
        metadata: The source vector's; what is said of its direction is kept.

    Returns:
        The vector, without the layers whose gap is not positive, and the gaps of all layers.

    Raises:
        SteeringError: No layer has a positive gap.
    """
    rows = [cache.layer_index(layer) for layer in layers]
    units = directions.double()
    targets, baselines = (
        einsum(units, side[:, rows].double().mean(0), "layer d, layer d -> layer")
        for side in (cache.instructed, cache.uninstructed)
    )
    gaps = targets - baselines
    kept = [place for place, gap in enumerate(gaps.tolist()) if gap > 0]
    if not kept:
        raise SteeringError(
            "the direction tells instructed from uninstructed prompts at no layer of "
            f"{cache.metadata.get('model', 'the target model')}; there is nothing to transfer"
        )
    vector = SteeringVector(
        directions=units[kept].float(),
        gaps=gaps[kept].float(),
        targets=targets[kept].float(),
        baselines=baselines[kept].float(),
        layers=tuple(layers[place] for place in kept),
        metadata={
            **cache.metadata,
            **{key: metadata[key] for key in _OF_THE_DIRECTION if key in metadata},
        },
    )
    return vector, gaps


def common_layers(
    vector: SteeringVector, cache: ResidualCache
) -> tuple[tuple[int, ...], Float[Tensor, "layer d_model"]]:
    """The layers that both have, and the vector's directions there."""
    layers = tuple(layer for layer in vector.layers if layer in cache.layers)
    rows = torch.tensor([vector.layer_index(layer) for layer in layers])
    return layers, vector.directions[rows]


def with_metadata(vector: SteeringVector, **entries: Any) -> SteeringVector:
    """The vector with more entries in its metadata."""
    return replace(vector, metadata={**vector.metadata, **entries})
