"""A search small enough for a test: one task, few prompts, short answers."""

from steerlens.behaviour.plans import FitRecipe
from steerlens.behaviour.search import SearchSettings, Stage

TITLE = "detectable_format:title"
SMALL = SearchSettings(
    broad=Stage(2, 6, 2),
    narrow=Stage(2, 8, 1),
    final=Stage(3, 8, 1),
    n_evidence=2,
    recipe=FitRecipe(n_pairs=4, n_responses=8, n_wording=4, response_tokens=8, least_own=2),
    batch_size=32,
)
