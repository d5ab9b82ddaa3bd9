"""Claims about the search's estimators beside other tasks."""

import numpy as np
import pytest
import torch
from small_search import SMALL, TITLE

from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.behaviour.plans.fitting import SPECIFIC
from steerlens.behaviour.search.space import combinations, first_candidates
from steerlens.errors import UnknownNameError
from steerlens.tasks import catalogue


@pytest.fixture(scope="module")
def vectors(roomy_model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEERLENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        recipe = FitRecipe(n_pairs=4, least_own=2, estimators=("last_prompt", *SPECIFIC))
        book = VectorBook(Answerer(roomy_model), recipe)
        fitted, problems = book.available(catalogue[TITLE], {})
        # Twenty-nine others span all sixteen dimensions of this model.
        assert set(problems) == {"prompt_own"} and "nothing of" in problems["prompt_own"]
        yield fitted


def test_contrasts_with_another_sentence_take_away_what_any_sentence_does(vectors):
    # The instructed side is the same, so only the other side moves.
    plain = vectors["last_prompt"]
    for name in ("prompt_neutral", "prompt_others"):
        assert vectors[name].metadata["contrast"] == name
        assert not torch.allclose(vectors[name].directions, plain.directions, atol=1e-2)
        instructed = [vector.gaps[:, None] * vector.directions for vector in (vectors[name], plain)]
        assert all(np.isfinite(side.numpy()).all() for side in instructed)


def test_they_are_tried_only_where_the_recipe_names_them():
    assert not set(SPECIFIC) & set(SMALL.recipe.estimators)
    tried = {c[0].estimator for c in first_candidates(["last_prompt"], 30, None)}
    assert tried == {"last_prompt"}
    candidates = first_candidates(["prompt_others", "response_own"], 30, {20: 0.9, 10: 0.2})
    others = [c for c in candidates if c[0].estimator == "prompt_others"]
    assert {c[0].layer for c in others} == {20, 10} and len(others) == 4
    assert combinations(candidates)[0][0].estimator == "prompt_others"
    with pytest.raises(UnknownNameError, match="prompt_others"):
        FitRecipe(estimators=("prompt_other",))
