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
both; padding is never touched. Inside `Steering.applied` the attention mask of each forward pass
tells padding, and a token counts as *response* when it lies beyond `prompt_lengths`, or, when
these are not given, when it is fed with a KV cache (as every generation loop does).

**Composition.** ``a + b`` applies `a`'s interventions first; at one layer the second sees the
residual the first has left.

>>> import torch
>>> from steerlens.activations import ResidualCache
>>> from steerlens.vectors import difference_of_means
>>> cache = ResidualCache.from_tensors(torch.ones(2, 1, 4), torch.zeros(2, 1, 4))
>>> vector = difference_of_means(cache)
>>> vector.at(layer=0, strength=2.0) + vector.at(layer=0, operation="ablate", scope="prompt")
Steering(difference_of_means: set_projection ×2 at layer 0 on all; difference_of_means: ablate ×1 at layer 0 on prompt)
"""  # noqa: E501 (the doctest's output is one line)

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError, unknown_name

__all__ = [
    "Intervention",
    "Operation",
    "RowSteering",
    "Scope",
    "Steering",
    "TokenRoles",
    "steer_residual",
]

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
        scope: ``all``, ``prompt`` or ``response``.
        label: What it carries, for people.
        n_layers: Depth of the model the vector was made for, when known.
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

    def __post_init__(self) -> None:
        if self.operation not in get_args(Operation):
            raise unknown_name("operation", self.operation, get_args(Operation))
        if self.scope not in get_args(Scope):
            raise unknown_name("scope", self.scope, get_args(Scope))
        if not math.isfinite(self.strength):
            raise SteeringError(f"strength must be a finite number; got {self.strength}")

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
            f"on {self.scope}"
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
        self.check_model(model)
        device = model.cfg.device
        rows = RowSteering([self], device=device)
        lengths = None if prompt_lengths is None else torch.tensor(prompt_lengths, device=device)
        roles: list[TokenRoles] = []

        def observe(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            roles[:] = [TokenRoles.of_forward(args, kwargs, lengths)]

        handle = model.original_model.register_forward_pre_hook(observe, with_kwargs=True)
        try:
            with model.hooks(fwd_hooks=rows.hooks(lambda: roles[0])):
                yield self
        finally:
            handle.remove()

    def __repr__(self) -> str:
        return f"Steering({'; '.join(one.describe() for one in self.interventions)})"


@dataclass(frozen=True, eq=False)
class TokenRoles:
    """Which tokens of a forward pass are prompt, which response; padding is neither."""

    prompt: Bool[Tensor, "batch pos"]
    response: Bool[Tensor, "batch pos"]

    @classmethod
    def of_mask(
        cls,
        mask: Int[Tensor, "batch total"],
        n_new: int,
        prompt_lengths: Int[Tensor, "lengths"] | None,
    ) -> "TokenRoles":
        """Roles of the last `n_new` columns of an attention mask.

        Without `prompt_lengths`, a pass without cached tokens is all prompt, any other all
        response.
        """
        if prompt_lengths is not None and len(prompt_lengths) != len(mask):
            raise SteeringError(
                f"prompt_lengths must hold one number a row; got {len(prompt_lengths)} for "
                f"{len(mask)} rows"
            )
        real = mask[:, mask.shape[1] - n_new :] != 0
        if prompt_lengths is None:
            is_response = torch.full_like(real, n_new < mask.shape[1])
        else:
            order = (mask != 0).long().cumsum(-1)[:, mask.shape[1] - n_new :]
            is_response = order > prompt_lengths[:, None]
        return cls(prompt=real & ~is_response, response=real & is_response)

    @classmethod
    def of_forward(
        cls,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        prompt_lengths: Int[Tensor, "lengths"] | None,
    ) -> "TokenRoles":
        """Roles of the tokens of one call of a Hugging Face causal model."""
        new = kwargs.get("input_ids")
        if new is None:
            new = args[0] if args else kwargs.get("inputs_embeds")
        if new is None:
            raise SteeringError("cannot tell which tokens are steered: the call has no input_ids")
        batch, n_new = new.shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is None:
            past = kwargs.get("past_key_values")
            n_past = past.get_seq_length() if past is not None else 0
            mask = torch.ones(batch, n_past + n_new, dtype=torch.long, device=new.device)
        if mask.ndim != 2:
            raise SteeringError(
                f"steering needs a [batch pos] attention mask to leave padding alone; got shape "
                f"{tuple(mask.shape)}"
            )
        return cls.of_mask(mask, n_new, prompt_lengths)


@dataclass(frozen=True, eq=False)
class _Stage:
    """Interventions of one layer, at most one a row: ``(u, a, b)`` and the roles it touches."""

    rows: Int[Tensor, "steered"] | None  # None: one intervention for every row of the batch
    direction: Float[Tensor, "steered d_model"]
    offset: Float[Tensor, "steered"]
    slope: Float[Tensor, "steered"]
    on_prompt: Bool[Tensor, "steered"]
    on_response: Bool[Tensor, "steered"]

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
        )

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after all interventions of a layer."""
        for compiled in self.stages.get(layer, ()):
            stage = compiled.to(resid.device)  # layers may live on several devices
            if stage.rows is None:
                touched = _touched(stage, roles.prompt, roles.response)
                resid = steer_residual(resid, stage.direction, stage.offset, stage.slope, touched)
            else:
                rows = stage.rows
                touched = _touched(stage, roles.prompt[rows], roles.response[rows])
                changed = steer_residual(
                    resid[rows], stage.direction, stage.offset, stage.slope, touched
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
) -> Float[Tensor, "batch pos d_model"]:
    """``x + (a + b x·u) u`` on the touched tokens; the amount is computed in float32.

    Args:
        resid: Residual stream, any floating dtype; the result has the same.
        direction: Unit vectors ``u``, one a row, or one for all rows.
        offset: ``a``, in residual-stream units.
        slope: ``b``, no unit.
        touched: Tokens to change.
    """
    projection = einsum(
        resid.float(), direction.expand(resid.shape[0], -1), "batch pos d, batch d -> batch pos"
    )
    amount = offset[:, None] + slope[:, None] * projection
    # where, not a product: padding may hold NaN, and 0 · NaN is NaN.
    amount = torch.where(touched, amount, 0.0)
    return resid + (amount[..., None] * direction[:, None, :]).to(resid.dtype)


def _touched(
    stage: _Stage, prompt: Bool[Tensor, "batch pos"], response: Bool[Tensor, "batch pos"]
) -> Bool[Tensor, "batch pos"]:
    return (prompt & stage.on_prompt[:, None]) | (response & stage.on_response[:, None])
