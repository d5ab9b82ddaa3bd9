r"""Steering vectors: one direction a layer, with the numbers needed to apply it.

From residuals of *n* contrast pairs, instructed :math:`h^+_{il}` and uninstructed
:math:`h^-_{il}`, the difference of means at layer *l* is

.. math:: v_l = \frac1n \sum_i h^+_{il} - \frac1n \sum_i h^-_{il}, \qquad
          u_l = v_l / \|v_l\|, \qquad g_l = \|v_l\|, \qquad z_l = \frac1n \sum_i u_l \cdot h^+_{il}

(Stolfo et al. 2025, §2.2). A `SteeringVector` keeps, for every layer, the unit direction
:math:`u_l`, the gap :math:`g_l` (in units of the residual stream), the projection target
:math:`z_l` and, for reference, the mean projection of the uninstructed side. `SteeringVector.at`
turns it into an intervention.

Caveat: a large gap or a perfect separation at a layer does not mean that steering there changes
behaviour; see `steerlens.attribution`.

>>> import torch
>>> from steerlens.activations import ResidualCache
>>> cache = ResidualCache.from_tensors(torch.ones(2, 1, 4), torch.zeros(2, 1, 4))
>>> vector = difference_of_means(cache)
>>> vector.gaps.tolist(), vector.targets.tolist()
([2.0], [2.0])
>>> vector.at(layer=0, operation="add").interventions[0].strength
1.0
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations import ResidualCache
from steerlens.errors import FileFormatError, SteeringError
from steerlens.files import read_tensors, write_tensors
from steerlens.steering import Intervention, Steering

__all__ = ["SteeringVector", "difference_of_means", "random_direction"]

_FILE_KIND = "steering-vector"
# A mean difference this small, relative to the residual norm, is rounding, not a direction.
_MIN_RELATIVE_GAP = 1e-7
# Directions kept in half precision have norms within 2e-3 of 1.
_UNIT_TOLERANCE = 1e-2
_PER_LAYER = ("gaps", "targets", "baselines")


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector:
    """A direction of the residual stream for each of some layers.

    Attributes:
        directions: Unit vectors :math:`u_l`.
        gaps: Norm :math:`g_l` of the mean difference; what ``add`` adds at strength 1.
        targets: Mean projection :math:`z_l` of the instructed side; where ``set_projection``
            moves to at strength 1.
        baselines: Mean projection of the uninstructed side.
        layers: The layer of each row.
        metadata: Provenance: estimator, model, weights hash, data hash, position, seed, versions.
    """

    directions: Float[Tensor, "layer d_model"]
    gaps: Float[Tensor, "layer"]
    targets: Float[Tensor, "layer"]
    baselines: Float[Tensor, "layer"]
    layers: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_parts(
            {name: getattr(self, name) for name in ("directions", *_PER_LAYER)}, len(self.layers)
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream the vector was made for."""
        return self.directions.shape[1]

    @property
    def name(self) -> str:
        """The instruction it carries, or how it was made."""
        return str(self.metadata.get("instruction") or self.metadata.get("estimator") or "vector")

    def layer_index(self, layer: int) -> int:
        """Row of a layer; `SteeringError` when the vector has none for it."""
        if layer not in self.layers:
            first, last = self.layers[0], self.layers[-1]
            whole = self.layers == tuple(range(first, last + 1))
            held = f"{first} to {last}" if whole else ", ".join(map(str, self.layers))
            raise SteeringError(
                f"layer {layer} is out of range for this vector; it has layers {held}"
            )
        return self.layers.index(layer)

    def at(
        self,
        layer: int,
        operation: str = "set_projection",
        strength: float = 1.0,
        scope: str = "all",
    ) -> Steering:
        """The intervention that applies this vector at one layer.

        Args:
            layer: The block whose output is changed.
            operation: ``"add"``, ``"set_projection"`` or ``"ablate"``; see `steerlens.steering`.
            strength: Multiplies the change; 1 adds the mean difference, meets the projection
                target, or removes the direction; 0 changes nothing.
            scope: Tokens it touches: ``"all"``, ``"prompt"`` or ``"response"``; never padding.

        Raises:
            SteeringError: The vector has no such layer, or the strength is not finite.
            UnknownNameError: An operation or scope that does not exist.
        """
        row = self.layer_index(layer)
        return Steering(
            (
                Intervention(
                    layer=layer,
                    direction=self.directions[row],
                    gap=float(self.gaps[row]),
                    target=float(self.targets[row]),
                    operation=operation,
                    strength=float(strength),
                    scope=scope,
                    label=self.name,
                    n_layers=self.metadata.get("n_layers"),
                ),
            )
        )

    def check_model(self, model: TransformerBridge) -> None:
        """Refuse a model this vector was not made for.

        Raises:
            SteeringError: Another width, another number of layers, or a layer beyond the model's.
        """
        width, depth = model.cfg.d_model, model.cfg.n_layers
        if self.d_model != width:
            raise SteeringError(
                f"this vector has d_model {self.d_model}, the model {width}; it was made for "
                f"{self.metadata.get('model', 'another model')}"
            )
        made_for = self.metadata.get("n_layers", depth)
        if made_for != depth or max(self.layers) >= depth:
            raise SteeringError(
                f"this vector was made for a model with {max(made_for, max(self.layers) + 1)} "
                f"layers, this model has {depth}"
            )

    def save(self, path: str | Path) -> Path:
        """Write the vector and its provenance as one safetensors file, atomically."""
        tensors = {
            "directions": self.directions,
            "gaps": self.gaps,
            "targets": self.targets,
            "baselines": self.baselines,
            "layers": torch.tensor(self.layers),
        }
        return write_tensors(path, _FILE_KIND, tensors, {"metadata": dict(self.metadata)})

    @classmethod
    def load(cls, path: str | Path) -> "SteeringVector":
        """Read a vector that `save` wrote; `FileFormatError` when the file is anything else."""
        tensors, record = read_tensors(path, _FILE_KIND)
        metadata = record.get("metadata")
        if not isinstance(metadata, dict) or not isinstance(metadata.get("n_layers", 0), int):
            raise FileFormatError(
                f"{path} lacks a part of a steering vector: metadata with a whole n_layers"
            )
        try:
            layers = tuple(int(n) for n in tensors["layers"])
            _check_parts(tensors, len(layers))
            return cls(
                directions=tensors["directions"].float(),
                gaps=tensors["gaps"].float(),
                targets=tensors["targets"].float(),
                baselines=tensors["baselines"].float(),
                layers=layers,
                metadata=metadata,
            )
        except SteeringError as error:
            raise FileFormatError(f"{path} holds no steering vector: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} lacks a part of a steering vector: {error}") from error

    def __repr__(self) -> str:
        span = f"{self.layers[0]}–{self.layers[-1]}"
        return (
            f"SteeringVector({self.name}, {len(self.layers)} layers {span}, d_model {self.d_model})"
        )


def _check_parts(parts: Mapping[str, Tensor], n_layers: int) -> None:
    """Refuse parts whose shapes or values no vector can have; files may hold anything."""
    shape = tuple(parts["directions"].shape)
    if n_layers == 0 or len(shape) != 2 or shape[0] != n_layers:
        raise SteeringError(
            f"directions must have shape [layer d_model] with {n_layers} layers; got {shape}"
        )
    for name in _PER_LAYER:
        if parts[name].shape != (n_layers,):
            raise SteeringError(
                f"{name} must hold one number for each of {n_layers} layers; got shape "
                f"{tuple(parts[name].shape)}"
            )
    for name in ("directions", *_PER_LAYER):
        if not bool(torch.isfinite(parts[name]).all()):
            raise SteeringError(f"the vector's {name} hold NaN or infinity")
    norms = parts["directions"].float().norm(dim=-1)
    if bool(((norms - 1).abs() > _UNIT_TOLERANCE).any()):
        raise SteeringError(
            f"directions must be unit vectors; got norms from {float(norms.min()):.3g} to "
            f"{float(norms.max()):.3g}"
        )


def difference_of_means(cache: ResidualCache) -> SteeringVector:
    """Difference of the mean instructed and mean uninstructed residual, layer by layer.

    Source: Stolfo et al. 2025, §2.2; the equations are in the module's docstring.

    Args:
        cache: Residuals of at least two pairs.

    Returns:
        A vector for every cached layer.

    Raises:
        SteeringError: A layer where the two sides do not differ has no direction.
    """
    instructed = cache.instructed.double().mean(0)
    uninstructed = cache.uninstructed.double().mean(0)
    difference = instructed - uninstructed
    gaps = difference.norm(dim=-1)
    scale = instructed.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    flat = (gaps / scale) < _MIN_RELATIVE_GAP
    if bool(flat.any()):
        layer = cache.layers[int(flat.nonzero()[0])]
        raise SteeringError(
            f"instructed and uninstructed residuals have the same mean at layer {layer}; there is "
            "no direction between them"
        )
    directions = difference / gaps[:, None]
    return SteeringVector(
        directions=directions.float(),
        gaps=gaps.float(),
        targets=einsum(directions, instructed, "layer d, layer d -> layer").float(),
        baselines=einsum(directions, uninstructed, "layer d, layer d -> layer").float(),
        layers=cache.layers,
        metadata={**cache.metadata, "estimator": "difference_of_means"},
    )


def random_direction(cache: ResidualCache, seed: int = 0) -> SteeringVector:
    """The placebo of the difference of means: random directions with its gaps.

    Directions are uniform on the sphere and independent between layers. Gaps are those of the
    difference of means, and each target lies one gap above the mean projection of the
    uninstructed residuals, so ``add`` and ``set_projection`` push as far as the real vector does:
    an effect that the placebo shows as well is an effect of the push, not of the direction.

    Args:
        cache: The residuals the real vector was fitted on.
        seed: Seed of the random directions.

    Raises:
        SteeringError: As `difference_of_means`.
    """
    real = difference_of_means(cache)
    noise = torch.randn(real.directions.shape, generator=torch.Generator().manual_seed(seed))
    directions = noise / noise.norm(dim=-1, keepdim=True)
    baselines = einsum(directions, cache.uninstructed.mean(0), "layer d, layer d -> layer")
    return SteeringVector(
        directions=directions,
        gaps=real.gaps,
        targets=baselines + real.gaps,
        baselines=baselines,
        layers=real.layers,
        metadata={
            **cache.metadata,
            "estimator": "random_direction",
            "instruction": f"placebo of {real.name}",
            "placebo_seed": seed,
        },
    )
