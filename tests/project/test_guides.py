"""The Python of the guides runs as written, but for the model and sizes.

The model is tiny, with random weights, layers are counted down to its own, and numbers of prompts
and tokens are small: that the calls work is claimed here, and what they find on the real model is
in the executed notebooks and in the results.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from small_search import SMALL

import steerlens as sl
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.search.settings import Stage
from steerlens.training.fitting import TrainingSettings

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = (
    "choose-a-layer",
    "how-hard",
    "every-token",
    "when-nothing-moves",
    "several-at-once",
    "other-models",
    "side-effects",
)
TINY = replace(SMALL, broad=Stage(2, 4, 1), narrow=Stage(2, 4, 1), final=Stage(2, 4, 1))
TRAINED = TrainingSettings(n_examples=16, max_tokens=12, n_steps=2, batch_size=2, look_every=1)


def blocks(name: str) -> list[str]:
    """The Python of a guide, with small sizes and for a model of three layers."""
    text = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    small = [re.sub(r"max_new_tokens=\d+", "max_new_tokens=4", block) for block in found]
    small = [re.sub(r"\bn=\d+", "n=8", block) for block in small]
    small = [re.sub(r"\b(20|22|24)\b", "1", block) for block in small]
    return [re.sub(r"layers=\(8,", "layers=(0,", block) for block in small]


@pytest.fixture
def small(tmp_path, monkeypatch, roomy_model):
    """Another model in the place of the real one, and small sizes where the guides leave them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sl, "load_model", lambda *_, **__: roomy_model)
    monkeypatch.setattr(sl.SearchSettings, "quick", lambda **given: replace(TINY, **given))
    monkeypatch.setattr("steerlens.training.directions.TrainingSettings", lambda: TRAINED)
    monkeypatch.setattr("steerlens.attribution.ceiling.CEILING_TRAINING", TRAINED)
    monkeypatch.setattr(
        sl, "EvaluationSettings", lambda **given: EvaluationSettings(max_new_tokens=4, **given)
    )


@pytest.mark.filterwarnings("ignore::steerlens.SteerlensWarning")
@pytest.mark.parametrize("name", GUIDES)
def test_the_python_of_a_guide_runs(name, small):
    names = {}
    for block in blocks(name):
        exec(compile(block, name, "exec"), names)
    assert "model" in names


def test_no_guide_with_python_is_left_out():
    with_python = {path.stem for path in DOCS.glob("*.md") if "```python" in path.read_text()}
    # The first, the explorer and other tools have tests of their own; results and scaling show
    # single calls that take hours.
    elsewhere = {"bring-your-own-behaviour", "explorer", "other-tools", "results", "scaling"}
    assert with_python - elsewhere == set(GUIDES)
