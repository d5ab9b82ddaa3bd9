"""A running Jupyter server for tests in a browser, with JupyterLab and Notebook on it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

__all__ = ["PATIENCE", "jupyter", "run_all", "write_notebook"]

PATIENCE = 120_000
"""Milliseconds to wait for what a busy machine may take long for."""
_TOKEN = "explorer"


def write_notebook(path: Path, cells: list[str]) -> None:
    """A notebook of code cells."""
    content = {
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
    path.write_text(json.dumps(content))


@contextmanager
def jupyter(folder: Path, app: str) -> Iterator[str]:
    """A server of the notebooks in a folder; yields the address they open at, up to their names.

    Args:
        folder: The notebooks.
        app: ``"jupyterlab"`` or ``"notebook"``; the test is skipped where it is not installed.
    """
    pytest.importorskip(app, reason=f"{app} is not installed")
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
        *(sys.executable, "-m", app, "--no-browser", "--allow-root"),
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
                    pytest.fail(f"{app} did not start")
                time.sleep(0.5)
        place = "lab/tree" if app == "jupyterlab" else "notebooks"
        yield f"{address}/{place}/{{}}?token={_TOKEN}"
    finally:
        server.terminate()
        server.wait(20)


def run_all(page: Any) -> None:
    """Run every cell of the notebook that is open; again where the kernel was not listening yet."""
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=PATIENCE)
    idle = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
    page.wait_for_selector(idle, state="attached", timeout=PATIENCE)
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
