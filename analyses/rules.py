r"""Rules that choose a layer without generating anything, beside those of `steerlens.attribution`.

Every rule is a column of numbers by layer; it takes the layer with the highest. So rules that look
at nothing (the middle layer) are compared on equal terms with rules that look at the model, from
the same caches:

* ``directional_agreement``: mean cosine of the pair differences :math:`d_i` with their mean (after
  arXiv 2505.22637);
* ``layer_navigator``: that plus the share of the variance of projections that lies between the two
  sides. LayerNavigator adds a layer's discriminability and consistency; this is our reading of it,
  not its authors' code;
* ``logit_lens``: share of instructed prompts whose first answer token the logit lens already gives
  at the layer (after arXiv 2604.15557);
* ``middle_layer``, ``late_third``: one at the layer halfway, or five sixths of the way up;
* ``other_tasks``: the mean gain in passes of all *other* tasks at the layer: behaviour, so dear,
  but not this task's.
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score
from transformer_lens.tools.analysis import logit_readout

import steerlens as sl
from analyses import behaviour
from analyses.prediction import EvidenceComparison, compare_evidence
from analyses.steerability import behaviour_by_layer, evidence_by_layer, outcomes
from steerlens.vectors.others import other_task_vectors

__all__ = [
    "RULES",
    "behaviour_of",
    "compared",
    "evidence_of",
    "layers_of",
    "predictability",
    "rule_verdict",
    "tasks_of_half",
]

Array = np.ndarray
_N_RESAMPLES = 5000
RULES = (
    "auroc",
    "d_prime",
    "relative_gap",
    "specific_auroc",
    "specific_d_prime",
    "own_share",
    "off_mean_share",
    "first_token_recovery",
    "other_task_recovery",
    "specific_recovery",
    "layer_navigator",
    "directional_agreement",
    "logit_lens",
    "middle_layer",
    "late_third",
    "other_tasks",
)
# What tells of layers of equal AUROC, as in `steerlens.rank_layers`.
_TIES = {"auroc": "d_prime_held_out", "specific_auroc": "specific_d_prime"}
_LONGEST = 100
_N_PROMPTS, _N_TOKENS = 12, 64
# Loops hide what steering does (docs/results.md, "Loops"); with this penalty few answers loop.
DECODING = sl.Decoding(repetition_penalty=1.1)
_GRID: dict[str, Any] = {}
if behaviour.SMALL:
    _N_PROMPTS, _N_TOKENS = 2, 8
    _GRID = {"n_queries": 4, "others": ["punctuation:no_comma", "detectable_format:json_format"]}


def tasks_of_half(half: int) -> list[str]:
    """The catalogue's tasks, by a hash of their id: 0 to choose a rule on, 1 to test it on.

    Without those whose check needs an answer of more than 100 tokens.
    """
    if behaviour.SMALL:
        return ["detectable_format:title", "startend:quotation"][half : half + 1]
    halves = []
    for name, task in sl.catalogue.items():
        pairs = sl.contrast_pairs(task, n=12, split="report")
        needed = max(task.tokens_to_tell(pair.kwargs) or 0 for pair in pairs)
        if needed <= _LONGEST and sha256(name.encode()).digest()[0] % 2 == half:
            halves.append(name)
    return halves


def layers_of(model: Any) -> list[int]:
    """Nine or ten layers, evenly spaced from the first."""
    n_layers = model.cfg.n_layers
    return list(range(0, n_layers, 10 if behaviour.SMALL else round(n_layers / 10)))


def behaviour_of(model: Any, tasks: Sequence[str], name: str) -> pd.DataFrame:
    """`steerability.behaviour_by_layer` at these layers, every token steered, with `DECODING`."""
    return behaviour_by_layer(
        model,
        tasks,
        _N_PROMPTS,
        _N_TOKENS,
        f"{name}-behaviour",
        scopes=("all",),
        layers=layers_of(model),
        decoding=DECODING,
    )


def evidence_of(model: Any, tasks: Sequence[str], name: str) -> dict[str, pd.DataFrame]:
    """`steerability.evidence_by_layer` with the columns of all rules."""
    return evidence_by_layer(model, tasks, name, _evidence)


def _evidence(model: Any, task: str, n_fit: int, n_held_out: int) -> pd.DataFrame:
    held_out = sl.contrast_pairs(task, n=n_held_out, split="select")
    cache = sl.cache_residuals(
        model, sl.contrast_pairs(task, n=n_fit, split="fit"), show_progress=False
    )
    recovery = sl.first_token_recovery(
        model,
        held_out,
        sl.difference_of_means(cache),
        layers=layers_of(model),
        others=other_task_vectors(model, task, show_progress=False, **_GRID),
        show_progress=False,
    ).table
    names = {
        "recovery": "first_token_recovery",
        "other_task": "other_task_recovery",
        "specific": "specific_recovery",
    }
    recovery = recovery[["layer", *names]].rename(columns=names)
    tables = [
        sl.rank_layers(cache).table.select_dtypes("number"),
        sl.specificity(model, task, n_permutations=19, show_progress=False, **_GRID).table,
        activation_rules(model, cache),
        fixed_rules(layers_of(model), model.cfg.n_layers),
        recovery,
    ]
    joined = tables[0]
    for table in tables[1:]:
        joined = joined.merge(table, on="layer", how="left")
    return joined


def activation_rules(model: Any, cache: sl.ResidualCache) -> pd.DataFrame:
    """Directional agreement, LayerNavigator's score and logit-lens accuracy, one row per layer."""
    with_task = cache.instructed.numpy().astype(np.float64)
    without = cache.uninstructed.numpy().astype(np.float64)
    final = _lens_tokens(model, cache.instructed[:, -1])
    rows = []
    for i, layer in enumerate(cache.layers):
        differences = with_task[:, i] - without[:, i]
        mean = differences.mean(axis=0)
        norms = np.linalg.norm(differences, axis=1) * np.linalg.norm(mean)
        agreement = float((differences @ mean / norms).mean())
        sides = [with_task[:, i] @ mean, without[:, i] @ mean]
        between = (sides[0].mean() - sides[1].mean()) ** 2 / 4
        total = np.concatenate(sides).var()
        lens = _lens_tokens(model, cache.instructed[:, i])
        rows.append(
            {
                "layer": layer,
                "directional_agreement": agreement,
                "layer_navigator": agreement + float(between / total),
                "logit_lens": float((lens == final).float().mean()),
            }
        )
    return pd.DataFrame(rows)


def _lens_tokens(model: Any, residuals: Float[torch.Tensor, "pair d"]) -> Any:
    weight = next(model.parameters())
    logits = logit_readout(model, residuals.to(weight.device, weight.dtype)).values
    return logits.argmax(-1).cpu()


def fixed_rules(layers: Sequence[int], n_layers: int) -> pd.DataFrame:
    """Rules that look at nothing: the middle layer, and the middle of the last third."""
    numbers = np.array(layers)
    places = {"middle_layer": (n_layers - 1) / 2, "late_third": 5 * (n_layers - 1) / 6}
    nearest = {name: np.abs(numbers - place).argmin() for name, place in places.items()}
    columns = {name: np.arange(len(layers)) == best for name, best in nearest.items()}
    return pd.DataFrame({"layer": list(layers), **columns}).astype(float).astype({"layer": int})


def gains_of_others(
    passed: Mapping[str, Bool[Array, "layer prompt"]], task: str
) -> Float[Array, " layer"]:
    """Mean rate of passes by layer over all tasks but one."""
    others = [np.asarray(grid, float).mean(axis=1) for name, grid in passed.items() if name != task]
    return np.mean(others, axis=0)


def steerable_auroc(
    evidence: Mapping[str, pd.DataFrame],
    steerable: Mapping[str, bool],
    kinds: Sequence[str],
    seed: int = 0,
) -> pd.DataFrame:
    """Which evidence, at its best layer, tells beforehand whether a task can be steered at all?

    Args:
        evidence: For each task a table with ``layer`` and a column for every kind.
        steerable: Whether any layer moved the task.
        kinds: Columns to compare.
        seed: Of the bootstrap over tasks.

    Returns:
        One row per kind: ``kind, n_steerable, n_tasks, auroc, auroc_low, auroc_high``; 95 %
        percentile intervals over tasks.
    """
    names = list(steerable)
    truth = np.array([steerable[name] for name in names])
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(names), (_N_RESAMPLES, len(names)))
    draws = draws[(truth[draws].any(axis=1)) & (~truth[draws]).any(axis=1)]
    rows = []
    for kind in kinds:
        best = np.array([np.nanmax(evidence[name][kind]) for name in names])
        values = [roc_auc_score(truth[draw], best[draw]) for draw in draws]
        low, high = np.percentile(values, [2.5, 97.5])
        rows.append(
            {
                "kind": kind,
                "n_steerable": int(truth.sum()),
                "n_tasks": len(names),
                "auroc": roc_auc_score(truth, best),
                "auroc_low": low,
                "auroc_high": high,
            }
        )
    return pd.DataFrame(rows).sort_values("auroc", ascending=False).reset_index(drop=True)


def with_other_tasks(
    evidence: Mapping[str, pd.DataFrame], frame: pd.DataFrame, layers: Sequence[int]
) -> dict[str, pd.DataFrame]:
    """The same with the column ``other_tasks``."""
    steered, _ = outcomes(frame, "all", clean=True)
    tables = {}
    for name, table in evidence.items():
        others = gains_of_others(steered, name) if len(steered) > 1 else np.zeros(len(layers))
        column = pd.DataFrame({"layer": list(layers), "other_tasks": others})
        tables[name] = table.merge(column, on="layer", how="left")
    return tables


def compared(
    model: Any,
    frame: pd.DataFrame,
    evidence: Mapping[str, pd.DataFrame],
    least_gain: float = 0.2,
) -> EvidenceComparison:
    """Rules against behaviour; a response that loops does not pass.

    A task counts as steerable if its best layer passes at least 3 more of 12 prompts than no
    steering. Of layers with the same AUROC, held-out d′ decides.
    """
    passed, unsteered = outcomes(frame, "all", clean=True)
    layers = layers_of(model)
    return compare_evidence(
        with_other_tasks(evidence, frame, layers),
        passed,
        unsteered,
        layers,
        RULES,
        least_gain=-1.0 if behaviour.SMALL else least_gain,
        ties=_TIES,
    )


def predictability(
    model: Any,
    frames: Sequence[pd.DataFrame],
    evidence: Mapping[str, pd.DataFrame],
    least_gain: float = 0.2,
) -> pd.DataFrame:
    """Which evidence, at its best layer, tells whether any layer moves the task."""
    steerable = {}
    for frame in frames:
        passed, unsteered = outcomes(frame, "all", clean=True)
        for name, grid in passed.items():
            gain = grid.mean(axis=1).max() - unsteered[name].mean()
            steerable[name] = bool(gain >= least_gain)
    if len(set(steerable.values())) < 2:
        return pd.DataFrame()
    fixed = {"middle_layer", "late_third", "other_tasks"}
    return steerable_auroc(evidence, steerable, [rule for rule in RULES if rule not in fixed])


def rule_verdict(
    comparison: EvidenceComparison, rule: str, others: Sequence[str] = RULES
) -> pd.DataFrame:
    """Regret of the rule minus that of each other on the same tasks, paired, with its interval."""
    rows = []
    for other in others:
        if other != rule:
            mean, low, high = comparison.difference(rule, other)
            rows.append({"minus": other, "regret": mean, "low": low, "high": high})
    return pd.DataFrame(rows).set_index("minus")
