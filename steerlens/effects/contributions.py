r"""Which earlier positions of the intervention changed one output token.

The intervention is switched on position by position, from left to right. Let :math:`f_j` be the
log-probability of the chosen token *y* given the text before it, steered at the positions
:math:`0 \dots j-1` and nowhere else. The contribution of position *j* is

.. math:: c_j = f_{j+1} - f_j, \qquad
          \sum_j c_j = f_n - f_0 = \ln q(y) - \ln p(y)

so the contributions add up to the whole change of log-probability, exactly. Positions that no
intervention touches contribute nothing and are not run. Left to right is the order in which a
causal model meets the interventions: what position *j* adds is measured with everything before it
steered and nothing after.

Caveat: the parts depend on the order. Where two positions do the same job (a direction written to
every token of a prompt), the first to be switched on takes the credit and the second has little
left to add; a small :math:`c_j` does not say that steering position *j* alone would do little.

Cost: one pass over the text before the token for each position (or run of `group` positions),
through the layers from the first steered one on, many in a batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.forced import TokenEffects
from steerlens.effects.texts import decoder, token_table
from steerlens.engine.batches import packs
from steerlens.engine.choosing import running
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import device_of, fast_modules, unembed
from steerlens.engine.plain import bridge_pass
from steerlens.engine.reading import read
from steerlens.errors import SteerlensError
from steerlens.errors.arguments import arguments
from steerlens.steering.rows import RowSteering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["TokenContributions", "token_contributions"]

# Tokens in one pass: enough to keep the matrix units busy.
_PASS_TOKENS = 4096


@dataclass(frozen=True, eq=False, repr=False)
class TokenContributions(Result):
    """What the intervention at each earlier position added to one token's log-probability.

    Attributes:
        position: Place of the chosen token in the text.
        target: The chosen token as text.
        target_id: Its id.
        tokens: The text before it, as tokens.
        n_prompt: How many of them belong to the prompt.
        spans: Half-open ranges of positions that were switched on together, left to right.
        contributions: What each added, nats.
        logprob_baseline: Log-probability of the target with no position steered, nats.
        logprob_steered: With all of them steered.
    """

    position: int
    target: str
    target_id: int
    tokens: tuple[str, ...]
    n_prompt: int
    spans: tuple[tuple[int, int], ...]
    contributions: Float[Tensor, "span"]
    logprob_baseline: float
    logprob_steered: float

    @property
    def change(self) -> float:
        """The whole change of log-probability, which the contributions add up to, nats."""
        return self.logprob_steered - self.logprob_baseline

    @property
    def table(self) -> pd.DataFrame:
        """One row a span: start, stop, text, role, contribution, share of the whole change."""
        starts = [start for start, _ in self.spans]
        return pd.DataFrame(
            {
                "start": starts,
                "stop": [stop for _, stop in self.spans],
                "text": ["".join(self.tokens[start:stop]) for start, stop in self.spans],
                "role": ["prompt" if at < self.n_prompt else "response" for at in starts],
                "contribution": self.contributions.tolist(),
                "share": (self.contributions / self.change).tolist()
                if self.change
                else [float("nan")] * len(starts),
            }
        )

    def plot(self) -> "go.Figure":
        """The text before the token, shaded by what each position added."""
        from steerlens.views import prompt_and_response, text_figure

        table = token_table(self.tokens, self.n_prompt).assign(steered=False, contribution=0.0)
        for (start, stop), value in zip(self.spans, self.contributions.tolist(), strict=True):
            table.loc[start : stop - 1, ["steered", "contribution"]] = True, value
        change = f"{self.change:+.2f}".replace("-", "−")
        title = (
            f"What made {self.target!r} more or less likely: {change} nats in all, by steered "
            "position"
        )
        return text_figure(prompt_and_response(table), "contribution", title=title)

    def _card(self) -> Mapping[str, Any]:
        columns = ["start", "text", "role", "contribution", "share"]
        facts = {
            "log-probability, baseline": self.logprob_baseline,
            "steered": self.logprob_steered,
            "change (nats)": self.change,
        }
        return {"facts": facts, "table": self.table[columns], "largest": "contribution"}

    def __repr__(self) -> str:
        return (
            f"TokenContributions({self.target!r} at position {self.position}: {self.change:+.3g} "
            f"nats from {len(self.spans)} steered spans)"
        )


@torch.inference_mode()
@arguments
def token_contributions(
    model: TransformerBridge,
    effects: TokenEffects,
    position: int,
    target: int | None = None,
    group: int = 1,
) -> TokenContributions:
    """Take one token's change of log-probability apart by the positions that were steered.

    Args:
        model: The model the effects were recorded on.
        effects: Effects over the text.
        position: Place of the token, as in the column ``position`` of the frame; the length of the
            text asks for the token that would follow it.
        target: Id of the token to explain; by default the one the text has there.
        group: Positions switched on together; larger is cheaper by that factor.

    Raises:
        SteerlensError: A position, target or group out of range, or an adaptive strength.
    """
    n_tokens = len(effects)
    if effects.steering.adaptive:
        raise SteerlensError(
            "contributions add up for a fixed strength only; record the effects with adaptive=0"
        )
    if not 1 <= position <= n_tokens or (position == n_tokens and target is None):
        raise SteerlensError(
            f"position must be between 1 and {n_tokens - 1}, or {n_tokens} with a target; got "
            f"{position}"
        )
    if group < 1:
        raise SteerlensError(f"group must be at least 1; got {group}")
    target = effects.token_ids[position] if target is None else target
    if not 0 <= target < model.cfg.d_vocab:
        raise SteerlensError(
            f"token {target} is not in this model's vocabulary of {model.cfg.d_vocab}"
        )
    touched = effects.steered[:, :position].any(0)
    spans = tuple(_spans(touched, effects.n_prompt, group))
    on = torch.zeros(len(spans) + 1, position, dtype=torch.bool)
    for row, (start, stop) in enumerate(spans, start=1):
        on[row:, start:stop] = True
    logprobs = _logprobs(model, effects, effects.token_ids[:position], on, target)
    return TokenContributions(
        position=position,
        target=decoder(model)(target),
        target_id=target,
        tokens=effects.tokens[:position],
        n_prompt=min(effects.n_prompt, position),
        spans=spans,
        contributions=logprobs.diff(),
        logprob_baseline=float(logprobs[0]),
        logprob_steered=float(logprobs[-1]),
    )


def _spans(touched: Bool[Tensor, "pos"], n_prompt: int, group: int) -> Iterator[tuple[int, int]]:
    """Touched positions in runs of at most `group`, none across the end of the prompt."""
    start: int | None = None
    for position, is_touched in enumerate([*touched.tolist(), False]):
        if start is not None:
            ends = not is_touched or position - start == group or position == n_prompt
            if ends:
                yield start, position
                start = None
        if is_touched and start is None:
            start = position


def _logprobs(
    model: TransformerBridge,
    effects: TokenEffects,
    tokens: Sequence[int],
    on: Bool[Tensor, "row pos"],
    target: int,
) -> Float[Tensor, "row"]:
    """Log-probability of the target with the positions of each row steered, float64."""
    steering, n_prompt = effects.steering, min(effects.n_prompt, len(tokens))
    batches = packs(list(on), len, _PASS_TOKENS)
    with running(model, len(tokens)) as path:
        if not path.is_fast:
            steer = RowSteering([steering], device_of(model))
            logits = [
                bridge_pass(
                    model,
                    [tokens] * len(batch),
                    steer,
                    [n_prompt] * len(batch),
                    torch.stack(batch),
                )[:, -1]
                for batch in batches
            ]
        else:
            start = min(steering.layers)
            with fast_modules(model):
                [trunk] = read(model, [tokens], [None], start + 1, [start])
                row = PassRow(trunk=trunk, layer=start, steering=steering, n_prompt=n_prompt)
                logits = [
                    unembed(
                        model,
                        run_rows(model, [replace(row, touched=touched) for touched in batch]).resid[
                            :, -1
                        ],
                    )
                    for batch in batches
                ]
    return torch.cat([part.cpu().double().log_softmax(-1)[:, target] for part in logits])
