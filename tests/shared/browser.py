"""A headless Chromium for tests: Debian's, driven by Playwright, or a reason to skip."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser; the test is skipped where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        try:
            yield running
        finally:
            running.close()


def artefacts(tmp_path: Path) -> Path:
    """Where screenshots are kept: the folder `STEERLENS_ARTEFACTS` names.

    Without it the test's own folder, which pytest keeps for its last three runs.
    """
    folder = Path(os.environ.get("STEERLENS_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def faults_of(page: Any) -> list[str]:
    """Errors the page reports from now on: of its scripts and on its console."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    return faults


def serious_findings(page: Any) -> list[Any]:
    """What axe finds serious or critical on a page."""
    axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe is not installed")
    # The page's own policy keeps other scripts out, axe too: it comes in past the policy.
    session = page.context.new_cdp_session(page)
    session.send("Runtime.evaluate", {"expression": axe.Axe().axe_script})
    return [
        (one["id"], [(node["html"][:80], node["failureSummary"]) for node in one["nodes"][:3]])
        for one in page.evaluate("axe.run()")["violations"]
        if one["impact"] in ("serious", "critical")
    ]
