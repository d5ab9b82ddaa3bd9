"""The order of the rooms is kept by import-linter, and an import against it is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    command = [sys.executable, "-c", code, "--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        ("stats/rates.py", "import steerlens.engine.rows", "Rooms import downwards BROKEN"),
        ("tasks/pairs.py", "from steerlens.cli import main", "Rooms import downwards BROKEN"),
        (
            "attribution/causal.py",
            "from steerlens.attribution import evidence",
            "No circles between the parts of a room BROKEN",
        ),
    ],
)
def test_a_planted_import_against_the_order_is_found(tmp_path, module, line, words):
    shutil.copytree(ROOT / "steerlens", tmp_path / "steerlens")
    file = tmp_path / "steerlens" / module
    file.write_text(file.read_text() + f"\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode != 0 and words in done.stdout
