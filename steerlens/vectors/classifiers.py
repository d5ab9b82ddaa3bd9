"""Directions from linear classifiers that tell the two sides apart, fitted by scikit-learn."""

from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from steerlens.activations.cache import ResidualCache
from steerlens.errors import SteeringError
from steerlens.errors.arguments import finite_number
from steerlens.vectors.means import from_directions
from steerlens.vectors.vector import SteeringVector

__all__ = ["linear_discriminant", "linear_probe"]


def linear_probe(cache: ResidualCache, regularisation: float = 1.0) -> SteeringVector:
    r"""Weights of a logistic regression between instructed and uninstructed residuals.

    .. math:: \min_{w, c} \; \tfrac{\lambda}{2} \|w\|^2 +
              \sum_{i, \pm} \log\bigl(1 + e^{\mp (w \cdot x^\pm_{il} + c)}\bigr),
              \qquad u_l = w / \|w\|

    where *x* is *h* minus the mean of both sides, divided by the root mean square of its entries
    (one number per layer), so that :math:`\lambda` means the same at every depth.

    Source: Alain and Bengio 2016 (arXiv 1610.01644) for probes; Li et al. 2023, *Inference-Time
    Intervention* (arXiv 2306.03341) for steering along their weights.

    Args:
        cache: Residuals of both sides.
        regularisation: :math:`\lambda`, above 0.

    Raises:
        SteeringError: A regularisation that is not positive, or sides that cannot be told apart.
    """
    regularisation = finite_number("regularisation", regularisation, error=SteeringError)
    if not regularisation > 0:
        raise SteeringError(f"regularisation must be a positive number; got {regularisation}")
    probe = LogisticRegression(C=1 / regularisation, max_iter=1000)
    return _weights(cache, probe, "linear_probe", regularisation=regularisation)


def linear_discriminant(cache: ResidualCache) -> SteeringVector:
    r"""Fisher's linear discriminant, with a shrunk covariance.

    .. math:: u_l \propto \Sigma_l^{-1} (\bar h^+_l - \bar h^-_l), \qquad
              \Sigma = (1 - \gamma) S + \gamma \, \tfrac{\operatorname{tr} S}{d} I

    with *S* the covariance within the two sides (of features in units of their standard deviation)
    and :math:`\gamma` chosen by the lemma of Ledoit and Wolf, as scikit-learn does. With fewer
    pairs than dimensions *S* alone has no inverse.

    Source: Fisher 1936; Ledoit and Wolf 2004 for the shrinkage; Marks and Tegmark 2023
    (arXiv 2310.06824) for the same direction as a probe of language models.

    Raises:
        SteeringError: Sides that cannot be told apart.
    """
    analysis = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    return _weights(cache, analysis, "linear_discriminant")


def _weights(
    cache: ResidualCache, classifier: Any, estimator: str, **provenance: Any
) -> SteeringVector:
    """The weights of a classifier, fitted at each layer, as directions."""
    labels = np.repeat([1, 0], cache.n_pairs)
    sides = torch.cat([cache.instructed, cache.uninstructed]).double().numpy()
    directions = []
    for layer, rows in zip(cache.layers, sides.transpose(1, 0, 2), strict=True):
        centred = rows - rows.mean(0)
        scale = np.sqrt((centred**2).mean())
        if scale == 0:
            raise SteeringError(
                f"all residuals are the same at layer {layer}; there is nothing to tell apart"
            )
        directions.append(classifier.fit(centred / scale, labels).coef_[0])
    return from_directions(cache, torch.from_numpy(np.stack(directions)), estimator, **provenance)
