"""Claims about all evidence in one table: each column is what its own analysis says."""

import json
from dataclasses import replace

import numpy as np
import pytest

import steerlens as sl
from steerlens.attribution import (
    causal_recovery,
    generalise,
    pair_labels,
    rank_layers,
    writing_components,
)
from steerlens.attribution.evidence import _with_recovery, gather_evidence
from steerlens.cli.main import main
from steerlens.errors import ActivationError, SteeringError, UnknownNameError
from steerlens.tasks.pairs import ContrastPair, ContrastSet

WORDS = ["tea", "sea", "ink", "oak", "sky", "ice", "fog", "hay", "elm", "jam", "owl", "pie"]


def pairs_of(words: list[str]) -> ContrastSet:
    """Short pairs, because the small model reads 128 bytes."""
    return ContrastSet.from_prompts([f"{w}! LOUD." for w in words], [f"{w}." for w in words])


@pytest.fixture(scope="module")
def gathered(tiny_model):
    """All evidence on the small model, with the activations it came from."""
    cache = sl.cache_residuals(tiny_model, pairs_of(WORDS[:8]))
    held_out = pairs_of(WORDS[8:])
    found = gather_evidence(
        tiny_model, cache, held_out, ("separability", "causal", "components"), show_progress=False
    )
    return cache, held_out, found


def test_separability_is_what_it_is_alone(gathered):
    cache, _, found = gathered
    alone = rank_layers(cache).table
    assert np.array_equal(found.ranking.table["auroc"], alone["auroc"])


def test_recovery_is_that_of_held_out_pairs_and_chooses_the_layer(tiny_model, gathered):
    cache, held_out, found = gathered
    curve = causal_recovery(
        tiny_model, held_out, sl.difference_of_means(cache), horizons=(1, 32), show_progress=False
    ).table
    first = curve[(curve.horizon == 1) & (curve.scope == "prompt")].set_index("layer").recovery
    table = found.ranking.table.set_index("layer")
    last = tiny_model.cfg.n_layers - 1
    assert table.first_token_recovery.drop(last).to_numpy() == pytest.approx(first.drop(last))
    # The last layer takes no part, and the rule says what chose.
    assert np.isnan(table.first_token_recovery[last])
    assert found.ranking.best_layer == first.drop(last).idxmax()
    assert found.ranking.rule == "highest first_token_recovery"
    assert {"first_token_placebo", "response_recovery_all_low"} <= set(table.columns)


def test_recovery_does_not_choose_where_the_first_token_hardly_changes(gathered):
    cache, _, found = gathered
    effects = {1: 1e-5, 32: 1.0}
    faint = replace(
        found.recovery,
        metadata={**found.recovery.metadata, "kl_instructed_uninstructed": effects},
    )
    alone = rank_layers(cache)
    ranking = _with_recovery(alone, faint, last=2)
    assert ranking.best_layer == alone.best_layer
    assert "1e-05 nats only" in ranking.rule
    assert "first_token_recovery" in ranking.kinds


def test_writing_adds_up_over_layers_and_the_embedding(tiny_model, gathered):
    cache, held_out, found = gathered
    parts = writing_components(
        tiny_model,
        held_out,
        sl.difference_of_means(cache),
        found.ranking.best_layer,
        show_progress=False,
    ).table
    embedding = parts[parts.kind == "embed"].share.sum()
    assert found.ranking.table.writing.sum() + embedding == pytest.approx(1, abs=1e-4)


def test_without_causal_evidence_nothing_is_run_and_auroc_chooses(tiny_model, gathered):
    cache, _, _ = gathered
    found = gather_evidence(tiny_model, cache, evidence=("separability",))
    assert found.recovery is None and found.writing is None
    assert "AUROC" in found.ranking.rule


def test_what_cannot_be_gathered_is_said(tiny_model, gathered):
    cache, _, _ = gathered
    with pytest.raises(UnknownNameError, match="casual"):
        gather_evidence(tiny_model, cache, evidence=("casual",))
    with pytest.raises(ActivationError, match="held_out"):
        gather_evidence(tiny_model, cache, evidence=("causal",))


def test_generalisation_is_that_of_the_analysis_and_needs_labels(tiny_model):
    pairs = ContrastSet(
        tuple(
            ContrastPair(f"{w}! {said}", f"{w}.", base_query=w, phrasing=said)
            for w in WORDS[:8]
            for said in ("LOUD.", "SHOUT.")
        )
    )
    cache = sl.cache_residuals(tiny_model, pairs)
    found = gather_evidence(tiny_model, cache, evidence=("generalisation",), fitted_on=pairs)
    own = generalise(cache, pair_labels(pairs, "phrasing")).summary
    table = found.ranking.table
    assert table.unseen_phrasing.to_numpy() == pytest.approx(own.unseen.to_numpy())
    assert table.unseen_phrasing_low.to_numpy() == pytest.approx(own.unseen_low.to_numpy())
    assert "unseen_phrasing" in found.drawn and "unseen_kind" not in table
    with pytest.raises(ActivationError, match="fitted_on"):
        gather_evidence(tiny_model, cache, evidence=("generalisation",))
    bare = pairs_of(WORDS[:8])
    with pytest.raises(ActivationError, match="generalisation cannot be computed"):
        gather_evidence(
            tiny_model, sl.cache_residuals(tiny_model, bare), evidence=("generalisation",),
            fitted_on=bare,
        )  # fmt: skip


def test_the_command_keeps_pairs_of_a_file_back_for_causal_evidence(tiny_folder, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    rows = [{"instructed": f"{w}! LOUD.", "uninstructed": f"{w}."} for w in WORDS]
    file.write_text("\n".join(map(json.dumps, rows)))
    command = ["rank", "--model", str(tiny_folder), "--device", "cpu", "--pairs", str(file)]
    evidence = ["--evidence", "separability,causal,components", "--out", str(tmp_path / "out")]
    assert main([*command, *evidence, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["n_pairs"] == 9
    assert {"first_token_recovery", "first_token_recovery_low"} <= set(record["layers"][0])
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"ranking.json", "ranking.html", "recovery.csv", "components.csv"} <= written
    # And too few pairs are refused before anything is loaded.
    file.write_text("\n".join(map(json.dumps, rows[:6])))
    assert main([*command, "--evidence", "causal"]) == 2
    assert "at least 8" in capsys.readouterr().err


def test_the_layer_chosen_by_recovery_comes_with_how_often_resamples_choose_it(gathered):
    _, _, found = gathered
    frequency = found.ranking.selection_frequency
    # Every resample chooses one layer, never the last, which has no recovery.
    assert sum(frequency.values()) == pytest.approx(1)
    assert frequency[max(frequency)] == 0
    assert found.ranking.table.selection_frequency.sum() == pytest.approx(1)


def test_resamples_of_recovery_lie_around_it(gathered):
    _, _, found = gathered
    table, samples = found.recovery.table, found.recovery.samples
    assert samples.shape == (len(table), 1000)
    middle = np.median(samples, axis=1)
    assert (middle >= table.low).all() and (middle <= table.high).all()


def test_every_result_draws_itself(gathered):
    cache, _, found = gathered
    vector = sl.difference_of_means(cache)
    for result in (found.ranking, found.recovery, found.writing, vector):
        assert len(result.plot().data) > 0
        assert "<table" in result._repr_html_()
    with pytest.raises(SteeringError, match=r"measured are \[1, 32\]"):
        found.recovery.plot(horizon=5)


def test_every_further_kind_is_a_column_of_the_table_and_a_result_of_its_own(
    roomy_model, tmp_path, monkeypatch
):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path))
    phrasings = ["Shout.", "Be loud.", "Yell it.", "Cry out."]
    task = sl.Task("loud", phrasings, queries=[f"Name {i}." for i in range(16)])
    pairs = sl.contrast_pairs(task, n=6)
    held_out = sl.contrast_pairs(task, n=3, split="select")
    cache = sl.cache_residuals(roomy_model, pairs)
    kinds = ("specificity", "other_task", "geometry", "vocabulary", "reading", "patching")
    found = gather_evidence(roomy_model, cache, held_out, kinds, show_progress=False, task=task)
    assert set(found.details) == set(kinds) - {"other_task"}
    table = found.table.set_index("layer")
    patched = found.details["patching"].table
    last = patched[patched.position == -1].set_index("layer").recovery
    np.testing.assert_allclose(table.patching, last)
    np.testing.assert_allclose(
        table.specific_recovery, table.first_token_recovery - table.other_task_recovery
    )
    own = sl.specificity(roomy_model, task).table
    np.testing.assert_allclose(table.specific_auroc, own.specific_auroc)
    assert {"next_cosine", "vocabulary_z", "placebo_z", "specific_p"} <= set(table)
    # The share that later layers make, and what was added itself, are all of the effect.
    reading = found.details["reading"]
    direct = reading.table.loc[reading.table.component == "direct", "share"].sum()
    assert table.reading.sum() + direct == pytest.approx(1, abs=1e-4)
    # Without "causal" no response is written.
    assert set(found.recovery.table.horizon) == {1}
    assert "response_recovery_all" not in table
    with pytest.raises(ActivationError, match="give it as task="):
        gather_evidence(roomy_model, cache, held_out, ("specificity",))
