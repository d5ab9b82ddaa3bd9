"""Results do not depend on torch's default dtype or device, which belong to the user."""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest
import torch
from planted_activations import planted

import steerlens as sl
from steerlens.activations.shards import shard_residuals
from steerlens.attribution import (
    instruction_geometry,
    layer_geometry,
    reading_components,
    vocabulary_readout,
    writing_components,
)
from steerlens.behaviour.calibration import calibrate, calibrate_rate
from steerlens.behaviour.judge import Judge
from steerlens.effects import token_contributions
from steerlens.effects.divergence import response_kl
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import linear_discriminant, mean_centred, pca_of_differences
from steerlens.vectors.composition import compose_report, joint_projection
from steerlens.vectors.conditional import fit_condition
from steerlens.vectors.formats.record import vector_of_shifts
from steerlens.vectors.transfer import fit_maps

PROMPTS = ["Tell me about Rome.", "Why is it so?", "Name a river."]
N_PAIRS = 6


def _pairs():
    queries = [f"Name river {i} of {'abcdefgh'[i]}." for i in range(N_PAIRS)]
    return ContrastSet.from_prompts([f"{text} Use no commas." for text in queries], queries)


def _vector(model):
    return sl.difference_of_means(sl.cache_residuals(model, _pairs()))


def _steering(model):
    return _vector(model).at(1, operation="add", strength=0.5)


def _steered(model):
    run = sl.steer(
        model,
        PROMPTS[0],
        _steering(model),
        max_new_tokens=5,
        lens_layers=(0, 2),
        read_at="last_prompt",
    )
    return run, token_contributions(model, run.effects, position=3)


def _only_below(model):
    rows = RowSteering([_vector(model).at(1, only_below=True)])
    resid = torch.linspace(-1, 1, 2 * 3 * 16, dtype=torch.float32).view(2, 3, 16)
    on = torch.ones(2, 3, dtype=torch.bool)
    return rows.apply(1, resid, TokenRoles(prompt=on, response=~on))


def _estimators(model):
    cache = planted()
    return [
        sl.difference_of_means(cache),
        linear_discriminant(cache),
        sl.linear_probe(cache),
        mean_centred(cache),
        pca_of_differences(cache),
        sl.random_direction(cache),
    ]


def _algebra(model):
    one, other = sl.difference_of_means(planted()), sl.random_direction(planted())
    return [one + other, 2 * one - other, one.orthogonalise(other), one.interpolate(other, 0.3)]


def _transferred(model):
    texts = [f"{word} is here {i}." for i in range(8) for word in ("Rome", "Paris", "a river")]
    maps = fit_maps(model, model, texts)
    return maps, sl.transfer_vector(_vector(model), sl.cache_residuals(model, _pairs()), maps)


TOUR = {
    "the cache": lambda m: sl.cache_residuals(m, _pairs()),
    "the table of a cache": lambda m: planted().table,
    "estimators": _estimators,
    "the algebra of vectors": _algebra,
    "an imported vector": lambda m: vector_of_shifts(
        {0: [3.0, 4.0], 1: np.array([0.5, 1.0]), 2: torch.ones(2)}, "a test", {}
    ),
    "separability, probes, null and dimension": lambda m: sl.rank_layers(
        planted(), n_resamples=20, evidence=("separability", "probes", "null", "dimension")
    ),
    "geometry of layers": lambda m: layer_geometry(planted()),
    "geometry of instructions": lambda m: instruction_geometry(
        {"a": planted(seed=1), "b": planted(seed=2), "c": planted(seed=3)}, 2
    ),
    "greedy texts": lambda m: sl.generate(m, PROMPTS, max_new_tokens=5),
    "steered texts": lambda m: sl.generate(
        m, PROMPTS, [_steering(m), None, _vector(m).at(2, only_below=True)], max_new_tokens=5
    ),
    "sampled texts": lambda m: sl.generate(
        m, PROMPTS, _steering(m), max_new_tokens=5, temperature=0.7, top_p=0.9, seed=3
    ),
    "steering with a bound": _only_below,
    "effects and contributions": _steered,
    "first-token recovery": lambda m: sl.first_token_recovery(m, _pairs(), _vector(m)),
    "recovery over responses": lambda m: sl.causal_recovery(
        m, _pairs(), _vector(m), horizons=(1, 2, 4)
    ),
    "patching": lambda m: sl.activation_patching(m, _pairs(), n_positions=3),
    "components that write": lambda m: writing_components(m, _pairs(), _vector(m), 1, n_placebos=4),
    "components that read": lambda m: reading_components(m, _pairs(), _vector(m), 1, n_placebos=4),
    "vocabulary": lambda m: vocabulary_readout(m, _vector(m), n_tokens=3, n_placebos=20),
    "evidence": lambda m: sl.gather_evidence(
        m, sl.cache_residuals(m, _pairs()), _pairs(), ("separability", "causal")
    ),
    "divergence": lambda m: response_kl(m, _steering(m), PROMPTS, max_new_tokens=4),
    "calibration by divergence": lambda m: calibrate(m, _steering(m), PROMPTS, max_new_tokens=4),
    "calibration by rate": lambda m: calibrate_rate(
        m,
        _steering(m),
        "punctuation:no_comma",
        strengths=(0.5, 1.0),
        n_prompts=4,
        max_new_tokens=4,
    ),
    "composition": lambda m: (
        compose_report([_steering(m), _vector(m).at(1, strength=0.3)]),
        joint_projection([_vector(m).at(1), _vector(m).at(2)]),
    ),
    "a condition": lambda m: fit_condition(
        m, [f"Rome {i}." for i in range(9)], [f"{i} and a river." for i in range(9)]
    ),
    "maps and transfer": _transferred,
    "a judge": lambda m: Judge(m).perplexities(["Rome is a city.", "So it is."]),
}


def plain(value):
    """A result as nested lists of comparable things, tensors with their dtype."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), str(value.device), value.detach().cpu().double().numpy())
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value)
    if isinstance(value, pd.DataFrame):
        columns = [value.iloc[:, place] for place in range(value.shape[1])]
        return [
            (str(one.name), str(one.dtype), [None if pd.isna(v) else v for v in one])
            for one in columns
        ]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, plain(getattr(value, f.name))) for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        return [(str(key), plain(one)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value if isinstance(value, (int, float, str, bool, type(None))) else type(value).__name__


def differences(one, other, where=""):
    """Where two plain results are not the same, to rounding in the last digits."""
    if isinstance(one, np.ndarray) and one.dtype.kind == "f":
        same = np.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)
        return [] if same else [f"{where}: {one} and {other}"]
    if isinstance(one, np.ndarray):
        return [] if np.array_equal(one, other) else [f"{where}: {one} and {other}"]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} parts"]
        return [
            fault
            for place, (a, b) in enumerate(zip(one, other, strict=True))
            for fault in differences(a, b, f"{where}/{a[0] if _named(a) else place}")
        ]
    if isinstance(one, float) and isinstance(other, float):
        same = one == other or (np.isnan(one) and np.isnan(other))
        return [] if same or np.isclose(one, other, rtol=1e-6) else [f"{where}: {one}, {other}"]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def _named(value):
    return isinstance(value, tuple) and bool(value) and isinstance(value[0], str)


@pytest.fixture
def float64_default():
    yield lambda: torch.set_default_dtype(torch.float64)
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


@pytest.mark.parametrize("stop", TOUR)
def test_a_result_is_the_same_under_a_default_dtype_of_float64(stop, tiny_model, float64_default):
    expected = plain(TOUR[stop](tiny_model))
    float64_default()
    assert differences(expected, plain(TOUR[stop](tiny_model))) == []


def test_a_model_loaded_under_float64_is_the_same_model(tiny_folder, tiny_model, float64_default):
    expected = plain(sl.cache_residuals(tiny_model, _pairs()))
    float64_default()
    loaded = sl.load_model(tiny_folder, device="cpu")
    assert {one.dtype for one in loaded.parameters()} == {torch.float32}
    assert differences(expected, plain(sl.cache_residuals(loaded, _pairs()))) == []


def test_files_written_under_float64_are_the_same(tmp_path, tiny_model, float64_default):
    vector = _vector(tiny_model)
    float64_default()
    read = sl.SteeringVector.load(_vector(tiny_model).save(tmp_path / "vector.safetensors"))
    shards = shard_residuals(tiny_model, _pairs(), tmp_path / "shards", pairs_per_shard=3)
    assert torch.equal(read.directions, vector.directions)
    assert torch.equal(sl.difference_of_means(shards.layer(1)).gaps, vector.gaps[1:2])


@pytest.mark.parametrize("stop", ["steered texts", "effects and contributions", "the cache"])
def test_a_result_is_the_same_under_a_default_device(stop, tiny_model, float64_default):
    expected = plain(TOUR[stop](tiny_model))
    torch.set_default_device("cpu")
    assert differences(expected, plain(TOUR[stop](tiny_model))) == []
