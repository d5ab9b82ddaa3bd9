"""The README's first examples do what they say: its lines, run as they stand, on the real model."""

import io
import json
import re
import shlex
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer

from steerlens.cli.main import application, main
from steerlens.tasks import ifeval

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TITLE = "detectable_format:title"


def blocks(language: str) -> list[str]:
    """The README's code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Its command lines, as words without comments."""
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [one[1:] for one in words if one and one[0] == "steerlens"]


def has_title(text: str) -> bool:
    """IFEval's own check, as lm-eval ships it."""
    return ifeval.check(TITLE, text, {})


@pytest.fixture(scope="module")
def quickstart() -> dict[str, Any]:
    """The names of the first Python example after it ran, and what it printed."""
    [code] = [block for block in blocks("python") if "sl.steer(" in block]
    names: dict[str, Any] = {}
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names)
    return {**names, "printed": printed.getvalue()}


def test_the_first_example_shows_its_effect(quickstart: dict[str, Any]) -> None:
    run = quickstart["run"]
    assert run.settings["dtype"] == "float32"
    assert not has_title(run.baseline), run.baseline
    assert has_title(run.steered), run.steered
    assert run.steered in quickstart["printed"], "and it is what is printed"


def test_the_first_commands_show_their_effect(
    quickstart: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    told = {}
    for words in commands():
        if words[0] in ("vector", "steer"):
            assert main([*words, "--json"]) == 0, words
            told[words[0]] = json.loads(capsys.readouterr().out)
    assert not has_title(told["steer"]["baseline"]), told["steer"]["baseline"]
    assert has_title(told["steer"]["steered"]), told["steer"]["steered"]
    # `rank` measures the same recovery, in minutes: the layer steered is where it is highest, but
    # for a tie that rounding decides.
    recovery = quickstart["recovery"].table.set_index("layer").recovery
    [steer] = [words for words in commands() if words[0] == "steer"]
    assert recovery[int(steer[steer.index("--layer") + 1])] > recovery.drop(29).max() - 0.02
    assert told["vector"]["path"] == steer[steer.index("--vector") + 1]


@pytest.mark.parametrize("words", commands(), ids=lambda words: words[0])
def test_every_command_is_one_there_is(words: list[str]) -> None:
    command = typer.main.get_command(application()).get_command(None, words[0])
    command.make_context(words[0], words[1:])
