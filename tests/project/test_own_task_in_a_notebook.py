"""A task defined in a notebook cell goes through the whole chain, and the notebooks' helpers."""

import sys
from pathlib import Path

import pytest
from small_search import SMALL

from steerlens.behaviour.evaluation import catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.reports.settings import ReportSettings

ROOT = Path(__file__).parents[2]

DEFINED = """
QUERIES = [f"What is {word}?" for word in ("tea", "rain", "snow", "bread", "light", "glass")]
QUERIES += [f"Why {word}?" for word in ("sing", "swim", "read", "sleep", "dance", "cook")]

def is_even(text):
    return len(text) % 2 == 0

task = sl.Task("even", ["In pairs!", "Be even.", "Even.", "Do two."], QUERIES, check=is_even)
"""

CHAIN = [
    "import steerlens as sl",
    DEFINED,
    "pairs = sl.contrast_pairs(task, n=8)\npairs[0].instructed",
    "cache = sl.cache_residuals(model, pairs, batch_size=8)\ncache",
    "ranking = sl.rank_layers(cache)\nranking",
    'plan = sl.search(model, [task], "plan", small)\nplan',
    "prompts = catalogue_prompts([task], 2)",
    "result = sl.evaluate(model, prompts, 'evaluation', plan, answers)\nresult",
    "page = sl.report(model, [task], 'report', plan=plan, settings=samples)\npage",
]

HELPERS = [
    "import steerlens as sl\nfrom analyses import behaviour, steerability",
    DEFINED,
    'plan = behaviour.planned(model, [task], "even")',
    'result = behaviour.evaluated(model, behaviour.report_prompts([task]), "report", plan)',
    'table = steerability.evidence_by_layer(model, [task], "own")["even"]',
    "costs = steerability.evidence_costs(model, task)",
]


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A shell like a notebook's, in a folder of its own; runs cells, of which none may fail."""
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.chdir(tmp_path)
    shell = interactiveshell.InteractiveShell()

    def run(cells, **names):
        shell.push(names)
        for cell in cells:
            shell.run_cell(cell, store_history=True).raise_error()
        return shell.user_ns

    return run


def test_a_task_of_a_cell_goes_from_pairs_to_report(notebook, tiny_model, tmp_path):
    # given sizes for a tiny model / when every cell runs
    names = notebook(
        CHAIN,
        model=tiny_model,
        small=SMALL,
        answers=EvaluationSettings(max_new_tokens=6),
        samples=ReportSettings(n_samples=1, max_new_tokens=4, recovery_every=1),
        catalogue_prompts=catalogue_prompts,
    )
    # then every result is of that task, and its check was the cell's function
    task = names["task"]
    assert names["ranking"].table["layer"].tolist() == [0, 1, 2]
    assert names["plan"].data["instructions"]["even"]["task_hash"] == task.hash
    for row in names["result"].responses:
        answer = row["response"]
        assert row["strict"] == (bool(answer.strip()) and len(answer) % 2 == 0)
    assert names["page"].table["task"].tolist() == ["even"]
    assert "even" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")


def test_the_helpers_of_the_notebooks_take_it(notebook, tiny_model, tmp_path, monkeypatch):
    # given small sizes, which the helpers read when they are imported
    monkeypatch.setenv("STEERLENS_SMALL", "1")
    monkeypatch.setenv("STEERLENS_RUNS", str(tmp_path / "runs"))
    monkeypatch.syspath_prepend(str(ROOT))
    for module in [each for each in sys.modules if each.partition(".")[0] == "analyses"]:
        monkeypatch.delitem(sys.modules, module)
    # when every cell runs
    names = notebook(HELPERS, model=tiny_model)
    # then each has taken the task
    assert names["plan"].instructions == ("even",)
    assert {tuple(row["instruction_id_list"]) for row in names["result"].responses} == {("even",)}
    assert names["table"]["layer"].tolist() == [0, 1, 2]
    assert (names["costs"]["passes"] > 0).any()
