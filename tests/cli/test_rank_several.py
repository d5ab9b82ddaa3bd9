"""Claims about `steerlens rank` for several tasks, and for kinds that compare tasks."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from steerlens.attribution.ceiling import CEILING_TRAINING
from steerlens.cli.main import main

SHORT = """
id: loud
phrasings: [Shout., Be loud., Yell it., Cry out.]
queries: [{}]
"""


@pytest.fixture
def loud(tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "loud.yaml"
    file.write_text(SHORT.format(", ".join(f"Name {i}." for i in range(16))))
    return str(file)


def test_a_task_that_fails_is_named_and_the_others_are_written(tiny_folder, loud, tmp_path, capsys):
    # Given a model whose context is too short for the catalogue's prompts,
    model = ["rank", "--model", str(tiny_folder), "--device", "cpu", "--n", "8"]
    tasks = ["--task", "detectable_format:title", "--task", loud]
    assert main([*model, *tasks, "--out", str(tmp_path / "out"), "--json"]) == 2
    printed = capsys.readouterr()
    # then the task that fits it is there, and the other is named last.
    assert [record["task"] for record in json.loads(printed.out)] == ["loud"]
    assert (tmp_path / "out" / "loud" / "ranking.csv").is_file()
    last = printed.err.strip().splitlines()[-1]
    assert "1 of 2 tasks failed" in last and last.endswith("detectable_format:title")
    assert "reads at most 128" in printed.err
    # And alone it fails as it always did.
    assert main([*model, *tasks[:2]]) == 2
    assert "tasks failed" not in capsys.readouterr().err


def test_kinds_beside_other_tasks_are_columns_and_files(roomy_folder, loud, tmp_path, capsys):
    command = ["rank", "--model", str(roomy_folder), "--device", "cpu", "--task", loud, "--n", "8"]
    assert main([*command, "--evidence", "specificity,geometry", "--out", str(tmp_path / "o")]) == 0
    shown = capsys.readouterr().out
    assert "specific_auroc" in shown and "own_share" in shown and "next_cosine" in shown
    table = pd.read_csv(tmp_path / "o" / "specificity.csv")
    assert {"specific_auroc_low", "off_mean_share", "specific_p"} <= set(table)
    ranking = pd.read_csv(tmp_path / "o" / "ranking.csv")
    pd.testing.assert_series_equal(ranking.specific_auroc, table.specific_auroc, rtol=1e-9)
    assert (tmp_path / "o" / "geometry.csv").is_file()


def test_the_ceiling_is_a_kind_of_evidence(roomy_folder, loud, tmp_path, capsys, monkeypatch):
    short = replace(CEILING_TRAINING, n_examples=12, max_tokens=6, n_steps=2, look_every=1)
    monkeypatch.setattr("steerlens.attribution.ceiling.CEILING_TRAINING", short)
    command = ["rank", "--model", str(roomy_folder), "--device", "cpu", "--task", loud, "--n", "8"]
    assert main([*command, "--evidence", "ceiling", "--out", str(tmp_path / "o")]) == 0
    assert "ceiling_share" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "o" / "ceiling.csv")
    assert {"mean_difference_low", "other_task", "placebo", "share", "cosine"} <= set(table)
    ranking = pd.read_csv(tmp_path / "o" / "ranking.csv").dropna(subset="ceiling")
    assert ranking.ceiling.tolist() == pytest.approx(table.ceiling.tolist(), rel=1e-9)


def test_a_trained_vector_steers_on_the_command_line(roomy_folder, loud, tmp_path, capsys):
    model, path = ["--model", str(roomy_folder), "--device", "cpu"], tmp_path / "v.safetensors"
    trained = ["--objective", "regress", "--gate", "--layer", "0", "--layer", "1"]
    assert main(["vector", *model, "--task", loud, *trained, "--out", str(path)]) == 0
    steered = ["--vector", str(path), "--layer", "1", "--operation", "general", "--prompt", "Hi"]
    assert main(["steer", *model, *steered, "--max-new-tokens", "2", "--json"]) == 0
    assert main(["vector", *model, "--task", loud, "--gate", "--out", str(path)]) == 2
    assert "--gate is for --objective" in capsys.readouterr().err
