"""Synthetic residuals whose separability is known."""

import numpy as np
import torch

from steerlens.activations.cache import ResidualCache


def planted(d_prime=2.0, layer=2, n_pairs=64, n_layers=5, d_model=16, seed=0, groups=None):
    """Unit-variance noise, with the instructed side shifted by `d_prime` along one axis."""
    rng = np.random.default_rng(seed)
    sides = rng.standard_normal((2, n_pairs, n_layers, d_model)).astype(np.float32)
    sides[0, :, layer, 3] += d_prime
    # A small shift everywhere else: each layer has a direction, but a weak one.
    sides[0, :, :, 5] += 0.1
    tensors = torch.from_numpy(sides)
    return ResidualCache.from_tensors(tensors[0], tensors[1], groups=groups)


def runs_of(cache, layer):
    """One layer of a cache as a float64 array, instructed side first."""
    place = cache.layers.index(layer)
    return np.stack(
        [cache.instructed[:, place].numpy(), cache.uninstructed[:, place].numpy()]
    ).astype(np.float64)


def correlated_runs(rng, d_prime, n_pairs=64, d_model=96, alike=0.8, decay=1.0):
    """Runs as residuals are: sides of a pair alike, a few dimensions large, a planted d′.

    Returns the runs, the variances of the dimensions and the planted difference of means.
    """
    variances = np.arange(1, d_model + 1.0) ** -decay
    towards = np.random.default_rng(5).standard_normal(d_model) * np.sqrt(variances)
    shift = d_prime * towards * np.sqrt((towards**2) @ variances) / (towards @ towards)
    shared = rng.standard_normal((n_pairs, d_model)) * np.sqrt(alike)
    own = rng.standard_normal((2, n_pairs, d_model)) * np.sqrt(1 - alike)
    runs = (shared + own) * np.sqrt(variances)
    runs[0] += shift
    return runs, variances, shift
