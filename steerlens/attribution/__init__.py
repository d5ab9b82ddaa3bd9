"""Layer attribution: where an instruction lives, and where steering it moves the model.

Two kinds of evidence, which need not agree:

* `steerlens.attribution.separability`: how well projections on a direction fitted on some pairs
  tell instructed from uninstructed runs of other pairs. Cheap, and high almost everywhere.
* `steerlens.attribution.causal`: how much of the shift of the next-token distribution that the
  instruction causes is reproduced by steering the uninstructed prompt at a layer.

`rank_layers` gives the first as a `LayerRanking`; `first_token_recovery` the second.
"""

from steerlens.attribution.causal import RecoveryCurve, first_token_recovery
from steerlens.attribution.separability import LayerRanking, rank_layers

__all__ = ["LayerRanking", "RecoveryCurve", "first_token_recovery", "rank_layers"]
