r"""Directions under training, many side by side: `TrainedRows` steers each row with its own.

A *slot* is one direction being trained: a layer or several, with a gate or without, for one
objective and one seed. At each of its layers it has a site with parameters
:math:`\zeta, \omega, a`, and the residual stream there becomes

.. math:: x \leftarrow x + r\,\zeta \qquad\text{or}\qquad
          x \leftarrow x + \mathrm{ReLU}\!\left(a + \tfrac{\omega \cdot x}{r}\right) r\,\zeta

where :math:`r` is the median norm of the residuals there, so that parameters are of one size at
every layer. With :math:`z = r\zeta` and :math:`w = \omega / r` these are the operations ``add`` and
``general`` (`steerlens.steering.operations`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from steerlens.steering.roles import TokenRoles

__all__ = ["DirectionParameters", "Slot", "TrainedRows"]


@dataclass(frozen=True)
class Slot:
    """One direction to train.

    Attributes:
        layers: Where it acts, ascending; its rows enter the pass at the first.
        objective: What it is trained for; see `steerlens.training.objectives`.
        gate: Whether it has a ReLU gate.
        seed: Of its first values.
        loop_weight: Weight of the term against loops.
    """

    layers: tuple[int, ...]
    objective: str
    gate: bool
    seed: int = 0
    loop_weight: float = 0.0

    def __str__(self) -> str:
        where = f"layer {self.layers[0]}" if len(self.layers) == 1 else f"layers {self.layers}"
        loops = f", loops ×{self.loop_weight:g}" if self.loop_weight else ""
        seed = f", seed {self.seed}" if self.seed else ""
        return f"{self.objective}{', gated' if self.gate else ''}, {where}{loops}{seed}"


@dataclass(eq=False)
class DirectionParameters:
    """Parameters of all slots, one row per site.

    Attributes:
        slots: The slots.
        sites: For each site its slot's index and its layer.
        scale: :math:`r`.
        write: :math:`\\zeta`.
        read: :math:`\\omega`.
        bias: :math:`a`.
        gated: Whether the site has a gate.
    """

    slots: Sequence[Slot]
    sites: Sequence[tuple[int, int]]
    scale: Float[Tensor, "site"]
    write: Float[Tensor, "site d_model"]
    read: Float[Tensor, "site d_model"]
    bias: Float[Tensor, "site"]
    gated: Bool[Tensor, "site"]

    @classmethod
    def starting_at(
        cls,
        slots: Sequence[Slot],
        scale: dict[int, float],
        start: dict[int, Float[Tensor, "d_model"]],
        device: torch.device,
        noise: float = 0.01,
    ) -> "DirectionParameters":
        """Open gates, and the vector of each layer with a little noise by the slot's seed.

        Args:
            slots: The slots.
            scale: By layer, the median norm of residuals.
            start: By layer, what is added at first.
            device: Where the residual stream lives.
            noise: Length of the noise, as a share of `scale`.
        """
        sites = [(i, layer) for i, slot in enumerate(slots) for layer in slot.layers]
        write = []
        for i, layer in sites:
            generator = torch.Generator().manual_seed(1000 * slots[i].seed + layer)
            vector = start[layer].float().cpu()
            drawn = torch.randn(vector.shape, generator=generator, dtype=torch.float32)
            write.append(vector / scale[layer] + drawn * (noise / len(vector) ** 0.5))
        stacked = torch.stack(write).to(device)
        return cls(
            slots,
            sites,
            scale=torch.tensor([scale[layer] for _, layer in sites], device=device),
            write=stacked.requires_grad_(),
            read=torch.zeros_like(stacked).requires_grad_(),
            bias=torch.ones(len(sites), device=device).requires_grad_(),
            gated=torch.tensor([slots[i].gate for i, _ in sites], device=device),
        )

    def snapshot(self) -> "DirectionParameters":
        """A copy of the values."""
        values = {name: getattr(self, name).detach().clone() for name in ("write", "read", "bias")}
        return DirectionParameters(
            self.slots, self.sites, scale=self.scale, gated=self.gated, **values
        )

    def keep(self, slots: Collection[int], other: "DirectionParameters") -> None:
        """Take over the values that some slots have in `other`."""
        rows = [site for site, (slot, _) in enumerate(self.sites) if slot in slots]
        for name in ("write", "read", "bias"):
            getattr(self, name).data[rows] = getattr(other, name).detach()[rows]


class TrainedRows:
    """Steers each row of a pass with its slot's direction (`steerlens.engine.forward.Steers`).

    Args:
        parameters: The directions.
        row_slots: The slot of each row, in the order of the pass.
        scope: ``"all"``, ``"prompt"`` or ``"response"``.
    """

    def __init__(
        self, parameters: DirectionParameters, row_slots: Sequence[int], scope: str = "all"
    ) -> None:
        self.parameters, self.row_slots, self.scope = parameters, list(row_slots), scope
        self.pushes: list[tuple[list[int], Float[Tensor, row]]] = []
        self._site_of = {place: site for site, place in enumerate(parameters.sites)}

    @property
    def layers(self) -> Collection[int]:
        """The layers after which some row is steered."""
        present = set(self.row_slots)
        return {layer for slot, layer in self.parameters.sites if slot in present}

    def apply(
        self, layer: int, resid: Float[Tensor, "batch pos d_model"], roles: TokenRoles
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after the push at a layer; its squared share is kept in `pushes`."""
        of_row = [self._site_of.get((slot, layer)) for slot in self.row_slots[: len(resid)]]
        rows = [row for row, site in enumerate(of_row) if site is not None]
        sites = [site for site in of_row if site is not None]
        own = self.parameters
        index = torch.tensor(rows, device=resid.device)
        touched = torch.zeros_like(roles.prompt[rows])
        if self.scope != "response":
            touched = touched | roles.prompt[rows]
        if self.scope != "prompt":
            touched = touched | roles.response[rows]
        scale = own.scale[sites][:, None, None]
        # Padding may hold anything: it must not reach a gradient, not even times zero.
        stream = torch.where(touched[..., None], resid[index].to(own.write.dtype), 0.0)
        projection = (stream @ own.read[sites][..., None] / scale)[..., 0]
        opened = torch.relu(own.bias[sites][:, None] + projection)
        amount = torch.where(own.gated[sites][:, None], opened, 1.0) * touched
        push = amount[..., None] * own.write[sites][:, None] * scale
        relative = push.square().sum(-1) / (stream.square().sum(-1) + ~touched)
        self.pushes.append((rows, relative.sum(-1) / touched.sum(-1).clamp_min(1)))
        return resid.index_add(0, index, push.to(resid.dtype))
