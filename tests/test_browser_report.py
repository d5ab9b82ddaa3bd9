"""The pages in a real browser, from the file system, with networking off."""

import pytest
from browser import chromium, faults_of
from report_example import HOSTILE, evidence_example, hostile_report, report_example

from steerlens.report import render_report


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report and gives its page and the faults it reported."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})

    def open_report(data):
        file = tmp_path / "report.html"
        file.write_text(render_report(data), encoding="utf-8")
        page = context.new_page()
        faults = faults_of(page)
        page.goto(file.as_uri())
        page.wait_for_function("document.querySelectorAll('.js-plotly-plot').length > 0")
        # Figures are drawn when they come near the window.
        for _ in range(40):
            page.mouse.wheel(0, 600)
            page.wait_for_timeout(25)
        return page, faults

    yield open_report
    context.close()


@pytest.fixture
def data():
    found = report_example(n_instructions=2, n_layers=12, n_samples=1, n_tokens=16)
    found["instructions"][0]["evidence"] = evidence_example()
    return found


def test_every_plot_is_drawn_without_a_fault(opened, data, tmp_path):
    page, faults = opened(data)
    page.wait_for_function(
        "[...document.querySelectorAll('figure')].every(f => f.querySelector('.main-svg'))"
    )
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
    page.screenshot(path=tmp_path / "report.png")


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
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#tooltip:not([hidden])")
    assert "KL" in page.locator("#tooltip").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, data, scheme):
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe is not installed")
    page, _ = opened(data)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_timeout(300)
    # The page's own policy keeps other scripts out, axe too: it comes in past the policy.
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": axe.Axe().axe_script})
    found = page.evaluate("axe.run()")
    serious = [
        (one["id"], [(node["html"][:80], node["failureSummary"]) for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
