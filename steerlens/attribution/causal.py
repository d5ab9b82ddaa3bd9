r"""Causal recovery: how much of what an instruction does to a model, steering at a layer does too.

No text is generated under steering. The instructed run's own greedy response :math:`y` is fed to
the model after the *uninstructed* prompt (teacher forcing), and at each of its tokens three
distributions are compared: :math:`p^+` after the instructed prompt, :math:`p^-` after the
uninstructed one, and :math:`q` after the uninstructed one steered in some setting (layer,
operation, strength, scope). The share of the instruction's effect on the first *h* tokens that the
setting recovers is

.. math:: R_h = 1 - \frac{\sum_i \sum_{t \le h} \mathrm{KL}(p^+_{it} \,\|\, q_{it})}
                         {\sum_i \sum_{t \le h} \mathrm{KL}(p^+_{it} \,\|\, p^-_{it})}

summed over pairs *i* the vector was **not** fitted on. At 1 the steered model answers as the
instructed one does; at 0 steering did nothing; below 0 it moved the distribution elsewhere. A
response that ends before *h* tokens counts to its end, the decision to end included. Intervals are
95 % intervals over base queries (`steerlens.stats.queries`). The same is measured for a placebo, a
random direction pushed as far, and for the **other-task control**: vectors of other tasks pushed as
far, :math:`R^o`, the mean over those given. A vector that says "an instruction is there" recovers
part of any instruction's effect, so what is this task's own is the **specific recovery**

.. math:: R - R^o = \frac{\sum_i \left(\overline{\mathrm{KL}(p^+_i \,\|\, q^o_i)}
                        - \mathrm{KL}(p^+_i \,\|\, q_i)\right)}
                       {\sum_i \mathrm{KL}(p^+_i \,\|\, p^-_i)}

whose interval is paired over queries; that other tasks might have been taken is not in it.

`causal_recovery` measures a grid of settings over several horizons *h*; `first_token_recovery`
one setting at :math:`h = 1`, for which no response is needed.

Caveats. The first token sees instructions that show at the start of an answer (a title, a bullet,
a brace) and is blind to those that show later (no commas, a postscript). Further on, the fed
tokens themselves tell the uninstructed model what is wanted, so later tokens add less to both sums.
The best of many settings is flattered by the choice; its interval does not correct for that.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float, UInt16
from transformer_lens.model_bridge import TransformerBridge

from steerlens.attribution.model_evidence import require_effect, tokenized_sides
from steerlens.attribution.recovery import RecoveryCurve, ResponseRecovery
from steerlens.attribution.teacher_forcing import instructed_responses, kl_to_instructed
from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.stats.queries import query_draws, recovery_interval
from steerlens.steering.operations import check_scope
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import SteeringVector, norm_matched

__all__ = ["causal_recovery", "first_token_recovery"]

Array = np.ndarray
Columns = tuple[str, str, str]
GridPoint = tuple[str, float, str, int]
"""Operation, strength, scope, layer."""


@arguments
def causal_recovery(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    operations: Sequence[str] = ("set_projection",),
    strengths: Sequence[float] = (1.0,),
    scopes: Sequence[str] = ("prompt", "all"),
    horizons: Sequence[int] = (1, 2, 4, 8, 16, 32),
    placebo: SteeringVector | None = None,
    others: Sequence[SteeringVector] = (),
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> ResponseRecovery:
    """Recovery of the instruction's effect on whole responses, for a grid of settings.

    Every layer is measured with every operation, strength and scope; all of them ride together,
    and what they share is run once (`steerlens.engine.scoring`).

    Args:
        pairs: Contrast pairs that the vector was not fitted on.
        vector: The vector to test.
        layers: Layers to steer at; all of the vector's by default.
        operations: See `steerlens.steering.interventions`.
        strengths: See `steerlens.steering.interventions`.
        scopes: ``"prompt"``, ``"response"``, ``"all"``, ``"first:N"``.
        horizons: Tokens from the start of the response over which recovery is summed; responses
            are as long as the longest of them at most. All cost no more than the longest.
        placebo: A vector to run beside it, for example `steerlens.vectors.random_direction`.
        others: Vectors of other tasks (`steerlens.vectors.other_task_vectors`), given the norms of
            `vector` here.
        seed: Seed of the bootstrap.
        show_progress: Show a bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: The vector or the placebo does not fit the model or has no such layer, the
            grid is empty, a horizon is below 1, the two sides of the pairs give the same
            distributions, or no setting gives logits that are numbers.
        SteerlensError: All pairs share one base query.
        UnknownNameError: An operation or scope that does not exist.
    """
    layers = vector.layers if layers is None else tuple(layers)
    horizons = tuple(sorted(set(horizons)))
    grid = [
        (operation, float(strength), scope, layer)
        for operation, strength, scope, layer in product(
            _listed(operations), strengths, _listed(scopes), layers
        )
    ]
    if not grid or not horizons or horizons[0] < 1 or seed < 0:
        raise SteeringError(
            "at least one layer, operation, strength and scope, horizons of at least 1 and a seed "
            f"of at least 0 are needed; got {len(grid)} settings, horizons {horizons}, seed {seed}"
        )
    vectors = _checked(model, vector, placebo, others)
    steerings = [
        each.at(layer, operation, strength, scope)
        for each in vectors
        for operation, strength, scope, layer in grid
    ]
    queries = pairs.query_groups
    draws = query_draws(queries, seed=seed)
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    responses = instructed_responses(model, instructed, uninstructed, horizons[-1], show_progress)
    kl = kl_to_instructed(
        model, instructed, uninstructed, responses, [None, *steerings], show_progress
    )
    # Summed to each horizon, [steering pair horizon]; the first steering is none at all.
    summed = kl.cumsum(-1)[..., [min(h, kl.shape[-1]) - 1 for h in horizons]]
    whole, remaining = summed[0], summed[1:].reshape(len(vectors), len(grid), *summed.shape[1:])
    require_effect(whole[:, -1], f"first {horizons[-1]} response tokens")
    controls = _controls(remaining, whole, placebo is not None)
    table = _table(grid, horizons, whole, controls, queries)
    longest = table[table.horizon == horizons[-1]]
    samples = _samples(remaining[0], whole, draws)
    return ResponseRecovery(
        table=table,
        best={str(k): v for k, v in longest.iloc[_highest(longest)].items()},
        selection=_selection(longest.layer.tolist(), samples[longest.index]),
        n_pairs=len(pairs),
        samples=samples,
        metadata={
            **_provenance(vector, placebo, others, pairs),
            "seed": seed,
            "n_tokens": float(np.mean([len(response) for response in responses])),
            "kl_instructed_uninstructed": dict(zip(horizons, whole.mean(0).tolist(), strict=True)),
        },
    )


@arguments
def first_token_recovery(
    model: TransformerBridge,
    pairs: ContrastSet,
    vector: SteeringVector,
    layers: Sequence[int] | None = None,
    placebo: SteeringVector | None = None,
    others: Sequence[SteeringVector] = (),
    operation: str = "set_projection",
    strength: float = 1.0,
    scope: str = "all",
    batch_size: int | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> RecoveryCurve:
    """Recovery of the instruction's first-token effect by steering, layer by layer.

    Args:
        pairs: Contrast pairs that the vector was not fitted on.
        vector: The vector to test.
        layers: Layers to steer at; all of the vector's by default.
        placebo: A vector to run beside it, for example `steerlens.vectors.random_direction`.
        others: Vectors of other tasks (`steerlens.vectors.other_task_vectors`), given the norms of
            `vector` here.
        operation: See `steerlens.steering.interventions`.
        strength: See `steerlens.steering.interventions`.
        scope: ``"all"`` or ``"prompt"``; the others have no effect on the first token.
        batch_size: Rows per forward pass; by default as many as memory allows.
        show_progress: Show a bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: The vector or the placebo does not fit the model or has no such layer, the
            scope leaves the prompt alone, the pairs' sides give the same first token
            distribution, or a number is out of range.
        SteerlensError: All pairs share one base query.
    """
    check_scope(scope)
    if scope not in ("all", "prompt"):
        raise SteeringError(
            f"scope {scope!r} cannot change the first response token; use 'all' or 'prompt'"
        )
    layers = vector.layers if layers is None else tuple(layers)
    if not layers or (batch_size is not None and batch_size < 1):
        raise SteeringError(
            "at least one layer and a batch_size of at least 1 are needed; got "
            f"{len(layers)} layers, batch_size {batch_size}"
        )
    vectors = _checked(model, vector, placebo, others)
    steerings = [each.at(layer, operation, strength, scope) for each in vectors for layer in layers]
    queries = pairs.query_groups
    instructed, uninstructed = tokenized_sides(model, pairs, chat_format)
    # What is predicted first does not depend on what follows: any token stands for a response.
    anything = [(0,)] * len(pairs)
    kl = kl_to_instructed(
        model, instructed, uninstructed, anything, [None, *steerings], show_progress, batch_size
    )
    whole, remaining = kl[0, :, 0], kl[1:, :, 0].reshape(len(vectors), len(layers), len(pairs))
    require_effect(whole, "first response token")
    table = pd.DataFrame({"layer": layers})
    for names, values in _controls(remaining, whole, placebo is not None).items():
        table[list(names)] = _recoveries(values, whole, queries)
    return RecoveryCurve(
        table=table,
        best_layer=layers[_highest(table)],
        n_pairs=len(pairs),
        metadata={
            **_provenance(vector, placebo, others, pairs),
            "operation": operation,
            "strength": strength,
            "scope": scope,
            "kl_instructed_uninstructed": float(whole.mean()),
        },
    )


def _listed(names: Sequence[str]) -> tuple[str, ...]:
    """One name alone is meant as a list of one, not as its letters."""
    return (names,) if isinstance(names, str) else tuple(names)


def _checked(
    model: TransformerBridge,
    vector: SteeringVector,
    placebo: SteeringVector | None,
    others: Sequence[SteeringVector],
) -> list[SteeringVector]:
    """The vector, its placebo and the others with its norms."""
    controls = [] if placebo is None else [placebo]
    for each in (vector, *controls, *others):
        each.check_model(model)
    return [vector, *controls, *(norm_matched(other, vector) for other in others)]


def _controls(
    remaining: Float[Array, "vector setting pair *horizon"],
    whole: Float[Array, "pair *horizon"],
    has_placebo: bool,
) -> dict[Columns, Float[Array, "setting pair *horizon"]]:
    """The KL that is left, by the columns it is shown in."""
    others = remaining[1 + has_placebo :]
    left = {("recovery", "low", "high"): remaining[0]}
    if has_placebo:
        left[("placebo", "placebo_low", "placebo_high")] = remaining[1]
    if len(others):
        mean = others.mean(axis=0)
        left[("other_task", "other_task_low", "other_task_high")] = mean
        left[("specific", "specific_low", "specific_high")] = whole + remaining[0] - mean
    return left


def _table(
    grid: Sequence[GridPoint],
    horizons: Sequence[int],
    whole: Float[Array, "pair horizon"],
    controls: Mapping[Columns, Float[Array, "setting pair horizon"]],
    queries: Sequence[Hashable],
) -> pd.DataFrame:
    """One row per setting and horizon, the horizons of a setting side by side."""
    settings = pd.DataFrame(grid, columns=["operation", "strength", "scope", "layer"])
    parts = []
    for index, horizon in enumerate(horizons):
        part = settings[["layer", "operation", "strength", "scope"]].assign(horizon=horizon)
        for names, values in controls.items():
            part[list(names)] = _recoveries(values[..., index], whole[:, index], queries)
        parts.append(part)
    return pd.concat(parts).sort_index(kind="stable").reset_index(drop=True)


def _recoveries(
    remaining: Float[Array, "setting pair"],
    whole: Float[Array, "pair"],
    queries: Sequence[Hashable],
) -> Float[Array, "setting three"]:
    """Recovery of each setting with the ends of its 95 % interval."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.column_stack(recovery_interval(remaining.T, whole, queries))


def _samples(
    remaining: Float[Array, "setting pair horizon"],
    whole: Float[Array, "pair horizon"],
    draws: UInt16[Array, "resample pair"],
) -> Float[Array, "row resample"]:
    """Recovery in resamples of the pairs, in the order of the rows of `_table`."""
    with np.errstate(invalid="ignore", divide="ignore"):
        left = np.einsum("rp,sph->shr", draws, remaining, optimize=True)
        shares = 1 - left / (draws @ whole).T
    return rearrange(shares, "setting horizon resample -> (setting horizon) resample")


def _highest(table: pd.DataFrame) -> int:
    """Where recovery is highest; the first of equals."""
    recovery = table.recovery.to_numpy()
    if not np.isfinite(recovery).any():
        raise SteeringError("no setting gives logits that are numbers; try smaller strengths")
    return int(np.nanargmax(recovery))


def _selection(layers: Sequence[int], samples: Float[Array, "row resample"]) -> pd.DataFrame:
    """In which share of resamples each layer holds the highest recovery."""
    winners = np.where(np.isnan(samples), -np.inf, samples).argmax(axis=0)
    counts = pd.Series(layers).iloc[winners].value_counts(normalize=True)
    order = list(dict.fromkeys(layers))
    return pd.DataFrame({"layer": order, "frequency": [counts.get(n, 0.0) for n in order]})


def _provenance(
    vector: SteeringVector,
    placebo: SteeringVector | None,
    others: Sequence[SteeringVector],
    pairs: ContrastSet,
) -> dict[str, Any]:
    return {
        "vector": vector.name,
        "placebo": None if placebo is None else placebo.name,
        "others": [other.name for other in others],
        "data_hash": pairs.data_hash,
    }
