"""All evidence about layers in one call: from activations alone, and from the model.

`gather_evidence` ranks layers by separability and joins what was asked for:

=================== ===============================================================================
asked for           columns of the table
=================== ===============================================================================
``probes``,         see `steerlens.attribution.rank_layers`
``null``,
``dimension``
``generalisation``  ``unseen_phrasing``, ``unseen_kind``: AUROC on phrasings, and kinds of query,
                    that the direction was not fitted on (`steerlens.attribution.generalise`)
``causal``          ``first_token_recovery`` (with its placebo), ``response_recovery_prompt`` and
                    ``response_recovery_all``, on pairs that the vector was not fitted on
``components``      ``writing``: the share of the projection at the best layer that heads and MLP
                    of each layer write
``specificity``     ``specific_auroc, specific_d_prime, own_share, off_mean_share``: runs with this
                    task against runs with other tasks (`steerlens.attribution.specificity`)
``other_task``      ``other_task_recovery``: first-token recovery by other tasks' vectors, pushed as
                    far, and ``specific_recovery``, what the task's own recovers beyond them
``geometry``        ``next_cosine``: the direction's cosine to the next layer's, freed of noise
``vocabulary``      ``vocabulary_z``: how far the direction stands out through the unembedding
``reading``         ``reading``: share of the effect of steering that each later layer makes
``patching``        ``patching``: recovery by the whole residual of the last prompt token
``ceiling``         ``ceiling``: recovery by a direction trained at the layer, and ``ceiling_share``
                    of it that the difference of means reaches, at every second layer
                    (`steerlens.attribution.ceiling`); minutes, so not among ``all``
=================== ===============================================================================

**The rule of `best_layer`**: with ``causal`` it is the layer of the highest first-token recovery,
because separability is high at layers where steering does nothing; without it, or where the
instruction hardly changes the first token, the layer of the highest AUROC. The last layer takes no
part in recovery: nothing follows that could carry the instruction on, and setting a projection
there nearly shifts the logits themselves. Where no layer is supported the highest is still taken,
and `LayerRanking.caveat` says so.

What the rule rests on (``analyses/09-which-rule.py``). It was chosen on 14 tasks of the
catalogue, by a hash of their id, before the others were looked at. Of 16 rules, first-token
recovery loses least against the best layer of every third (1 point of passes [−34, 37], loops
counted as failures), before the late third (5), specific AUROC (7), specific recovery (9), own
share (11), d′ (19) and AUROC (21 [−7, 50]). Only five of the 14 tasks are moved by any layer, so
none of these differences is shown by itself. An earlier measurement on all 31 tasks
(``analyses/07-which-evidence.ipynb``; the 15 that some layer moves when loops may pass) is more
certain of the last: 16 points [1, 31] between first-token recovery and AUROC. On the other half one
of ten tasks is moved, too few for a test, and under a repetition penalty none
(``docs/results.md``).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache
from steerlens.attribution.causal import causal_recovery
from steerlens.attribution.components import ComponentWriting, writing_components
from steerlens.attribution.generalisation import generalise, pair_labels
from steerlens.attribution.more_evidence import (
    with_ceiling,
    with_geometry,
    with_patching,
    with_reading,
    with_specificity,
    with_vocabulary,
    written_by_layer,
)
from steerlens.attribution.ranking import LayerRanking
from steerlens.attribution.recovery import ResponseRecovery
from steerlens.attribution.separability import EVIDENCE, rank_layers
from steerlens.errors import ActivationError, unknown_name
from steerlens.tasks import Task, catalogue
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task
from steerlens.vectors import (
    SteeringVector,
    difference_of_means,
    other_task_vectors,
    random_direction,
)
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ALL_EVIDENCE",
    "BESIDE_A_TASK",
    "BESIDE_OTHERS",
    "COMPARED",
    "DEFAULT_EVIDENCE",
    "EVIDENCE_KINDS",
    "ON_HELD_OUT",
    "Evidence",
    "applicable_evidence",
    "gather_evidence",
]

# Columns that rank layers by different kinds of evidence, in the order they are shown.
COMPARED = (
    "auroc",
    "specific_auroc",
    "own_share",
    "logistic_auroc",
    "lda_auroc",
    "unseen_phrasing",
    "unseen_kind",
    "first_token_recovery",
    "other_task_recovery",
    "specific_recovery",
    "response_recovery_prompt",
    "response_recovery_all",
    "ceiling",
    "patching",
)
# Shown over layers, but no measure of how good a layer is.
_DESCRIPTIVE = ("writing", "reading", "next_cosine", "vocabulary_z")
_MOST_WRITERS = 20
DEFAULT_EVIDENCE = (*EVIDENCE, "generalisation", "causal", "components")
BESIDE_OTHERS = ("specificity", "other_task")
ALL_EVIDENCE = (
    *DEFAULT_EVIDENCE,
    *BESIDE_OTHERS,
    "geometry",
    "vocabulary",
    "reading",
    "patching",
)
"""What ``all`` stands for: every kind but the ceiling, which takes minutes."""
EVIDENCE_KINDS = (*ALL_EVIDENCE, "ceiling")
"""Every kind of evidence that `gather_evidence` can be asked for."""
BESIDE_A_TASK = (*BESIDE_OTHERS, "ceiling")
ON_HELD_OUT = ("causal", "components", "other_task", "reading", "patching")
_LABELS = ("phrasing", "kind")
_HORIZONS = (1, 32)
# Nats per pair; below it recovery is a ratio of roundings.
_LEAST_EFFECT = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class Evidence(Result):
    """A ranking with what its columns came from.

    Attributes:
        ranking: All evidence by layer.
        recovery: Causal recovery with every scope and horizon; None when not asked for.
        writing: Every component's part in the projection at the best layer; None when not asked
            for.
        details: The whole results of the other kinds, by kind: other tasks, tokens, positions.
        table: The ranking's table.
    """

    ranking: LayerRanking
    recovery: ResponseRecovery | None = None
    writing: ComponentWriting | None = None
    details: Mapping[str, Result] = field(default_factory=dict)
    table: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "table", self.ranking.table)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The kinds that are shown over layers, in order."""
        return tuple(kind for kind in (*COMPARED, *_DESCRIPTIVE) if kind in self.ranking.kinds)

    @property
    def agreement(self) -> pd.DataFrame:
        """`LayerRanking.agreement` of the kinds that compare; empty where there are no two."""
        return agreement_of(self.ranking, COMPARED)

    def to_json(self) -> dict[str, Any]:
        """Plain data: the ranking's, with agreement and the components that write most."""
        record = self.ranking.to_json()
        record["agreement"] = self.agreement.to_dict("records")
        record["notices"] = list(self.ranking.notices)
        if self.writing is not None:
            record["components"] = self.writing.top(_MOST_WRITERS).to_dict("records")
        return record

    def plot(self) -> "go.Figure":
        """A panel over layers for each kind of evidence; the chosen layer is marked."""
        from steerlens.views import evidence_curves

        best = None if self.ranking.caveat else self.ranking.best_layer
        return evidence_curves(self.ranking.table, self.drawn, best)

    def __repr__(self) -> str:
        recovery = "" if self.recovery is None else ", recovery"
        components = "" if self.writing is None else ", components"
        return f"Evidence({self.ranking!r}{recovery}{components})"

    def _card(self) -> Mapping[str, Any]:
        table = self.table[["layer", *self.drawn]]
        return {"table": table, **self._around_layer(self.ranking.best_layer)}


def gather_evidence(
    model: TransformerBridge,
    cache: ResidualCache,
    held_out: ContrastSet | None = None,
    evidence: Sequence[str] = DEFAULT_EVIDENCE,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
    fitted_on: ContrastSet | None = None,
    task: Task | str | os.PathLike[str] | None = None,
) -> Evidence:
    """Rank layers by every kind of evidence asked for.

    Args:
        model: The model the activations are of.
        cache: Residuals at the last prompt token, of consecutive layers from 0 for ``components``.
        held_out: Pairs that are not in the cache, for ``causal``, ``components``, ``other_task``,
            ``reading`` and ``patching``.
        evidence: Kinds from `EVIDENCE_KINDS`; separability is always there.
        seed: Of everything random.
        show_progress: Show progress bars on standard error; by default only in a terminal.
        fitted_on: The pairs in the cache, for ``generalisation``.
        task: Their task, for ``specificity``, ``other_task`` and ``ceiling``; by default the one
            that the cache names, if the catalogue has it.

    Raises:
        UnknownNameError: A kind of evidence that does not exist.
        ActivationError: The cache cannot be ranked; or pairs are needed and missing, or have
            neither phrasings nor kinds of query.
        SteeringError: The instruction changes nothing that could be recovered.
    """
    for name in evidence:
        if name not in EVIDENCE_KINDS:
            raise unknown_name("kind of evidence", name, EVIDENCE_KINDS)
    wanted = [name for name in ON_HELD_OUT if name in evidence]
    if wanted and held_out is None:
        raise ActivationError(
            f"{' and '.join(sorted(wanted))} need pairs that the vector was not fitted on; give "
            "them as held_out"
        )
    if "generalisation" in evidence and fitted_on is None:
        raise ActivationError(
            "generalisation needs the pairs in the cache, which know their phrasing and kind of "
            "query; give them as fitted_on"
        )
    task = _task_of(cache, task, evidence)
    rendered: dict[str, Any] = {"chat_format": chat_format, "show_progress": show_progress}
    details: dict[str, Result] = {}
    from_activations = [name for name in evidence if name in EVIDENCE]
    ranking = rank_layers(cache, seed=seed, evidence=from_activations)
    if "specificity" in evidence and task is not None:
        ranking, details["specificity"] = with_specificity(
            ranking, model, task, seed=seed, **rendered
        )
    if "generalisation" in evidence and fitted_on is not None:
        ranking = _with_generalisation(ranking, cache, fitted_on, seed)
    vector = difference_of_means(cache)
    if "geometry" in evidence:
        ranking, details["geometry"] = with_geometry(ranking, cache)
    if "vocabulary" in evidence:
        ranking, details["vocabulary"] = with_vocabulary(ranking, model, vector, seed)
    recovery = writing = None
    if held_out is not None and {"causal", "other_task"} & set(evidence):
        others: Sequence[SteeringVector] = ()
        if "other_task" in evidence and task is not None:
            others = other_task_vectors(model, task, seed=seed, **rendered)
        whole = "causal" in evidence
        recovery = causal_recovery(
            model,
            held_out,
            vector,
            scopes=("prompt", "all") if whole else ("prompt",),
            horizons=_HORIZONS if whole else _HORIZONS[:1],
            placebo=random_direction(cache, seed=seed),
            others=others,
            seed=seed,
            **rendered,
        )
        ranking = _with_recovery(ranking, recovery, model.cfg.n_layers - 1)
    if "components" in evidence and held_out is not None:
        writing = writing_components(
            model, held_out, vector, ranking.best_layer, seed=seed, **rendered
        )
        frame = written_by_layer(writing.contributions, writing.table, writing.layer, held_out)
        ranking = ranking.with_evidence("writing", frame)
    if "reading" in evidence and held_out is not None:
        ranking, details["reading"] = with_reading(
            ranking, model, held_out, vector, seed=seed, **rendered
        )
    if "patching" in evidence and held_out is not None:
        ranking, details["patching"] = with_patching(ranking, model, held_out, **rendered)
    if "ceiling" in evidence and task is not None:
        ranking, details["ceiling"] = with_ceiling(ranking, model, task, seed=seed, **rendered)
    return Evidence(ranking, recovery, writing, details)


def _task_of(
    cache: ResidualCache, task: Task | str | os.PathLike[str] | None, evidence: Sequence[str]
) -> Task | None:
    """The task, where more than its pairs is needed."""
    wanted = [name for name in BESIDE_A_TASK if name in evidence]
    if not wanted:
        return None
    named = cache.metadata.get("instruction") if task is None else task
    if named is None or (task is None and named not in catalogue):
        raise ActivationError(
            f"{' and '.join(wanted)} need more of the task than these pairs; give it as task="
        )
    return load_task(named)


def applicable_evidence(evidence: Sequence[str], pairs: ContrastSet) -> tuple[str, ...]:
    """The kinds that these pairs can give.

    Generalisation needs two phrasings or more, other tasks a prompt of the pair to stand in.
    """
    phrasings = {pair.phrasing for pair in pairs}
    unfit = set() if None not in phrasings and len(phrasings) > 1 else {"generalisation"}
    unfit |= set(BESIDE_A_TASK) if pairs.same_prompts else set()
    return tuple(kind for kind in evidence if kind not in unfit)


def agreement_of(ranking: LayerRanking, kinds: Sequence[str]) -> pd.DataFrame:
    """How far these kinds agree over layers; empty where two of them share too few layers."""
    known = [kind for kind in kinds if kind in ranking.kinds]
    nothing = pd.DataFrame(columns=["one", "other", "spearman", "low", "high", "n_layers"])
    if len(known) < 2:
        return nothing
    try:
        return ranking.agreement(known)
    except ActivationError:
        return nothing


def _with_generalisation(
    ranking: LayerRanking, cache: ResidualCache, pairs: ContrastSet, seed: int
) -> LayerRanking:
    """AUROC where a pair's label was not fitted on, for each kind of label that pairs have."""
    problems = []
    for by in _LABELS:
        try:
            summary = generalise(cache, pair_labels(pairs, by), seed=seed).summary
        except ActivationError as error:
            problems.append(str(error))
            continue
        ranking = ranking.with_evidence(
            f"unseen_{by}", summary, "unseen", low="unseen_low", high="unseen_high"
        )
    if len(problems) == len(_LABELS):
        raise ActivationError(f"generalisation cannot be computed: {'; '.join(problems)}")
    return ranking


def _with_recovery(ranking: LayerRanking, recovery: ResponseRecovery, last: int) -> LayerRanking:
    table = recovery.table[recovery.table.layer < last] if last > 0 else recovery.table
    first = table[(table.horizon == _HORIZONS[0]) & (table.scope == "prompt")]
    # At the first token no response token has been steered yet: the scopes are the same there.
    result = ranking.with_evidence(
        "first_token_recovery", first, value="recovery", samples=recovery.samples[first.index]
    )
    placebo = first[["layer", "placebo"]].rename(columns={"placebo": "first_token_placebo"})
    result = result.with_columns(ranking.table[["layer"]].merge(placebo, on="layer", how="left"))
    if "specific" in first:
        for name, value in (
            ("other_task_recovery", "other_task"),
            ("specific_recovery", "specific"),
        ):
            result = result.with_evidence(name, first, value, f"{value}_low", f"{value}_high")
    whole = table[table.horizon == _HORIZONS[1]]
    for scope in dict.fromkeys(whole.scope):
        frame = whole[whole.scope == scope]
        result = result.with_evidence(f"response_recovery_{scope}", frame, value="recovery")
    effect = recovery.metadata["kl_instructed_uninstructed"][_HORIZONS[0]]
    if effect < _LEAST_EFFECT or not np.isfinite(first.recovery).any():
        rule = f"{ranking.rule}; the instruction changes the first token by {effect:.2g} nats only"
        return replace(result, rule=rule)
    return result.best_by("first_token_recovery")
