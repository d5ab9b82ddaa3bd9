r"""*regress*: a push and a gate by least squares, without gradients through the model.

The instructed run's own response is fed after either prompt. At each token *t* of it the residuals
at a layer differ by :math:`\delta_t = h^+_t - h^-_t`, and steering the uninstructed run should make
up the difference from what it can see there, :math:`x_t = h^-_t` (after Heyman et al. 2026, *Steer
Like the LLM*, arXiv 2605.03907, which fits the same form to a prompt's effect):

.. math:: z = \bar\delta \qquad\text{without a gate, and with one}\qquad
          u = \arg\max_{\|u\| = 1} \sum_t (u \cdot \delta_t)^2, \quad
          (w, a) = \arg\min \sum_t (u \cdot \delta_t - a - w \cdot x_t)^2 + \alpha \|w'\|^2

for :math:`x + \mathrm{ReLU}(a + w \cdot x)\, u`, where :math:`w'` is :math:`w` in units of each
coordinate's standard deviation, :math:`\alpha` is chosen by generalised cross-validation, and the
sign of :math:`u` is that of the mean difference.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import RidgeCV
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import PASS_TOKENS, packs
from steerlens.engine.forward import PassRow, run_rows
from steerlens.training.examples import TrainingExample
from steerlens.training.objectives import Forced

__all__ = ["fit_gate", "forced_residuals"]

_ALPHAS = np.logspace(-1, 5, 13)
Array = np.ndarray


def forced_residuals(
    model: TransformerBridge, examples: Sequence[TrainingExample], layers: Sequence[int]
) -> dict[int, tuple[Float[Array, "token d_model"], Float[Array, "token d_model"]]]:
    """By layer, residuals that predict the instructed response after either prompt.

    Args:
        model: A model inside `fast_modules`.
        examples: Those with a response.
        layers: Layers to read.

    Returns:
        Instructed and uninstructed residuals, of the same tokens in one order.
    """
    sides = []
    for prompts in (
        [example.instructed for example in examples],
        [example.prompt for example in examples],
    ):
        texts = [
            Forced(prompt, example.obeyed)
            for prompt, example in zip(prompts, examples, strict=True)
        ]
        kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
        with torch.no_grad():
            for pack in packs(texts, lambda text: len(text.tokens), PASS_TOKENS):
                rows = [PassRow(tokens=text.tokens) for text in pack]
                passed = run_rows(model, rows, stop=max(layers) + 1, keep=layers)
                for layer in layers:
                    for text, resid in zip(pack, passed.kept[layer], strict=True):
                        kept[layer].append(resid[len(text.prompt) - 1 : len(text.tokens)].cpu())
        sides.append({layer: torch.cat(parts).double().numpy() for layer, parts in kept.items()})
    return {layer: (sides[0][layer], sides[1][layer]) for layer in layers}


def fit_gate(
    instructed: Float[Array, "token d_model"], uninstructed: Float[Array, "token d_model"]
) -> tuple[Float[Array, "d_model"], Float[Array, "d_model"], float]:
    """Write direction *u*, read direction *w* and bias *a* of the module's equation."""
    difference = instructed - uninstructed
    axis = np.linalg.svd(difference, full_matrices=False)[2][0]
    axis = axis * (1.0 if (difference @ axis).mean() >= 0 else -1.0)
    spread = uninstructed.std(axis=0)
    spread[spread == 0] = 1.0
    mean = uninstructed.mean(axis=0)
    ridge = RidgeCV(alphas=_ALPHAS).fit((uninstructed - mean) / spread, difference @ axis)
    read = ridge.coef_ / spread
    return axis, read, float(ridge.intercept_ - read @ mean)
