r"""Forced mode: both models score the same text, so their distributions can be compared.

`token_effects` reads one text, token by token, under the unsteered and under the steered model
(teacher forcing). For position *t*, with :math:`p` the unsteered and :math:`q` the steered
next-token distribution after token *t*:

- ``kl`` is :math:`\mathrm{KL}(q_t \| p_t)` and ``entropy_change`` :math:`H(q_t) - H(p_t)`, in nats;
- ``logprob_baseline`` and ``logprob_steered`` are the log-probability of token *t* itself, from
  position *t* − 1;
- ``promoted`` and ``suppressed`` are the five tokens whose probability rose or fell most;
- ``projection_before`` and ``projection_after`` are :math:`x_t \cdot u` at the steered layer,
  before and after its interventions.

Beside them, over layers × positions, what is left of the intervention
(`steerlens.effects.propagation`) and, at layers asked for, what both streams would say there
(`steerlens.effects.lens`).

Caveat: the effect at a position includes what the intervention did to earlier positions, through
attention. `steerlens.effects.contributions` takes one token's effect apart by position.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import POSITIONS, check_layers
from steerlens.effects.distributions import RankedTokens, compare
from steerlens.effects.lens import LensReadout, read_through_lens
from steerlens.effects.propagation import Propagation, PropagationRecorder
from steerlens.effects.streams import Stream, adapted_stream, both_streams
from steerlens.effects.texts import decoder, token_table, token_texts
from steerlens.errors import SteeringError, SteerlensError, unknown_name
from steerlens.errors.arguments import arguments, whole_number
from steerlens.steering.interventions import Steering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "PICTURES",
    "TokenEffects",
    "check_steering",
    "scored",
    "token_effects",
]

# Pictures that shade the text, with what they show.
_SHADED = {
    "kl": "KL(steered‖baseline)",
    "logprob_change": "change of log-probability",
    "projection_change": "change of projection",
    "entropy_change": "change of entropy",
}
_UNIT = "residual-stream units"
# Maps over layers and tokens: quantity, unit, title.
_MAPS = {
    "propagation": (
        "change of projection",
        _UNIT,
        "How the intervention propagates: change of projection on its direction",
    ),
    "survival": (
        "share left",
        "",
        "How the intervention propagates: share of the change of projection left",
    ),
    "shift": (
        "shift",
        _UNIT,
        "How far the steered stream is from the baseline's, along any direction",
    ),
    "norm_change": (
        "change of norm",
        _UNIT,
        "How much longer (orange) or shorter (blue) steered residuals are",
    ),
}
PICTURES = (*_SHADED, *_MAPS, "lens", "tokens", "curve")


@dataclass(frozen=True, eq=False, repr=False)
class TokenEffects(Result):
    """Effects of one steering on one text that both models score (mode ``"forced"``).

    Attributes:
        tokens: The tokens as text, prompt then response; a character of several tokens belongs to
            the first, the others are empty.
        token_ids: Their ids.
        n_prompt: How many belong to the prompt.
        kl: Nats.
        logprob_baseline: Nats; NaN for the first token.
        logprob_steered: Nats; NaN for the first token.
        entropy_baseline: Of the next-token distribution, nats.
        entropy_steered: The same under the steered model.
        projection_baseline: For each intervention, at its layer, on its direction, in the
            baseline's stream.
        projection_before: In the steered stream, before the interventions of that layer.
        projection_after: The same, after them.
        steered: For each intervention, whether it touched the token.
        read: Whether the vector was read at the token; ``None`` where it is not known.
        promoted: For each token, the five whose probability rose most, with the change of
            log-probability (nats).
        suppressed: The five whose probability fell most.
        mean_promoted: Over the positions that predict the response, the tokens whose probability
            rose most in the mean, with that rise (a probability).
        mean_suppressed: Those whose probability fell most.
        propagation: What is left of the interventions at later layers.
        lens: Read-outs of both streams at the layers asked for; ``None`` when none were.
        interventions: A phrase for each intervention.
        steering: What was applied.
        shares: Where its strength is adaptive, the share of it left at each position.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    n_prompt: int
    kl: Float[Tensor, "pos"]
    logprob_baseline: Float[Tensor, "pos"]
    logprob_steered: Float[Tensor, "pos"]
    entropy_baseline: Float[Tensor, "pos"]
    entropy_steered: Float[Tensor, "pos"]
    projection_baseline: Float[Tensor, "intervention pos"]
    projection_before: Float[Tensor, "intervention pos"]
    projection_after: Float[Tensor, "intervention pos"]
    steered: Bool[Tensor, "intervention pos"]
    read: Bool[Tensor, "pos"] | None
    promoted: tuple[RankedTokens, ...]
    suppressed: tuple[RankedTokens, ...]
    mean_promoted: RankedTokens
    mean_suppressed: RankedTokens
    propagation: Propagation
    lens: LensReadout | None
    interventions: tuple[str, ...]
    steering: Steering
    shares: Float[Tensor, "pos"] | None = None
    mode: ClassVar[str] = "forced"

    @property
    def entropy_change(self) -> Float[Tensor, "pos"]:
        """Entropy under the steered model minus that under the baseline, nats."""
        return self.entropy_steered - self.entropy_baseline

    @property
    def mean_kl(self) -> float:
        """Mean of `kl` over the positions that predict the response, nats per token.

        They begin at the last prompt token, which predicts the first response token, and end at
        the last token of the response, which predicts that it ends or goes on.
        """
        return float(self.kl[max(self.n_prompt - 1, 0) :].mean())

    @property
    def table(self) -> pd.DataFrame:
        """One row per token; projections are those of the first intervention.

        The column ``read`` is there only where it is known where the vector was read, the column
        ``share`` (of the strength) where that is adaptive.
        """
        table = token_table(self.tokens, self.n_prompt).assign(
            steered=self.steered.any(dim=0).tolist(),
            kl=self.kl.tolist(),
            logprob_baseline=self.logprob_baseline.tolist(),
            logprob_steered=self.logprob_steered.tolist(),
            projection_before=self.projection_before[0].tolist(),
            projection_after=self.projection_after[0].tolist(),
            entropy_change=self.entropy_change.tolist(),
            promoted=pd.Series(self.promoted, dtype=object),
            suppressed=pd.Series(self.suppressed, dtype=object),
        )
        more = {"read": self.read, "share": self.shares}
        return table.assign(**{k: v.tolist() for k, v in more.items() if v is not None})

    def plot(self, what: str = "kl", intervention: int = 0) -> "go.Figure":
        """A picture of one side of the effects.

        Args:
            what: ``"kl"``, ``"logprob_change"``, ``"projection_change"`` or ``"entropy_change"``
                shade the text; ``"propagation"``, ``"survival"``, ``"shift"`` and
                ``"norm_change"`` are maps over layers and tokens, ``"lens"`` one of the read-outs'
                KL; ``"curve"`` is the share that survives over layers; ``"tokens"`` ranks what was
                promoted and suppressed.
            intervention: Which of several projections and their propagation are of.

        Raises:
            UnknownNameError: Another name.
            SteerlensError: No such intervention, or ``"lens"`` without read-outs.
        """
        from steerlens import views

        if not 0 <= intervention < len(self.interventions):
            raise SteerlensError(
                f"intervention {intervention} does not exist; there are {len(self.interventions)}, "
                "counted from 0"
            )
        name = self.interventions[intervention]
        if what in _SHADED:
            table = self.table.assign(
                projection_before=self.projection_before[intervention].tolist(),
                projection_after=self.projection_after[intervention].tolist(),
            )
            title = f"What steering does to each token: {_SHADED[what]}"
            sections = views.prompt_and_response(table)
            return views.text_figure(sections, what, title=title, subtitle=name)
        if what in _MAPS:
            quantity, unit, title = _MAPS[what]
            values = getattr(
                self.propagation, "projection_change" if what == "propagation" else what
            )
            per_intervention = values.ndim == 3
            return views.layer_token_map(
                self.tokens,
                self.propagation.layers,
                values[intervention] if per_intervention else values,
                quantity,
                unit=unit,
                signed=what != "shift",
                n_prompt=self.n_prompt,
                title=title,
                subtitle=name if per_intervention else "; ".join(self.interventions),
            )
        if what == "curve":
            return self.propagation.plot(dict(enumerate(self.interventions)))
        if what == "tokens":
            return views.ranked_tokens(
                self.mean_promoted,
                self.mean_suppressed,
                quantity="mean change of probability over the response",
                title="Tokens that steering promotes and suppresses",
            )
        if what != "lens":
            raise unknown_name("picture", what, PICTURES)
        if self.lens is None:
            raise SteerlensError(
                "no layer was read through the logit lens; ask with lens_layers=[…]"
            )
        return self.lens.plot()

    def _card(self) -> Mapping[str, Any]:
        from steerlens.views import strip_excerpt

        facts = {"steering": "; ".join(self.interventions), "largest KL": float(self.kl.max())}
        return {"facts": facts, "table": None, "body": strip_excerpt(self.table)}

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return (
            f"TokenEffects({self.n_prompt} prompt + {len(self) - self.n_prompt} response tokens, "
            f"mean KL over the response {self.mean_kl:.3g} nats)"
        )


@arguments
def token_effects(
    model: TransformerBridge,
    prompt_tokens: Sequence[int],
    response_tokens: Sequence[int],
    steering: Any,
    layers: Sequence[int] | None = None,
    lens_layers: Sequence[int] = (),
    read_at: str | int | None = None,
) -> TokenEffects:
    """Score one text under the steered and the unsteered model, position by position.

    Args:
        model: A hooked model.
        prompt_tokens: Ids of the rendered prompt.
        response_tokens: Ids of the response; scopes ``response`` and ``first:N`` touch these.
        steering: The `Steering` to apply; anything else is refused in a sentence.
        layers: Layers at which to record what is left of the interventions; by default all from
            the first steered one on. The steered layers are always among them.
        lens_layers: Layers to read through the logit lens; each costs about as much again as the
            comparison of the final distributions.
        read_at: Where the vector was read, to be marked: ``"last_prompt"``, ``"response_mean"``,
            ``"last_response"`` or an index into the prompt, as in `steerlens.activations.cache`.

    Returns:
        Effects at every position of prompt and response.

    Raises:
        SteeringError: No intervention, or one that does not fit the model.
        ModelError: A text that is empty, too long or from another tokenizer, or a model that
            cannot be read at `lens_layers`.
        ActivationError: A layer the model does not have.
        UnknownNameError: A `read_at` that does not exist.
    """
    return scored(
        model, prompt_tokens, response_tokens, steering, layers, lens_layers, read_at, None
    )


@torch.inference_mode()
def scored(
    model: TransformerBridge,
    prompt_tokens: Sequence[int],
    response_tokens: Sequence[int],
    steering: Any,
    layers: Sequence[int] | None,
    lens_layers: Sequence[int],
    read_at: str | int | None,
    alongside: Callable[[Stream], None] | None,
) -> TokenEffects:
    """`token_effects`; `alongside` is called with the baseline's stream while it can be read."""
    check_steering(steering)
    steering.check_model(model)
    ids, n_prompt = [*prompt_tokens, *response_tokens], len(prompt_tokens)
    later = range(min(steering.layers), model.cfg.n_layers)
    recorded = later if layers is None else {*check_layers(model, layers), *steering.layers}
    lens = check_layers(model, lens_layers) if lens_layers else ()
    read = _read_positions(read_at, n_prompt, len(ids))
    recorder = PropagationRecorder(steering, sorted(recorded), len(ids))
    decode = decoder(model)
    with both_streams(
        model,
        ids,
        n_prompt,
        steering,
        layers=recorder.layers,
        observe=recorder.observe,
        kept=lens,
        remember=alongside is not None,
    ) as (baseline, steered):
        shares = torch.ones(len(ids)) if steering.adaptive else None
        if shares is not None:
            steered = adapted_stream(baseline, steered, steering.adaptive, shares)
        compared = compare(baseline, steered, ids, n_prompt, decode)
        if alongside is not None:
            alongside(baseline)
    tokens, readout = token_texts(model, ids), None
    if lens:
        readout = read_through_lens(model, baseline, steered, ids, tokens, n_prompt, decode)
    return TokenEffects(
        tokens=tokens,
        token_ids=tuple(ids),
        n_prompt=n_prompt,
        projection_baseline=recorder.baseline,
        projection_before=recorder.before,
        projection_after=recorder.after,
        steered=_touched(steering, n_prompt, len(ids)),
        read=read,
        propagation=recorder.propagation(),
        lens=readout,
        interventions=tuple(one.describe() for one in steering.interventions),
        steering=steering,
        shares=shares,
        **vars(compared),
    )


def check_steering(steering: object) -> None:
    """`SteeringError` unless this is a steering that does something."""
    if not isinstance(steering, Steering) or not steering.interventions:
        raise SteeringError(
            f"a Steering with at least one intervention is needed, not {steering!r}; make one with "
            "vector.at(layer=…)"
        )


def _touched(steering: Steering, n_prompt: int, n_tokens: int) -> Bool[Tensor, "intervention pos"]:
    """Which positions each intervention writes to."""
    place = torch.arange(n_tokens) - n_prompt
    return torch.stack([one.touched(place) for one in steering.interventions])


def _read_positions(
    read_at: str | int | None, n_prompt: int, n_tokens: int
) -> Bool[Tensor, "pos"] | None:
    if read_at is None:
        return None
    positions = torch.arange(n_tokens)
    if read_at == "response_mean":
        return positions >= n_prompt
    if read_at == "last_response":
        return positions == n_tokens - 1
    index = -1 if read_at == "last_prompt" else read_at
    if isinstance(index, str):
        known = [position for position in POSITIONS if position != "answer"]
        raise unknown_name("position", index, known)
    index = whole_number("read_at", index, error=SteeringError)
    if not -n_prompt <= index < n_prompt:
        raise SteeringError(
            f"the vector cannot have been read at position {index} of a prompt of {n_prompt} "
            "tokens; leave read_at out"
        )
    return positions == index % n_prompt
