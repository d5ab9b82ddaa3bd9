r"""Divergence: what steering costs the model's predictions, per response token.

The unsteered model answers some prompts greedily. Its responses are then read again under steering
(teacher forcing), and for each response token *t* of prompt *i*

.. math:: D_{it} = \mathrm{KL}(q_{it} \,\|\, p_{it})

in nats, with *p* the unsteered and *q* the steered distribution that predicts it. `response_kl`
gives the mean, or a quantile, of *D* over all tokens of all prompts, with a 95 % percentile
bootstrap interval over prompts; `steerlens.behaviour.calibration` chooses a strength by it.

Caveat: on the unsteered text, so it says how far the model is pushed from what it would say, not
what it then says. With scope ``response`` the first token is predicted before anything is steered,
so its *D* is 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.generation import Generations, generate
from steerlens.engine.sampling import Decoding
from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.errors import SteeringError
from steerlens.errors.arguments import arguments
from steerlens.steering.interventions import Steering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = [
    "ResponseKL",
    "check_statistic",
    "interval_of",
    "resampled",
    "response_kl",
    "statistic_name",
    "statistic_of",
    "token_kl",
    "unsteered_answers",
]

Array = np.ndarray
_INTERVAL = (2.5, 97.5)
# Response tokens whose unsteered distributions are held at once (49,152 × 1,024 floats: 200 MB).
_TOKENS_AT_ONCE = 1024


@dataclass(frozen=True, eq=False, repr=False)
class ResponseKL(Result):
    """KL of steered from unsteered predictions over unsteered responses.

    Attributes:
        kl: Mean or quantile over all response tokens (nats).
        low: Lower end of its interval over prompts.
        high: Upper end.
        quantile: Which quantile; ``None`` for the mean.
        tokens: For each prompt the KL of its response tokens (nats).
    """

    kl: float
    low: float
    high: float
    quantile: float | None
    tokens: tuple[Float[Array, "_"], ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row per response token: prompt, position in its response, KL (nats)."""
        rows = [
            (prompt, position, float(kl))
            for prompt, row in enumerate(self.tokens)
            for position, kl in enumerate(row)
        ]
        return pd.DataFrame(rows, columns=["prompt", "position", "kl"])

    def plot(self) -> "go.Figure":
        """Where in a response steering acts: KL over positions, with the spread over prompts."""
        from steerlens.views import kl_over_response

        return kl_over_response(self.table)

    def __repr__(self) -> str:
        return (
            f"ResponseKL({statistic_name(self.quantile)} {self.kl:.3g} nats "
            f"[{self.low:.3g}, {self.high:.3g}] over {len(self.tokens)} prompts)"
        )


@arguments
def response_kl(
    model: TransformerBridge,
    steering: Steering,
    prompts: Sequence[str] | Generations,
    quantile: float | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    n_resamples: int = 1000,
) -> ResponseKL:
    """What a steering costs, in KL per response token, on the unsteered responses to prompts.

    Args:
        model: A hooked model.
        steering: What to apply.
        prompts: User messages to answer without steering, or their unsteered `Generations`.
        quantile: The quantile over tokens; the mean by default.
        max_new_tokens: Longest response, in tokens.
        seed: Seed of the bootstrap.
        n_resamples: Bootstrap resamples.

    Raises:
        SteeringError: As `calibrate`.
    """
    check_statistic(quantile, n_resamples, seed)
    answers = unsteered_answers(model, prompts, max_new_tokens)
    [tokens] = token_kl(model, answers, [steering])
    low, high = interval_of(tokens, quantile, n_resamples, seed)
    return ResponseKL(statistic_of(tokens, quantile), low, high, quantile, tuple(tokens))


def unsteered_answers(
    model: TransformerBridge, prompts: Sequence[str] | Generations, max_new_tokens: int
) -> Generations:
    """Unsteered greedy responses."""
    if isinstance(prompts, Generations):
        answers = prompts
        decoding = answers.settings.get("decoding", {})
        if any(answers.settings.get("steering", [])) or not (
            isinstance(decoding, Mapping) and Decoding(**decoding).is_plain
        ):
            raise SteeringError(
                "KL is measured on greedy responses without steering; these are not"
            )
    else:
        answers = generate(model, prompts, max_new_tokens=max_new_tokens, show_progress=False)
    if not any(answers.tokens):
        raise SteeringError(
            f"none of {len(answers)} prompts has a response token to measure KL on; give prompts "
            "that the model answers"
        )
    return answers


def token_kl(
    model: TransformerBridge, answers: Generations, steerings: Sequence[Steering]
) -> list[list[Float[Array, "_"]]]:
    """KL(steered‖unsteered) of each response token, for each steering and prompt."""
    result = [[np.empty(len(row)) for row in answers.tokens] for _ in steerings]
    chunk: list[int] = []
    for i, row in enumerate(answers.tokens):
        if chunk and sum(len(answers.tokens[j]) for j in chunk) + len(row) > _TOKENS_AT_ONCE:
            _score_chunk(model, answers, chunk, steerings, result)
            chunk = []
        if row:
            chunk.append(i)
    _score_chunk(model, answers, chunk, steerings, result)
    return result


def _score_chunk(
    model: TransformerBridge,
    answers: Generations,
    chunk: Sequence[int],
    steerings: Sequence[Steering],
    result: Sequence[Sequence[Float[Array, "_"]]],
) -> None:
    """Write the KL of some prompts into `result`; their unsteered predictions are held."""
    unsteered: dict[tuple[int, int], Tensor] = {}

    def rows_under(some: Sequence[Steering | None]) -> list[ForcedRow]:
        return [
            ForcedRow(k * len(chunk) + place, answers.prompt_tokens[i], answers.tokens[i], steering)
            for k, steering in enumerate(some)
            for place, i in enumerate(chunk)
        ]

    def hold(rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]) -> None:
        logprobs = logits.float().log_softmax(-1)
        unsteered.update(zip(zip(rows, steps, strict=True), logprobs, strict=True))

    def compare(rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]) -> None:
        q = logits.float().log_softmax(-1)
        places = [row % len(chunk) for row in rows]
        p = torch.stack([unsteered[key] for key in zip(places, steps, strict=True)])
        kl = (q.exp() * (q - p)).sum(-1).clamp_min(0.0)
        # A strength at which the model breaks costs more than any budget.
        found = torch.where(torch.isnan(kl), torch.inf, kl).tolist()
        for row, place, step, value in zip(rows, places, steps, found, strict=True):
            result[row // len(chunk)][chunk[place]][step] = value

    score_rows(model, rows_under([None]), hold)
    score_rows(model, rows_under(steerings), compare)


def statistic_of(tokens: Sequence[Float[Array, "_"]], quantile: float | None) -> float:
    """The mean, or a quantile, over all tokens of all prompts (nats)."""
    every = np.concatenate(list(tokens))
    return float(every.mean() if quantile is None else np.quantile(every, quantile))


def statistic_name(quantile: float | None) -> str:
    """What `statistic_of` gives, in words."""
    return "mean" if quantile is None else f"{quantile:g} quantile of"


def resampled(
    tokens: Sequence[Float[Array, "_"]], quantile: float | None, n_resamples: int, seed: int
) -> Float[Array, "resample"]:
    """The statistic over prompts drawn with replacement; the same prompts for the same seed."""
    rng = np.random.default_rng(seed)
    with_tokens = [row for row in tokens if len(row)]
    draws = rng.integers(len(with_tokens), size=(n_resamples, len(with_tokens)))
    if quantile is None:
        sums = np.array([row.sum() for row in with_tokens])
        counts = np.array([len(row) for row in with_tokens])
        means: Array = sums[draws].sum(1) / counts[draws].sum(1)
        return means
    return np.array([statistic_of([with_tokens[i] for i in draw], quantile) for draw in draws])


def interval_of(
    tokens: Sequence[Float[Array, "_"]], quantile: float | None, n_resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of the statistic over prompts drawn with replacement (nats)."""
    low, high = np.percentile(resampled(tokens, quantile, n_resamples, seed), _INTERVAL)
    return float(low), float(high)


def check_statistic(quantile: float | None, n_resamples: int, seed: int) -> None:
    """Refuse a quantile, number of resamples or seed that cannot be used.

    Raises:
        SteeringError: "quantile must lie between 0 and 1, …".
    """
    if (quantile is not None and not 0 < quantile < 1) or n_resamples < 1 or seed < 0:
        raise SteeringError(
            "quantile must lie between 0 and 1, n_resamples be at least 1 and seed at least 0; got "
            f"{quantile}, {n_resamples} and {seed}"
        )
