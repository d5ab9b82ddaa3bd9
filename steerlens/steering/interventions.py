r"""Steering: interventions applied together, as hooks on the residual stream.

An intervention is one operation at one layer on the tokens of a scope
(`steerlens.steering.operations`). A `Steering` is several of them. ``a + b`` applies the
interventions of `a` first; at one layer the second sees the residual that the first has left.

>>> import torch
>>> u = torch.tensor([1.0, 0.0])
>>> add = Steering((Intervention(3, u, gap=2.0, operation="add"),))
>>> add + Steering((Intervention(4, u, operation="ablate", scope="prompt"),))
Steering(vector: add ×1 at layer 3 on all; vector: ablate ×1 at layer 4 on prompt)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import FileFormatError, SteeringError
from steerlens.errors.arguments import arguments
from steerlens.files import read_tensors, write_tensors
from steerlens.models.exclusion import exclusively
from steerlens.steering.adaptive import adapted_output
from steerlens.steering.operations import GENERAL, Intervention, Role
from steerlens.steering.roles import TokenRoles, observed_roles
from steerlens.steering.rows import RowSteering

__all__ = ["Steering", "applied_to_rows"]

_FILE_KIND = "steering"
# The general operation has these from its write direction.
_DERIVED = ("direction", "gap", "target", "baseline")


@dataclass(frozen=True, eq=False, repr=False)
class Steering:
    """Interventions to be applied together, in order; made by `SteeringVector.at` and ``+``."""

    interventions: tuple[Intervention, ...]

    def __add__(self, other: "Steering") -> "Steering":
        return Steering(self.interventions + other.interventions)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers touched, ascending."""
        return tuple(sorted({each.layer for each in self.interventions}))

    @property
    def adaptive(self) -> float:
        """Threshold of its strength; 0 for a fixed one. See `steerlens.steering.adaptive`."""
        return max((each.adaptive for each in self.interventions), default=0.0)

    @arguments
    def scaled(self, factor: float) -> "Steering":
        """The same interventions, each at `factor` times its strength."""
        return Steering(
            tuple(replace(each, strength=each.strength * factor) for each in self.interventions)
        )

    def touching(self, role: Role) -> "Steering":
        """The interventions that touch tokens of one role."""
        return Steering(tuple(each for each in self.interventions if each.touches(role)))

    def check_model(self, model: TransformerBridge) -> None:
        """`SteeringError` when an intervention does not fit the model's width or depth."""
        width, depth = model.cfg.d_model, model.cfg.n_layers
        for each in self.interventions:
            if each.unit.shape != (width,):
                raise SteeringError(
                    f"{each.label} has d_model {each.unit.shape[0]}, the model {width}; "
                    "it was made for another model"
                )
            if each.n_layers not in (None, depth):
                raise SteeringError(
                    f"{each.label} was made for a model with {each.n_layers} layers, this model "
                    f"has {depth}"
                )
            if not 0 <= each.layer < depth:
                raise SteeringError(
                    f"layer {each.layer} is out of range: the model has {depth} layers, "
                    f"0 to {depth - 1}"
                )

    @contextmanager
    def applied(
        self, model: TransformerBridge, prompt_lengths: Sequence[int] | None = None
    ) -> Iterator["Steering"]:
        """Steer every forward pass while open; hooks are removed also after an exception.

        Args:
            model: The model to steer.
            prompt_lengths: Number of prompt tokens of each row. Needed only when prompt and
                response pass through the model at once and the scope tells them apart.

        Raises:
            SteeringError: The steering does not fit the model.
        """
        with applied_to_rows(model, [self], prompt_lengths):
            yield self

    def save(self, path: str | Path) -> Path:
        """Write the interventions, general ones included, as one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        records: list[dict[str, Any]] = []
        for i, each in enumerate(self.interventions):
            left_out = _DERIVED if each.write is not None else ()
            kept = {f.name: getattr(each, f.name) for f in fields(each) if f.name not in left_out}
            vectors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
            tensors |= {f"{i}.{name}": vector for name, vector in vectors.items()}
            records.append({name: kept[name] for name in kept if name not in vectors})
        return write_tensors(path, _FILE_KIND, tensors, {"interventions": records})

    @classmethod
    def load(cls, path: str | Path) -> "Steering":
        """Read what `save` wrote; `FileFormatError` when the file is anything else."""
        tensors, record = read_tensors(path, _FILE_KIND)
        try:
            interventions = []
            for i, entry in enumerate(record["interventions"]):
                named: dict[str, Any] = {
                    name: tensors[f"{i}.{name}"]
                    for name in ("direction", "write", "read")
                    if f"{i}.{name}" in tensors
                }
                if ("write" in named) != (entry["operation"] == GENERAL):
                    raise ValueError(f"intervention {i} lacks its write direction")
                interventions.append(Intervention(**entry, **named))
            return cls(tuple(interventions))
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"{path} lacks or garbles a part of a steering: {error}"
            ) from error

    def __repr__(self) -> str:
        return f"Steering({'; '.join(each.describe() for each in self.interventions)})"


@contextmanager
def applied_to_rows(
    model: TransformerBridge,
    steerings: Sequence[Steering | None],
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Steer every forward pass while open, each row in its own way.

    Args:
        model: The model to steer.
        steerings: One for each row of the batches to come (``None`` leaves it alone), or exactly
            one for all rows.
        prompt_lengths: See `Steering.applied`.

    Raises:
        SteeringError: A steering does not fit the model, or a batch has another number of rows.
    """
    for steering in {id(each): each for each in steerings if each is not None}.values():
        steering.check_model(model)
    rows = RowSteering(steerings, device=model.cfg.device)
    thresholds = [0.0 if each is None else each.adaptive for each in steerings]
    # Other threads wait: their forward passes would be steered as well.
    with (
        exclusively(model),
        observed_roles(model, prompt_lengths) as observed,
        adapted_output(model, thresholds) as unsteered_now,
    ):

        def roles() -> TokenRoles:
            current = observed()
            if len(steerings) not in (1, len(current.prompt)):
                raise SteeringError(
                    f"one steering per row is needed: got {len(steerings)} for a batch of "
                    f"{len(current.prompt)} rows"
                )
            if unsteered_now:
                return current.where(torch.zeros_like(current.prompt))
            return current

        with model.hooks(fwd_hooks=rows.hooks(roles)):
            yield
