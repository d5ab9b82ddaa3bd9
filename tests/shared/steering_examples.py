"""Vectors and counts that several test modules use."""

import torch
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.vectors import SteeringVector, difference_of_means


def random_vector(n_layers: int, d_model: int, seed: int = 0) -> SteeringVector:
    """A vector of random directions for a model of this depth and width."""
    generator = torch.Generator().manual_seed(seed)
    sides = torch.randn(2, 6, n_layers, d_model, generator=generator)
    return difference_of_means(ResidualCache.from_tensors(sides[0] + 1.0, sides[1]))


def n_hooks(model: TransformerBridge) -> int:
    """Hooks on the model now, on hook points and on the root module."""
    points = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
    return points + len(model.original_model._forward_pre_hooks)
