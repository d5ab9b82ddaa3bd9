"""Claims about transfer between models of one shape: the direction stays, its numbers do not."""

import numpy as np
import pytest
import torch
from steering_examples import random_vector

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.errors import SteeringError
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.transfer import transfer_vector


def residuals(seed: int, shift: float = 2.0, layers: int = 3, width: int = 6) -> ResidualCache:
    """Both sides apart along the first dimension, more so at later layers."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, 8, layers, width, generator=generator)
    sides[0, ..., 0] += shift * torch.arange(1.0, layers + 1)
    metadata = {"model": f"model {seed}", "weights_hash": f"sha256:{seed}", "n_layers": layers}
    return ResidualCache.from_tensors(*sides, metadata=metadata)


def test_the_direction_stays_and_its_numbers_are_those_of_the_target() -> None:
    # Given a vector of one model, and both sides of pairs on another
    vector, target = difference_of_means(residuals(0, 20.0)), residuals(1, 30.0)

    # When it is transferred
    found = transfer_vector(vector, target)

    # Then directions are the source's, and targets numpy's means over the target's residuals
    assert torch.equal(found.vector.directions, vector.directions)
    units = vector.directions.double().numpy()
    for numbers, side in (
        (found.vector.targets, target.instructed),
        (found.vector.baselines, target.uninstructed),
    ):
        expected = np.einsum("ld,nld->nl", units, side.double().numpy()).mean(0)
        np.testing.assert_allclose(numbers.numpy(), expected, rtol=1e-5)
    # And the provenance says of which models
    record = found.vector.metadata["transfer"]
    assert (record["from"]["model"], record["to"]["model"]) == ("model 0", "model 1")
    assert found.vector.metadata["weights_hash"] == "sha256:1"
    # And the cosine with the target's own vector is that of two difference-of-means vectors
    own = difference_of_means(target).directions
    expected = torch.cosine_similarity(vector.directions, own)
    np.testing.assert_allclose(found.table["cosine_own"], expected.numpy(), atol=1e-6)


def test_a_layer_where_the_direction_points_the_other_way_is_left_out_not_turned() -> None:
    # Given a target whose sides at layer 1 are the other way round
    vector, straight = difference_of_means(residuals(0, 20.0)), residuals(1, 20.0)
    swapped = straight.instructed.clone(), straight.uninstructed.clone()
    for one, other in zip(swapped, (straight.uninstructed, straight.instructed), strict=True):
        one[:, 1] = other[:, 1]

    # When the vector is transferred
    found = transfer_vector(vector, ResidualCache.from_tensors(*swapped))

    # Then layer 1 is not in it, and the table says so
    assert found.vector.layers == (0, 2)
    assert found.table["usable"].tolist() == [True, False, True]
    assert found.table["gap"][1] < 0
    assert found.to_json()["layers"][1]["usable"] is False
    assert len(found.plot().data) >= 1
    with pytest.raises(SteeringError, match="nothing to transfer"):
        transfer_vector(-1.0 * vector, straight)


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (random_vector(3, 7), "d_model 7, model 1 6; between models of different shapes fit a map"),
        (random_vector(4, 6) + random_vector(4, 6, 1), "no layer in common"),
    ],
)
def test_a_vector_of_another_shape_is_refused(vector: SteeringVector, words: str) -> None:
    target = residuals(1, layers=3)
    if "common" in words:
        target = ResidualCache.from_tensors(
            target.instructed, target.uninstructed, layers=[7, 8, 9], metadata=target.metadata
        )
    with pytest.raises(SteeringError, match=words):
        transfer_vector(vector, target)


def test_a_vector_of_a_model_of_another_depth_is_refused() -> None:
    vector = difference_of_means(residuals(0, layers=4))
    with pytest.raises(SteeringError, match="a model with 4 layers, model 1 has 3"):
        transfer_vector(vector, residuals(1, layers=3))


def test_a_transferred_vector_steers_the_target_to_its_own_mean(tiny_model) -> None:
    # Given residuals of a tiny model, and a vector along a direction from elsewhere
    pairs = ContrastSet.from_prompts(["say a b", "name c d", "call e f"], ["say", "name", "call"])
    cache = cache_residuals(tiny_model, pairs)
    own = difference_of_means(cache)
    vector = transfer_vector(own, cache).vector

    # When a model's own vector is "transferred" to itself, nothing changes but rounding
    for name in ("directions", "gaps", "targets", "baselines"):
        torch.testing.assert_close(getattr(vector, name), getattr(own, name))
    vector.check_model(tiny_model)
