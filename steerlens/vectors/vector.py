r"""Steering vectors: one direction per layer, with the numbers needed to apply it.

A `SteeringVector` holds, for every layer *l*, the unit direction :math:`u_l`, the gap :math:`g_l`,
the projection target :math:`z_l` (mean projection of the instructed side) and the baseline
:math:`b_l` (mean projection of the uninstructed side), all in units of the residual stream, with
:math:`z_l = b_l + g_l`. A vector for operation ``general`` also has read directions, biases and a
gate. `SteeringVector.at` turns a vector into an intervention.

**Algebra.** ``+ − *``, `interpolate`, `orthogonalise` and `project_out` act on the vectors
:math:`v_l = g_l u_l`, layer by layer:

.. math:: v = \sum_i c_i\, g_i u_i, \qquad g = \|v\|, \qquad u = v / g, \qquad
          b = \frac1g \sum_i c_i\, g_i b_i, \qquad z = b + g

The baseline is linear in *u*, so *b* is exact when all parts were fitted beside the same
uninstructed activations. Without a common baseline (other weights or positions, a subspace that
was projected out) ``set_projection`` is refused.

Caveat: a large gap or perfect separation at a layer does not mean that steering there changes
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
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, SteeringError, unknown_name
from steerlens.errors.arguments import arguments, layer_numbers, whole_number
from steerlens.files import read_tensors, write_tensors
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import GENERAL, Gate, Intervention
from steerlens.vectors.consistency import check_comparable, check_tensors, combined_metadata
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SteeringVector"]

_FILE_KIND = "steering-vector"
# What is left of float32 parts after they cancel is rounding below this share of their length.
_MIN_REMAINDER = 1e-5
# Directions whose combinations are shorter than this share of the longest count as dependent.
_SAME_DIRECTION = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class SteeringVector(Result):
    """A direction of the residual stream for each of some layers.

    Attributes:
        directions: Unit vectors :math:`u_l`.
        gaps: Norm :math:`g_l` of the mean difference; what ``add`` adds at strength 1.
        targets: Mean projection :math:`z_l` of the instructed side; where ``set_projection``
            moves to at strength 1.
        baselines: Mean projection of the uninstructed side.
        layers: The layer of each row.
        metadata: Provenance: estimator, model, weights hash, data hash, position, seed, versions.
            With ``"targets_known": False``, targets and baselines mean nothing and
            ``set_projection`` is refused; ``targets_unknown_because`` says why.
        reads: Read directions *w* of operation ``general``, of any length.
        biases: Biases *a* of operation ``general``, in units of w·x.
        gate: Its gate: ``identity`` or ``relu``.
    """

    directions: Float[Tensor, "layer d_model"]
    gaps: Float[Tensor, "layer"]
    targets: Float[Tensor, "layer"]
    baselines: Float[Tensor, "layer"]
    layers: tuple[int, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    reads: Float[Tensor, "layer d_model"] | None = None
    biases: Float[Tensor, "layer"] | None = None
    gate: str = "identity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", layer_numbers(self.layers, error=SteeringError))
        check_tensors(self._tensors, len(self.layers))
        if self.gate not in get_args(Gate):
            raise unknown_name("gate", self.gate, get_args(Gate))
        if self.reads is None and (self.biases is not None or self.gate != "identity"):
            raise SteeringError("biases and gate belong to read directions; give reads= as well")

    @property
    def _tensors(self) -> dict[str, Tensor]:
        names = ("directions", "gaps", "targets", "baselines", "reads", "biases")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

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

    def restricted_to(self, layers: Sequence[int]) -> "SteeringVector":
        """The vector with some of its layers only; `SteeringError` for none or unknown ones."""
        if not layers:
            raise SteeringError("layers is empty; give at least one layer of the vector")
        rows = [self.layer_index(layer) for layer in layers]
        tensors: dict[str, Any] = {name: rest[rows] for name, rest in self._tensors.items()}
        return replace(self, layers=tuple(layers), **tensors)

    def at(
        self,
        layer: SupportsIndex | float,
        operation: str = "set_projection",
        strength: float = 1.0,
        scope: str = "all",
        only_below: bool = False,
        only_above: bool = False,
        adaptive: float | int = 0.0,
    ) -> Steering:
        """The intervention that applies this vector at one layer.

        Args:
            layer: The block whose output is changed.
            operation: ``"add"``, ``"set_projection"``, ``"ablate"``, or with read directions
                ``"general"``; see `steerlens.steering.operations`.
            strength: Multiplies the change; 1 adds the mean difference or meets the target.
            scope: Tokens touched: ``"all"``, ``"prompt"``, ``"response"`` or the first of the
                response, ``"first:8"``. The last two leave its first token as it is.
            only_below: With ``set_projection``: only raise projections below the target.
            only_above: With ``set_projection``: only lower projections above the target.
            adaptive: Threshold of a strength that decoding lowers; see `Intervention`.

        Raises:
            SteeringError: No such layer, not what the operation needs, or a number out of range.
            UnknownNameError: An operation or scope that does not exist.
        """
        row = self.layer_index(layer)
        about: dict[str, Any] = {
            "layer": self.layers[row],
            "strength": strength,
            "scope": scope,
            "label": self.name,
            "n_layers": self.metadata.get("n_layers"),
            "only_below": only_below,
            "only_above": only_above,
            "adaptive": adaptive,
        }
        if operation == GENERAL:
            if self.reads is None:
                raise SteeringError(
                    f"{self.name} has no read directions, which operation 'general' needs; use "
                    "add, set_projection or ablate"
                )
            bias = 0.0 if self.biases is None else float(self.biases[row])
            write = (self.gaps[row].double() * self.directions[row].double()).float()
            about |= {"write": write, "read": self.reads[row], "bias": bias, "gate": self.gate}
            return Steering((Intervention(**about),))
        unknown = self.metadata.get("targets_known") is False
        if unknown and operation == "set_projection":
            reason = self.metadata.get("targets_unknown_because", "it holds shifts only")
            use = "add" if self.reads is None else "general"
            raise SteeringError(
                f"set_projection needs a target that {self.name} does not have: {reason}; use "
                f"operation {use!r}"
            )
        intervention = Intervention(
            **about,
            direction=self.directions[row],
            gap=float(self.gaps[row]),
            target=float(self.targets[row]),
            operation=operation,
            baseline=None if unknown else float(self.baselines[row]),
        )
        return Steering((intervention,))

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
        """The part of this vector that is orthogonal to all of `against`, layer by layer.

        Raises:
            SteeringError: Nothing is left at some layer, or the layers differ.
        """
        if not against:
            raise SteeringError("orthogonalise needs at least one vector to be orthogonal to")
        check_comparable(self, *against)
        others = torch.stack([other.directions for other in against], dim=-1).double()
        weights = torch.linalg.pinv(others, rtol=_SAME_DIRECTION) @ self._scaled[..., None]
        baselines = torch.stack([other.baselines for other in against], dim=-1).double()
        names = ", ".join(other.name for other in against)
        return _from_scaled(
            [(1.0, self), *((0.0, other) for other in against)],
            self._scaled - (others @ weights)[..., 0],
            self._weighted_baselines - (baselines * weights[..., 0]).sum(-1),
            size=self.gaps.double(),
            name=f"{self.name} orthogonal to {names}",
        )

    def project_out(self, subspace: Tensor) -> "SteeringVector":
        """This vector without its part in a subspace; its targets become undefined.

        Args:
            subspace: Any directions that span it, ``[k d_model]`` or ``[layer k d_model]``.

        Raises:
            SteeringError: Another shape, NaN, or nothing is left at some layer.
        """
        check_comparable(self)
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
        weights = torch.linalg.pinv(columns, rtol=_SAME_DIRECTION) @ self._scaled[..., None]
        return _from_scaled(
            [(1.0, self)],
            self._scaled - (columns @ weights)[..., 0],
            self._weighted_baselines,
            size=self.gaps.double(),
            name=f"{self.name} without {spans.shape[1]} directions",
            undefined="the baseline along what was projected out is unknown",
        )

    @property
    def _scaled(self) -> Float[Tensor, "layer d_model"]:
        """What ``add`` adds at strength 1: :math:`v_l = g_l u_l`."""
        return self.gaps.double()[:, None] * self.directions.double()

    @property
    def _weighted_baselines(self) -> Float[Tensor, "layer"]:
        """:math:`v_l` times the mean uninstructed residual."""
        return self.gaps.double() * self.baselines.double()

    def check_model(self, model: TransformerBridge) -> None:
        """`SteeringError` for a model of another width or depth than this vector was made for."""
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
        tensors = {**self._tensors, "layers": torch.tensor(self.layers)}
        record = {"metadata": dict(self.metadata), "gate": self.gate}
        return write_tensors(path, _FILE_KIND, tensors, record)

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
            layers = layer_numbers(tensors.pop("layers").tolist(), error=SteeringError)
            check_tensors(tensors, len(layers))
            floats = {name: tensor.float() for name, tensor in tensors.items()}
            # Files of earlier versions name no gate.
            gate = str(record.get("gate", "identity"))
            return cls(**floats, layers=layers, metadata=metadata, gate=gate)
        except SteeringError as error:
            raise FileFormatError(f"{path} holds no steering vector: {error}") from error
        # OverflowError: layers of infinity; RuntimeError: layers of several numbers, 8-bit floats.
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise FileFormatError(
                f"{path} lacks or garbles a part of a steering vector: {error}"
            ) from error

    def __repr__(self) -> str:
        span = f"{self.layers[0]}–{self.layers[-1]}"
        return (
            f"SteeringVector({self.name}, {len(self.layers)} layers {span}, d_model {self.d_model})"
        )

    @property
    def table(self) -> pd.DataFrame:
        """One row per layer: ``layer, gap, target, baseline``, in residual-stream units."""
        numbers = {"gap": self.gaps, "target": self.targets, "baseline": self.baselines}
        columns = {name: values.tolist() for name, values in numbers.items()}
        return pd.DataFrame({"layer": self.layers, **columns})

    def plot(self) -> "go.Figure":
        """Gap and mean projections of both sides over layers."""
        from steerlens.views import vector_curves

        return vector_curves(self.table)


def _combined(parts: Sequence[tuple[float, Any]]) -> SteeringVector:
    """The linear combination of vectors; the module's equation."""
    check_comparable(*(vector for _, vector in parts))
    terms = [(f"{factor:g} × " if factor != 1 else "") + vector.name for factor, vector in parts]
    zero = torch.zeros(1, dtype=torch.double)
    return _from_scaled(
        parts,
        sum((factor * vector._scaled for factor, vector in parts), zero),
        sum((factor * vector._weighted_baselines for factor, vector in parts), zero),
        size=sum((abs(factor) * vector.gaps.double() for factor, vector in parts), zero),
        name=" + ".join(terms),
    )


def _from_scaled(
    parts: Sequence[tuple[float, SteeringVector]],
    scaled: Float[Tensor, "layer d_model"],
    weighted_baselines: Float[Tensor, "layer"],
    size: Float[Tensor, "layer"],
    name: str,
    undefined: str | None = None,
) -> SteeringVector:
    """A vector from :math:`v_l`; `size` is the length of the parts before they cancelled."""
    gaps = scaled.norm(dim=-1)
    if not bool(torch.isfinite(gaps).all()):
        raise SteeringError(f"{name} is not finite; factors must be finite numbers")
    vectors = [vector for _, vector in parts]
    gone = gaps <= _MIN_REMAINDER * size
    if bool(gone.any()):
        layer = vectors[0].layers[int(gone.nonzero()[0])]
        raise SteeringError(f"nothing is left of {name} at layer {layer}: no direction remains")
    baselines = weighted_baselines / gaps
    return SteeringVector(
        directions=(scaled / gaps[:, None]).float(),
        gaps=gaps.float(),
        targets=(baselines + gaps).float(),
        baselines=baselines.float(),
        layers=vectors[0].layers,
        metadata={
            **combined_metadata([vector.metadata for vector in vectors], undefined),
            "estimator": "combination",
            "instruction": name,
            "parts": [
                {"factor": factor, "name": part.name, "data_hash": part.metadata.get("data_hash")}
                for factor, part in parts
            ],
        },
    )
