"""The pages in a real browser, from the file system, with networking off."""

import re

import pytest
from browser import artefacts, chromium, faults_of, serious_findings
from evaluation_example import HOSTILE_RESPONSE, evaluation_example
from report_example import HOSTILE, evidence_example, hostile_report, report_example

from steerlens.reports import render_report
from steerlens.reports.evaluation import render_evaluation


def as_page(result):
    """The page of an evaluation."""
    return render_evaluation(result.summary, result.responses)


def all_drawn(page):
    """Wait until every figure is drawn."""
    # The page's policy forbids eval, which Playwright's own waiting for a condition needs.
    for figure in page.locator("figure").all():
        figure.locator(".main-svg").first.wait_for(state="attached")


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report or an evaluation and gives its page and the faults it reported."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})

    def open_page(data):
        markup = render_report(data) if isinstance(data, dict) else as_page(data)
        file = tmp_path / "report.html"
        file.write_text(markup, encoding="utf-8")
        page = context.new_page()
        faults = faults_of(page)
        page.goto(file.as_uri())
        page.wait_for_selector(".js-plotly-plot")
        # Figures are drawn when they come near the window.
        for _ in range(40):
            page.mouse.wheel(0, 600)
            page.wait_for_timeout(25)
        return page, faults

    yield open_page
    context.close()


@pytest.fixture
def data():
    found = report_example(n_instructions=2, n_layers=12, n_samples=1, n_tokens=16)
    found["instructions"][0]["evidence"] = evidence_example()
    return found


def test_every_plot_is_drawn_without_a_fault(opened, data, tmp_path):
    page, faults = opened(data)
    all_drawn(page)
    drawn = page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].map(plot => {
            const box = plot.getBoundingClientRect();
            const marks = plot.querySelectorAll('.plot path, .plot image, .hm image, .point');
            return box.width > 50 && box.height > 50 && marks.length > 0;
        })"""
    )
    # Two maps, the cosines, two figures an instruction, and the evidence with its writers.
    assert len(drawn) == 2 + 1 + 2 * 2 + 2
    assert all(drawn)
    assert faults == []
    page.screenshot(path=artefacts(tmp_path) / "report.png")


def test_hovering_shows_values(opened, data):
    page, _ = opened(data)
    plot = page.locator("#instruction-1 .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    point = plot.locator(".scatterlayer .point").nth(3)
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_selector("#instruction-1 .hoverlayer .hovertext")
    assert "AUROC" in page.locator("#instruction-1 .hoverlayer").first.text_content()


def test_text_of_models_and_users_is_text(opened):
    page, faults = opened(hostile_report())
    said = []
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.wait_for_timeout(200)
    assert faults == [] and said == []
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert HOSTILE in page.locator(".prompt-text").first.text_content()


def test_tables_sort_up_and_down(opened, data):
    page, _ = opened(data)
    head = page.locator("#summary .columns th").nth(1)
    rows = "[...document.querySelectorAll('#summary tbody tr')]"
    layers = f"{rows}.map(row => +row.cells[1].innerText)"
    head.get_by_role("button").click()
    assert page.evaluate(layers) == sorted(page.evaluate(layers))
    head.get_by_role("button").click()
    assert page.evaluate(layers) == sorted(page.evaluate(layers), reverse=True)
    assert head.get_attribute("aria-sort") == "descending"


def test_a_token_tells_its_numbers_by_keyboard(opened, data):
    page, _ = opened(data)
    strip = page.locator("[data-strip]").first
    strip.focus()
    # The page reads what it tells after it is shown, and what is left of scrolling to the strip
    # hides the tooltip: on a busy machine a first key comes too early.
    for _ in range(100):
        page.keyboard.press("ArrowRight")
        if page.locator("#tooltip").is_visible():
            break
        page.wait_for_timeout(100)
    assert "KL" in page.locator("#tooltip").text_content()


def test_a_token_under_the_pointer_tells_its_numbers_and_where_the_vector_was_read(opened, data):
    # Given a strip whose first token the vector was read at
    one, other = data["instructions"][0]["samples"][0]["steered"]["tokens"][:2]
    one.update(token=" Rome", read=True)
    other.update(token=" was")
    page, faults = opened(data)
    tokens = page.locator("[data-strip]").first.locator(".tokens b")
    # When the pointer comes over it, and over the next one
    tokens.first.scroll_into_view_if_needed()
    tokens.first.hover()
    page.wait_for_selector("#tooltip:not([hidden])")
    first = page.locator("#tooltip").text_content()
    tokens.nth(1).hover()
    second = page.locator("#tooltip").text_content()
    # Then each says its own
    assert "KL" in first and "vector read here" in first
    assert "KL" in second and "vector read here" not in second
    assert faults == []


def test_hovering_over_a_map_tells_its_cell(opened, data):
    page, _ = opened(data)
    box = page.locator("#figure-map-auroc .nsewdrag").first
    box.scroll_into_view_if_needed()
    box.hover(force=True)
    page.locator("#figure-map-auroc .hoverlayer .hovertext").first.wait_for()
    assert re.search(r"0\.\d+", page.locator("#figure-map-auroc .hoverlayer").first.text_content())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, data, scheme):
    page, _ = opened(data)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)
    assert serious_findings(page) == []


def test_the_command_is_copied(opened, data):
    page, _ = opened(data)
    page.locator("details.provenance summary").click()
    button = page.locator("button[data-copy=command]")
    button.click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.locator("#command").text_content() == data["provenance"]["command"]


def test_in_print_everything_is_open_and_drawn_and_nothing_is_left_to_click(opened, data):
    page, _ = opened(data)
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    all_drawn(page)
    assert page.evaluate("[...document.querySelectorAll('details')].every(one => one.open)")
    assert not page.locator("nav.contents").is_visible()
    assert not page.locator("button[data-copy]").first.is_visible()


def test_an_evaluation_is_drawn_hovered_and_its_hostile_responses_are_text(opened):
    # Given an evaluation whose prompts and responses are markup
    page, faults = opened(evaluation_example(HOSTILE_RESPONSE))
    said = []
    page.on("dialog", lambda dialog: said.append(dialog.message))
    # Then its figure is drawn and tells its numbers
    point = page.locator("#figure-rates .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    box = point.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.wait_for_selector("#figure-rates .hoverlayer .hovertext")
    told = page.locator("#figure-rates .hoverlayer").text_content()
    assert re.search(r"0\.\d\d \[0\.\d\d, 0\.\d\d\], n = 8", told)
    # And the markup stands there as it was written
    assert HOSTILE_RESPONSE in page.locator(".responses .text").first.text_content()
    assert page.evaluate("document.querySelectorAll('img').length") == 0
    assert faults == [] and said == []


def test_tables_of_an_evaluation_sort_by_their_numbers(opened):
    page, _ = opened(evaluation_example())
    # By what is shown, not by the attribute the page sorts by: "38 [14, 69]" is 38.
    rows = "[...document.querySelectorAll('#rates tbody tr')]"
    rates = f"{rows}.map(row => parseFloat(row.cells[2].innerText))"
    head = page.locator("#rates .columns th").nth(2)
    before = page.evaluate(rates)
    for rising in (True, False):
        head.get_by_role("button").click()
        assert page.evaluate(rates) == sorted(before, reverse=not rising)
    assert len(set(before)) > 1
    assert page.locator("table:not(.sortable)").count() == 0


def test_how_an_evaluation_was_made_is_copied(opened):
    page, _ = opened(evaluation_example())
    page.locator("button[data-copy=made-text]").click()
    page.get_by_role("button", name="Copied").wait_for()
    told = page.locator("#made-text").text_content()
    assert "model: tiny (float32)\n" in told and "plan: abc\n" in told


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_in_an_evaluation(opened, scheme):
    page, _ = opened(evaluation_example())
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_timeout(300)
    assert serious_findings(page) == []
