"""Layer attribution: where an instruction lives, and where steering it moves the model.

Kinds of evidence, which need not agree:

* `separability`: how well projections on a direction fitted on some pairs tell instructed from
  uninstructed runs of other pairs. Cheap, and high almost everywhere.
* `specificity`: how well they tell runs with this task from runs with *other* tasks on the same
  queries, and how much of the difference is the task's own.
* `causal`: how much of the shift of the next-token distributions that the instruction causes is
  reproduced by steering the uninstructed prompt at a layer, over the first token or the response.
* `components`, `downstream_components`: which heads and MLPs write the direction, and which react
  to it.
* `patching`: the same for whole residuals, by layer and position, as the reference.
* `geometry`, `vocabulary`: how directions turn between layers and instructions, and what they say
  through the model's own unembedding.

`rank_layers` gives the first as a `LayerRanking`; `first_token_recovery` and `causal_recovery` the
second; `gather_evidence` all that is asked for in one table.
"""

from steerlens.attribution.causal import causal_recovery, first_token_recovery
from steerlens.attribution.components import ComponentWriting, writing_components
from steerlens.attribution.downstream_components import ComponentReading, reading_components
from steerlens.attribution.evidence import (
    ALL_EVIDENCE,
    EVIDENCE_KINDS,
    Evidence,
    applicable_evidence,
    gather_evidence,
)
from steerlens.attribution.generalisation import Generalisation, generalise, pair_labels
from steerlens.attribution.geometry import (
    InstructionGeometry,
    LayerGeometry,
    instruction_geometry,
    layer_geometry,
)
from steerlens.attribution.patching import PatchingMap, activation_patching
from steerlens.attribution.ranking import LayerRanking
from steerlens.attribution.recovery import RecoveryCurve, ResponseRecovery
from steerlens.attribution.separability import rank_layers
from steerlens.attribution.specific_tasks import TaskSpecificities, specificities
from steerlens.attribution.specificity import Specificity, grid_specificity, specificity
from steerlens.attribution.vocabulary import VocabularyReadout, vocabulary_readout

__all__ = [
    "ALL_EVIDENCE",
    "EVIDENCE_KINDS",
    "ComponentReading",
    "ComponentWriting",
    "Evidence",
    "Generalisation",
    "InstructionGeometry",
    "LayerGeometry",
    "LayerRanking",
    "PatchingMap",
    "RecoveryCurve",
    "ResponseRecovery",
    "Specificity",
    "TaskSpecificities",
    "VocabularyReadout",
    "activation_patching",
    "applicable_evidence",
    "causal_recovery",
    "first_token_recovery",
    "gather_evidence",
    "generalise",
    "grid_specificity",
    "instruction_geometry",
    "layer_geometry",
    "pair_labels",
    "rank_layers",
    "reading_components",
    "specificities",
    "specificity",
    "vocabulary_readout",
    "writing_components",
]
