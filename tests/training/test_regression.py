"""Claims about the gate by least squares."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from steerlens.training.regression import _ALPHAS, fit_gate


@pytest.fixture(scope="module")
def planted():
    """Differences along one axis, as far as a linear function of the residuals says."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12)) * np.linspace(0.5, 3, 12) + 1.0
    axis, read = rng.normal(size=(2, 12))
    axis /= np.linalg.norm(axis)
    amount = np.maximum(2.0 + x @ read, 0) + 0.01 * rng.normal(size=400)
    return x, axis, read, amount


def test_an_open_gate_is_recovered(planted):
    x, axis, read, _ = planted
    amount = 50.0 + x @ read
    write, found, bias = fit_gate(x + amount[:, None] * axis, x)
    np.testing.assert_allclose(write, axis, atol=1e-9)
    np.testing.assert_allclose(found, read, rtol=1e-3, atol=1e-3)
    assert bias == pytest.approx(50.0, rel=1e-3)


def test_it_is_scikit_learns_ridge_on_standardised_residuals(planted):
    x, axis, _, amount = planted
    write, read, bias = fit_gate(x + amount[:, None] * axis, x)
    projected = (amount[:, None] * axis) @ write
    # The axis that holds most of the squared differences, in the sign of their mean.
    assert write @ axis == pytest.approx(1.0, abs=1e-9)
    z = (x - x.mean(0)) / x.std(0)
    predictions = x @ read + bias
    candidates = [Ridge(alpha).fit(z, projected).predict(z) for alpha in _ALPHAS]
    assert min(np.abs(predictions - each).max() for each in candidates) < 1e-6
