r"""Steering vectors: one direction a layer, with the numbers needed to apply it.

A `SteeringVector` keeps, for every layer *l*, the unit direction :math:`u_l`, the gap :math:`g_l`
(in units of the residual stream), the projection target :math:`z_l` (mean projection of the
instructed side) and the baseline :math:`b_l` (mean projection of the uninstructed side). Whatever
estimator made it (`steerlens.vectors.estimators`), :math:`z_l = b_l + g_l`: the gap is the distance
between the two sides along the direction. `SteeringVector.at` turns it into an intervention.

**Algebra.** ``+ − *``, `interpolate`, `orthogonalise` and `project_out` act on the vectors
:math:`v_l = g_l u_l`, layer by layer:

.. math:: v = \sum_i c_i\, g_i u_i, \qquad g = \|v\|, \qquad u = v / g, \qquad
          b = \frac1g \sum_i c_i\, g_i b_i, \qquad z = b + g

The baseline :math:`u \cdot \bar h^-` is linear in *u*, so *b* is exact when all parts were fitted
beside the same uninstructed activations, and *z* is where ``add`` at strength 1 would take their
mean. Where the parts were read from different weights or at different positions, or where something
was projected out whose baseline nobody knows, there is no common baseline: such a vector can be
added or ablated, and ``set_projection`` is refused.

Caveat: a large gap or a perfect separation at a layer does not mean that steering there changes
behaviour; see `steerlens.attribution`.

>>> import torch
>>> from steerlens.activations.cache import ResidualCache
>>> from steerlens.vectors import difference_of_means
>>> cache = ResidualCache.from_tensors(torch.ones(2, 1, 4), torch.zeros(2, 1, 4))
>>> vector = difference_of_means(cache)
>>> vector.gaps.tolist(), vector.targets.tolist()
([2.0], [2.0])
>>> vector.at(layer=0, operation="add").interventions[0].strength
1.0
>>> (3 * vector - vector).gaps.tolist()
[4.0]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, SteeringError
from steerlens.errors.arguments import arguments, layer_numbers, whole_number
from steerlens.files import read_tensors, write_tensors
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.vectors.shared_parts import PER_LAYER, check_parts, combined_metadata

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SteeringVector"]

_FILE_KIND = "steering-vector"
# What is left of float32 parts after they cancel is rounding below this share of their length.
_MIN_REMAINDER = 1e-5
# Directions whose combinations are shorter than this share of the longest count as dependent.
_SAME_DIRECTION = 1e-6


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
            Where it says ``"targets_known": False``, targets and baselines mean nothing, and
            ``set_projection`` is refused (``targets_unknown_because`` says why, in words).
    """

    directions: Float[Tensor, "layer d_model"]
    gaps: Float[Tensor, "layer"]
    targets: Float[Tensor, "layer"]
    baselines: Float[Tensor, "layer"]
    layers: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layer_numbers(self.layers, error=SteeringError))
        check_parts(
            {name: getattr(self, name) for name in ("directions", *PER_LAYER)}, len(self.layers)
        )

    @property
    def d_model(self) -> int:
        """Width of the residual stream the vector was made for."""
        return self.directions.shape[1]

    @property
    def name(self) -> str:
        """The instruction it carries, or how it was made."""
        return str(self.metadata.get("instruction") or self.metadata.get("estimator") or "vector")

    def layer_index(self, layer: SupportsIndex | float) -> int:
        """Row of a layer; `SteeringError` when the vector has none for it."""
        number = whole_number("layer", layer, error=SteeringError)
        if number not in self.layers:
            first, last = self.layers[0], self.layers[-1]
            whole = self.layers == tuple(range(first, last + 1))
            held = f"{first} to {last}" if whole else ", ".join(map(str, self.layers))
            raise SteeringError(
                f"layer {number} is out of range for this vector; it has layers {held}"
            )
        return self.layers.index(number)

    def at(
        self,
        layer: SupportsIndex | float,
        operation: str = "set_projection",
        strength: float = 1.0,
        scope: str = "all",
        only_below: bool = False,
    ) -> Steering:
        """The intervention that applies this vector at one layer.

        Args:
            layer: The block whose output is changed; numpy's integers and 12.0 are layers, too.
            operation: ``"add"``, ``"set_projection"`` or ``"ablate"``; see
            `steerlens.steering.interventions`. strength: Multiplies the change; 1 adds the mean
            difference, meets the projection
                target, or removes the direction; 0 changes nothing.
            scope: Tokens it touches: ``"all"``, ``"prompt"`` or ``"response"``; never padding. The
                first token of a response is predicted at the last position of the prompt, which
                ``"response"`` does not touch: with it, that token is the unsteered one, and the
                second is the first that steering can change.
            only_below: With ``set_projection``: act only while the projection is below the target.

        Raises:
            SteeringError: The vector has no such layer, or no targets for ``set_projection``; a
                layer that is no whole number (``True``, 2.5); a strength that is no finite number;
                ``only_below`` with another operation.
            UnknownNameError: An operation or scope that does not exist.
        """
        row = self.layer_index(layer)
        unknown = self.metadata.get("targets_known") is False
        if unknown and operation == "set_projection":
            reason = self.metadata.get("targets_unknown_because", "it holds shifts only")
            raise SteeringError(
                f"set_projection needs a target that {self.name} does not have: {reason}; use "
                "operation 'add'"
            )
        return Steering(
            (
                Intervention(
                    layer=self.layers[row],
                    direction=self.directions[row],
                    gap=float(self.gaps[row]),
                    target=float(self.targets[row]),
                    operation=operation,
                    strength=strength,
                    scope=scope,
                    label=self.name,
                    n_layers=self.metadata.get("n_layers"),
                    baseline=None if unknown else float(self.baselines[row]),
                    only_below=only_below,
                ),
            )
        )

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return _combined([(1.0, self), (1.0, other)])

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return _combined([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: Any) -> "SteeringVector":
        if not isinstance(factor, Real):
            return NotImplemented
        return _combined([(float(factor), self)])

    __rmul__ = __mul__

    def __neg__(self) -> "SteeringVector":
        return _combined([(-1.0, self)])

    @arguments
    def interpolate(self, other: "SteeringVector", share: float) -> "SteeringVector":
        """``(1 − share) · self + share · other``: at 0 this vector, at 1 the other."""
        return _combined([(1.0 - share, self), (share, other)])

    def orthogonalise(self, *against: "SteeringVector") -> "SteeringVector":
        """What of this vector is orthogonal to every one of `against`, layer by layer.

        Subtracts the combination of their directions that lies nearest (least squares).

        Raises:
            SteeringError: Nothing is left at some layer, or the layers differ.
        """
        if not against:
            raise SteeringError("orthogonalise needs at least one vector to be orthogonal to")
        for other in against:
            _check_comparable(self, other)
        others = torch.stack([other.directions for other in against], dim=-1).double()
        pushed = self._pushed
        shares = torch.linalg.pinv(others, rtol=_SAME_DIRECTION) @ pushed[..., None]
        baselines = torch.stack([other.baselines for other in against], dim=-1).double()
        names = ", ".join(other.name for other in against)
        return _of_pushed(
            [(1.0, self), *((0.0, other) for other in against)],
            pushed - (others @ shares)[..., 0],
            self._weight - (baselines * shares[..., 0]).sum(-1),
            size=self.gaps.double(),
            name=f"{self.name} orthogonal to {names}",
        )

    def project_out(self, subspace: Tensor) -> "SteeringVector":
        """This vector without what it has in a subspace; its targets become undefined.

        Args:
            subspace: Directions that span it, ``[k d_model]`` for every layer alike or
                ``[layer k d_model]``; neither unit nor orthogonal need they be.

        Raises:
            SteeringError: Another shape, NaN, or nothing is left at some layer.
        """
        spans = subspace.double()
        if spans.ndim == 2:
            spans = spans.expand(len(self.layers), *spans.shape)
        if spans.ndim != 3 or spans.shape[::2] != self.directions.shape:
            raise SteeringError(
                f"a subspace must have shape [k {self.d_model}] or [{len(self.layers)} k "
                f"{self.d_model}]; got {tuple(subspace.shape)}"
            )
        if not bool(torch.isfinite(spans).all()):
            raise SteeringError("the subspace to project out holds NaN or infinity")
        columns = spans.mT
        inside = columns @ (
            torch.linalg.pinv(columns, rtol=_SAME_DIRECTION) @ self._pushed[..., None]
        )
        return _of_pushed(
            [(1.0, self)],
            self._pushed - inside[..., 0],
            self._weight,
            size=self.gaps.double(),
            name=f"{self.name} without {spans.shape[1]} directions",
            undefined="the baseline along what was projected out is unknown",
        )

    @property
    def _pushed(self) -> Float[Tensor, "layer d_model"]:
        """What ``add`` adds at strength 1: :math:`v_l = g_l u_l`."""
        return self.gaps.double()[:, None] * self.directions.double()

    @property
    def _weight(self) -> Float[Tensor, "layer"]:
        """:math:`v_l` times the mean uninstructed residual."""
        return self.gaps.double() * self.baselines.double()

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
            layers = layer_numbers(tensors["layers"].tolist(), error=SteeringError)
            check_parts(tensors, len(layers))
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
        # OverflowError: layers of infinity; RuntimeError: layers of several numbers, 8-bit floats.
        except (OverflowError, RuntimeError) as error:
            raise FileFormatError(f"{path} holds parts no steering vector has: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} lacks a part of a steering vector: {error}") from error

    def __repr__(self) -> str:
        span = f"{self.layers[0]}–{self.layers[-1]}"
        return (
            f"SteeringVector({self.name}, {len(self.layers)} layers {span}, d_model {self.d_model})"
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row a layer: ``layer, gap, target, baseline``, in residual-stream units."""
        return pd.DataFrame(
            {
                "layer": self.layers,
                "gap": self.gaps.tolist(),
                "target": self.targets.tolist(),
                "baseline": self.baselines.tolist(),
            }
        )

    def plot(self) -> "go.Figure":
        """Gap and mean projections of both sides over layers."""
        from steerlens.views import vector_curves

        return vector_curves(self.table)

    def _repr_html_(self) -> str:
        from steerlens.views import summary

        return summary(repr(self), table=self.table)


def _combined(parts: Sequence[tuple[float, Any]]) -> SteeringVector:
    """The linear combination of vectors, checked here; the module's equation."""
    first = parts[0][1]
    for _, other in parts[1:]:
        _check_comparable(first, other)
    terms = [(f"{factor:g} × " if factor != 1 else "") + one.name for factor, one in parts]
    return _of_pushed(
        parts,
        sum((factor * one._pushed for factor, one in parts), torch.zeros(1, dtype=torch.double)),
        sum((factor * one._weight for factor, one in parts), torch.zeros(1, dtype=torch.double)),
        size=torch.stack([abs(factor) * one.gaps.double() for factor, one in parts]).sum(0),
        name=" + ".join(terms),
    )


def _of_pushed(
    parts: Sequence[tuple[float, SteeringVector]],
    pushed: Float[Tensor, "layer d_model"],
    weight: Float[Tensor, "layer"],
    size: Float[Tensor, "layer"],
    name: str,
    undefined: str | None = None,
) -> SteeringVector:
    r"""A vector from what it adds, and its product with the mean uninstructed residual.

    Args:
        parts: What it was made of.
        pushed: :math:`v_l`.
        weight: :math:`v_l \cdot \bar h^-_l`.
        size: Length of the parts before they cancelled.
        name: What to call it.
        undefined: Why there is no baseline, if so.
    """
    gaps = pushed.norm(dim=-1)
    if not bool(torch.isfinite(gaps).all()):
        raise SteeringError(f"{name} is not finite; factors must be finite numbers")
    vectors = [one for _, one in parts]
    gone = gaps <= _MIN_REMAINDER * size
    if bool(gone.any()):
        layer = vectors[0].layers[int(gone.nonzero()[0])]
        raise SteeringError(f"nothing is left of {name} at layer {layer}: no direction remains")
    baselines = weight / gaps
    return SteeringVector(
        directions=(pushed / gaps[:, None]).float(),
        gaps=gaps.float(),
        targets=(baselines + gaps).float(),
        baselines=baselines.float(),
        layers=vectors[0].layers,
        metadata={
            **combined_metadata([one.metadata for one in vectors], undefined),
            "estimator": "combination",
            "instruction": name,
            "parts": [
                {"factor": factor, "name": one.name, "data_hash": one.metadata.get("data_hash")}
                for factor, one in parts
            ],
        },
    )


def _check_comparable(one: SteeringVector, other: object) -> None:
    """Refuse to combine with what has other layers or another model's shape."""
    if not isinstance(other, SteeringVector):
        raise SteeringError(
            f"a steering vector combines with another one; got {type(other).__name__}"
        )
    depths = [vector.metadata.get("n_layers") for vector in (one, other)]
    if None not in depths and depths[0] != depths[1]:
        raise SteeringError(
            f"{one.name} and {other.name} were made for models with {depths[0]} and {depths[1]} "
            "layers; only vectors of one model combine"
        )
    if one.layers != other.layers or one.d_model != other.d_model:
        raise SteeringError(
            f"vectors combine layer by layer: {one!r} and {other!r} have different layers or "
            "widths; estimate both on the same layers of one model"
        )
