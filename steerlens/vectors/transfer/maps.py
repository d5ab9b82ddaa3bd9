r"""Linear maps from the residual stream of one model to that of another.

For a source layer *s* and a target layer *t*, with residuals of the same *n* texts as the centred
rows of *X* and *Y*:

``ridge``
    :math:`W = \arg\min_W \|XW - Y\|^2 + \lambda \|W\|^2`, with the :math:`\lambda` of a grid
    that has the least leave-one-out error (scikit-learn's ``RidgeCV``).

``procrustes``
    :math:`W = c\,UV^\top` with :math:`X^\top Y = USV^\top` and
    :math:`c = \operatorname{tr} S / \|XUV^\top\|^2`: a rotation and one scale (Schönemann 1966;
    the scale is fitted with the rotation held). Directions that the texts do not span map to zero.

A direction *u* goes to :math:`uW`, normalised. **Held-out R²** tells whether the map may be
believed: 1 − (squared error) / (variance about the training mean) over five folds, each with its
own λ and rotation; texts of one base query are never split. It is summed over dimensions; a few of
them have most of the variance in many models, so its median over dimensions stands beside it. Below
0 a map is worse than a constant.

**Layers** are matched by relative depth, or by the largest linear CKA (Kornblith et al. 2019,
arXiv 1905.00414).

Caveat: a map that predicts residuals need not carry what steers: instructed and uninstructed
prompts differ in a small part of the variance, and R² is about all of it.

>>> import numpy as np
>>> x = np.random.default_rng(0).standard_normal((40, 5))
>>> round(linear_cka(x, 3 * x @ np.linalg.qr(np.random.default_rng(1).random((5, 5)))[0]), 6)
1.0
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError, unknown_name
from steerlens.vectors import SteeringVector
from steerlens.vectors.transfer.paired import PairedResiduals, paired_residuals
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["LayerMap", "LayerMaps", "fit_layer_maps", "fit_maps", "linear_cka"]

Array = np.ndarray
METHODS = ("ridge", "procrustes")
MATCHES = ("depth", "cka")
N_FOLDS = 5
# Shares of the mean eigenvalue of XXᵀ; `LayerMap.penalty` at an end of them asks for a wider grid.
PENALTIES = tuple(10.0**power for power in range(-4, 4))
# Singular values below this share of the largest are rounding.
_RANK = 1e-6


@dataclass(frozen=True, eq=False)
class LayerMap:
    r"""The map to one target layer.

    Attributes:
        layer: The target layer.
        source_layer: The source layer it is matched with.
        weights: *W*; a row vector of the source goes to ``row @ weights``.
        r2: Held-out R², summed over dimensions.
        r2_median: Its median over dimensions.
        cka: Linear CKA of the two layers on the texts.
        penalty: λ over the mean eigenvalue of :math:`XX^\top`; None for ``procrustes``.
    """

    layer: int
    source_layer: int
    weights: Float[Array, "d_source d_target"]
    r2: float
    r2_median: float
    cka: float
    penalty: float | None


@dataclass(frozen=True, eq=False, repr=False)
class LayerMaps(Result):
    """Maps to every layer of a target model.

    Attributes:
        maps: One per target layer, ascending.
        method: ``"ridge"`` or ``"procrustes"``.
        match: ``"depth"`` or ``"cka"``.
        metadata: Both models, position, number of texts.
    """

    maps: tuple[LayerMap, ...]
    method: str
    match: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def table(self) -> pd.DataFrame:
        """One row per target layer: ``layer, source_layer, r2, r2_median, cka, penalty``."""
        columns = ("layer", "source_layer", "r2", "r2_median", "cka", "penalty")
        return pd.DataFrame([{name: getattr(each, name) for name in columns} for each in self.maps])

    def plot(self) -> "go.Figure":
        """Held-out R² and CKA over target layers."""
        from steerlens.views import evidence_curves

        title = f"{self.method}, layers matched by {self.match}"
        return evidence_curves(self.table, ["r2", "r2_median", "cka"], title=title)

    def directions(
        self, vector: SteeringVector
    ) -> tuple[tuple[int, ...], Float[Tensor, "layer d_target"]]:
        """Target layers whose source layer the vector has, and its directions there.

        Raises:
            SteeringError: Another width than the maps', no layer in common, or a direction that a
                map sends to zero.
        """
        width = self.maps[0].weights.shape[0]
        if vector.d_model != width:
            raise SteeringError(
                f"this vector has d_model {vector.d_model}, the maps are from a model with {width}"
            )
        usable = [each for each in self.maps if each.source_layer in vector.layers]
        if not usable:
            raise SteeringError(f"the maps are from none of the layers of {vector!r}")
        rows = []
        for each in usable:
            unit = vector.directions[vector.layer_index(each.source_layer)].double().numpy()
            mapped = unit @ each.weights
            length = np.linalg.norm(mapped)
            if not length > 0:
                raise SteeringError(
                    f"the map to layer {each.layer} sends the direction at layer "
                    f"{each.source_layer} to zero; the texts it was fitted on do not vary along it"
                )
            rows.append(torch.from_numpy(mapped / length))
        return tuple(each.layer for each in usable), torch.stack(rows).float()

    def __repr__(self) -> str:
        r2 = self.table["r2"]
        return (
            f"LayerMaps({self.method}, layers by {self.match}, {len(self.maps)} target layers, "
            f"held-out R² {r2.min():.2f} to {r2.max():.2f})"
        )


def fit_maps(
    source: TransformerBridge,
    target: TransformerBridge,
    texts: Sequence[str] | tuple[Sequence[str], Sequence[int]],
    method: str = "ridge",
    match: str = "depth",
    position: str = "last_prompt",
    show_progress: bool | None = None,
) -> LayerMaps:
    """Run texts through both models and fit a map to every target layer.

    Args:
        source: The model a vector was made for.
        target: The model it goes to.
        texts: User messages without the instruction to transfer, alone or with their groups as
            `steerlens.vectors.transfer.paired.map_texts` returns them.
        method: ``"ridge"`` or ``"procrustes"``.
        match: How layers are matched: ``"depth"`` or ``"cka"``.
        position: See `steerlens.vectors.transfer.paired`.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        UnknownNameError: A method, match or position that does not exist.
        ActivationError: Too few texts to hold some out.
    """
    _check_names(method, match)
    alone = not texts or isinstance(texts[0], str)
    words, groups = (texts, None) if alone else texts
    paired = paired_residuals(source, target, words, groups, position, show_progress)  # type: ignore[arg-type]
    return fit_layer_maps(paired, method, match)


def fit_layer_maps(
    paired: PairedResiduals, method: str = "ridge", match: str = "depth"
) -> LayerMaps:
    """Fit a map to every target layer from residuals of both models.

    Raises:
        UnknownNameError: A method or match that does not exist.
        SteeringError: A layer whose residuals are the same for all texts.
    """
    _check_names(method, match)
    source, target = paired.source.double().numpy(), paired.target.double().numpy()
    for name, values in (("source", source), ("target", target)):
        constant = np.ptp(values, axis=0).max(axis=-1) == 0
        if constant.any():
            raise SteeringError(
                f"the {name} model's residuals at layer {int(constant.argmax())} are the same for "
                "all texts; read them at another position"
            )
    n_source, n_target = source.shape[1], target.shape[1]
    maps = []
    for t in range(n_target):
        y = target[:, t]
        same_depth = round(t * (n_source - 1) / max(n_target - 1, 1))
        candidates = [same_depth] if match == "depth" else range(n_source)
        cka = {s: linear_cka(source[:, s], y) for s in candidates}
        s = max(cka, key=lambda layer: cka[layer])
        x = source[:, s]
        r2, r2_median = _held_out_r2(x, y, paired.groups, method)
        weights, penalty = _fit(x - x.mean(0), y - y.mean(0), method)
        maps.append(LayerMap(t, s, weights, r2, r2_median, cka[s], penalty))
    return LayerMaps(tuple(maps), method, match, dict(paired.metadata))


def linear_cka(x: Float[Array, "text d_x"], y: Float[Array, "text d_y"]) -> float:
    r""":math:`\|Y^\top X\|^2 / (\|X^\top X\| \|Y^\top Y\|)` of centred columns, 0 to 1."""
    x, y = x - x.mean(0), y - y.mean(0)
    # Through the Gram matrices of texts, which are smaller than those of dimensions.
    gram_x, gram_y = x @ x.T, y @ y.T
    return float((gram_x * gram_y).sum() / (np.linalg.norm(gram_x) * np.linalg.norm(gram_y)))


def _check_names(method: str, match: str) -> None:
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if match not in MATCHES:
        raise unknown_name("match", match, MATCHES)


def _held_out_r2(
    x: Float[Array, "text d_x"], y: Float[Array, "text d_y"], groups: Sequence[int], method: str
) -> tuple[float, float]:
    """R² over folds, summed over dimensions, and its median over dimensions."""
    error, spread = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for train, test in GroupKFold(N_FOLDS).split(x, groups=groups):
        x_mean, y_mean = x[train].mean(0), y[train].mean(0)
        weights, _ = _fit(x[train] - x_mean, y[train] - y_mean, method)
        centred = y[test] - y_mean
        error += ((centred - (x[test] - x_mean) @ weights) ** 2).sum(0)
        spread += (centred**2).sum(0)
    varies = spread > 0
    median = np.median(1 - error[varies] / spread[varies])
    return float(1 - error.sum() / spread.sum()), float(median)


def _fit(
    x: Float[Array, "text d_x"], y: Float[Array, "text d_y"], method: str
) -> tuple[Float[Array, "d_x d_y"], float | None]:
    """*W* for centred rows, and the relative penalty of a ridge."""
    if method == "ridge":
        scale = (x**2).sum() / len(x)  # the mean eigenvalue of XXᵀ
        ridge = RidgeCV(alphas=[share * scale for share in PENALTIES]).fit(x, y)
        return ridge.coef_.T, float(ridge.alpha_ / scale)
    left, values, right = np.linalg.svd(x.T @ y, full_matrices=False)
    rank = int((values > _RANK * values[0]).sum())
    rotation = left[:, :rank] @ right[:rank]
    scale = values[:rank].sum() / ((x @ rotation) ** 2).sum()
    return scale * rotation, None
