r"""What steering did to each token.

`steer` generates a baseline and a steered response to one prompt, then scores the **steered**
text, token by token, under both the steered and the unsteered model (teacher forcing), so both
distributions at a position are conditioned on the same tokens. For position *t*, with
:math:`p` the unsteered and :math:`q` the steered next-token distribution after token *t*:

==========================  ======================================================================
``kl``                      :math:`\mathrm{KL}(q_t \| p_t)` in nats
``entropy_change``          :math:`H(q_t) - H(p_t)` in nats
``promoted``, ``suppressed``  the five tokens whose probability rose (fell) most, with their change
                            of log-probability
``logprob_baseline``, ``logprob_steered``  log-probability of token *t* itself, from position
                            *t* − 1; undefined (NaN) for the first token
``projection_before``, ``projection_after``  :math:`x_t \cdot u` at the steered layer, before and
                            after the interventions of that layer
``steered``                 whether an intervention touched this position
==========================  ======================================================================

Caveat: the effect at a position holds everything the intervention did to earlier positions too,
through attention; it is not the effect of touching this position alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import SteeringError
from steerlens.generation import generate
from steerlens.steering import Steering, TokenRoles

__all__ = ["SteeredRun", "TokenEffects", "steer", "token_effects"]

N_RANKED = 5
# Positions whose log-probabilities are held at once (2 × 49,152 × 64 floats: 25 MB).
_CHUNK = 64

RankedTokens = tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False, repr=False)
class TokenEffects:
    """Per-token effects of one steering on one text; the module's table says what each means.

    Attributes:
        tokens: The tokens as text, prompt then response.
        token_ids: Their ids.
        n_prompt: How many belong to the prompt.
        kl: Nats.
        logprob_baseline: Nats; NaN for the first token.
        logprob_steered: Nats; NaN for the first token.
        entropy_change: Nats.
        projection_before: For each intervention, at its layer, on its direction.
        projection_after: The same, after the interventions of that layer.
        steered: For each intervention, whether it touched the token.
        promoted: For each token, the five whose probability rose most, with the change of
            log-probability (nats).
        suppressed: The five whose probability fell most.
        interventions: A phrase for each intervention.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    n_prompt: int
    kl: Float[Tensor, "pos"]
    logprob_baseline: Float[Tensor, "pos"]
    logprob_steered: Float[Tensor, "pos"]
    entropy_change: Float[Tensor, "pos"]
    projection_before: Float[Tensor, "intervention pos"]
    projection_after: Float[Tensor, "intervention pos"]
    steered: Bool[Tensor, "intervention pos"]
    promoted: tuple[RankedTokens, ...]
    suppressed: tuple[RankedTokens, ...]
    interventions: tuple[str, ...]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a token; projections are those of the first intervention."""
        n_tokens = len(self.tokens)
        role = ["prompt"] * self.n_prompt + ["response"] * (n_tokens - self.n_prompt)
        return pd.DataFrame(
            {
                "position": range(n_tokens),
                "token": self.tokens,
                "role": role,
                "steered": self.steered.any(dim=0).tolist(),
                "kl": self.kl.tolist(),
                "logprob_baseline": self.logprob_baseline.tolist(),
                "logprob_steered": self.logprob_steered.tolist(),
                "projection_before": self.projection_before[0].tolist(),
                "projection_after": self.projection_after[0].tolist(),
                "entropy_change": self.entropy_change.tolist(),
                "promoted": self.promoted,
                "suppressed": self.suppressed,
            }
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return (
            f"TokenEffects({self.n_prompt} prompt + {len(self) - self.n_prompt} response tokens, "
            f"mean KL {float(self.kl.mean()):.3g} nats)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class SteeredRun:
    """One prompt answered without and with steering.

    Attributes:
        prompt: The prompt as given.
        baseline: The unsteered response.
        steered: The steered response.
        effects: Per-token effects over the prompt and the steered response.
        parts_at: Index of the first response token where the two differ; ``None`` when they do
            not.
        settings: What is needed to run it again.
    """

    prompt: str
    baseline: str
    steered: str
    effects: TokenEffects
    parts_at: int | None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        parts = "the texts are equal" if self.parts_at is None else f"part at {self.parts_at}"
        return f"SteeredRun({self.prompt[:40]!r}, {parts}, {self.effects!r})"


def steer(
    model: TransformerBridge,
    prompt: str,
    steering: Steering,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    chat_format: str = "auto",
) -> SteeredRun:
    """Answer a prompt without and with steering, and record what steering did to each token.

    Args:
        model: A hooked model.
        prompt: The user's message.
        steering: What to apply.
        max_new_tokens: Longest response, in tokens.
        temperature: 0 decodes greedily.
        seed: Seed when sampling; both responses draw from the same stream.
        chat_format: See `steerlens.models`.

    Raises:
        SteeringError: The steering is none, holds no intervention, does not fit the model, or is
            so strong that the logits become NaN or infinite.
        ModelError: An empty prompt, or one longer than the context.
    """
    if not isinstance(steering, Steering) or not steering.interventions:
        raise SteeringError(
            f"a steering with at least one intervention is needed, not {steering!r}; make one with "
            "vector.at(layer=…)"
        )
    steering.check_model(model)
    both = [
        generate(
            model,
            prompt,
            steering=one,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            chat_format=chat_format,
            progress=False,
        )
        for one in (None, steering)
    ]
    baseline, steered = both
    for name, one in (("without", baseline), ("with", steered)):
        if one.finish_reasons[0] == "non-finite":
            raise SteeringError(
                f"the model's logits {name} steering hold NaN or infinity after "
                f"{len(one.tokens[0])} tokens; lower the strength, or check weights and dtype"
            )
    return SteeredRun(
        prompt=prompt,
        baseline=baseline.texts[0],
        steered=steered.texts[0],
        effects=token_effects(model, steered.prompt_tokens[0], steered.tokens[0], steering),
        parts_at=parts_at(baseline.tokens[0], steered.tokens[0]),
        settings={**steered.settings, "steering": [i.describe() for i in steering.interventions]},
    )


def parts_at(baseline: Sequence[int], steered: Sequence[int]) -> int | None:
    """Index of the first token where two responses differ; ``None`` when they are equal.

    >>> parts_at([5, 6, 7], [5, 8]), parts_at([5], [5, 6]), parts_at([5], [5])
    (1, 1, None)
    """
    for i, (one, other) in enumerate(zip(baseline, steered, strict=False)):
        if one != other:
            return i
    return None if len(baseline) == len(steered) else min(len(baseline), len(steered))


@torch.inference_mode()
def token_effects(
    model: TransformerBridge,
    prompt_tokens: Sequence[int],
    response_tokens: Sequence[int],
    steering: Steering,
) -> TokenEffects:
    """Score one text under the steered and the unsteered model, position by position.

    Args:
        model: A hooked model.
        prompt_tokens: Ids of the rendered prompt.
        response_tokens: Ids of the response; scope ``response`` touches these.
        steering: What to apply.

    Returns:
        Effects at every position of prompt and response.
    """
    ids = [*prompt_tokens, *response_tokens]
    tokens = torch.tensor([ids], device=model.cfg.device)
    mask = torch.ones_like(tokens)
    lengths = torch.tensor([len(prompt_tokens)], device=tokens.device)
    baseline_logits = model(tokens, attention_mask=mask, use_cache=False)[0]
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    with (
        model.hooks(fwd_hooks=_keeping(before, steering.layers)),
        steering.applied(model, prompt_lengths=[len(prompt_tokens)]),
        model.hooks(fwd_hooks=_keeping(after, steering.layers)),
    ):
        steered_logits = model(tokens, attention_mask=mask, use_cache=False)[0]
    quantities = _compare(model, baseline_logits, steered_logits, tokens[0])
    roles = TokenRoles.of_mask(mask, len(ids), lengths)
    touched = {"prompt": roles.prompt, "response": roles.response}
    touched["all"] = roles.prompt | roles.response
    tokenizer: Any = model.tokenizer
    return TokenEffects(
        tokens=tuple(tokenizer.decode([i]) for i in ids),
        token_ids=tuple(ids),
        n_prompt=len(prompt_tokens),
        projection_before=_projections(before, steering),
        projection_after=_projections(after, steering),
        steered=torch.cat([touched[one.scope] for one in steering.interventions]).cpu(),
        interventions=tuple(one.describe() for one in steering.interventions),
        **quantities,
    )


def _keeping(store: dict[int, Tensor], layers: Sequence[int]) -> list[tuple[str, Any]]:
    def at(layer: int) -> Any:
        def keep(resid: Tensor, hook: Any) -> None:
            store[layer] = resid[0].float().cpu()

        return keep

    return [(f"blocks.{layer}.hook_out", at(layer)) for layer in layers]


def _projections(
    resid: Mapping[int, Float[Tensor, "pos d_model"]], steering: Steering
) -> Float[Tensor, "intervention pos"]:
    return torch.stack(
        [
            einsum(resid[one.layer], one.direction.float().cpu(), "pos d, d -> pos")
            for one in steering.interventions
        ]
    )


def _compare(
    model: TransformerBridge,
    baseline_logits: Float[Tensor, "pos vocab"],
    steered_logits: Float[Tensor, "pos vocab"],
    tokens: Tensor,
) -> dict[str, Any]:
    """Everything that needs the whole vocabulary, a chunk of positions at a time."""
    n_tokens = len(tokens)
    kl, entropy_change = torch.empty(n_tokens), torch.empty(n_tokens)
    logprob_baseline, logprob_steered = (torch.full((n_tokens,), torch.nan) for _ in range(2))
    promoted: list[RankedTokens] = []
    suppressed: list[RankedTokens] = []
    for start in range(0, n_tokens, _CHUNK):
        rows = slice(start, start + _CHUNK)
        p = baseline_logits[rows].float().log_softmax(-1)
        q = steered_logits[rows].float().log_softmax(-1)
        kl[rows] = (q.exp() * (q - p)).sum(-1).clamp_min(0.0).cpu()
        entropy_change[rows] = ((p.exp() * p).sum(-1) - (q.exp() * q).sum(-1)).cpu()
        shift = q.exp() - p.exp()
        promoted += _ranked(model, shift, q - p)
        suppressed += _ranked(model, -shift, q - p)
        following = tokens[start + 1 : start + 1 + len(p)]
        own = torch.arange(len(following), device=tokens.device)
        told = slice(start + 1, start + 1 + len(following))
        logprob_baseline[told] = p[own, following].cpu()
        logprob_steered[told] = q[own, following].cpu()
    return {
        "kl": kl,
        "entropy_change": entropy_change,
        "logprob_baseline": logprob_baseline,
        "logprob_steered": logprob_steered,
        "promoted": tuple(promoted),
        "suppressed": tuple(suppressed),
    }


def _ranked(
    model: TransformerBridge,
    shift: Float[Tensor, "pos vocab"],
    change: Float[Tensor, "pos vocab"],
) -> list[RankedTokens]:
    tokenizer: Any = model.tokenizer
    top = shift.topk(N_RANKED, dim=-1).indices
    changes = change.gather(-1, top).tolist()
    return [
        tuple((tokenizer.decode([i]), c) for i, c in zip(ids, row, strict=True))
        for ids, row in zip(top.tolist(), changes, strict=True)
    ]
