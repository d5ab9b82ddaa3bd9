"""What a report measures."""

from dataclasses import dataclass

from steerlens.attribution import EVIDENCE_KINDS
from steerlens.errors import SteerlensError, unknown_name
from steerlens.steering.operations import check_scope

__all__ = ["ReportSettings"]

# Token details are most of a page: fewer samples keep one with many tasks under 8 MB.
_FEW_TASKS, _SAMPLES_OF_FEW, _SAMPLES_OF_MANY = 12, 4, 2


@dataclass(frozen=True)
class ReportSettings:
    """What a report measures; all of it goes into the report's provenance.

    Attributes:
        n_pairs: Contrast pairs per task (``fit`` split) for vector and separability; by default
            64, or all of a task that has fewer.
        n_recovery: Pairs of the ``select`` split for causal recovery; 16 by default, or all.
        n_samples: Prompts per task that are answered and shown; by default 4, or 2 for more than
            12 tasks.
        recovery_every: Recovery is measured at every so many layers, except the last.
        operation: Operation of recovery and samples.
        strength: Its strength.
        scope: Its scope; choices are steered where the answer is predicted.
        max_new_tokens: Longest sample response, in tokens.
        batch_size: Prompts per forward pass.
        seed: Seed of everything random.
        evidence: Further kinds of evidence to show (`steerlens.attribution.EVIDENCE_KINDS`); each
            task then takes most of a minute.

    Raises:
        SteerlensError: A size below 1, or a seed out of range.
        UnknownNameError: A kind of evidence that does not exist.
    """

    n_pairs: int | None = None
    n_recovery: int | None = None
    n_samples: int | None = None
    recovery_every: int = 3
    operation: str = "set_projection"
    strength: float = 1.0
    scope: str = "all"
    max_new_tokens: int = 96
    batch_size: int = 32
    seed: int = 0
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Checked now: a report takes minutes before it would use the last of these.
        for name in ("n_samples", "recovery_every", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SteerlensError(f"{name} must be at least 1; got {value}")
        check_scope(self.scope)
        for kind in self.evidence:
            if kind not in EVIDENCE_KINDS:
                raise unknown_name("kind of evidence", kind, EVIDENCE_KINDS)
        if not 0 <= self.seed < 2**32:
            raise SteerlensError(f"seed must be between 0 and {2**32 - 1}; got {self.seed}")

    def samples_for(self, n_tasks: int) -> int:
        """Samples per task in a report on so many."""
        if self.n_samples is not None:
            return self.n_samples
        return _SAMPLES_OF_FEW if n_tasks <= _FEW_TASKS else _SAMPLES_OF_MANY
