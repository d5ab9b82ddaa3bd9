"""Every command and every Python block of the guide to a behaviour of one's own runs as written.

On a tiny model with random weights, and with sizes added to the commands that make them short: that
they work is claimed here, and what they find on the real model is shown in the guide.
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from small_search import SMALL

import steerlens as sl
from steerlens.behaviour.search import SearchSettings
from steerlens.behaviour.search.settings import Stage
from steerlens.cli.main import main

ROOT = next(folder for folder in Path(__file__).parents if (folder / "examples").exists())
GUIDE = (ROOT / "docs" / "bring-your-own-behaviour.md").read_text(encoding="utf-8")
SHORT = {
    "rank": "--n 4",
    "search": "--judge none",
    "evaluate": "--n 2 --max-new-tokens 4 --judge none",
    "report": "--n 4 --samples 1 --max-new-tokens 4",
}
TINY = replace(SMALL, broad=Stage(2, 4, 1), narrow=Stage(2, 4, 1), final=Stage(2, 4, 1), horizon=4)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[1:] for line in words if line[:1] == ["steerlens"]]


@pytest.fixture
def workplace(tmp_path, monkeypatch, roomy_model):
    """A folder with the examples in it, where commands are given; their model is at hand."""
    monkeypatch.setattr("steerlens.models.loading.load_model", lambda *_, **__: roomy_model)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(SearchSettings, "quick", lambda **settings: replace(TINY, **settings))
    return tmp_path


@pytest.mark.filterwarnings("ignore::steerlens.SteerlensWarning")
def test_every_command_of_the_guide_works(workplace, capsys):
    assert {words[0] for words in commands()} >= {"tasks", "rank", "search", "evaluate", "report"}
    for words in commands():
        added = SHORT.get(words[0], "").split()
        assert main([*words, *added]) == 0, (words, capsys.readouterr().err)
    made = {path.relative_to(workplace).as_posix() for path in workplace.rglob("*.html")}
    assert {"report/report.html", "evaluation/evaluation.html"} <= made


def test_every_python_block_of_the_guide_works(workplace, roomy_model):
    names = {"model": roomy_model, "sl": sl}
    for block in blocks("python"):
        exec(compile(block, "guide", "exec"), names)
    assert names["task"].check("Arr, matey!")
