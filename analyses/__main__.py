"""Execute notebooks from top to bottom and keep them: ``python -m analyses 00-quickstart …``.

The text (``NAME.py``) is the source; ``NAME.ipynb`` is the same with its outputs, pictures as SVG,
without anything of the machine. With ``STEERLENS_FIGURES=1`` the pictures that README and
documentation show are written to ``figures/``: the last line of each cell with a tag
``figure:NAME``.
"""

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

_HERE = Path(__file__).parent
_LONGEST = 7200


def executed(name: str) -> nbformat.NotebookNode:
    """The notebook with its outputs; a cell that fails raises."""
    notebook = jupytext.read(_HERE / f"{name}.py")
    sources = [cell.source for cell in notebook.cells]
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", ()):
            cell.source = _saving(cell.source, tag.removeprefix("figure:"))
    where = {"metadata": {"path": str(_HERE.parent)}}
    NotebookClient(notebook, timeout=_LONGEST, kernel_name="python3", resources=where).execute()
    for cell, source in zip(notebook.cells, sources, strict=True):
        cell.source = source
    return without_the_machine(notebook)


def _saving(source: str, name: str) -> str:
    """The same code, whose last line is also kept as a picture, if pictures are wanted."""
    before, _, shown = source.rpartition("\n")
    return f"{before}\n__import__('analyses.behaviour').behaviour.figure({shown}, {name!r})"


def without_the_machine(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same without times, progress and warnings, which another machine would not repeat."""
    for cell in notebook.cells:
        cell.metadata = nbformat.NotebookNode()
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if not _is_passing(one)]
    notebook.metadata = nbformat.NotebookNode(
        kernelspec={"name": "python3", "display_name": "Python 3", "language": "python"}
    )
    return notebook


def _is_passing(output: nbformat.NotebookNode) -> bool:
    """A warning, or a progress bar."""
    return output.get("name") == "stderr" or any(
        "widget-view" in kind for kind in output.get("data", {})
    )


def main() -> None:
    """Execute the notebooks named, by default all that have a number."""
    names = sys.argv[1:] or sorted(path.stem for path in _HERE.glob("[0-9]*.py"))
    os.environ.setdefault("PLOTLY_RENDERER", "svg")
    os.environ["PYTHONPATH"] = str(_HERE.parent)
    for name in names:
        print(f"executing {name}", file=sys.stderr)
        nbformat.write(executed(name), _HERE / f"{name}.ipynb")


if __name__ == "__main__":
    main()
