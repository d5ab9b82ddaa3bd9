"""Claims about maps between residual streams: found where there is one, and seen where not."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold
from tiny_models import write_tiny_folder

from steerlens.activations.cache import ResidualCache
from steerlens.errors import ActivationError, SteeringError, SteerlensError, UnknownNameError
from steerlens.models.loading import load_model
from steerlens.tasks import catalogue
from steerlens.vectors import difference_of_means
from steerlens.vectors.transfer import (
    PairedResiduals,
    fit_layer_maps,
    fit_maps,
    linear_cka,
    map_texts,
    transfer_vector,
)

N_TEXTS, D_SOURCE, D_TARGET = 60, 6, 9


def linear_pair(noise: float = 0.0, rotation: bool = False) -> tuple[PairedResiduals, np.ndarray]:
    """Three source layers and two target layers; target layer t is a map of source layer 2t."""
    rng = np.random.default_rng(0)
    source = rng.standard_normal((N_TEXTS, 3, D_SOURCE))
    weights = rng.standard_normal((2, D_SOURCE, D_TARGET))
    if rotation:
        weights = 3.0 * np.stack([np.linalg.qr(one.T)[0].T for one in weights])
    target = np.einsum("ntd,tde->nte", source[:, ::2], weights) + 5.0
    target += noise * rng.standard_normal(target.shape)
    groups = tuple(i // 2 for i in range(N_TEXTS))
    paired = PairedResiduals(
        torch.from_numpy(source).float(), torch.from_numpy(target).float(), groups
    )
    return paired, weights


def example_vector():
    generator = torch.Generator().manual_seed(3)
    sides = torch.randn(2, 6, 3, D_SOURCE, generator=generator)
    return difference_of_means(ResidualCache.from_tensors(sides[0] + 2.0, sides[1]))


@pytest.mark.parametrize(("method", "rotation"), [("ridge", False), ("procrustes", True)])
@pytest.mark.parametrize("match", ["depth", "cka"])
def test_a_linear_relation_is_found_with_the_layers_it_is_between(method, rotation, match) -> None:
    # Given a target that is a linear function of every second source layer
    paired, weights = linear_pair(rotation=rotation)

    # When maps are fitted
    maps = fit_layer_maps(paired, method, match)

    # Then they are that function, between these layers, and say so on held-out texts
    assert maps.table["source_layer"].tolist() == [0, 2]
    assert (maps.table["r2"] > 0.999).all() and (maps.table["r2_median"] > 0.999).all()
    for one, expected in zip(maps.maps, weights, strict=True):
        np.testing.assert_allclose(one.weights, expected, atol=2e-2)


def test_a_direction_goes_where_the_map_sends_it_and_is_measured_on_the_target() -> None:
    paired, weights = linear_pair()
    vector = example_vector()
    generator = torch.Generator().manual_seed(4)
    sides = torch.randn(2, 10, 2, D_TARGET, generator=generator)
    shifts = torch.from_numpy(
        np.stack([vector.directions[2 * t].double().numpy() @ weights[t] for t in range(2)])
    )
    cache = ResidualCache.from_tensors(sides[0] + 10 * shifts, sides[1])

    found = transfer_vector(vector, cache, fit_layer_maps(paired))

    expected = (shifts / shifts.norm(dim=-1, keepdim=True)).float()
    torch.testing.assert_close(found.vector.directions, expected, atol=1e-3, rtol=0)
    assert found.table["source_layer"].tolist() == [0, 2]
    assert (found.table["cosine_own"] > 0.99).all()
    assert {"r2", "r2_median", "cka"} <= set(found.table)
    gaps = torch.einsum(
        "ld,ld->l", found.vector.directions, (cache.instructed - cache.uninstructed).mean(0)
    )
    torch.testing.assert_close(found.vector.gaps, gaps)


def test_unrelated_residuals_show_as_no_held_out_variance_explained() -> None:
    # Given two streams that have nothing to do with each other
    paired, _ = linear_pair()
    noise = torch.randn(paired.target.shape, generator=torch.Generator().manual_seed(9))
    unrelated = PairedResiduals(paired.source, noise, paired.groups)

    # When maps are fitted, then both methods say that they are worthless
    for method in ("ridge", "procrustes"):
        assert (fit_layer_maps(unrelated, method).table["r2"] < 0.1).all()


def test_held_out_r2_is_that_of_a_ridge_of_scikit_learn_with_the_same_penalty() -> None:
    # Given a noisy relation in which one penalty is chosen in every fold
    paired, _ = linear_pair(noise=3.0)
    one = fit_layer_maps(paired).maps[1]
    x, y = paired.source[:, 2].double().numpy(), paired.target[:, 1].double().numpy()

    # When scikit-learn fits the same on the same folds, λ in its own units
    error = spread = 0.0
    chosen = []
    for train, test in GroupKFold(5).split(x, groups=paired.groups):
        centred = x[train] - x[train].mean(0)
        scale = np.linalg.eigvalsh(centred @ centred.T).clip(min=0).mean()
        fits = [Ridge(10.0**k * scale).fit(x[train], y[train]) for k in range(-4, 4)]
        errors = [_left_out_error(x[train], y[train], 10.0**k * scale) for k in range(-4, 4)]
        chosen.append(int(np.argmin(errors)))
        error += ((y[test] - fits[chosen[-1]].predict(x[test])) ** 2).sum()
        spread += ((y[test] - y[train].mean(0)) ** 2).sum()

    # Then R² is the same
    assert one.r2 == pytest.approx(1 - error / spread, abs=1e-6)


def _left_out_error(x: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Leave-one-out error by leaving out one after the other."""
    total = 0.0
    centred, aimed = x - x.mean(0), y - y.mean(0)
    hat = centred @ np.linalg.solve(
        centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T
    ) + np.full((len(x), len(x)), 1 / len(x))
    for i in range(len(x)):
        total += float((((aimed[i] - hat[i] @ y + y.mean(0)) / (1 - hat[i, i])) ** 2).sum())
    return total


def test_cka_does_not_see_rotation_scale_and_shift_and_is_small_for_noise() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 5))
    rotation = np.linalg.qr(rng.standard_normal((5, 5)))[0]
    assert linear_cka(x, 7 * x @ rotation + 3) == pytest.approx(1.0)
    assert linear_cka(x, rng.standard_normal((200, 5))) < 0.1


def test_texts_of_the_instruction_to_transfer_are_left_out() -> None:
    texts, groups = map_texts(64, without="length_constraints:number_sentences:at_most")
    assert len(texts) == len(set(texts)) == len(groups) == 64
    assert (texts, groups) == map_texts(64, without="length_constraints:number_sentences:at_most")
    title = map_texts(64, without="detectable_format:title")[0]
    phrases = catalogue["detectable_format:title"].phrasings
    assert not any(phrase in text for text in title for phrase in phrases)


def test_maps_between_real_models_go_from_one_width_to_the_other(tiny_model, tmp_path) -> None:
    # Given a tiny model and another with other weights
    other = load_model(write_tiny_folder(tmp_path / "other", seed=1), device="cpu")
    texts = [f"{word} {n}" for n in range(4) for word in ("one", "two")]

    # When maps are fitted on both positions
    for position in ("last_prompt", "prompt_mean"):
        maps = fit_maps(tiny_model, other, texts, position=position)

        # Then there is a map a layer, and it names both models
        assert maps.table["layer"].tolist() == [0, 1, 2]
        assert maps.metadata["position"] == position
        assert maps.metadata["source_weights_hash"] != maps.metadata["target_weights_hash"]


def test_maps_refuse_what_does_not_fit() -> None:
    paired, _ = linear_pair()
    maps = fit_layer_maps(paired)
    vector = example_vector()
    with pytest.raises(SteeringError, match="d_model 9, the residuals have 4"):
        transfer_vector(
            vector, ResidualCache.from_tensors(torch.ones(2, 2, 4), torch.zeros(2, 2, 4)), maps
        )
    wide = ResidualCache.from_tensors(torch.ones(2, 3, 8), torch.zeros(2, 3, 8))
    with pytest.raises(SteeringError, match="d_model 8, the maps are from a model with 6"):
        maps.directions(difference_of_means(wide))
    with pytest.raises(UnknownNameError, match="unknown method 'rigde'; did you mean 'ridge'"):
        fit_layer_maps(paired, "rigde")
    with pytest.raises(UnknownNameError, match="unknown match"):
        fit_layer_maps(paired, "ridge", "dept")
    with pytest.raises(ActivationError, match="at least 5 queries"):
        PairedResiduals(paired.source, paired.target, tuple(i % 4 for i in range(N_TEXTS)))
    with pytest.raises(SteerlensError, match="a map is fitted on 8 to"):
        map_texts(4)
    same = PairedResiduals(paired.source, torch.ones_like(paired.target), paired.groups)
    with pytest.raises(SteeringError, match="the same for all texts"):
        fit_layer_maps(same)
