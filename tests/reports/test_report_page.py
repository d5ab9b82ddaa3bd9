"""A report page holds every number it was given, fetches nothing, and runs nothing of a model's."""

import base64
import copy
import itertools
import json
import math
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import pytest
from report_example import HOSTILE, evidence_example, hostile_report, report_example

from steerlens.errors import SteerlensError
from steerlens.reports import render_report

Attributes = dict[str, str | None]


class Page(HTMLParser):
    """The elements of a page in order, the text outside scripts, and the scripts."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, Attributes]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts[-1] += data
        elif not self._open or self._open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def named(self, tag: str) -> list[Attributes]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    return report_example(n_instructions=4, n_layers=12, n_samples=2, n_tokens=20)


@pytest.fixture(scope="module")
def markup(data: dict[str, Any]) -> str:
    return render_report(data)


@pytest.fixture(scope="module")
def page(markup: str) -> Page:
    return Page(markup)


def test_plotly_is_in_the_page_once_and_nothing_is_fetched(markup: str, page: Page) -> None:
    assert markup.count("* plotly.js v") == 1
    for tag, attributes in page.elements:
        assert tag not in {"link", "img", "iframe", "object", "embed", "base", "form"}
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#"), f"<{tag}> leads out of the page"
    styles = re.findall(r"<style>(.*?)</style>", markup, re.DOTALL)
    assert not any("url(" in style or "@import" in style for style in styles)


def test_a_policy_lets_only_the_pages_own_scripts_run(page: Page) -> None:
    policy = next(m["content"] for m in page.named("meta") if "http-equiv" in m) or ""
    nonce = re.search(r"script-src 'nonce-([0-9a-f]{32})'", policy)

    assert nonce and "default-src 'none'" in policy
    assert {script.get("nonce") for script in page.named("script")} == {nonce[1]}


def test_hostile_text_is_inert_wherever_it_comes_from() -> None:
    calm, hostile = (
        Page(render_report(data))
        for data in (report_example(2, n_layers=6, n_samples=1, n_tokens=6), hostile_report())
    )

    assert not hostile.named("img")
    assert len(hostile.scripts) == len(calm.scripts)
    assert not any(HOSTILE in script or "<img" in script for script in hostile.scripts)
    for _, attributes in hostile.elements:
        assert not any(name.startswith("on") for name in attributes)
    # Prompt, kwargs, three texts, two strips of tokens, names and settings: shown, as text.
    assert hostile.text.count(HOSTILE) > 30


def test_the_summary_states_the_numbers_with_their_intervals() -> None:
    data = report_example(n_instructions=1, n_layers=6, n_samples=3, n_tokens=8)
    instruction = data["instructions"][0]
    instruction["best_layer"] = 2
    instruction["layers"][2].update(
        auroc=0.875, auroc_low=0.75, auroc_high=0.94, selection_frequency=0.625
    )
    instruction["steering"]["layer"] = 3
    instruction["recovery"][1].update(recovery=0.61, low=-0.4, high=0.7, layer=3)
    for sample, verdict in zip(instruction["samples"], (True, False, None), strict=True):
        sample["steered"]["passed"] = verdict

    text = Page(render_report(data)).text.replace("\xa0", " ")

    for said in ("0.88 [0.75, 0.94]", "62%", "0.61 [−0.40, 0.70]", "1 of 2", "not checked"):
        assert said in text


def test_missing_numbers_show_as_a_dash_and_never_as_nan() -> None:
    data = report_example(n_instructions=2, n_layers=6, n_samples=1, n_tokens=8)
    for instruction in data["instructions"]:
        for row in (*instruction["layers"], *instruction["recovery"]):
            row.update({key: None for key in row if key != "layer"})
        for token in instruction["samples"][0]["steered"]["tokens"]:
            token.update(kl=math.nan, logprob_baseline=None, projection_after=math.nan)
    data["cosines"]["matrix"] = [[math.nan, None], [None, math.nan]]

    page = Page(render_report(data))

    assert "–" in page.text
    assert not re.search(r"\bnan\b", page.text, re.IGNORECASE)
    figures = [script for script in page.scripts if script.lstrip().startswith("window.PLOTLYENV")]
    assert figures and not any("NaN" in figure for figure in figures)


def test_every_token_of_every_strip_can_be_told_about(data: dict[str, Any], page: Page) -> None:
    packed = next(
        script
        for script, attributes in zip(page.scripts, page.named("script"), strict=True)
        if attributes.get("id") == "token-details"
    )
    details = json.loads(zlib.decompress(base64.b64decode(packed)))
    strips = [
        sample[condition]["tokens"]
        for instruction in data["instructions"]
        for sample in instruction["samples"]
        for condition in ("steered", "placebo")
    ]

    placed = [int(div["data-strip"] or "") for div in page.named("div") if "data-strip" in div]
    assert placed == list(range(len(strips))) == list(range(len(details["strips"])))
    for tokens, columns in zip(strips, details["strips"], strict=True):
        for index, token in enumerate(tokens):
            assert columns["kl"][index] == pytest.approx(token["kl"], rel=0.01, abs=1e-4)
            assert columns["offset"][index] + index == token["position"]
            assert bool(columns["steered"][index]) is token["steered"]
            assert columns["read"][index] == 0, "rows that do not say it are not marked"
            flat = columns["promoted"][index]
            words = [details["words"][word].replace("⏎\n", "\n") for word in flat[::2]]
            assert words == [word for word, _ in token["promoted"]]
            changes = [change for _, change in token["promoted"]]
            assert flat[1::2] == pytest.approx(changes, rel=0.06, abs=0.01)


def test_a_placebo_is_shaded_on_the_scale_of_what_it_controls() -> None:
    data = report_example(n_instructions=1, n_layers=6, n_samples=1, n_tokens=8)
    sample = data["instructions"][0]["samples"][0]
    for token in sample["steered"]["tokens"]:
        token["kl"] = 6.4
    for token in sample["placebo"]["tokens"]:
        token["kl"] = 0.1

    markup = render_report(data)

    placebo = markup[markup.index("Tokens of the placebo response") :]
    tokens = re.findall(r'<b class="k(\d)">', placebo[: placebo.index('class="legend"')])
    assert set(tokens) == {"1"}, "√(0.1 / 6.4) of 8 levels"


def test_links_lead_somewhere_ids_are_unique_and_headings_do_not_skip(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    links = [(link["href"] or "")[1:] for link in page.named("a")]
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]

    assert len(ids) == len(set(ids))
    assert set(links) <= set(ids)
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))


def test_tables_and_figures_are_labelled(page: Page) -> None:
    assert all(head.get("scope") for head in page.named("th"))
    assert all(figure.get("aria-label") for figure in page.named("figure"))
    assert page.named("html")[0]["lang"] == "en"


def test_the_command_and_all_provenance_are_in_the_page(data: dict[str, Any], page: Page) -> None:
    assert data["provenance"]["command"] in page.text
    assert data["model"]["weights_hash"] in page.text
    for group in ("versions", "settings", "data_hash", "seconds"):
        assert all(str(key) in page.text for key in data["provenance"][group])


def test_the_same_data_give_the_same_page(data: dict[str, Any], markup: str) -> None:
    assert render_report(copy.deepcopy(data)) == markup


def test_a_large_report_stays_under_eight_megabytes() -> None:
    data = report_example(n_instructions=24, n_layers=30, n_samples=3, n_tokens=200)

    assert len(render_report(data).encode("utf-8")) < 8_000_000


def test_a_report_of_one_instruction_without_recovery_or_samples_is_a_page() -> None:
    data = report_example(n_instructions=1, n_layers=3)
    data["instructions"][0].update(recovery=[], samples=[])

    text = Page(render_report(data)).text

    assert "Causal recovery was not measured" in text
    assert "No samples were generated" in text
    assert "Cosines between directions" not in text


def test_responses_without_tokens_or_with_broken_unicode_can_be_written() -> None:
    data = report_example(n_instructions=1, n_layers=3, n_samples=1)
    steered = data["instructions"][0]["samples"][0]["steered"]
    steered.update(text="half \ud83d an emoji \0", tokens=[], parts_at=None)

    markup = render_report(data)

    assert "half \ufffd an emoji \ufffd" in Page(markup).text
    markup.encode("utf-8")


@pytest.mark.parametrize(
    "path",
    [
        "model",
        "provenance.command",
        "instructions[1].best_layer",
        "instructions[0].layers[2].auroc_low",
        "instructions[0].samples[0].placebo.tokens[1].kl",
        "cosines.matrix",
    ],
)
def test_a_missing_key_is_named(data: dict[str, Any], path: str) -> None:
    broken: Any = copy.deepcopy(data)
    *steps, key = re.findall(r"\w+", path)
    inner = broken
    for step in steps:
        inner = inner[int(step) if step.isdigit() else step]
    del inner[key]

    with pytest.raises(SteerlensError, match=re.escape(f"key {path!r} is missing")):
        render_report(broken)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"schema": "steerlens-report/9"}, "schema is 'steerlens-report/9', expected"),
        ({"instructions": []}, "'instructions' is empty"),
        ({"instructions": {}}, "'instructions' must be a list"),
        ({"model": "smollm2"}, "'model' must be a mapping, not 'smollm2'"),
    ],
)
def test_data_of_another_shape_are_refused(
    data: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SteerlensError, match=sentence):
        render_report({**data, **change})


def test_evidence_stands_side_by_side_with_a_sentence_for_each_kind() -> None:
    # given a report in which one instruction has all evidence and the other none
    data = report_example(n_instructions=2, n_layers=12, n_samples=1)
    data["instructions"][0]["evidence"] = evidence_example()
    # when it is drawn
    markup = render_report(data)
    words = " ".join(" ".join(Page(markup).words).split())
    # then its kinds are drawn and explained, once, with choice, agreement and writers
    assert words.count("All evidence side by side") == 1
    assert "Layer 7 (highest first_token_recovery, chosen in 25%" in words
    assert "p = 0.001 that no layer separates" in words
    assert "first-token recovery share of the instruction's effect" in words.replace("’", "'")
    assert "−0.09 [−0.65, 0.34]" in words
    assert "instruction-1-evidence" in markup and "instruction-1-writers" in markup
    assert "instruction-2-evidence" not in markup


def test_evidence_without_components_has_no_writers() -> None:
    data = report_example(n_instructions=1, n_layers=12, n_samples=1)
    data["instructions"][0]["evidence"] = evidence_example(components=False)
    assert "instruction-1-writers" not in render_report(data)
