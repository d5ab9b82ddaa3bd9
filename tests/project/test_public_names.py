"""Claims about the names that a user writes after `import steerlens as sl`."""

import inspect
import subprocess
import sys
from types import ModuleType

import steerlens as sl

# Called at the top level by notebooks and checks; those that exist are exported.
CALLED = (
    "cache_residuals",
    "ceiling",
    "choice_curve",
    "contrast_pairs",
    "difference_of_means",
    "evaluate",
    "explore",
    "first_token_recovery",
    "generate",
    "load_model",
    "load_task",
    "rank_layers",
    "report",
    "search",
    "specificity",
    "steer",
    "train_direction",
)


def test_every_public_callable_is_a_function_of_the_package() -> None:
    exported = [name for name in CALLED if name in sl.__all__]
    assert {"evaluate", "generate", "search", "steer"} <= set(exported)
    for name in exported:
        assert inspect.isfunction(getattr(sl, name)), name


def test_all_public_names_are_there_and_none_is_a_module() -> None:
    for name in sl.__all__:
        assert not isinstance(getattr(sl, name), ModuleType), name


def test_no_module_hides_a_public_name_after_every_module_was_imported() -> None:
    # given a fresh process, because what is imported here already hides the order
    code = """
import importlib, pkgutil, types
import steerlens as sl
for module in pkgutil.walk_packages(sl.__path__, "steerlens."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
for name in sl.__all__:
    assert not isinstance(getattr(sl, name), types.ModuleType), name
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_search_is_a_function() -> None:
    from steerlens.behaviour.search import search

    assert sl.search is search and sl.search.__name__ == "search"
    assert list(inspect.signature(sl.search).parameters)[:3] == ["model", "tasks", "out"]
