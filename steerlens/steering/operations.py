r"""Operations: how a residual is moved.

All operations have one form. With a *write* direction :math:`z`, a *read* direction :math:`w`, a
bias :math:`a`, a *gate* :math:`\varphi` (identity or ReLU) and a strength :math:`s`, a residual
:math:`x` (the output of block *l*) becomes

.. math:: x \leftarrow x + s\, \varphi(a + w \cdot x)\, z

The named operations are cases of it, with :math:`u` the unit direction of a vector:

==================  ========  =======  ======  =====  =============================================
operation           φ         a        w       z      at strength 1
==================  ========  =======  ======  =====  =============================================
``add``             identity  gap      0       u      adds the mean difference
``set_projection``  identity  target   −u      u      sets the projection to the instructed mean
… ``only_below``    ReLU      target   −u      u      only raises it to that mean
… ``only_above``    ReLU      −target  u       −u     only lowers it to that mean
``ablate``          identity  0        −u      u      sets the projection to zero
==================  ========  =======  ======  =====  =============================================

``set_projection`` is the rule of Stolfo et al. 2025, §2.2; ``ablate`` is directional ablation
(Arditi et al. 2024). Any other case is given by its parts::

    Intervention(layer=20, write=z, read=w, bias=-1.5, gate="relu", scope="all")

which adds (w·x − 1.5) z to the tokens where w·x is above 1.5.

**Scope.** ``prompt`` touches the tokens of the prompt, ``response`` the tokens after it, ``all``
both, and ``first:N`` the first N tokens of the response. Padding is never touched (see
`steerlens.steering.roles`). The first token of a response is predicted at the last position of the
prompt, so ``response`` and ``first:N`` leave it unsteered. Steerings add up: one with scope
``prompt`` plus one with ``first:8`` touches the prompt and the first 8 tokens after it.

>>> z, w = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
>>> Intervention(layer=3, write=z, read=w, bias=-1.5, gate="relu", label="mine").describe()
'mine: relu(-1.5 + w·x) z ×1 at layer 3 on all'
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from steerlens.errors import SteeringError, unknown_name
from steerlens.errors.arguments import finite_number, unit_direction, whole_number

__all__ = [
    "GENERAL",
    "SCOPES",
    "Gate",
    "Intervention",
    "Operation",
    "Role",
    "check_scope",
    "check_threshold",
]

_LARGEST = torch.finfo(torch.float32).max

Operation = Literal["add", "set_projection", "ablate"]
Role = Literal["prompt", "response"]
SCOPES = ("all", "prompt", "response", "first:N")
Gate = Literal["identity", "relu"]
GENERAL = "general"
"""Name of the operation that is given by its parts."""


@dataclass(frozen=True, eq=False)
class Intervention:
    """One direction applied at one layer: a named operation, or the general one by its parts.

    Lengths are in units of the residual stream.

    Attributes:
        layer: The block whose output is changed.
        direction: Unit vector; for the general operation, that of `write`.
        gap: Norm of the mean difference, or of `write`.
        target: Mean projection of the instructed side.
        operation: ``add``, ``set_projection`` or ``ablate``; ``general`` where `write` is given.
        strength: Multiplier of the change.
        scope: ``all``, ``prompt``, ``response`` or ``first:N``.
        label: What it carries, for people.
        n_layers: Depth of the model the vector was made for, if known.
        baseline: Mean projection of the uninstructed side, if known.
        only_below: ``set_projection`` only where the projection is below the target.
        write: Direction z of the general operation, of any length.
        read: Direction w; ``None`` reads nothing.
        bias: a, in units of w·x.
        gate: ``identity`` or ``relu``.
        only_above: ``set_projection`` only where the projection is above the target.
        adaptive: Threshold, 0 to 1, of a strength that is lowered token by token while decoding
            (`steerlens.steering.adaptive`); 0 for a fixed one. The highest threshold of
            interventions applied together holds for all of them.

    Raises:
        SteeringError: A layer that is not a whole number, a direction that is not a unit vector
            (within 1 %), a number that is not finite in float32, a negative gap, or parts of the
            general operation beside a named one.
        UnknownNameError: An operation, gate or scope that does not exist.
    """

    layer: int
    direction: Float[Tensor, "d_model"] | None = None
    gap: float = 0.0
    target: float = 0.0
    operation: str = GENERAL
    strength: float = 1.0
    scope: str = "all"
    label: str = "vector"
    n_layers: int | None = None
    baseline: float | None = None
    only_below: bool = False
    write: Tensor | None = None
    read: Tensor | None = None
    bias: float = 0.0
    gate: str = "identity"
    only_above: bool = False
    adaptive: float | int = 0.0

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise unknown_name("gate", self.gate, get_args(Gate))
        if self.write is None:
            self._check_named()
        else:
            self._take_parts(self.write)
        check_scope(self.scope)
        object.__setattr__(self, "layer", whole_number("layer", self.layer, error=SteeringError))
        unit_direction(f"the direction of {self.label}", self.direction, SteeringError)
        for name in ("strength", "gap", "target", "baseline", "bias", "adaptive"):
            value = getattr(self, name)
            if value is not None or name != "baseline":
                number = finite_number(name, value, error=SteeringError)
                if abs(number) > _LARGEST:
                    raise SteeringError(f"{name} must fit float32; got {number:g}")
                object.__setattr__(self, name, number)
        check_threshold(self.adaptive)
        if self.gap < 0:
            raise SteeringError(
                f"gap is a length and cannot be negative; got {self.gap:g}; negate the direction "
                "instead"
            )
        for name, act in (("only_below", "raises"), ("only_above", "lowers")):
            if getattr(self, name) and (self.operation != "set_projection" or self.strength < 0):
                raise SteeringError(
                    f"{name} {act} projections to a target: it needs set_projection and a "
                    f"strength of at least 0; got {self.operation} and {self.strength:g}"
                )
        if self.only_below and self.only_above:
            raise SteeringError("only_below and only_above exclude each other; give one of them")

    def _check_named(self) -> None:
        if self.read is not None or self.bias != 0.0 or self.gate != "identity":
            raise SteeringError(
                "read, bias and gate are parts of the general operation; give write= with them, or "
                "one of the named operations without them"
            )
        if self.operation not in get_args(Operation):
            raise unknown_name("operation", self.operation, get_args(Operation))
        if self.direction is None:
            raise SteeringError(f"{self.operation} needs a direction; give a unit vector")

    def _take_parts(self, write: Tensor) -> None:
        """Check the general operation; its direction and gap are those of `write`."""
        if self.operation != GENERAL:
            raise SteeringError(
                f"write is a part of the general operation; got it beside {self.operation!r}; give "
                "one of them"
            )
        for name, vector in (("write", write), ("read", self.read)):
            if vector is None:
                continue
            if not isinstance(vector, Tensor) or vector.ndim != 1 or not vector.numel():
                raise SteeringError(f"{name} must be a tensor of shape [d_model]")
            if not bool(vector.detach().float().isfinite().all()):
                raise SteeringError(
                    f"{name} holds NaN, infinity or numbers that do not fit float32"
                )
            if vector.shape != write.shape:
                raise SteeringError(
                    f"write and read must have one shape; got {list(write.shape)} and "
                    f"{list(vector.shape)}"
                )
        norm = float(write.detach().double().norm())
        if norm == 0:
            raise SteeringError("write is zero, which moves nothing; give a vector of some length")
        unit = (write.detach().double() / norm).float().cpu()
        direction = unit if self.direction is None else self.direction.detach().float().cpu()
        fits = direction.shape == unit.shape and torch.allclose(direction, unit, atol=1e-5)
        if not fits or self.gap not in (0.0, norm) or self.target or self.baseline is not None:
            raise SteeringError(
                "direction, gap, target and baseline are parts of the named operations; got them "
                "beside write, which has a direction and a length of its own"
            )
        # Copies: what the caller does to the tensors later changes nothing here.
        object.__setattr__(self, "write", write.detach().clone())
        if self.read is not None:
            object.__setattr__(self, "read", self.read.detach().clone())
        object.__setattr__(self, "direction", unit)
        object.__setattr__(self, "gap", norm)

    @property
    def n_first(self) -> float:
        """How many tokens of a response it may touch; infinity without a bound."""
        if self.scope == "prompt":
            return 0.0
        return float(self.scope.removeprefix("first:")) if ":" in self.scope else math.inf

    def touches(self, role: Role) -> bool:
        """Whether it touches any token of a role."""
        return self.scope in ("all", "prompt") if role == "prompt" else self.n_first > 0

    def touched(self, place: Int[Tensor, "pos"]) -> Bool[Tensor, "pos"]:
        """Which tokens it touches, given their places in the response (below 0 for the prompt)."""
        return torch.where(place < 0, self.touches("prompt"), place < self.n_first)

    @property
    def unit(self) -> Float[Tensor, "d_model"]:
        """The unit vector along which residuals are moved."""
        assert self.direction is not None  # seen to in __post_init__
        return self.direction

    @property
    def coefficients(self) -> tuple[float, float]:
        """``(a, b)`` of the amount ``a + b x·u`` by which residuals move along u.

        Raises:
            SteeringError: A general operation with a read direction.
        """
        if self.operation == "add":
            return self.strength * self.gap, 0.0
        if self.operation == "set_projection":
            return self.strength * self.target, -self.strength
        if self.operation == "ablate":
            return 0.0, -self.strength
        if self.read is not None:
            raise SteeringError(
                f"{self.label} reads another direction than it writes, which this analysis does "
                "not support; it takes add, set_projection and ablate"
            )
        amount = max(self.bias, 0.0) if self.gate == "relu" else self.bias
        return self.strength * amount * self.gap, 0.0

    def amount(self, projection: float) -> float:
        """How far a residual with this projection on u is moved along u."""
        offset, slope = self.coefficients
        # Without a slope the projection need not be known.
        amount = offset + (slope * projection if slope else 0.0)
        if self.only_below:
            return max(amount, 0.0)
        return min(amount, 0.0) if self.only_above else amount

    @property
    def terms(self) -> tuple[Tensor, Tensor | None, float, float, float]:
        """``(z, w, a, b, least)`` of ``x + max(a + b w·x, least) z``, strength included.

        z and w are float32; w is ``None`` where it is z.
        """
        if self.write is not None:
            read = torch.zeros_like(self.write) if self.read is None else self.read
            least = 0.0 if self.gate == "relu" else -math.inf
            return self.write.float() * self.strength, read.float(), self.bias, 1.0, least
        offset, slope = self.coefficients
        unit = self.unit.float()
        if self.only_above:
            return -unit, unit, -offset, -slope, 0.0
        return unit, None, offset, slope, 0.0 if self.only_below else -math.inf

    def describe(self) -> str:
        """One phrase, for example ``title: set_projection ×1 at layer 24 on all``."""
        operation = self.operation
        if self.write is not None:
            inside = f"{self.bias:g}" + ("" if self.read is None else " + w·x")
            operation = f"{'relu' if self.gate == 'relu' else ''}({inside}) z"
        side = ", only below its target" if self.only_below else ""
        side = ", only above its target" if self.only_above else side
        side += f", adaptive {self.adaptive:g}" if self.adaptive else ""
        return (
            f"{self.label}: {operation} ×{self.strength:g} at layer {self.layer} on {self.scope}"
            f"{side}"
        )


def check_scope(scope: str) -> None:
    """Refuse what is no scope.

    Raises:
        SteeringError: "scope 'first:0' needs a whole number of at least 1 …".
        UnknownNameError: Another name.

    >>> check_scope("first:8")
    """
    if isinstance(scope, str) and scope.startswith("first:"):
        if not re.fullmatch(r"first:0*[1-9][0-9]*", scope, re.ASCII):
            raise SteeringError(
                f"scope {scope!r} needs a whole number of at least 1 after the colon, such as "
                "'first:8'"
            )
    elif scope not in SCOPES[:3]:
        raise unknown_name("scope", scope, SCOPES)


def check_threshold(adaptive: float | int) -> None:
    """`SteeringError` unless it is 0 to 1."""
    if not 0 <= adaptive <= 1:
        raise SteeringError(f"adaptive must be 0 (a fixed strength) to 1; got {adaptive:g}")
