r"""Steering: interventions applied together, as hooks on the residual stream.

An intervention is one operation at one layer on the tokens of a scope; see
`steerlens.steering.operations` for the equation. A `Steering` is several of them.

**Composition.** ``a + b`` applies `a`'s interventions first; at one layer the second sees the
residual the first has left.

>>> import torch
>>> from steerlens.activations.cache import ResidualCache
>>> from steerlens.vectors import difference_of_means
>>> cache = ResidualCache.from_tensors(torch.ones(2, 1, 4), torch.zeros(2, 1, 4))
>>> vector = difference_of_means(cache)
>>> vector.at(layer=0, strength=2.0) + vector.at(layer=0, operation="ablate", scope="prompt")
Steering(difference_of_means: set_projection ×2 at layer 0 on all; difference_of_means: ablate ×1 at layer 0 on prompt)
"""  # noqa: E501 (the doctest's output is one line)

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.models.exclusion import exclusively
from steerlens.steering.operations import Intervention
from steerlens.steering.roles import TokenRoles, observed_roles
from steerlens.steering.rows import RowSteering

__all__ = ["Steering", "applied_to_rows"]


@dataclass(frozen=True, eq=False, repr=False)
class Steering:
    """Interventions to be applied together, in order; made by `SteeringVector.at` and ``+``."""

    interventions: tuple[Intervention, ...]

    def __add__(self, other: "Steering") -> "Steering":
        return Steering(self.interventions + other.interventions)

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers touched, ascending."""
        return tuple(sorted({one.layer for one in self.interventions}))

    @arguments
    def scaled(self, factor: float) -> "Steering":
        """The same interventions, each at `factor` times its strength."""
        return Steering(
            tuple(replace(one, strength=one.strength * factor) for one in self.interventions)
        )

    def touching(self, role: Literal["prompt", "response"]) -> "Steering":
        """The interventions that touch tokens of one role."""
        other = "response" if role == "prompt" else "prompt"
        return Steering(tuple(one for one in self.interventions if one.scope != other))

    def check_model(self, model: TransformerBridge) -> None:
        """`SteeringError` when an intervention does not fit the model's width or depth."""
        width, depth = model.cfg.d_model, model.cfg.n_layers
        for one in self.interventions:
            if one.unit.shape != (width,):
                raise SteeringError(
                    f"{one.label} has d_model {one.unit.shape[0]}, the model {width}; "
                    "it was made for another model"
                )
            if one.n_layers not in (None, depth):
                raise SteeringError(
                    f"{one.label} was made for a model with {one.n_layers} layers, this model "
                    f"has {depth}"
                )
            if not 0 <= one.layer < depth:
                raise SteeringError(
                    f"layer {one.layer} is out of range: the model has {depth} layers, "
                    f"0 to {depth - 1}"
                )

    @contextmanager
    def applied(
        self, model: TransformerBridge, prompt_lengths: Sequence[int] | None = None
    ) -> Iterator["Steering"]:
        """Hooks on, and always off again, also after an exception or Ctrl-C.

        Args:
            model: The model to steer.
            prompt_lengths: Real tokens of each row that are prompt; needed only when prompt and
                response pass through the model at once and the scope tells them apart.

        Raises:
            SteeringError: The steering does not fit the model.
        """
        with applied_to_rows(model, [self], prompt_lengths):
            yield self

    def __repr__(self) -> str:
        return f"Steering({'; '.join(one.describe() for one in self.interventions)})"


@contextmanager
def applied_to_rows(
    model: TransformerBridge,
    steerings: Sequence[Steering | None],
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Every forward pass steered, each row in its own way; hooks are always off again.

    Args:
        model: The model to steer.
        steerings: One for each row of the batches to come (``None`` leaves it alone), or exactly
            one for all rows.
        prompt_lengths: See `Steering.applied`.

    Raises:
        SteeringError: A steering does not fit the model, or a batch has another number of rows.
    """
    for steering in {id(one): one for one in steerings if one is not None}.values():
        steering.check_model(model)
    rows = RowSteering(steerings, device=model.cfg.device)
    # Other threads wait: their forward passes would be steered as well.
    with exclusively(model), observed_roles(model, prompt_lengths) as observed:

        def roles() -> TokenRoles:
            found = observed()
            if len(steerings) not in (1, len(found.prompt)):
                raise SteeringError(
                    f"one steering a row is needed: got {len(steerings)} for a batch of "
                    f"{len(found.prompt)} rows"
                )
            return found

        with model.hooks(fwd_hooks=rows.hooks(roles)):
            yield
