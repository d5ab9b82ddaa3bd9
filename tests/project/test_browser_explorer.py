"""The explorer in a running JupyterLab: a slider moved, new text and strips appear."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from browser import artefacts, chromium

_TOKEN = "explorer"
_PATIENCE = 120_000
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
    "explorer = sl.explore(model, [task], n_pairs=4)\nexplorer.max_new_tokens.value = 8\nexplorer",
]


def notebook(cells: list[str]) -> dict:
    """A notebook of code cells, as JSON."""
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{i}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for i, source in enumerate(cells)
        ],
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab serving a folder with one notebook; its address."""
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    pytest.importorskip("ipywidgets", reason="ipywidgets is not installed")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "explorer.ipynb").write_text(json.dumps(notebook(_CELLS)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "JUPYTER_CONFIG_DIR": str(folder / ".config"),
        "JUPYTER_DATA_DIR": str(folder / ".data"),
        "JUPYTER_RUNTIME_DIR": str(folder / ".runtime"),
        "IPYTHONDIR": str(folder / ".ipython"),
    }
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ip=127.0.0.1", f"--port={port}", f"--IdentityProvider.token={_TOKEN}"),
        "--ServerApp.port_retries=0",
    ]
    server = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{address}/api", timeout=2).close()
                break
            except (URLError, OSError):
                if time.monotonic() > deadline or server.poll() is not None:
                    pytest.fail("JupyterLab did not start")
                time.sleep(0.5)
        yield f"{address}/lab/tree/explorer.ipynb?token={_TOKEN}"
    finally:
        server.terminate()
        server.wait(20)


def run_all(page) -> None:
    """Run every cell; again where the kernel was not yet listening."""
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=_PATIENCE)
    for _ in range(20):
        if page.locator("dialog.jp-Dialog").count():
            page.keyboard.press("Escape")
            page.wait_for_timeout(500)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(1500)
        if re.search(r"[*\d]", page.locator(".jp-InputPrompt").first.text_content()):
            return
    pytest.fail("the notebook's cells did not run")


def test_a_moved_slider_gives_new_text_and_strips(lab, tmp_path):
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        # Given the explorer shown in a notebook
        page.goto(lab)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=_PATIENCE)
        page.wait_for_selector(
            ".jp-Notebook-ExecutionIndicator[data-status=idle]", timeout=_PATIENCE
        )
        run_all(page)
        # Then dollars in a result are text, where JupyterLab sets others as mathematics
        page.locator(".control mjx-container").wait_for(state="attached", timeout=_PATIENCE)
        result = page.locator(".steerlens-summary")
        assert "$x^2$ and $y$" in result.text_content()
        assert result.locator("mjx-container").count() == 0
        source = page.get_by_placeholder("a task, an instruction")
        source.wait_for(timeout=_PATIENCE)
        # When the task of the notebook is typed
        source.fill("headline")
        source.press("Enter")
        # Then both texts, what the check says of them, and the strips of their tokens appear
        message = page.locator(".jp-OutputArea").get_by_text("click a token")
        message.wait_for(timeout=_PATIENCE)
        page.wait_for_selector(".js-plotly-plot .main-svg", timeout=_PATIENCE)
        steered = page.locator(".widget-html-content", has_text=re.compile("^steered"))
        first = steered.text_content()
        assert first.startswith("steered · passes the check<<")
        page.screenshot(path=artefacts(tmp_path) / "explorer-1.png")
        # And when the layer's slider is moved, others take their place
        handle = page.get_by_role("slider").first
        handle.focus()
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.wait_for_function(
            """before => {
                const boxes = [...document.querySelectorAll('.widget-html-content')];
                const said = boxes.map(box => box.textContent);
                const text = said.find(one => one.startsWith('steered'));
                return text !== before && said.some(one => one.startsWith('click a token'));
            }""",
            arg=first,
            timeout=_PATIENCE,
        )
        assert page.locator(".js-plotly-plot .main-svg").count() > 0
        page.screenshot(path=artefacts(tmp_path) / "explorer-2.png")
        # And a click on a token tells its numbers
        page.locator(".js-plotly-plot .textpoint").nth(3).click(force=True)
        page.locator(".widget-html-content", has_text="KL").first.wait_for(timeout=_PATIENCE)
        # And pinned settings stand below each other, token by token
        page.get_by_role("button", name="pin", exact=True).click()
        strip = page.locator(".widget-html-content .token-strip .response b")
        strip.first.wait_for(timeout=_PATIENCE)
        assert strip.first.get_attribute("title")
        strip.first.scroll_into_view_if_needed()
        page.screenshot(path=artefacts(tmp_path) / "explorer-pinned.png")
        # And a reply keeps the answer and its prompt as earlier turns, in a narrow window too
        page.set_viewport_size({"width": 1000, "height": 1000})
        page.get_by_text("decoding", exact=True).click()
        page.get_by_label("temperature").fill("1")
        page.get_by_label("temperature").press("Enter")
        page.get_by_label("samples").fill("2")
        page.get_by_label("samples").press("Enter")
        page.locator(".widget-html-content", has_text="steered 2").wait_for(timeout=_PATIENCE)
        page.get_by_role("button", name="reply to this").nth(1).click(timeout=_PATIENCE)
        page.locator(".widget-html-content", has_text="user Tell me about Rome.").wait_for()
        following = page.get_by_placeholder("your next message")
        following.fill("And in one word?")
        following.press("Enter")
        page.locator(".widget-html-content", has_text="steered 2").wait_for(timeout=_PATIENCE)
        message.wait_for(timeout=_PATIENCE)
        source.scroll_into_view_if_needed()
        page.screenshot(path=artefacts(tmp_path) / "explorer-conversation.png")
        beyond = """() => {
            const right = each => each.getBoundingClientRect().right;
            const edge = right(document.querySelector('.jp-OutputArea:has(.widget-text)'));
            const controls = '.widget-text, .widget-button, .widget-slider, .widget-dropdown';
            return [...document.querySelectorAll(controls)]
                .filter(each => each.offsetParent && right(each) > edge)
                .map(each => [each.className, right(each), edge]);
        }"""
        assert page.evaluate(beyond) == []
        # And a faulty setting leaves its sentence alone: no text of the one before, but the pins
        source.fill("nonsense")
        source.press("Enter")
        refused = page.locator(".widget-html-content", has_text="is no task and no vector file")
        refused.first.wait_for(timeout=_PATIENCE)
        assert steered.count() == 0
        assert page.locator(".widget-html-content", has_text=re.compile("^baseline")).count() == 0
        assert page.locator(".js-plotly-plot .main-svg").count() == 0
        assert strip.count() > 0
        page.screenshot(path=artefacts(tmp_path) / "explorer-refused.png")
