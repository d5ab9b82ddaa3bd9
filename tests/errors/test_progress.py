"""Claims about progress bars: in a terminal, or where they are asked for, and nowhere else."""

import ast
import io
import sys
from pathlib import Path

import pytest
from tiny_models import write_tiny_gguf

import steerlens as sl
from steerlens.attribution import reading_components, writing_components
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt
from steerlens.behaviour.evaluation.run import EvaluationSettings, evaluate
from steerlens.errors.progress import shown
from steerlens.tasks.pairs import ContrastSet

PACKAGE = Path(sl.__file__).parent
PROMPT = EvaluationPrompt("a", "Hi.", "Hi.", ("punctuation:no_comma",), ({},))
PAIRS = ContrastSet.from_prompts(
    [f"{word}! LOUD." for word in ("tea", "sea", "ink", "oak")],
    [f"{word}." for word in ("tea", "sea", "ink", "oak")],
)


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self) -> bool:
        return True


def test_bars_are_shown_as_asked_else_in_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, expected in ((io.StringIO(), False), (Terminal(), True), (None, False)):
        monkeypatch.setattr(sys, "stderr", stream)
        assert shown(None) is expected
        assert (shown(True), shown(False)) == (True, False)


def calls(tiny_model, folder: Path, show_progress: bool | None):
    """What has a bar of its own."""
    vector = sl.difference_of_means(
        sl.cache_residuals(tiny_model, PAIRS, show_progress=show_progress)
    )
    sl.generate(tiny_model, ["Hi."], max_new_tokens=2, show_progress=show_progress)
    sl.first_token_recovery(tiny_model, PAIRS, vector, layers=[1], show_progress=show_progress)
    reading_components(tiny_model, PAIRS, vector, 1, show_progress=show_progress)
    writing_components(tiny_model, PAIRS, vector, 1, n_placebos=2, show_progress=show_progress)
    settings = EvaluationSettings(max_new_tokens=2)
    evaluate(tiny_model, [PROMPT], folder, settings=settings, show_progress=show_progress)


def test_into_a_pipe_nothing_is_drawn_unless_it_is_asked_for(
    tiny_model, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not sys.stderr.isatty()
    calls(tiny_model, tmp_path / "a", None)
    assert capfd.readouterr().err == ""
    calls(tiny_model, tmp_path / "b", True)
    drawn = capfd.readouterr().err
    for name in (
        "caching residuals",
        "generating",
        "causal recovery",
        "reading components",
        "writing components",
    ):
        assert name in drawn, name
    assert "answering" in drawn, "evaluate has a bar too"


def test_loading_a_model_draws_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STEERLENS_CACHE", str(tmp_path / "cache"))
    sl.load_model(write_tiny_gguf(tmp_path / "tiny.gguf"), device="cpu")
    told = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in told] == ["preparing"], "once, in a line"


def test_every_bar_of_the_package_says_when_it_is_hidden() -> None:
    """`disable=None` is tqdm's own rule: hidden where standard error is no terminal."""
    bars = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "tqdm":
                bars += 1
                [disable] = [word.value for word in node.keywords if word.arg == "disable"]
                assert ast.unparse(disable) in ("disable", "self._disable"), path
            # True for None draws into pipes.
            if isinstance(node, ast.Compare):
                assert ast.unparse(node) != "show_progress is not False", path
    assert bars >= 10
