"""Plans: candidates to choose between, the vectors they need, and the choice that was made.

================ ==================================================================
`candidates`     one intervention as plain data; a candidate is a tuple of them
`fitting`        a task's vectors by every estimator
`plan`           the choice for each task, in a folder
================ ==================================================================
"""

from steerlens.behaviour.plans.candidates import (
    NO_STEERING,
    Candidate,
    InterventionSpec,
    describe,
)
from steerlens.behaviour.plans.fitting import FitRecipe, VectorBook
from steerlens.behaviour.plans.plan import Plan

__all__ = [
    "NO_STEERING",
    "Candidate",
    "FitRecipe",
    "InterventionSpec",
    "Plan",
    "VectorBook",
    "describe",
]
