"""The explorer in a running JupyterLab, and in Notebook 7.

With ``STEERLENS_FIGURES`` set, the second is shown on the real model, and drawn for the
documentation (``make figures``).
"""

import os
import re
from pathlib import Path

from browser import artefacts, chromium, faults_of
from jupyter_pages import PATIENCE, jupyter, run_all, write_notebook

_FIGURE = Path(__file__).parents[2] / "figures" / "explorer.png"
_CELLS = [
    "from IPython.display import HTML, display\nfrom steerlens.views import summary\n"
    "display(HTML('<p class=control>$z^2$</p>'), HTML(summary('$x^2$ and $y$')))",
    "import steerlens as sl\nmodel = sl.load_model('smollm2-135m-instruct')",
    # A task with a check in Python, as one defines it in a cell.
    "def check(text):\n    return text.startswith('<<')\n\n"
    "asked = ['Give your answer a title in double angular brackets, such as <<title>>.',\n"
    "    'Put a title in double angular brackets, <<title>>, on top.',\n"
    "    'Begin with a title in double angular brackets.']\n"
    "task = sl.Task('headline', asked, check=check)\nassert len(sl.contrast_pairs(task, n=4)) == 4",
    "explorer = sl.explore(model, [task], n_pairs=4)\n"
    "explorer.decoding.max_new_tokens.value = 8\nexplorer.curves.gathers.value = False\nexplorer",
]
_ANSWERS = ".steerlens-answers"
# Controls that reach beyond their notebook's output.
_BEYOND = """() => {
    const right = each => each.getBoundingClientRect().right;
    const edge = right(document.querySelector('.jp-OutputArea:has(.widget-text)'));
    const controls = '.widget-text, .widget-button, .steerlens-slider, .widget-dropdown';
    return [...document.querySelectorAll(`${controls}, .steerlens-answers, .js-plotly-plot`)]
        .filter(each => each.offsetParent && right(each) > edge + 1)
        .map(each => [each.className, right(each), edge]);
}"""
# Controls without a name for those who do not see them.
_NAMELESS = """() => [...document.querySelectorAll(
        '.jp-OutputArea input, .jp-OutputArea textarea, .jp-OutputArea select')]
    .filter(each => each.offsetParent && !each.closest('.js-plotly-plot'))
    .filter(each => !each.getAttribute('aria-label') && !each.placeholder
        && ![...(each.labels ?? [])].some(label => label.textContent.trim()))
    .map(each => each.outerHTML)"""


def _said(page, text):
    return page.get_by_role("status").filter(has_text=text)


def test_a_moved_slider_gives_new_text_and_strips(tmp_path):
    write_notebook(tmp_path / "explorer.ipynb", _CELLS)
    with jupyter(tmp_path, "jupyterlab") as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        shots = artefacts(tmp_path)
        # Given the explorer shown in a notebook
        page.goto(address.format("explorer.ipynb"))
        run_all(page)
        # Then dollars in a result are text, where JupyterLab sets others as mathematics
        page.locator(".control mjx-container").wait_for(state="attached", timeout=PATIENCE)
        result = page.locator(".steerlens-summary")
        assert "$x^2$ and $y$" in result.text_content()
        assert result.locator("mjx-container").count() == 0
        source = page.get_by_label("steer by").first
        source.wait_for(timeout=PATIENCE)
        # When the task of the notebook is typed
        source.fill("headline")
        source.press("Enter")
        # Then both texts, what the check says of them, and the strips of their tokens appear
        _said(page, "click a token").wait_for(timeout=PATIENCE)
        page.wait_for_selector(".js-plotly-plot .main-svg", timeout=PATIENCE)
        steered = page.locator(f"{_ANSWERS} td").nth(1)
        first = steered.text_content()
        assert first.startswith("passes the check<<")
        page.screenshot(path=shots / "explorer-1.png")
        # And when the layer's slider is moved by the keyboard, others take their place
        page.get_by_role("slider", name="layer").first.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(
            """before => {
                const cell = document.querySelectorAll('.steerlens-answers td')[1];
                const said = document.querySelector('.steerlens-status').textContent;
                const all = [...document.querySelectorAll('[role=status]')];
                return cell && cell.textContent !== before
                    && all.some(each => each.textContent.startsWith('click a token'));
            }""",
            arg=first,
            timeout=PATIENCE,
        )
        # And a click on a token tells its numbers
        page.locator(".js-plotly-plot .textpoint").nth(3).click(force=True)
        page.locator(".widget-html-content", has_text="KL").first.wait_for(timeout=PATIENCE)
        # And pinned settings stand below each other, token by token
        page.get_by_role("button", name="pin", exact=True).click()
        strip = page.locator(".widget-html-content .token-strip .response b")
        strip.first.wait_for(timeout=PATIENCE)
        assert strip.first.get_attribute("title")
        # And a reply keeps the answer and its prompt as earlier turns, in a narrow window too
        page.set_viewport_size({"width": 1000, "height": 1000})
        page.get_by_role("button", name="decoding").click()
        for name, value in (("temperature", "1"), ("samples", "2")):
            page.get_by_label(name).fill(value)
            page.get_by_label(name).press("Enter")
        sample = page.locator(_ANSWERS, has_text="sample 2")
        sample.wait_for(timeout=PATIENCE)
        page.get_by_role("button", name="reply to steered").click(timeout=PATIENCE)
        page.locator(".widget-html-content", has_text="user Tell me about Rome.").wait_for()
        following = page.get_by_placeholder("your next message")
        following.fill("And in one word?")
        following.press("Enter")
        sample.wait_for(timeout=PATIENCE)
        _said(page, "click a token").wait_for(timeout=PATIENCE)
        source.scroll_into_view_if_needed()
        page.screenshot(path=shots / "explorer-conversation.png")
        assert page.evaluate(_BEYOND) == []
        assert page.evaluate(_NAMELESS) == []
        # And a faulty setting leaves its sentence alone: no text of the one before, but the pins
        source.fill("nonsense")
        source.press("Enter")
        _said(page, "is no task and no vector file").wait_for(timeout=PATIENCE)
        assert page.locator(_ANSWERS).count() == 0
        assert page.locator(".js-plotly-plot .main-svg:visible").count() == 0
        assert strip.count() > 0
        page.screenshot(path=shots / "explorer-refused.png")


def test_curves_and_a_map_are_clicked_in_notebook_7(tmp_path, roomy_folder):
    draws = bool(os.environ.get("STEERLENS_FIGURES"))
    name, n_tokens = ("smollm2-135m-instruct", 32) if draws else (str(roomy_folder), 4)
    cells = [
        f"import steerlens as sl\nmodel = sl.load_model({name!r})\n"
        f"explorer = sl.explore(model, n_pairs={16 if draws else 6})\n"
        f"explorer.decoding.max_new_tokens.value = {n_tokens}\nexplorer",
    ]
    write_notebook(tmp_path / "explorer.ipynb", cells)
    with jupyter(tmp_path, "notebook") as address, chromium() as browser:
        page = browser.new_page(viewport={"width": 1000, "height": 1400})
        faults = faults_of(page)
        page.goto(address.format("explorer.ipynb"))
        run_all(page)
        # When a task is picked, with a second prompt
        page.get_by_role("button", name="add a prompt").click(timeout=PATIENCE)
        second = page.get_by_label("prompt 2")
        second.fill("How do I make tea?")
        second.press("Enter")
        source = page.get_by_label("steer by").first
        source.fill("detectable_format:title")
        source.press("Enter")
        # Then both are answered, and the curves of the layers appear, one kind after the other
        page.locator(f"{_ANSWERS} th", has_text="How do I make tea?").wait_for(timeout=PATIENCE)
        curves = page.locator(".js-plotly-plot", has_text="specific auroc")
        curves.locator(".main-svg").first.wait_for(timeout=5 * PATIENCE if draws else PATIENCE)
        # And a click on them moves the slider
        number = page.get_by_label("layer, as a number").first
        before = number.input_value()
        box = curves.locator(".nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 0.5 * box["height"])
        page.mouse.click(box["x"] + 0.12 * box["width"], box["y"] + 0.5 * box["height"])
        page.wait_for_function(
            "([box, before]) => box.value !== before",
            arg=[number.element_handle(), before],
            timeout=PATIENCE,
        )
        _said(page, "click a token").wait_for(timeout=PATIENCE)
        # And a sweep fills in a map, whose cells tell their texts
        page.get_by_role("button", name=re.compile("sweep of strength")).click()
        page.get_by_role("button", name="sweep", exact=True).click()
        _said(page, "click a cell").wait_for(timeout=5 * PATIENCE if draws else PATIENCE)
        sweep = page.locator(".js-plotly-plot", has_text="strength").last
        sweep.scroll_into_view_if_needed()
        box = sweep.locator(".nsewdrag").first.bounding_box()
        page.mouse.move(box["x"] + 0.88 * box["width"], box["y"] + 0.1 * box["height"])
        page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 0.1 * box["height"])
        page.wait_for_function(
            "list => list.selectedIndex > 0",
            arg=page.get_by_label("cell", exact=True).element_handle(),
            timeout=PATIENCE,
        )
        assert page.locator(".widget-html-content", has_text="KL at the first token").count() == 1
        assert page.evaluate(_BEYOND) == []
        assert page.evaluate(_NAMELESS) == []
        assert [fault for fault in faults if "steerlens" in fault] == []
        area = page.locator(".jp-OutputArea:has(.widget-text)").first
        area.screenshot(path=_FIGURE if draws else artefacts(tmp_path) / "explorer-notebook.png")
