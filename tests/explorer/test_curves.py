"""The explorer's evidence about layers, and its map of strength × layer."""

import numpy as np
import pytest
from explorer_example import answered, quiet_explorer
from steering_examples import random_vector

import steerlens as sl
from steerlens.explorer.evidence import LayerEvidence
from steerlens.explorer.sources import Fitted, Sources, pairs_of
from steerlens.tasks import catalogue
from steerlens.tasks.pairs import ContrastSet

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")

TITLE = "detectable_format:title"


@pytest.fixture(scope="module")
def gathered(roomy_model):
    """An explorer that has answered, and gathered its evidence."""
    explorer = quiet_explorer(roomy_model, n_pairs=6)
    explorer.curves.gathers.value = True
    explorer.decoding.max_new_tokens.value = 3
    explorer.a.source.value = TITLE
    answered(explorer, 300.0)
    return explorer


def test_curves_are_those_of_the_packages_own_functions(gathered, roomy_model) -> None:
    evidence = gathered._evidence[TITLE]
    assert evidence.n_left == 0 and evidence.missing == {}
    # Recovery was measured in parts, and is that of one call
    vector = gathered.sources.fitted[TITLE].vector
    pairs = pairs_of(catalogue[TITLE], 8, "select")
    whole = sl.first_token_recovery(roomy_model, pairs, vector, show_progress=False)
    np.testing.assert_allclose(evidence.recovery.table, whole.table, atol=1e-4)
    assert evidence.recovery.best_layer == whole.best_layer
    # All kinds stand in one table, and each has its panel
    ranking = evidence.ranking
    assert ranking.kinds == ("auroc", "specific_auroc", "recovery")
    separability = sl.rank_layers(gathered.sources.fitted[TITLE].residuals, n_resamples=200)
    np.testing.assert_allclose(ranking.table.auroc, separability.table.auroc)
    panels = [a.text for a in gathered.curves.plot.figure.layout.annotations]
    assert panels == ["AUROC", "specific auroc", "recovery"]


def test_a_click_on_a_curve_moves_the_slider(gathered) -> None:
    gathered.a.layer.value = 0
    plot = gathered.curves.plot
    plot._received(plot, {"kind": "click", "trace": 1, "index": 1, "x": 1, "y": 0.5}, [])
    assert gathered.a.layer.value == 1
    answered(gathered)
    assert gathered.answers.trial.settings[0].layer == 1
    here = [s for s in gathered.curves.plot.figure.layout.shapes if s.name == "layer of the slider"]
    assert here and {shape.x0 for shape in here} == {1}
    # So does a button that names the best layer by a kind of evidence
    [best, *_] = gathered.curves._best.children
    best.click()
    assert f"layer {gathered.a.layer.value}:" in best.description
    answered(gathered)


def test_evidence_that_was_cancelled_goes_on_where_it_ended(roomy_model, monkeypatch) -> None:
    evidence = LayerEvidence(Sources(roomy_model, n_pairs=4).fit(TITLE))
    pieces = evidence.gather(roomy_model)
    next(pieces), next(pieces)
    pieces.close()
    known = evidence.separability
    assert known is not None and evidence.recovery is not None
    next(evidence.gather(roomy_model))
    assert evidence.separability is known and len(evidence.recovery.table) > 1


def test_what_cannot_be_measured_has_its_reason(tiny_model) -> None:
    # Given pairs without queries to hold out, and a vector file
    asked = ["Why?", "Who?", "How far?", "When was it?"]
    pairs = ContrastSet.from_prompts([f"{text} Shout." for text in asked], asked)
    task = sl.Task.from_pairs(pairs)
    explorer = quiet_explorer(tiny_model, task)
    explorer.curves.gathers.value = True
    explorer.decoding.max_new_tokens.value = 2
    # When the evidence is gathered
    explorer.a.source.value = "pairs"
    answered(explorer)
    # Then each kind that is missing has a sentence, and the explorer goes on
    evidence = explorer._evidence["pairs"]
    assert evidence.n_left == 0 and set(evidence.missing) == {"recovery", "specific_auroc"}
    assert "no recovery: " in explorer.curves.caption.value
    # And of a vector file there is the vector
    explorer.sources.fitted["v"] = Fitted(random_vector(3, 16))
    explorer.a.source.value = "v"
    answered(explorer)
    assert explorer.curves.plot.figure is not None and explorer.curves.caption.value == ""


def test_a_sweep_is_what_generate_gives_cell_by_cell(gathered, roomy_model) -> None:
    explorer = gathered
    explorer.map.layers.value, explorer.map.strengths.value = "0, 2", "1, -2"
    seen = []
    show = explorer.map.show
    explorer.map.show = lambda so_far: (seen.append(len(so_far.cells)), show(so_far))
    explorer.start_sweep()
    explorer.worker.wait(120.0)
    explorer.map.show = show
    sweep = explorer.map.sweep
    # Every cell has the answer of its setting
    vector, prompt = explorer.vector, explorer.conversation.prompt.value
    steerings = [vector.at(layer, strength=s) for layer in (0, 2) for s in (1.0, -2.0)]
    expected = sl.generate(roomy_model, [prompt] * 4, steerings, max_new_tokens=3)
    assert [sweep.at(layer, s)[0].text for layer in (0, 2) for s in (1.0, -2.0)] == list(
        expected.texts
    )
    # And its KL at the first token is that of the effects
    effects = sl.steer(roomy_model, prompt, steerings[0], max_new_tokens=1).effects
    first = float(effects.kl[effects.n_prompt - 1])
    assert sweep.at(0, 1.0)[0].kl == pytest.approx(first, abs=1e-4)
    assert sweep.value == "passed" and len(sweep.table) == 4 and seen[0] == 0
    # A click shows the texts of a cell, and it can be used
    explorer.map.plot._received(None, {"kind": "click", "x": "2", "y": "-2"}, [])
    assert explorer.map.cell.value == (2, -2.0) and "check" in explorer.map.text.value
    explorer.map._use(explorer._use_cell)
    answered(explorer)
    assert (explorer.a.layer.value, explorer.a.strength.value) == (2, -2.0)
    # And what was swept is not answered again
    explorer.map.layers.value = "0, 1, 2"
    explorer.start_sweep()
    explorer.worker.wait(120.0)
    assert len(explorer.map.sweep.cells) == 6 and explorer.map.cell.value == (2, -2.0)


def test_a_sweep_of_nonsense_is_refused_in_a_sentence(gathered) -> None:
    gathered.map.layers.value = "four"
    gathered.start_sweep()
    assert "a sweep needs layers, whole numbers" in gathered.message.value
    gathered.map.layers.value = "77"
    gathered.start_sweep()
    gathered.worker.wait(60.0)
    assert "77" in gathered.message.value
