"""The notebooks of `analyses/` run from top to bottom on the real model, small; those stored with
their outputs hold nothing of the machine that executed them.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "analyses").glob("[0-9]*.py"))
STORED = sorted((ROOT / "analyses").glob("*.ipynb"))
# Not within an address (https://…) or a longer relative path; on Windows, a drive.
MACHINE_PATH = re.compile(
    r"(?<![\w./:~-])/(?:home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)(?![\w-])\S*"
    r"|\b[A-Z]:\\\w\S*"
)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, tmp_path, monkeypatch):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    # given the text of a notebook, and small sizes
    for variable, value in {
        "STEERLENS_SMALL": "1",
        "STEERLENS_RUNS": str(tmp_path / "runs"),
        "STEERLENS_DATA": "",
        "STEERLENS_FIGURES": "",
        "PYTHONPATH": str(ROOT),
        "PLOTLY_RENDERER": "json",
        "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():
        monkeypatch.setenv(variable, value)
    notebook = jupytext.read(ROOT / "analyses" / f"{name}.py")
    # when every cell runs (one that fails raises)
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    # then every cell has run, and nothing was left beside the runs
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def _texts(value: Any) -> Iterator[str]:
    """Every string in JSON, keys too; pictures in base64 say nothing that could be read."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name not in {"image/png", "image/jpeg", "application/pdf"}:
                yield name
                yield from _texts(one)


def faults_of(notebook: dict[str, Any]) -> list[str]:
    """What a stored notebook holds that only the machine it ran on could say, or does not hold."""
    faults = [found[0] for text in _texts(notebook) for found in MACHINE_PATH.finditer(text)]
    faults += [f"the path {ROOT}"] * any(str(ROOT) in text for text in _texts(notebook))
    if "widgets" in notebook["metadata"]:
        faults.append("state of widgets")
    for place, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        if not cell["execution_count"]:
            faults.append(f"cell {place} was not executed")
        for output in cell["outputs"]:
            if output.get("name") == "stderr":
                faults.append(f"cell {place} has standard error")
            if any("jupyter.widget" in kind for kind in output.get("data", {})):
                faults.append(f"cell {place} shows a widget")
    return faults


@pytest.mark.parametrize("path", STORED, ids=[path.stem for path in STORED])
def test_a_stored_notebook_was_executed_and_holds_nothing_of_the_machine(path):
    assert faults_of(json.loads(path.read_text(encoding="utf-8"))) == []


def test_what_a_machine_leaves_in_a_notebook_would_be_found():
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "IntProgress()"}
    outputs = [
        {"output_type": "stream", "name": "stderr", "text": ["100%|███\n"]},
        {"output_type": "stream", "name": "stdout", "text": ["saved /tmp/x1/run.json\n"]},
        {"output_type": "display_data", "data": widget},
        {"output_type": "display_data", "data": {"image/svg+xml": ["<a href='/home/me/a'/>"]}},
        {"output_type": "display_data", "data": {"text/html": "https://a.org/home/, and/or/work"}},
        {"output_type": "display_data", "data": {"image/png": "abc+/tmp/def"}},
    ]
    cell = {"cell_type": "code", "execution_count": None, "outputs": outputs}
    said = {"cell_type": "markdown", "source": ["In C:\\Users\\me and", f"in {ROOT}/runs."]}
    metadata = {"widgets": {"application/vnd.jupyter.widget-state+json": {}}}

    found = faults_of({"metadata": metadata, "cells": [cell, said]})

    paths = {"/tmp/x1/run.json", "/home/me/a'/>", "C:\\Users\\me", f"the path {ROOT}"}
    assert paths <= set(found)
    assert set(found) - paths - {f"{ROOT}/runs."} == {
        "state of widgets",
        "cell 0 was not executed",
        "cell 0 has standard error",
        "cell 0 shows a widget",
    }
