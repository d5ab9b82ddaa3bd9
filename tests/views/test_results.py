"""Claims about results in a notebook: each can be drawn, and each says what it is."""

import importlib
import inspect
import pkgutil
from dataclasses import replace
from typing import get_type_hints

import pytest
import torch
from interop_examples import example_vector
from plots_examples import made_up_effects
from report_example import HOSTILE
from steering_examples import random_vector

import steerlens as sl
from steerlens.activations.cache import ResidualCache
from steerlens.behaviour.calibration import Calibration
from steerlens.behaviour.plans import Plan
from steerlens.effects.divergence import response_kl
from steerlens.engine.generation import Generations
from steerlens.explorer.explorer import Explorer
from steerlens.stats.rates import Interval
from steerlens.vectors.composition import compose_report
from steerlens.vectors.conditional import Condition
from steerlens.vectors.library import save_library
from steerlens.vectors.transfer.maps import LayerMap, LayerMaps
from steerlens.views import Picture, Result

# What is given to the package, or described by it, and is not a finding.
GIVEN = {
    "ContrastSet",
    "Explorer",
    "ModelInfo",
    "PromptFile",
    "ShardedResiduals",
    "Steering",
    "Task",
    "TransformerBridge",
}


def returned_classes() -> set[type]:
    """Classes that public functions return."""
    functions = [getattr(sl, name) for name in sl.__all__]
    # The explorer is imported where it is opened.
    known = {"Explorer": Explorer}
    functions = [one for one in functions if inspect.isfunction(one)]
    hints = [get_type_hints(one, localns=known).get("return") for one in functions]
    return {one for one in hints if inspect.isclass(one)}


def classes_of_the_package() -> set[type]:
    found = set()
    for module in pkgutil.walk_packages(sl.__path__, "steerlens."):
        if not module.name.endswith("__main__"):
            members = vars(importlib.import_module(module.name)).values()
            found |= {one for one in members if inspect.isclass(one)}
    return {one for one in found if one.__module__.startswith("steerlens") and one is not Picture}


def test_every_result_can_be_drawn_and_has_a_view_for_notebooks() -> None:
    results = {one for one in returned_classes() if one.__name__ not in GIVEN}
    assert len(results) > 15
    for one in results:
        assert callable(getattr(one, "plot", None)), f"{one.__name__} has no .plot()"
    for one in classes_of_the_package() - {Result}:
        has_picture, has_view = (hasattr(one, name) for name in ("plot", "_repr_html_"))
        assert has_picture == has_view, one.__name__
        if issubclass(one, Result) and not one.__subclasses__():
            assert one.plot is not Result.plot and "__repr__" in vars(one), one.__name__


def cache() -> ResidualCache:
    sides = torch.randn(2, 6, 3, 8, generator=torch.Generator().manual_seed(0))
    return ResidualCache.from_tensors(sides[0] + 1, sides[1], metadata={"instruction": HOSTILE})


def answers() -> Generations:
    return Generations(
        (HOSTILE, "b"), (HOSTILE, ""), ((1, 2), ()), ((3,), (4,)), ("length", "stop")
    )


def calibration() -> Calibration:
    import pandas as pd

    curve = pd.DataFrame({"strength": [0.5, 1.0, 2.0], "kl": [0.01, 0.04, 0.2]})
    given = random_vector(3, 8).at(1, "add")
    return Calibration(1.5, 1.2, 1.9, 0.1, 0.08, 0.12, 0.1, None, True, "", given, curve)


def condition() -> Condition:
    scores = {"unseen_scores": {"positive": [1.0, 2.0, 3.0], "negative": [-1.0, 0.0]}}
    rate = Interval(0.5, 0.1, 0.9)
    return Condition(torch.eye(8)[0], 1, 0.5, rate, rate, 0.9, HOSTILE, scores)


def maps() -> LayerMaps:
    ones = [LayerMap(n, n, torch.eye(2).numpy(), 0.5 + n / 10, 0.4, 0.9, 0.1) for n in range(3)]
    return LayerMaps(tuple(ones), "ridge", "cka")


def plan() -> Plan:
    ends = {"low": 0.1, "high": 0.9, "n": 24}
    steered = {"rate": 0.5, "unsteered_rate": 0.2, "unsteered_low": 0.1, "unsteered_high": 0.4}
    record = {"parts": [], **ends, **steered}
    one = {"uninstructed": record, "instructed": record, "table": []}
    return Plan({"model": {"reference": "m"}, "instructions": {HOSTILE: one}}, {})


@pytest.mark.parametrize(
    ("result", "n_traces"),
    [
        (cache, 3),
        (answers, 2),
        (calibration, 1),
        (condition, 2),
        (maps, 3),
        (plan, 4),
        (lambda: compose_report([random_vector(3, 8, seed).at(1) for seed in (0, 1)]), 1),
        (lambda: made_up_effects(6, 4).propagation, 2),
        (lambda: made_up_effects(6, 4, words=(HOSTILE,)).lens, 1),
    ],
)
def test_what_is_drawn_is_there_and_text_of_others_is_text(result, n_traces) -> None:
    found = result()
    figure = found.plot()
    assert len(figure.data) >= n_traces
    for page in (figure.to_html(include_plotlyjs=False), found._repr_html_()):
        assert len(page) > 100 and HOSTILE not in page


def test_a_cost_is_drawn_over_the_response_it_was_measured_on(tiny_model) -> None:
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    found = response_kl(tiny_model, vector.at(1, "add"), ["Hi there.", "Why?"], max_new_tokens=5)
    line = found.plot().data[-1]
    assert len(line.y) == max(len(row) for row in found.tokens)
    first = [float(row[0]) for row in found.tokens]
    assert line.y[0] == pytest.approx(sum(first) / 2, rel=1e-3)
    assert "ResponseKL" in found._repr_html_()
    # And nothing to draw is said
    assert replace(found, tokens=()).plot().layout.annotations[0].text == "no tokens"


def test_vectors_of_a_library_are_compared_at_the_layer_they_are_applied_at(tmp_path) -> None:
    about = {"n_layers": 3, "weights_hash": "sha256:ab", "d_model": 16}
    vectors = [example_vector(seed=seed, instruction=f"i{seed}", **about) for seed in (0, 1)]
    library = save_library(tmp_path, vectors)
    matrix = torch.tensor(library.plot(layer=2).data[0].z)
    one, other = (vector.directions[vector.layer_index(2)] for vector in vectors)
    assert float(matrix[0, 1]) == pytest.approx(float(one @ other), abs=1e-3)
    assert "i0" in library._repr_html_()
