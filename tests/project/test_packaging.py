"""What is built installs and runs without the checkout, starts at once, and has one version."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import steerlens

ROOT = Path(__file__).parents[2]
# What takes from a tenth of a second to seconds to import.
HEAVY = {
    *("IPython", "jinja2", "lm_eval", "nltk", "numpy", "pandas", "plotly", "ray", "scipy"),
    *("sklearn", "torch", "transformer_lens", "transformers"),
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, **options
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def clean(wheel, tmp_path_factory):
    """A new environment with the wheel, which sees this one's other packages."""
    folder = tmp_path_factory.mktemp("clean") / "env"
    run(sys.executable, "-m", "venv", "--without-pip", folder, check=True)
    python = folder / "bin" / "python"
    command = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index")
    run(*command, "--no-deps", wheel, check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


def test_the_wheel_has_every_file_of_the_package(wheel):
    here = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "steerlens").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if name.startswith("steerlens/")} == here


def test_the_wheel_runs_the_quickstart_without_the_checkout(clean, roomy_folder, tmp_path):
    script = ROOT / "tests" / "shared" / "quickstart.py"
    done = run(clean / "python", "-I", script, roomy_folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"steerlens {steerlens.__version__}: 3 layers, ")


def test_the_installed_command_has_the_catalogue(clean, tmp_path):
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = run(clean / "steerlens", "tasks", "--json", cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)) >= 25


@pytest.mark.parametrize(
    "start",
    ["import steerlens", "from steerlens.cli.main import main; assert main(['--help']) == 0"],
)
def test_the_package_and_its_help_import_nothing_heavy(start):
    code = f"import sys; {start}; print(sorted({HEAVY} & set(sys.modules)))"
    done = run(sys.executable, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_version_is_said_once():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert re.findall(r"^## \[(\d.*?)\]", changes, re.M)[0] == steerlens.__version__
    assert str(citation["version"]) == steerlens.__version__


def test_the_hosted_checks_make_what_the_local_ones_make():
    """And every target that they name is there."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8"))
    hosted = workflow["jobs"]["make"]["strategy"]["matrix"]["target"]
    local = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()[-1].split()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert {"lint", "types", "test"} <= set(local)
    assert set(hosted) == {word for word in local if word in targets} | {"docs", "wheel"}
    assert set(hosted) <= set(targets)


def test_extras_are_what_the_page_says():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "releasing.md").read_text(encoding="utf-8")
    described = set(re.findall(r"`steerlens\[(\w+)\]`", page))
    assert described == set(project["optional-dependencies"]) - {"browser", "dev", "peers"}


def test_make_with_an_old_python_says_what_it_needs(tmp_path):
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2 || exit 1\n')
    old.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    done = run("make", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "needs Python 3.11 or later" in done.stdout and "is Python 3.9.2" in done.stdout
    assert not (tmp_path / ".venv").exists()
