"""The notebooks of `analyses/` run from top to bottom, small; those stored with their outputs hold
nothing of the machine that executed them.

The first runs on the real model. The others run on random weights with as many layers and the same
tokenizer: their numbers would mean nothing on so few prompts anyway, and take minutes.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_stand_in

import steerlens as sl
from steerlens.models.loading import model_info
from steerlens.models.weights import cache_folder

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "analyses").glob("[0-9]*.py"))
STORED = sorted((ROOT / "analyses").glob("*.ipynb"))
# Not within an address (https://…) or a longer relative path; on Windows, a drive.
MACHINE_PATH = re.compile(
    r"(?<![\w./:~-])/(?:home|mnt|opt|private|root|srv|tmp|usr|Users|var|work)(?![\w-])\S*"
    r"|\b[A-Z]:\\\w\S*"
)


# Numbers of pairs and tokens, and steps between layers, as the notebooks spell them.
SIZES = {
    r"\bn=\d+": "n=8",
    r"max_new_tokens=\d+": "max_new_tokens=8",
    r"n_layers - 1, 2\)": "n_layers - 1, 7)",
}
SMALL = {
    "STEERLENS_SMALL": "1",
    "STEERLENS_DATA": "",
    "STEERLENS_FIGURES": "",
    "PYTHONPATH": str(ROOT),
    "PLOTLY_RENDERER": "json",
}


@pytest.fixture(scope="module")
def stand_in(model, tmp_path_factory) -> Any:
    """Random weights with the layers and the tokenizer of the real model."""
    weights = cache_folder() / "weights" / model_info(model).weights_hash.removeprefix("sha256:")
    folder = tmp_path_factory.mktemp("models") / "stand-in"
    return sl.load_model(write_stand_in(folder, weights), device="cpu")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Small sizes, and a folder for what a notebook keeps."""
    variables = {"STEERLENS_RUNS": str(tmp_path / "runs"), "IPYTHONDIR": str(tmp_path / "ipython")}
    for variable, value in {**SMALL, **variables}.items():
        monkeypatch.setenv(variable, value)
    yield
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


def cells_of(name: str) -> Any:
    """A notebook with small sizes; those of the helpers in `analyses` are small by a variable."""
    jupytext = pytest.importorskip("jupytext", reason="jupytext is not installed")
    notebook = jupytext.read(ROOT / "analyses" / f"{name}.py")
    for cell in notebook.cells:
        for size, small in SIZES.items():
            cell.source = re.sub(size, small, cell.source)
    return notebook


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_top_to_bottom(name, small, monkeypatch, stand_in, capsys):
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell")
    # given a shell like a notebook's, in which another model takes the place of the real one
    monkeypatch.setattr(sl, "load_model", lambda *_, **__: stand_in)
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    # What a notebook is made with reads its sizes when it is imported.
    for module in [each for each in sys.modules if each.partition(".")[0] == "analyses"]:
        monkeypatch.delitem(sys.modules, module)
    shell = interactiveshell.InteractiveShell()
    # when every cell runs (one that fails raises)
    for cell in cells_of(name).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()
    # then everything could be shown
    assert "Traceback" not in "".join(capsys.readouterr())


def test_a_notebook_runs_in_a_kernel_of_its_own(small):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    notebook = cells_of("00-quickstart")
    where = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert all(c.execution_count for c in notebook.cells if c.cell_type == "code")


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
