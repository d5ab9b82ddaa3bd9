"""Kinds of evidence that `steerlens.attribution.gather_evidence` adds to a ranking of layers.

Each function takes the ranking and returns it with the kind's columns, and the whole result, which
holds more than a number per layer: other tasks, tokens, positions or components.
"""

import os
from dataclasses import replace

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.ceiling import Ceiling, ceiling
from steerlens.attribution.downstream_components import ComponentReading, reading_components
from steerlens.attribution.geometry import LayerGeometry, layer_geometry
from steerlens.attribution.patching import PatchingMap, activation_patching
from steerlens.attribution.ranking import LayerRanking
from steerlens.attribution.specificity import Specificity, specificity
from steerlens.attribution.vocabulary import VocabularyReadout, vocabulary_readout
from steerlens.stats.queries import recovery_interval
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector

__all__ = [
    "with_ceiling",
    "with_geometry",
    "with_patching",
    "with_reading",
    "with_specificity",
    "with_vocabulary",
    "written_by_layer",
]


def with_specificity(
    ranking: LayerRanking,
    model: TransformerBridge,
    task: Task | str | os.PathLike[str],
    seed: int,
    chat_format: str,
    show_progress: bool | None,
) -> tuple[LayerRanking, Specificity]:
    """``specific_auroc`` and ``own_share`` as kinds, and the other columns of its table."""
    result = specificity(
        model, task, seed=seed, chat_format=chat_format, show_progress=show_progress
    )
    table = result.table[result.table["layer"].isin(ranking.table["layer"])]
    for name in ("specific_auroc", "specific_d_prime", "own_share", "off_mean_share"):
        frame = table[["layer", name, f"{name}_low", f"{name}_high"]]
        ranking = ranking.with_evidence(name, frame, low=f"{name}_low", high=f"{name}_high")
    notices = [*ranking.metadata.get("notices", ()), *result.notices]
    ranking = replace(ranking, metadata={**ranking.metadata, "notices": notices})
    p_values = ranking.table[["layer"]].merge(table[["layer", "specific_p"]], how="left")
    return ranking.with_columns(p_values), result


def with_ceiling(
    ranking: LayerRanking,
    model: TransformerBridge,
    task: Task,
    seed: int,
    chat_format: str,
    show_progress: bool | None,
) -> tuple[LayerRanking, Ceiling]:
    """``ceiling``, with the share of it that the difference of means reaches, as a column."""
    layers = [layer for layer in ranking.table["layer"] if layer % 2 == 0]
    layers = [layer for layer in layers if layer < model.cfg.n_layers - 1] or [layers[0]]
    result = ceiling(
        model, task, layers, seed=seed, chat_format=chat_format, show_progress=show_progress
    )
    ranking = ranking.with_evidence(
        "ceiling", result.table, "ceiling", low="ceiling_low", high="ceiling_high"
    )
    shares = result.table[["layer", "share"]].rename(columns={"share": "ceiling_share"})
    return ranking.with_columns(ranking.table[["layer"]].merge(shares, how="left")), result


def with_geometry(
    ranking: LayerRanking, cache: ResidualCache
) -> tuple[LayerRanking, LayerGeometry]:
    """``next_cosine``: the direction's cosine to the next layer's, freed of noise."""
    result = layer_geometry(cache)
    table = result.table[["layer", "next_cosine", "next_low", "next_high"]]
    ranking = ranking.with_evidence("next_cosine", table, low="next_low", high="next_high")
    return ranking.with_columns(result.table[["layer", "from_layer", "to_layer"]]), result


def with_vocabulary(
    ranking: LayerRanking, model: TransformerBridge, vector: SteeringVector, seed: int
) -> tuple[LayerRanking, VocabularyReadout]:
    """``vocabulary_z``: the largest \\|z\\| of a token, above ``placebo_z`` more than chance."""
    result = vocabulary_readout(model, vector, seed=seed)
    table = result.table.assign(vocabulary_z=result.table["z"].abs())
    largest = table.groupby("layer", as_index=False)[["vocabulary_z", "placebo_z"]].max()
    ranking = ranking.with_evidence("vocabulary_z", largest[["layer", "vocabulary_z"]])
    return ranking.with_columns(largest[["layer", "placebo_z"]]), result


def with_patching(
    ranking: LayerRanking,
    model: TransformerBridge,
    pairs: ContrastSet,
    chat_format: str,
    show_progress: bool | None,
) -> tuple[LayerRanking, PatchingMap]:
    """``patching``: first-token recovery by the whole residual of the last prompt token."""
    result = activation_patching(
        model,
        pairs,
        layers=ranking.table["layer"].tolist(),
        chat_format=chat_format,
        show_progress=show_progress,
    )
    last = result.table[result.table["position"] == -1]
    return ranking.with_evidence("patching", last, value="recovery"), result


def with_reading(
    ranking: LayerRanking,
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    seed: int,
    chat_format: str,
    show_progress: bool | None,
) -> tuple[LayerRanking, ComponentReading]:
    """``reading``: share of the effect of steering the best layer that later layers make."""
    layer = min(ranking.best_layer, model.cfg.n_layers - 2)
    result = reading_components(
        model,
        pairs,
        vector,
        layer,
        seed=seed,
        chat_format=chat_format,
        show_progress=show_progress,
    )
    shares = _shares(result.effects, result.table, range(layer + 1, model.cfg.n_layers), pairs)
    known = shares[shares["layer"].isin(ranking.table["layer"])]
    return ranking.with_evidence("reading", known, value="share"), result


def written_by_layer(
    contributions: np.ndarray, table: pd.DataFrame, layer: int, pairs: ContrastSet
) -> pd.DataFrame:
    """Share of the projection's difference that each layer's heads, biases and MLP write."""
    shares = _shares(contributions[0] - contributions[1], table, range(layer + 1), pairs)
    return shares.rename(columns={"share": "writing"})


def _shares(
    by_pair: np.ndarray, table: pd.DataFrame, layers: range, pairs: ContrastSet
) -> pd.DataFrame:
    """Share of each layer's components in a sum over all, with its interval over queries."""
    of_layer = table["layer"].to_numpy(dtype=float)
    whole = by_pair.sum(axis=1)
    # What the other layers make is what remains without this one, so its share is a recovery.
    others = np.stack([whole - by_pair[:, of_layer == layer].sum(axis=1) for layer in layers], 1)
    share, low, high = recovery_interval(others, whole, pairs.query_groups)
    return pd.DataFrame({"layer": layers, "share": share, "low": low, "high": high})
