r"""Steering: vectors as hooks on the residual stream.

Every operation moves a residual :math:`x` (output of block *l*) along the unit direction
:math:`u`, by an amount that is affine in the projection :math:`x \cdot u`:

.. math:: x \leftarrow x + (a + b\, x \cdot u)\, u

==================  =================  ==============  ==========================================
operation           a                  b               at strength 1
==================  =================  ==============  ==========================================
``add``             strength · gap     0               adds the mean difference itself
``set_projection``  strength · target  −strength       the projection becomes the instructed mean
``ablate``          0                  −strength       the projection becomes zero
==================  =================  ==============  ==========================================

``set_projection`` is the rule of Stolfo et al. 2025, §2.2; ``ablate`` is directional ablation
(Arditi et al. 2024). Because all three share one form, a batch may hold a different operation,
layer, strength and scope in every row: `RowSteering` keeps one ``(u, a, b)`` a row.

**Scope.** ``prompt`` touches the tokens of the prompt, ``response`` the tokens after it, ``all``
both; padding is never touched. `steerlens.steering.roles` says how tokens are told apart.

The first token of a response is not predicted at a token of the response: it is predicted at the
last position of the prompt. So ``response`` leaves it as it is without steering; the first token
it can change is the second. ``prompt`` changes the first one, and the later ones only through what
they attend to.

**One side.** ``set_projection`` with ``only_below`` acts only while the projection is below its
target: the amount is max(0, a + b x·u), so a token that is there already is left alone.

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

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError, unknown_name
from steerlens.errors.arguments import arguments, finite_number, unit_direction, whole_number
from steerlens.models.exclusion import exclusively
from steerlens.steering.roles import TokenRoles, observed_roles

__all__ = [
    "Intervention",
    "Operation",
    "RowSteering",
    "Scope",
    "Steering",
    "TokenRoles",
    "applied_to_rows",
    "steer_residual",
]

# The largest float32: gaps and targets are applied in it.
_LARGEST = torch.finfo(torch.float32).max

Operation = Literal["add", "set_projection", "ablate"]
Scope = Literal["all", "prompt", "response"]


@dataclass(frozen=True, eq=False)
class Intervention:
    """One direction applied at one layer.

    Attributes:
        layer: The block whose output is changed.
        direction: Unit vector.
        gap: Norm of the mean difference (residual-stream units).
        target: Mean instructed projection (residual-stream units).
        operation: ``add``, ``set_projection`` or ``ablate``.
        strength: Multiplier of the change.
        scope: ``all``, ``prompt`` or ``response``; see the module on what that leaves alone.
        label: What it carries, for people.
        n_layers: Depth of the model the vector was made for, when known.
        baseline: Mean uninstructed projection, when known (residual-stream units).
        only_below: Act only while the projection is below its target (``set_projection``).

    Raises:
        SteeringError: A layer that is no whole number; a direction that is no unit vector (in half
            precision its norm may be 1 % off); a gap, target, baseline or strength that is not
            finite in float32; a negative gap.
        UnknownNameError: An operation or scope that does not exist.
    """

    layer: int
    direction: Float[Tensor, "d_model"]
    gap: float
    target: float
    operation: str
    strength: float
    scope: str
    label: str = "vector"
    n_layers: int | None = None
    baseline: float | None = None
    only_below: bool = False

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise unknown_name("operation", self.operation, get_args(Operation))
        if self.scope not in get_args(Scope):
            raise unknown_name("scope", self.scope, get_args(Scope))
        object.__setattr__(self, "layer", whole_number("layer", self.layer, error=SteeringError))
        unit_direction(f"the direction of {self.label}", self.direction, SteeringError)
        for name in ("strength", "gap", "target", "baseline"):
            value = getattr(self, name)
            if value is not None or name != "baseline":
                number = finite_number(name, value, error=SteeringError)
                if abs(number) > _LARGEST:
                    raise SteeringError(f"{name} must fit float32; got {number:g}")
                object.__setattr__(self, name, number)
        if self.gap < 0:
            raise SteeringError(
                f"gap is the length of a difference and not negative; got {self.gap:g}; turn the "
                "direction round instead"
            )
        if self.only_below and (self.operation != "set_projection" or self.strength < 0):
            raise SteeringError(
                "only_below raises projections to a target: it needs set_projection and a strength "
                f"of at least 0; got {self.operation} and {self.strength:g}"
            )

    @property
    def coefficients(self) -> tuple[float, float]:
        """``(a, b)`` of the module's equation."""
        if self.operation == "add":
            return self.strength * self.gap, 0.0
        if self.operation == "set_projection":
            return self.strength * self.target, -self.strength
        return 0.0, -self.strength

    def describe(self) -> str:
        """One phrase, for example ``title: set_projection ×1 at layer 24 on all``."""
        return (
            f"{self.label}: {self.operation} ×{self.strength:g} at layer {self.layer} "
            f"on {self.scope}{', only below its target' if self.only_below else ''}"
        )


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
            if one.direction.shape != (width,):
                raise SteeringError(
                    f"{one.label} has d_model {one.direction.shape[0]}, the model {width}; "
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


@dataclass(frozen=True, eq=False)
class _Stage:
    """Interventions of one layer, at most one a row: ``(u, a, b)`` and the roles it touches."""

    rows: Int[Tensor, "steered"] | None  # None: one intervention for every row of the batch
    direction: Float[Tensor, "steered d_model"]
    offset: Float[Tensor, "steered"]
    slope: Float[Tensor, "steered"]
    on_prompt: Bool[Tensor, "steered"]
    on_response: Bool[Tensor, "steered"]
    least: Float[Tensor, "steered"] | None  # smallest amount; None: none has a bound

    def to(self, device: torch.device) -> "_Stage":
        """This stage on a device; itself when it is there already."""
        if self.direction.device == device:
            return self
        parts: dict[str, Tensor | None] = vars(self)
        moved: dict[str, Any] = {
            name: None if part is None else part.to(device) for name, part in parts.items()
        }
        return _Stage(**moved)


class RowSteering:
    """A different steering for each row of a batch, compiled for the forward pass.

    Rows without steering are not touched.

    Args:
        steerings: One entry a row (``None`` leaves the row alone), or exactly one for all rows.
        device: Where the residual stream lives.
        per_row: With a single entry: it belongs to the first row only, not to all.
    """

    def __init__(
        self,
        steerings: Sequence[Steering | None],
        device: str | torch.device | None = None,
        per_row: bool = False,
    ) -> None:
        self.shared = len(steerings) == 1 and not per_row
        by_layer: dict[int, list[list[tuple[int, Intervention]]]] = {}
        for row, steering in enumerate(steerings):
            for one in steering.interventions if steering is not None else ():
                stages = by_layer.setdefault(one.layer, [])
                # The k-th intervention of a row at a layer belongs to stage k: order is kept.
                free = (stage for stage in stages if all(r != row for r, _ in stage))
                stage = next(free, None)
                if stage is None:
                    stages.append([(row, one)])
                else:
                    stage.append((row, one))
        self.stages = {
            layer: [self._stage(stage, device) for stage in stages]
            for layer, stages in by_layer.items()
        }

    def _stage(
        self, entries: Sequence[tuple[int, Intervention]], device: str | torch.device | None
    ) -> _Stage:
        ones = [one for _, one in entries]
        a, b = zip(*(one.coefficients for one in ones), strict=True)
        rows = None if self.shared else torch.tensor([row for row, _ in entries], device=device)
        return _Stage(
            rows=rows,
            direction=torch.stack([one.direction.float() for one in ones]).to(device),
            offset=torch.tensor(a, dtype=torch.float32, device=device),
            slope=torch.tensor(b, dtype=torch.float32, device=device),
            on_prompt=torch.tensor([one.scope != "response" for one in ones], device=device),
            on_response=torch.tensor([one.scope != "prompt" for one in ones], device=device),
            least=_least_amounts(ones, device),
        )

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after all interventions of a layer."""
        for compiled in self.stages.get(layer, ()):
            stage = compiled.to(resid.device)  # layers may live on several devices
            if stage.rows is None:
                touched = _touched(stage, roles.prompt, roles.response)
                resid = steer_residual(
                    resid, stage.direction, stage.offset, stage.slope, touched, stage.least
                )
            else:
                rows = stage.rows
                touched = _touched(stage, roles.prompt[rows], roles.response[rows])
                changed = steer_residual(
                    resid[rows],
                    stage.direction,
                    stage.offset,
                    stage.slope,
                    touched,
                    stage.least,
                )
                resid = resid.index_copy(0, rows, changed)
        return resid

    def hooks(
        self, roles: Callable[[], TokenRoles]
    ) -> list[tuple[str, Callable[[Tensor, Any], Tensor]]]:
        """TransformerLens hooks ``(name, function)``; `roles` is asked at each call."""

        def at(layer: int) -> Callable[[Tensor, Any], Tensor]:
            return lambda resid, hook: self.apply(layer, resid, roles())

        return [(f"blocks.{layer}.hook_out", at(layer)) for layer in sorted(self.stages)]


def steer_residual(
    resid: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, "rows d_model"],
    offset: Float[Tensor, "rows"],
    slope: Float[Tensor, "rows"],
    touched: Bool[Tensor, "batch pos"],
    least: Float[Tensor, "rows"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """``x + (a + b x·u) u`` on the touched tokens; the amount is computed in float32.

    Args:
        resid: Residual stream, any floating dtype; the result has the same.
        direction: Unit vectors ``u``, one a row, or one for all rows.
        offset: ``a``, in residual-stream units.
        slope: ``b``, no unit.
        touched: Tokens to change.
        least: The amount is at least this; ``None`` sets no bound.
    """
    projection = einsum(
        resid.float(), direction.expand(resid.shape[0], -1), "batch pos d, batch d -> batch pos"
    )
    amount = offset[:, None] + slope[:, None] * projection
    if least is not None:
        amount = torch.maximum(amount, least[:, None])
    # where, not a product: padding may hold NaN, and 0 · NaN is NaN.
    amount = torch.where(touched, amount, 0.0)
    return resid + (amount[..., None] * direction[:, None, :]).to(resid.dtype)


def _least_amounts(
    ones: Sequence[Intervention], device: str | torch.device | None
) -> Float[Tensor, "steered"] | None:
    """0 where an intervention may only raise the projection; nothing when none is so."""
    if not any(one.only_below for one in ones):
        return None
    least = [0.0 if one.only_below else -math.inf for one in ones]
    return torch.tensor(least, dtype=torch.float32, device=device)


def _touched(
    stage: _Stage, prompt: Bool[Tensor, "batch pos"], response: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"]:
    return (prompt & stage.on_prompt[:, None]) | (response & stage.on_response[:, None])
