r"""Next-token distributions of two streams, compared position by position.

With :math:`p` the baseline's and :math:`q` the steered stream's distribution of the token after
position *t*:

.. math:: \mathrm{KL}(q_t \| p_t) = \sum_y q_t(y) \ln\frac{q_t(y)}{p_t(y)}, \qquad
          H(q_t) = -\sum_y q_t(y) \ln q_t(y)

in nats. **Promoted** tokens are those whose probability rose most, :math:`q_t(y) - p_t(y)`, shown
with their change of log-probability; over a whole response they are ranked by the mean of that rise
over the positions that predict it. Probability, not log-probability, decides: the largest changes
of log-probability belong to tokens that neither model would say.

Both distributions of some positions at a time are held, never all of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from steerlens.effects.streams import Stream

__all__ = ["Compared", "Decode", "RankedTokens", "compare", "score"]

N_RANKED = 5
N_SHIFTED = 25
# Positions whose distributions are held at once (4 × 49,152 × 32 floats: 25 MB).
_CHUNK = 32

RankedTokens = tuple[tuple[str, float], ...]
Decode = Callable[[int], str]


@dataclass(frozen=True, eq=False)
class Compared:
    """Two streams' distributions over one text, compared; see `TokenEffects` for what each is."""

    kl: Float[Tensor, "pos"]
    logprob_baseline: Float[Tensor, "pos"]
    logprob_steered: Float[Tensor, "pos"]
    entropy_baseline: Float[Tensor, "pos"]
    entropy_steered: Float[Tensor, "pos"]
    promoted: tuple[RankedTokens, ...]
    suppressed: tuple[RankedTokens, ...]
    mean_promoted: RankedTokens
    mean_suppressed: RankedTokens


def compare(
    baseline: Stream,
    steered: Stream,
    tokens: Sequence[int],
    n_prompt: int,
    decode: Decode,
) -> Compared:
    """Compare two streams over the token ids of one text.

    Positions from the last of `n_prompt` on predict the response; `decode` gives a token's text.
    """
    n_tokens = len(tokens)
    ids = torch.tensor(list(tokens))
    scalars = torch.full((5, n_tokens), torch.nan, dtype=torch.float32)
    kl, logprob_baseline, logprob_steered, entropy_baseline, entropy_steered = scalars
    promoted: list[RankedTokens] = []
    suppressed: list[RankedTokens] = []
    total: Tensor | None = None
    for start in range(0, n_tokens, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n_tokens))
        log_p = baseline.logits(rows).float().log_softmax(-1)
        log_q = steered.logits(rows).float().log_softmax(-1)
        p, q = log_p.exp(), log_q.exp()
        entropy_baseline[rows] = _expected(p, log_p).neg_().cpu()
        entropy_steered[rows] = _expected(q, log_q).neg_().cpu()
        following = slice(start + 1, rows.stop + 1)
        logprob_baseline[following] = _of_tokens(log_p, ids[following])
        logprob_steered[following] = _of_tokens(log_q, ids[following])
        log_q -= log_p
        kl[rows] = _expected(q, log_q).clamp_min_(0.0).cpu()
        q -= p
        promoted += _ranked(q, log_q, decode, largest=True)
        suppressed += _ranked(q, log_q, decode, largest=False)
        rise = q[max(0, n_prompt - 1 - start) :].sum(0)
        total = rise if total is None else total + rise
    if total is None:
        raise AssertionError("texts are checked to have tokens")
    mean = (total / (n_tokens - max(n_prompt - 1, 0)))[None]
    return Compared(
        kl=kl,
        logprob_baseline=logprob_baseline,
        logprob_steered=logprob_steered,
        entropy_baseline=entropy_baseline,
        entropy_steered=entropy_steered,
        promoted=tuple(promoted),
        suppressed=tuple(suppressed),
        mean_promoted=_ranked(mean, mean, decode, largest=True, n_ranked=N_SHIFTED)[0],
        mean_suppressed=_ranked(mean, mean, decode, largest=False, n_ranked=N_SHIFTED)[0],
    )


def score(
    stream: Stream, tokens: Sequence[int]
) -> tuple[Float[Tensor, "pos"], Float[Tensor, "pos"]]:
    """Log-probability of each token (NaN for the first) and entropy after it, in nats."""
    n_tokens = len(tokens)
    ids = torch.tensor(list(tokens))
    logprob, entropy = torch.full((2, n_tokens), torch.nan, dtype=torch.float32)
    for start in range(0, n_tokens, _CHUNK):
        rows = slice(start, min(start + _CHUNK, n_tokens))
        log_p = stream.logits(rows).float().log_softmax(-1)
        entropy[rows] = _expected(log_p.exp(), log_p).neg_().cpu()
        following = slice(start + 1, rows.stop + 1)
        logprob[following] = _of_tokens(log_p, ids[following])
    return logprob, entropy


def _of_tokens(
    logprob: Float[Tensor, "row vocab"], ids: Int[Tensor, "following"]
) -> Float[Tensor, "following"]:
    """The log-probability of the token that follows each row; the last may have none after it."""
    chosen: Tensor = logprob[: len(ids)].gather(-1, ids[:, None].to(logprob.device))
    return chosen[:, 0].cpu()


def _expected(
    probability: Float[Tensor, "row vocab"], value: Float[Tensor, "row vocab"]
) -> Float[Tensor, "row"]:
    mean: Tensor = torch.linalg.vecdot(probability, value)
    return mean


def _ranked(
    rise: Float[Tensor, "row vocab"],
    shown: Float[Tensor, "row vocab"],
    decode: Decode,
    largest: bool,
    n_ranked: int = N_RANKED,
) -> list[RankedTokens]:
    top = rise.topk(min(n_ranked, rise.shape[-1]), dim=-1, largest=largest).indices
    values = shown.gather(-1, top).tolist()
    return [
        tuple((decode(i), value) for i, value in zip(ids, row, strict=True))
        for ids, row in zip(top.tolist(), values, strict=True)
    ]
