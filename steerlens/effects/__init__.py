"""What steering did to each token.

`steer` generates a baseline and a steered response to one prompt and records what the steering did,
in two modes that answer different questions:

==========  ========================================================================================
**forced**  both models score the *same* text (prompt and steered response): `TokenEffects`, in
            ``run.effects``. Distributions are conditioned on the same tokens, so KL, changes of
            log-probability and entropy, projections, and what later layers leave of the
            intervention are comparable position by position. `steerlens.effects.forced` has the
            table.
**free**    each model scores its *own* text: `FreeEffects`, in ``run.free``. Where the two part,
            whether they meet again, and how sure each was; `steerlens.effects.free` says why
            differences between the two are not taken here.
==========  ========================================================================================

`token_contributions` takes one output token's change of log-probability apart by the positions that
were steered; the parts sum to the whole.

| module | holds |
|---|---|
| `run` | `steer` and its result |
| `forced`, `free` | the two modes |
| `streams` | forward passes over a text, steered and not, with memory linear in its length |
| `distributions` | next-token distributions compared |
| `propagation`, `lens` | over layers × positions: what is left, and what it would say |
| `alignment` | where two texts part and meet |
| `texts` | tokens as text |
| `contributions` | which positions changed a token |
"""

from steerlens.effects.alignment import Alignment, SharedSpan, align, parts_at
from steerlens.effects.contributions import TokenContributions, token_contributions
from steerlens.effects.forced import TokenEffects, token_effects
from steerlens.effects.free import FreeEffects, ScoredText
from steerlens.effects.lens import LensReadout
from steerlens.effects.propagation import Propagation
from steerlens.effects.run import SteeredRun, record_run, steer

__all__ = [
    "Alignment",
    "FreeEffects",
    "LensReadout",
    "Propagation",
    "ScoredText",
    "SharedSpan",
    "SteeredRun",
    "TokenContributions",
    "TokenEffects",
    "align",
    "parts_at",
    "record_run",
    "steer",
    "token_contributions",
    "token_effects",
]
