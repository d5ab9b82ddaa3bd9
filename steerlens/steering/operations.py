r"""Operations: how a residual is moved.

One form serves all. With a *write* direction :math:`z`, a *read* direction :math:`w`, a bias
:math:`a`, a *gate* :math:`\varphi` (the identity or ReLU) and a strength :math:`s`, a residual
:math:`x` (output of block *l*) becomes

.. math:: x \leftarrow x + s\, \varphi(a + w \cdot x)\, z

The named operations are cases of it, with :math:`z = u` the unit direction of a vector:

==================  ========  ======  ======  ====================================================
operation           φ         a       w       at strength 1
==================  ========  ======  ======  ====================================================
``add``             identity  gap     0       adds the mean difference itself
``set_projection``  identity  target  −u      the projection becomes the instructed mean
``only_below``      ReLU      target  −u      ``set_projection`` where it is below that mean
``ablate``          identity  0       −u      the projection becomes zero
==================  ========  ======  ======  ====================================================

``set_projection`` is the rule of Stolfo et al. 2025, §2.2; ``ablate`` is directional ablation
(Arditi et al. 2024). Any other case is given by its parts::

    Intervention(layer=20, write=z, read=w, bias=-1.5, gate="relu", scope="all")

which adds (w·x − 1.5) z to the tokens where w·x is above 1.5.

**Scope.** ``prompt`` touches the tokens of the prompt, ``response`` the tokens after it, ``all``
both; padding is never touched. `steerlens.steering.roles` says how tokens are told apart.

The first token of a response is not predicted at a token of the response: it is predicted at the
last position of the prompt. So ``response`` leaves it as it is without steering; the first token
it can change is the second. ``prompt`` changes the first one, and the later ones only through what
they attend to.

>>> z, w = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
>>> Intervention(layer=3, write=z, read=w, bias=-1.5, gate="relu", label="mine").describe()
'mine: relu(-1.5 + w·x) z ×1 at layer 3 on all'
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlens.errors import SteeringError, unknown_name
from steerlens.errors.arguments import finite_number, unit_direction, whole_number

__all__ = ["Gate", "Intervention", "Operation", "Scope"]

# The largest float32: gaps and targets are applied in it.
_LARGEST = torch.finfo(torch.float32).max

Operation = Literal["add", "set_projection", "ablate"]
Scope = Literal["all", "prompt", "response"]
Gate = Literal["identity", "relu"]
_GENERAL = "general"


@dataclass(frozen=True, eq=False)
class Intervention:
    """One direction applied at one layer: a named operation, or the general one by its parts.

    Attributes:
        layer: The block whose output is changed.
        direction: Unit vector; of the general operation, that of `write`.
        gap: Norm of the mean difference, or of `write` (residual-stream units).
        target: Mean instructed projection (residual-stream units).
        operation: ``add``, ``set_projection`` or ``ablate``; ``general`` where `write` is given.
        strength: Multiplier of the change.
        scope: ``all``, ``prompt`` or ``response``; see the module on what that leaves alone.
        label: What it carries, for people.
        n_layers: Depth of the model the vector was made for, when known.
        baseline: Mean uninstructed projection, when known (residual-stream units).
        only_below: Act only while the projection is below its target (``set_projection``).
        write: Direction z of the general operation, of any length (residual-stream units).
        read: Direction w; ``None`` reads nothing.
        bias: a, in units of w·x.
        gate: ``identity`` or ``relu``.

    Raises:
        SteeringError: A layer that is no whole number; a direction that is no unit vector (in half
            precision its norm may be 1 % off); a gap, target, baseline, bias or strength that is
            not finite in float32; a negative gap; parts of the general operation beside a named
            one, or that are no vectors.
        UnknownNameError: An operation, gate or scope that does not exist.
    """

    layer: int
    direction: Float[Tensor, "d_model"] | None = None
    gap: float = 0.0
    target: float = 0.0
    operation: str = _GENERAL
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

    def __post_init__(self) -> None:
        if self.gate not in get_args(Gate):
            raise unknown_name("gate", self.gate, get_args(Gate))
        if self.write is None:
            self._check_named()
        else:
            self._take_parts(self.write)
        if self.scope not in get_args(Scope):
            raise unknown_name("scope", self.scope, get_args(Scope))
        object.__setattr__(self, "layer", whole_number("layer", self.layer, error=SteeringError))
        unit_direction(f"the direction of {self.label}", self.direction, SteeringError)
        for name in ("strength", "gap", "target", "baseline", "bias"):
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
        """The general operation; its direction and gap are those of `write`."""
        if self.operation != _GENERAL:
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
        given = unit if self.direction is None else self.direction.detach().float().cpu()
        fits = given.shape == unit.shape and torch.allclose(given, unit, atol=1e-5)
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
    def unit(self) -> Float[Tensor, "d_model"]:
        """The unit vector along which residuals are moved."""
        assert self.direction is not None  # seen to in __post_init__
        return self.direction

    @property
    def coefficients(self) -> tuple[float, float]:
        """``(a, b)`` of the amount ``a + b x·u`` by which residuals move along the unit vector u.

        Raises:
            SteeringError: A general operation that reads another direction or has a gate.
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
                "not know; it takes add, set_projection and ablate"
            )
        amount = max(self.bias, 0.0) if self.gate == "relu" else self.bias
        return self.strength * amount * self.gap, 0.0

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, float, float, float]:
        """What a forward pass needs of ``x + max(a + b w·x, least) z``, strength included.

        Returns:
            z and w in float32 (``None``: w is z), a, b, and the least amount.
        """
        if self.write is None:
            offset, slope = self.coefficients
            return self.unit.float(), None, offset, slope, 0.0 if self.only_below else -math.inf
        read = torch.zeros_like(self.write) if self.read is None else self.read
        least = 0.0 if self.gate == "relu" else -math.inf
        return self.write.float() * self.strength, read.float(), self.bias, 1.0, least

    def describe(self) -> str:
        """One phrase, for example ``title: set_projection ×1 at layer 24 on all``."""
        what = self.operation
        if self.write is not None:
            inside = f"{self.bias:g}" + ("" if self.read is None else " + w·x")
            what = f"{'relu' if self.gate == 'relu' else ''}({inside}) z"
        return (
            f"{self.label}: {what} ×{self.strength:g} at layer {self.layer} "
            f"on {self.scope}{', only below its target' if self.only_below else ''}"
        )
