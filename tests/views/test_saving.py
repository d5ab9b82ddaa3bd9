"""Claims about figures as files: the ending decides, offline, and what is missing is said."""

import re
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError

import plotly.graph_objects as go
import pytest
from plots_examples import made_up_effects
from report_example import HOSTILE

from steerlens.errors import SteerlensError, UnknownNameError
from steerlens.views import Section, ranked_tokens, save, text_figure

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on this machine")
STARTS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<svg"}


@pytest.fixture(scope="module")
def figure():
    return ranked_tokens([("Title", 0.2)], [("The", -0.1)], title="Promoted & suppressed")


def test_a_page_has_everything_inside_and_fetches_nothing(figure, tmp_path):
    page = figure.save(tmp_path / "new" / "figure.html").read_text(encoding="utf-8")

    assert page.startswith("<!doctype html>")
    assert "<title>Promoted &amp; suppressed</title>" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    assert "background: #ffffff" in page
    assert '"typesetMath": false' in page
    assert "#15181c" in figure.save(tmp_path / "dark.html", theme="dark").read_text("utf-8")


@needs_browser
@pytest.mark.parametrize("ending", STARTS)
def test_static_pictures_are_what_their_ending_says(figure, tmp_path, ending):
    pytest.importorskip("kaleido")

    path = save(figure, tmp_path / f"figure{ending}", scale=1.0)

    assert path.read_bytes().startswith(STARTS[ending])
    assert path.stat().st_size > 2000


@needs_browser
def test_hostile_model_output_is_text_in_a_real_browser(tmp_path):
    tokens = [{"token": HOSTILE, "kl": 1.0}, {"token": "مرحبا 😀", "kl": 0.2}]
    page = text_figure([Section(HOSTILE, tokens)], title=HOSTILE).save(tmp_path / "page.html")

    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000"]
    seen = subprocess.run(
        [CHROMIUM, *arguments, "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip

    drawn = seen[seen.index('class="main-svg"') :]
    assert "<img" not in drawn, "no element came of it"
    assert "&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;" in drawn
    assert "مرحبا 😀" in drawn


def test_a_very_tall_picture_is_drawn_at_a_scale_a_browser_can_do(monkeypatch, tmp_path):
    kaleido = pytest.importorskip("kaleido")
    asked = {}

    def draw(_figure, opts, kopts):
        asked.update(opts, **kopts)
        return b"\x89PNG"

    monkeypatch.setattr(kaleido, "calc_fig_sync", draw)
    save(go.Figure(layout={"height": 20_000, "width": 800}), tmp_path / "tall.png")

    assert asked["height"] * asked["scale"] <= 16_000
    assert asked["mathjax"] is False, "nothing is fetched from a network"


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("figure.jpeg", {}, SteerlensError, "end its name in .html, .svg, .png, .pdf"),
        ("figure", {}, SteerlensError, "cannot tell what to write from 'figure'"),
        ("a.html", {"theme": "drak"}, UnknownNameError, "did you mean 'dark'"),
        ("a.png", {"scale": 0.0}, SteerlensError, "scale must be a number above zero"),
    ],
)
def test_names_and_options_that_mean_nothing_are_refused(
    figure, tmp_path, name, options, error, words
):
    with pytest.raises(error, match=words):
        save(figure, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_without_kaleido_one_sentence_says_what_to_install(figure, tmp_path, monkeypatch):
    def gone(name):
        raise PackageNotFoundError(name)

    for found in (gone, lambda name: "0.2.1"):
        monkeypatch.setattr("steerlens.views.saving.version", found)
        with pytest.raises(SteerlensError, match=r"pip install 'steerlens\[figures\]'"):
            save(figure, tmp_path / "a.png")
    assert figure.save(tmp_path / "a.html").exists(), "HTML needs neither"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("ChromeNotFoundError", "apt-get install chromium"),
        ("BrowserFailedError", "did not start here"),
    ],
)
def test_without_a_browser_one_sentence_says_what_to_install(
    figure, tmp_path, monkeypatch, error, words
):
    pytest.importorskip("kaleido")
    import kaleido.errors

    def fail(*_args, **_kwargs):
        raise getattr(kaleido.errors, error)("no")

    monkeypatch.setattr(kaleido, "calc_fig_sync", fail)
    (tmp_path / "a.svg").write_text("before")
    with pytest.raises(SteerlensError, match=words):
        save(figure, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == "before"


# How long they take to draw is measured by `benchmarks.effects`.
@pytest.mark.parametrize(
    "what", ["kl", "entropy_change", "propagation", "survival", "shift", "norm_change", "lens"]
)
def test_a_figure_of_2000_tokens_by_30_layers_is_a_page_under_8_mb(what, tmp_path):
    path = made_up_effects(2000, 30).plot(what).save(tmp_path / "effects.html")

    assert path.stat().st_size < 8_000_000
