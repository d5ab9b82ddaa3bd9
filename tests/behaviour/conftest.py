"""What several tests of behaviour need: a plan, searched for on a tiny model."""

from pathlib import Path

import pytest
from small_search import SMALL, TITLE

from steerlens.behaviour.search import search


@pytest.fixture(scope="session")
def plan_folder(roomy_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "plan"
    search(roomy_model, [TITLE], folder, SMALL, show_progress=False)
    return folder
