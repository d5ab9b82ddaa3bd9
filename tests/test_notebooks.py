"""The notebooks of `analyses/` run from top to bottom on the real model, small."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "analyses").glob("[0-9]*.py"))


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
