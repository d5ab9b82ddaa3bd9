"""Claims about the geometry of directions, against numpy and simulations of known truth."""

import numpy as np
import pytest
import torch

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.geometry import instruction_geometry, layer_geometry
from steerlens.errors import ActivationError, SteerlensError


def cache_of(differences, groups=None, **metadata):
    """A cache whose pairs have these differences, over uninstructed activations of noise."""
    values = torch.as_tensor(np.asarray(differences), dtype=torch.float32)
    below = torch.randn(values.shape, generator=torch.Generator().manual_seed(9))
    return ResidualCache.from_tensors(values + below, below, groups=groups, metadata=metadata)


def planted(seed, cosine, n=24, d=120, signal=3.0, shared_noise=0.7):
    """Differences of two instructions on the same queries; their true means have this cosine."""
    rng = np.random.default_rng(seed)
    one, other = np.zeros(d), np.zeros(d)
    one[0] = signal
    other[:2] = signal * np.array([cosine, np.sqrt(1 - cosine**2)])
    shared = shared_noise * rng.normal(size=(n, d))
    return one + shared + rng.normal(size=(n, d)), other + shared + rng.normal(size=(n, d))


def compared(one, other, **kwargs):
    caches = {"one": cache_of(one[:, None]), "other": cache_of(other[:, None])}
    return instruction_geometry(caches, 0, **kwargs).table.iloc[0]


def test_cosines_equal_numpy():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(10, 3, 8)) + rng.normal(size=(3, 8))
    cosines = layer_geometry(cache_of(values)).cosines
    means = values.mean(0)
    units = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(cosines.cosines, units @ units.T, atol=1e-5)
    assert np.allclose(cosines.norms, np.linalg.norm(means, axis=1), atol=1e-5)


def test_corrected_cosines_equal_a_double_loop_over_pairs_of_different_queries():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(9, 2, 6)) + 2 * rng.normal(size=(2, 6))
    groups = [0, 0, 1, 2, 2, 2, 3, 4, 5]

    def product(a, b, left_out=None):
        terms = [
            values[i, a] @ values[j, b]
            for i in range(9)
            for j in range(9)
            if groups[i] != groups[j] and left_out not in (groups[i], groups[j])
        ]
        return np.mean(terms)

    def corrected(left_out=None):
        lengths = product(0, 0, left_out) * product(1, 1, left_out)
        return product(0, 1, left_out) / np.sqrt(lengths)

    found = layer_geometry(cache_of(values, groups)).cosines
    assert found.corrected[0, 1] == pytest.approx(corrected(), abs=1e-5)
    assert found.corrected[0, 0] == pytest.approx(1)
    leave_one = np.array([corrected(g) for g in range(6)])
    error = np.sqrt(5 / 6 * ((leave_one - leave_one.mean()) ** 2).sum())
    width = 2 * 2.570582 * error  # Student's t with 5 degrees of freedom
    assert found.high[0, 1] - found.low[0, 1] == pytest.approx(width, rel=1e-4)
    means = values.mean(0)
    reliability = product(0, 0) / (means[0] @ means[0])
    assert found.reliability[0] == pytest.approx(reliability, abs=1e-5)


def test_reliability_is_what_split_half_cosines_say():
    one, _ = planted(0, 1.0, n=200, signal=1.0, shared_noise=0.0)
    found = layer_geometry(cache_of(one[:, None])).cosines
    rng = np.random.default_rng(0)
    halves = []
    for _ in range(200):
        order = rng.permutation(200)
        a, b = one[order[:100]].mean(0), one[order[100:]].mean(0)
        halves.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    rho = found.reliability[0]
    assert np.mean(halves) == pytest.approx(rho / (2 - rho), abs=0.02)
    assert found.ceilings[0, 0] == pytest.approx(rho)


@pytest.mark.parametrize("cosine", [0.0, 0.6, 1.0])
def test_noise_and_shared_queries_move_the_cosine_but_not_the_corrected_one(cosine):
    rows = [compared(*planted(seed, cosine)) for seed in range(100)]
    corrected = np.array([row.corrected for row in rows])
    covered = np.mean([row.low <= cosine <= row.high for row in rows])
    assert corrected.mean() == pytest.approx(cosine, abs=3 * corrected.std() / 10)
    assert covered >= 0.9
    if cosine == 1:
        assert np.mean([row.cosine for row in rows]) < 0.85


def test_one_direction_is_told_from_two_that_look_as_near():
    same, far = compared(*planted(3, 1.0)), compared(*planted(3, 0.6))
    assert same.low < 1 < same.high
    assert far.high < 1


def test_a_direction_of_noise_alone_has_no_corrected_cosine():
    rng = np.random.default_rng(5)
    noise = rng.normal(size=(12, 40))
    noise -= noise.mean(0) * 0.99
    signal = rng.normal(size=(12, 40)) + 3.0
    row = compared(noise, signal)
    assert np.isnan([row.corrected, row.low, row.high, row.ceiling]).all()
    assert np.isfinite(row.cosine)


def test_a_direction_holds_over_the_layers_it_was_planted_in():
    rng = np.random.default_rng(2)
    values = 0.3 * rng.normal(size=(30, 6, 50))
    values[:, :2, 0] += 2.0
    values[:, 2:5, 1] += 2.0
    values[:, 5, 0] += 2.0
    geometry = layer_geometry(cache_of(values))
    assert [geometry.span(layer) for layer in range(6)] == [
        (0, 1),
        (0, 1),
        (2, 4),
        (2, 4),
        (2, 4),
        (5, 5),
    ]
    assert list(geometry.table.from_layer) == [0, 0, 2, 2, 2, 5]
    assert geometry.table.next_cosine[0] == pytest.approx(1, abs=0.05)
    assert geometry.table.next_cosine[1] == pytest.approx(0, abs=0.05)
    assert np.isnan(geometry.table.next_cosine[5])
    assert "holds from layer 5" in repr(geometry)
    assert geometry.plot().data
    assert "<table" in geometry._repr_html_()


def test_a_stricter_bound_gives_a_shorter_run():
    rng = np.random.default_rng(2)
    values = 0.1 * rng.normal(size=(30, 5, 50))
    for layer in range(5):  # turns by 20 degrees a layer
        values[:, layer, :2] += np.array([np.cos(layer * np.pi / 9), np.sin(layer * np.pi / 9)])
    geometry = layer_geometry(cache_of(values))
    assert geometry.span(2, above=0.9) == (1, 3)  # cos 20° = 0.94, cos 40° = 0.77
    assert geometry.span(2, above=0.7) == (0, 4)


def test_the_nearest_instructions_are_named():
    one, other = planted(0, 0.95)
    rng = np.random.default_rng(1)
    far = rng.normal(size=one.shape) + 3 * (np.arange(120) == 7)
    caches = {"a": cache_of(one[:, None]), "far": cache_of(far[:, None])}
    geometry = instruction_geometry({**caches, "b": cache_of(other[:, None])}, 0)
    assert len(geometry.table) == 3
    assert "nearest: a and b" in repr(geometry)
    assert geometry.plot().data
    assert "<table" in geometry._repr_html_()


def two_layers(n=4, **metadata):
    rng = np.random.default_rng(0)
    return cache_of(rng.normal(size=(n, 2, 5)) + 1.0, **metadata)


def test_bad_input_is_refused_in_a_sentence():
    with pytest.raises(ActivationError, match=r"at least 3 base queries .* layer 0 has 2"):
        layer_geometry(two_layers(2))
    with pytest.raises(ActivationError, match="at least 2 instructions"):
        instruction_geometry({"a": two_layers()}, 0)
    with pytest.raises(ActivationError, match="layer 7 is not in this cache"):
        instruction_geometry({"a": two_layers(), "b": two_layers()}, 7)
    with pytest.raises(ActivationError, match="a and b differ in position"):
        caches = {"a": two_layers(position="last_prompt"), "b": two_layers(position=-2)}
        instruction_geometry(caches, 0)
    with pytest.raises(ActivationError, match="a has d_model 5, b 3"):
        instruction_geometry({"a": two_layers(), "b": cache_of(np.ones((4, 2, 3)))}, 0)
    same = torch.ones(4, 2, 5)
    with pytest.raises(ActivationError, match="the same mean for layer 0"):
        layer_geometry(ResidualCache.from_tensors(same, same))
    with pytest.raises(SteerlensError, match="above is a cosine"):
        layer_geometry(two_layers(), above=1.5)
    with pytest.raises(ActivationError, match="layer 4 is not in this geometry"):
        layer_geometry(two_layers()).span(4)
