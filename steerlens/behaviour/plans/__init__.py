"""Plans: settings to choose between, the vectors they need, and the choice that was made.

================ ==================================================================
`settings`       one intervention as plain data; a candidate is some of them
`fitting`        vectors for an instruction by every estimator
`plan`           the choice for each instruction, in a folder
================ ==================================================================
"""

from steerlens.behaviour.plans.fitting import CONTRASTS, FitRecipe, VectorBook
from steerlens.behaviour.plans.plan import Plan
from steerlens.behaviour.plans.settings import NO_STEERING, Candidate, Setting, describe

__all__ = [
    "CONTRASTS",
    "NO_STEERING",
    "Candidate",
    "FitRecipe",
    "Plan",
    "Setting",
    "VectorBook",
    "describe",
]
