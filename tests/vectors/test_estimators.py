"""Claims about estimators, against numpy, scikit-learn and a peer package."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.errors import SteeringError
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.pairs import ContrastPair, ContrastSet
from steerlens.vectors import (
    ESTIMATORS,
    difference_of_means,
    from_directions,
    linear_discriminant,
    linear_probe,
    mean_centred,
    pca_of_differences,
    random_direction,
)


def example_cache(seed=0, n_pairs=40, n_layers=2, d_model=6, metadata=None) -> ResidualCache:
    """Two sides that differ along one axis, with more noise along another."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, n_pairs, n_layers, d_model, generator=generator)
    noise[..., 1] *= 4.0
    shift = torch.zeros(d_model)
    shift[0] = 3.0
    return ResidualCache.from_tensors(
        noise[0] + shift, noise[1], layers=range(n_layers), metadata=metadata
    )


def sides(cache, layer):
    return (
        cache.instructed[:, layer].double().numpy(),
        cache.uninstructed[:, layer].double().numpy(),
    )


def unit(values):
    return values / np.linalg.norm(values)


def towards_instructed(direction, cache, layer):
    plus, minus = sides(cache, layer)
    return unit(direction) * np.sign(direction @ (plus.mean(0) - minus.mean(0)))


@given(seed=st.integers(0, 10_000), n_pairs=st.integers(2, 30))
@settings(max_examples=40, deadline=None)
def test_difference_of_means_equals_numpy(seed, n_pairs):
    cache = example_cache(seed, n_pairs)
    vector = difference_of_means(cache)
    plus, minus = cache.instructed.double().numpy(), cache.uninstructed.double().numpy()
    difference = plus.mean(0) - minus.mean(0)
    gap = np.linalg.norm(difference, axis=-1)
    unit = difference / gap[:, None]
    np.testing.assert_allclose(vector.gaps, gap, rtol=1e-5)
    np.testing.assert_allclose(vector.directions, unit, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vector.targets, (plus.mean(0) * unit).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        vector.baselines, (minus.mean(0) * unit).sum(-1), rtol=1e-4, atol=1e-5
    )


def test_target_minus_baseline_is_the_gap():
    vector = difference_of_means(example_cache())
    torch.testing.assert_close(vector.targets - vector.baselines, vector.gaps)


def test_a_placebo_pushes_as_far_in_an_unrelated_direction():
    cache = example_cache()
    vector, placebo = difference_of_means(cache), random_direction(cache, seed=3)
    torch.testing.assert_close(placebo.gaps, vector.gaps)
    torch.testing.assert_close(placebo.directions.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(placebo.targets - placebo.baselines, vector.gaps)
    again = random_direction(cache, seed=3)
    assert torch.equal(placebo.directions, again.directions)
    assert not torch.equal(placebo.directions, random_direction(cache, seed=4).directions)


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
@given(seed=st.integers(0, 10_000), n_pairs=st.integers(4, 30))
@settings(max_examples=10, deadline=None)
def test_gap_target_and_baseline_are_mean_projections_whatever_the_direction(name, seed, n_pairs):
    cache = example_cache(seed, n_pairs)
    vector = ESTIMATORS[name](cache)
    assert vector.metadata["estimator"] == name
    for layer in range(2):
        plus, minus = sides(cache, layer)
        u = vector.directions[layer].double().numpy()
        assert np.linalg.norm(u) == pytest.approx(1, abs=1e-5)
        assert float(vector.targets[layer]) == pytest.approx((plus @ u).mean(), abs=1e-4)
        assert float(vector.baselines[layer]) == pytest.approx((minus @ u).mean(), abs=1e-4)
        gap = (plus @ u).mean() - (minus @ u).mean()
        assert float(vector.gaps[layer]) == pytest.approx(gap, abs=1e-4)
        assert gap > 0


def test_pca_of_differences_is_scikit_learns_first_component_of_both_signs():
    cache = example_cache()
    vector = pca_of_differences(cache)
    for layer in range(2):
        plus, minus = sides(cache, layer)
        both = np.concatenate([plus - minus, minus - plus])
        fitted = PCA(n_components=1).fit(both)
        expected = towards_instructed(fitted.components_[0], cache, layer)
        np.testing.assert_allclose(vector.directions[layer], expected, atol=1e-5)
        share = vector.metadata["explained_share"][layer]
        assert share == pytest.approx(fitted.explained_variance_ratio_[0])


def test_pca_of_differences_equals_the_peer_package():
    aggregators = pytest.importorskip("steering_vectors.aggregators")
    cache = example_cache(seed=3)
    expected = aggregators.pca_aggregator()(cache.instructed[:, 1], cache.uninstructed[:, 1])
    torch.testing.assert_close(
        pca_of_differences(cache).directions[1], expected, rtol=1e-4, atol=1e-4
    )


def test_mean_centred_subtracts_the_mean_of_the_pool():
    cache, others = example_cache(), [example_cache(1, n_pairs=10), example_cache(2, n_pairs=25)]
    vector = mean_centred(cache, others)
    for layer in range(2):
        pool = np.concatenate([side for one in others for side in sides(one, layer)])
        expected = unit(sides(cache, layer)[0].mean(0) - pool.mean(0))
        np.testing.assert_allclose(vector.directions[layer], expected, atol=1e-5)
    assert vector.metadata["pool_rows"] == 70


def test_mean_centred_without_a_pool_is_the_difference_of_means():
    cache = example_cache()
    centred, plain = mean_centred(cache), difference_of_means(cache)
    torch.testing.assert_close(centred.directions, plain.directions)
    torch.testing.assert_close(centred.gaps, plain.gaps)


def test_the_probe_minimises_the_stated_loss():
    # given an independent minimiser of the same loss: scipy's, on the equation in the docstring
    cache, strength = example_cache(n_pairs=15), 0.3
    vector = linear_probe(cache, regularisation=strength)
    for layer in range(2):
        plus, minus = sides(cache, layer)
        rows = np.concatenate([plus, minus])
        rows = rows - rows.mean(0)
        rows = rows / np.sqrt((rows**2).mean())
        signs = np.repeat([1.0, -1.0], 15)

        def loss(parameters, rows=rows, signs=signs):
            margins = signs * (rows @ parameters[:-1] + parameters[-1])
            return strength / 2 * (parameters[:-1] ** 2).sum() + np.logaddexp(0, -margins).sum()

        found = minimize(loss, np.zeros(rows.shape[1] + 1), tol=1e-10).x[:-1]
        np.testing.assert_allclose(vector.directions[layer], unit(found), atol=2e-3)


def test_the_discriminant_solves_the_shrunk_system():
    cache = example_cache(n_pairs=12)
    vector = linear_discriminant(cache)
    for layer in range(2):
        plus, minus = sides(cache, layer)
        # Within-class covariance, shrunk class by class in units of standard deviations.
        covariance = np.zeros((6, 6))
        for side in (plus, minus):
            scaler = StandardScaler().fit(side)
            shrunk = ledoit_wolf(scaler.transform(side))[0]
            covariance += 0.5 * scaler.scale_[:, None] * shrunk * scaler.scale_
        expected = unit(np.linalg.solve(covariance, plus.mean(0) - minus.mean(0)))
        np.testing.assert_allclose(vector.directions[layer], expected, atol=1e-4)


def test_the_discriminant_turns_away_from_noise_that_both_sides_share():
    cache = example_cache(n_pairs=200)
    noisy_axis = [abs(float(ESTIMATORS[n](cache).directions[0, 1])) for n in sorted(ESTIMATORS)]
    by_name = dict(zip(sorted(ESTIMATORS), noisy_axis, strict=True))
    assert by_name["linear_discriminant"] < by_name["difference_of_means"]
    assert by_name["pca_of_differences"] > 0.5


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_direction_of_any_length_and_sign_points_to_the_instructed_side(scale, seed):
    cache = example_cache()
    given_direction = torch.randn(2, 6, generator=torch.Generator().manual_seed(seed))
    one = from_directions(cache, given_direction * scale)
    other = from_directions(cache, -given_direction)
    torch.testing.assert_close(one.directions, other.directions)
    assert (one.gaps > 0).all()
    difference = (cache.instructed - cache.uninstructed).mean(0)
    assert ((one.directions * difference).sum(-1) > 0).all()


def test_a_function_of_your_own_becomes_an_estimator():
    def median_difference(cache):
        plus, minus = cache.instructed.median(0).values, cache.uninstructed.median(0).values
        return from_directions(cache, plus - minus, "median_difference", note="robust")

    vector = median_difference(example_cache(metadata={"model": "m"}))
    assert vector.metadata == {"model": "m", "estimator": "median_difference", "note": "robust"}


def test_a_placebo_can_push_as_far_as_any_vector():
    cache = example_cache()
    vector = linear_probe(cache)
    placebo = random_direction(cache, seed=1, like=vector)
    torch.testing.assert_close(placebo.gaps, vector.gaps)
    torch.testing.assert_close(placebo.targets - placebo.baselines, vector.gaps)


@pytest.mark.parametrize(
    ("directions", "words"),
    [
        (torch.ones(3, 6), r"\[2, 6\] for this cache; got \[3, 6\]"),
        (torch.zeros(2, 6), "layer 0 is zero"),
        (torch.full((2, 6), torch.nan), "not finite"),
    ],
)
def test_directions_no_cache_can_have_are_refused(directions, words):
    with pytest.raises(SteeringError, match=words):
        from_directions(example_cache(), directions)


def test_a_direction_along_which_the_sides_agree_has_no_gap():
    cache = ResidualCache.from_tensors(torch.tensor([[[1.0, 0.0]]] * 2), torch.zeros(2, 1, 2))
    with pytest.raises(SteeringError, match="same mean at layer 0 along"):
        from_directions(cache, torch.tensor([[0.0, 1.0]]))


def test_sides_that_never_differ_are_refused_by_every_estimator():
    same = torch.ones(4, 2, 5)
    cache = ResidualCache.from_tensors(same, same.clone())
    for name, estimate in ESTIMATORS.items():
        with pytest.raises(SteeringError, match="layer 0"):
            estimate(cache)
            pytest.fail(name)


def test_settings_out_of_range_and_pools_of_other_layers_are_refused():
    cache = example_cache()
    with pytest.raises(SteeringError, match="regularisation"):
        linear_probe(cache, regularisation=0.0)
    with pytest.raises(SteeringError, match="pool"):
        mean_centred(cache, [])
    with pytest.raises(SteeringError, match="layers and width"):
        mean_centred(cache, [example_cache(n_layers=3)])
    with pytest.raises(SteeringError, match="placebo"):
        random_direction(cache, like=difference_of_means(example_cache(n_layers=3)))


def test_response_mean_averages_over_the_given_answers(tiny_model):
    # given pairs with answers of several tokens, read by hand through the model's own hooks
    answers = [("abc", "xy"), ("hello", "no"), ("ok", "never")]
    pairs = ContrastSet(
        tuple(
            ContrastPair(f"Ask {i}?", f"Say {i}.", f"Say {i}.", None, {}, *answer)
            for i, answer in enumerate(answers)
        )
    )
    vector = difference_of_means(cache_residuals(tiny_model, pairs, position="response_mean"))
    means = []
    for pair in pairs:
        texts = (pair.instructed_response, pair.uninstructed_response)
        for prompt, text in zip((pair.instructed, pair.uninstructed), texts, strict=True):
            [ids] = tokenize_prompts(tiny_model, [prompt])
            response = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                _, kept = tiny_model.run_with_cache(torch.tensor([ids + response]))
            means.append(kept["blocks.1.hook_out"][0, len(ids) :].mean(0))
    stacked = torch.stack(means).reshape(3, 2, -1)
    difference = (stacked[:, 0] - stacked[:, 1]).mean(0)
    torch.testing.assert_close(
        vector.gaps[1] * vector.directions[1], difference, rtol=1e-3, atol=1e-4
    )


def test_sides_with_equal_means_have_no_direction():
    same = torch.randn(4, 2, 5)
    with pytest.raises(SteeringError, match="same mean at layer 0"):
        difference_of_means(ResidualCache.from_tensors(same, same.clone()))
