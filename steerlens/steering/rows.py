"""A different steering in every row of a batch, compiled for the forward pass.

All operations have one form (`steerlens.steering.operations`), so a batch may hold a different
operation, layer, strength and scope in every row: `RowSteering` keeps one ``(z, w, a, b)`` per row.
"""

import math
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from einops import einsum
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.errors import SteeringError
from steerlens.steering.operations import Intervention
from steerlens.steering.roles import TokenRoles

__all__ = ["RowSteering", "Steered", "steer_residual"]


@runtime_checkable
class Steered(Protocol):
    """Anything with interventions, such as `steerlens.steering.interventions.Steering`."""

    @property
    def interventions(self) -> tuple[Intervention, ...]:
        """In the order of application."""


@dataclass(frozen=True, eq=False)
class _Stage:
    """Interventions of one layer, at most one a row: ``(z, w, a, b)`` and the roles it touches."""

    rows: Int[Tensor, "steered"] | None  # None: one intervention for every row of the batch
    write: Float[Tensor, "steered d_model"]
    read: Float[Tensor, "steered d_model"] | None  # None: what is written is read
    offset: Float[Tensor, "steered"]
    slope: Float[Tensor, "steered"]
    on_prompt: Bool[Tensor, "steered"]
    on_response: Bool[Tensor, "steered"]
    n_first: Float[Tensor, "steered"] | None  # how many tokens of a response; None: all
    least: Float[Tensor, "steered"] | None  # smallest amount; None: none has a bound

    def to(self, device: torch.device) -> "_Stage":
        """This stage on a device; itself when it is there already."""
        if self.write.device == device:
            return self
        parts: dict[str, Tensor | None] = vars(self)
        moved: dict[str, Any] = {
            name: None if part is None else part.to(device) for name, part in parts.items()
        }
        return _Stage(**moved)

    def steered(
        self,
        resid: Float[Tensor, "batch pos d_model"],
        roles: TokenRoles,
    ) -> Float[Tensor, "batch pos d_model"]:
        on_response = roles.response & self.on_response[:, None]
        if self.n_first is not None:
            if roles.place is None:
                raise SteeringError(
                    "scope 'first:N' counts the tokens of the response, and the prompt was read "
                    "elsewhere; read it while the steering is applied, or give prompt_lengths"
                )
            on_response &= roles.place < self.n_first[:, None]
        touched = (roles.prompt & self.on_prompt[:, None]) | on_response
        return steer_residual(
            resid, self.write, self.offset, self.slope, touched, self.least, self.read
        )


class RowSteering:
    """A different steering for each row of a batch.

    Args:
        steerings: One per row (``None`` leaves the row alone), or exactly one for all rows.
        device: Where the residual stream lives.
        per_row: A single entry belongs to the first row only, not to all.
    """

    def __init__(
        self,
        steerings: Sequence["Steered | None"],
        device: str | torch.device | None = None,
        per_row: bool = False,
    ) -> None:
        self.shared = len(steerings) == 1 and not per_row
        by_layer: dict[int, list[list[tuple[int, Intervention]]]] = {}
        for row, steering in enumerate(steerings):
            for intervention in steering.interventions if steering is not None else ():
                stages = by_layer.setdefault(intervention.layer, [])
                # The k-th intervention of a row at a layer belongs to stage k: order is kept.
                k = sum(any(r == row for r, _ in stage) for stage in stages)
                if k == len(stages):
                    stages.append([])
                stages[k].append((row, intervention))
        self.stages = {
            layer: [self._stage(stage, device) for stage in stages]
            for layer, stages in by_layer.items()
        }

    @property
    def layers(self) -> Set[int]:
        """The layers after which some row is steered."""
        return self.stages.keys()

    def _stage(
        self, entries: Sequence[tuple[int, Intervention]], device: str | torch.device | None
    ) -> _Stage:
        interventions = [intervention for _, intervention in entries]
        terms = [intervention.terms for intervention in interventions]
        writes, reads, a, b, least = zip(*terms, strict=True)
        bounded = any(bound > -math.inf for bound in least)
        n_first = [intervention.n_first for intervention in interventions]
        rows = None if self.shared else torch.tensor([row for row, _ in entries], device=device)
        return _Stage(
            rows=rows,
            write=torch.stack([write.to(device) for write in writes]),
            read=_stacked_reads(writes, reads, device),
            offset=torch.tensor(a, dtype=torch.float32, device=device),
            slope=torch.tensor(b, dtype=torch.float32, device=device),
            on_prompt=torch.tensor([i.touches("prompt") for i in interventions], device=device),
            on_response=torch.tensor([i.touches("response") for i in interventions], device=device),
            n_first=torch.tensor(n_first, dtype=torch.float32, device=device)
            if any(0 < n < math.inf for n in n_first)
            else None,
            least=torch.tensor(least, dtype=torch.float32, device=device) if bounded else None,
        )

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after all interventions of a layer."""
        for compiled in self.stages.get(layer, ()):
            # Layers may live on several devices.
            stage = compiled.to(resid.device)
            roles = roles.to(resid.device)
            if stage.rows is None:
                resid = stage.steered(resid, roles)
            else:
                changed = stage.steered(resid[stage.rows], roles.of_rows(stage.rows))
                resid = resid.index_copy(0, stage.rows, changed)
        return resid

    def hooks(
        self, roles: Callable[[], TokenRoles]
    ) -> list[tuple[str, Callable[[Tensor, Any], Tensor]]]:
        """TransformerLens hooks ``(name, function)``; `roles` is called in each of them."""

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
    read: Float[Tensor, "rows d_model"] | None = None,
) -> Float[Tensor, "batch pos d_model"]:
    """``x + max(a + b w·x, least) z`` on the touched tokens.

    The amount is computed in float32; the result has the dtype of the residual stream.

    Args:
        resid: Residual stream x.
        direction: Write directions z, one per row, or one for all rows.
        offset: a, in units of z.
        slope: b, no unit.
        touched: Tokens to change.
        least: Lower bound of the amount (0 for a ReLU); ``None`` sets none.
        read: Read directions w; ``None`` reads what is written.
    """
    reading = direction if read is None else read
    projection = einsum(
        resid.float(), reading.expand(resid.shape[0], -1), "batch pos d, batch d -> batch pos"
    )
    amount = offset[:, None] + slope[:, None] * projection
    if least is not None:
        amount = torch.maximum(amount, least[:, None])
    # where, not a product: padding may hold NaN, and 0 · NaN is NaN.
    amount = torch.where(touched, amount, 0.0)
    return resid + (amount[..., None] * direction[:, None, :]).to(resid.dtype)


def _stacked_reads(
    writes: Sequence[Tensor], reads: Sequence[Tensor | None], device: str | torch.device | None
) -> Float[Tensor, "steered d_model"] | None:
    """Read directions of a stage; ``None`` where every row reads what it writes."""
    if all(read is None for read in reads):
        return None
    both = zip(writes, reads, strict=True)
    return torch.stack([(write if read is None else read).to(device) for write, read in both])
