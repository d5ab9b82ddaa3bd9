"""One page: the evidence about layers, the settings searched, and what the choice did to tokens."""

import json
import re

import pytest

import steerlens as sl
from steerlens.behaviour.plans.fitting import FitRecipe
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search.settings import Stage
from steerlens.errors import SteerlensError
from steerlens.reports import render_report
from steerlens.reports.settings import ReportSettings
from steerlens.tasks import Task

WORDS = ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk", "iron", "wool", "ice")
SETTINGS = ReportSettings(n_samples=1, max_new_tokens=4)
SEARCH = SearchSettings(
    broad=Stage(2, 4, 2), narrow=Stage(2, 4, 1), final=Stage(3, 4, 1), n_evidence=2, horizon=4,
    recipe=FitRecipe(4, 4, 4, response_tokens=4, least_own=2),
)  # fmt: skip


def text_of(markup: str) -> str:
    body = re.sub(r"<script.*?</script>", "", markup, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


@pytest.fixture(scope="module")
def tasks():
    """One task of each kind: phrasings with a check, pairs without one, choices."""
    queries = [f"What is {word}?" for word in WORDS]
    sing = Task("sing", ["Sing!", "In song.", "As a song."], queries, lambda s: len(s) % 2 == 0)
    pairs = [
        {"instructed": f"Sing: {w}!", "uninstructed": f"What is {w}?", "kwargs": {"word": w}}
        for w in WORDS
    ]
    likes = [
        {
            "question": f"Do you like {word}?",
            "answer_matching_behavior": "Yes",
            "answer_not_matching_behavior": "No",
        }
        for word in WORDS
    ]
    from_pairs = Task.from_pairs(sl.tasks.pairs.ContrastSet.from_dataset(pairs), id="songs")
    return sing, from_pairs, Task.from_choices(likes, id="likes")


@pytest.fixture(scope="module")
def report(tiny_model, tasks, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return sl.report(
        tiny_model, tasks, out, settings=SETTINGS, search_settings=SEARCH, show_progress=False
    )


def test_a_report_with_a_search_shows_every_setting_tried_and_the_choice(report):
    text = text_of(report.page.read_text())
    plan = sl.Plan.load(report.page.parent / "search")
    for task in report.data["instructions"]:
        tried = plan.data["instructions"][task["id"]]["table"]
        assert task["search"]["tried"] == tried
        assert f"{len(tried)} settings were tried" in text
        assert " ".join(plan.described(task["id"]).split()) in text
        parts = plan.candidate(task["id"])
        if parts:
            assert task["steering"]["layer"] == parts[0].layer


def test_the_page_says_for_each_task_what_was_measured(report):
    text = text_of(report.page.read_text())
    measures = [task["measure"] for task in report.data["instructions"]]
    assert measures == ["rate", "recovery", "log_odds_change"]
    assert text.count("This task has no check, so no rate of passing is measured") == 2
    assert "behaviour is measured by causal recovery" in text
    assert "behaviour is measured by change of log odds (nats)" in text
    passed = [task["samples"][0]["steered"]["passed"] for task in report.data["instructions"]]
    assert isinstance(passed[0], bool) and passed[1:] == [None, None]


def test_choices_are_shown_by_the_slope_of_their_log_odds(report, tiny_model, tasks):
    *_, likes = report.data["instructions"]
    assert likes["recovery"] == []
    vector = report.vectors["likes"]
    curve = sl.choice_curve(
        tiny_model, tasks[2], vector, [0], split="report", show_progress=False
    ).slopes.iloc[0]
    choices = likes["choices"]
    assert choices["layers"][0]["slope"] == pytest.approx(curve.slope, abs=1e-5)
    page = report.page.read_text()
    assert "Slope of the log odds of likes over layers" in page
    verdict = "Steering moves these choices" if choices["steerable"] else "Nothing shows that it"
    assert verdict in text_of(page)
    assert "Neither answer has" in text_of(page)
    assert "The matching answer is “Yes” in 100% of the items." in text_of(page)


def test_samples_of_pairs_have_the_arguments_of_their_pair(report):
    songs = report.data["instructions"][1]
    for sample in songs["samples"]:
        assert sample["prompt"] == f"What is {sample['kwargs']['word']}?"


def test_a_report_made_again_searches_nothing_again(report, tiny_model, tasks, monkeypatch):
    def again(*_args, **_options):
        raise AssertionError("answered again")

    monkeypatch.setattr("steerlens.behaviour.answers.answer_rows", again)
    with pytest.raises(AssertionError, match="measured again"):
        monkeypatch.setattr(
            "steerlens.reports.layer_selection.measure_task",
            lambda *_: (_ for _ in ()).throw(AssertionError("measured again")),
        )
        out = report.page.parent
        options = {"settings": SETTINGS, "search_settings": SEARCH, "show_progress": False}
        sl.report(tiny_model, tasks, out, **options)


def test_a_plan_and_a_search_are_not_taken_together(tiny_model, tasks, tmp_path, report):
    plan = sl.Plan.load(report.page.parent / "search")
    with pytest.raises(SteerlensError, match="either a plan or the settings of a search"):
        sl.report(tiny_model, tasks, tmp_path, plan, SETTINGS, search_settings=SEARCH)


def test_a_report_of_an_earlier_version_has_no_settings_searched(report):
    data = json.loads(json.dumps(report.data))
    for task in data["instructions"]:
        for name in ("search", "measure", "choices"):
            del task[name]
    assert "Settings searched" not in render_report(data)
