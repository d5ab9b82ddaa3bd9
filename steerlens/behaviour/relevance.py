r"""Whether an answer is about its prompt: the model without steering is asked.

A check says that an answer has the form; a judge's perplexity, that it is ordinary text. Neither
notices an answer to another question. Here a response :math:`y` of :math:`T` tokens to a prompt
:math:`x` is teacher-forced after :math:`x` and after some other prompts :math:`x'`, by the model
without steering:

.. math:: r = \frac1T \log p(y \mid x) - \frac1T \operatorname{mean}_{x'} \log p(y \mid x')

in nats per token: the pointwise mutual information of prompt and response, per token, with the
response's own likelihood estimated from the other prompts (Li et al. 2016, arXiv 1510.03055,
eq. 9). The form, be it capitals, JSON or a loop, is the same in both terms. A response is *on
topic* if its own prompt makes it likelier than every other does; by chance one in
:math:`n_{others} + 1` is.

Caveat: the model can only tell what it can read. An answer in a language that it hardly knows may
be judged off topic.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.likelihood import log_likelihoods
from steerlens.engine.scoring import ForcedRow
from steerlens.errors import SteerlensError
from steerlens.models.control_tokens import literal_ids
from steerlens.models.conversations import Prompt
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import tokenize_prompts
from steerlens.stats.rates import Interval, score_interval
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Relevance", "relevance"]


@dataclass(frozen=True, eq=False, repr=False)
class Relevance(Result):
    """How much responses are about their prompts.

    Attributes:
        table: One row per response: ``n_tokens`` scored, ``own`` and ``others`` (mean
            log-probability per token after its own prompt, and after the others on average),
            ``relevance`` (their difference, nats per token) and ``on_topic``. A blank response is
            not on topic, and its numbers are missing.
        n_others: Other prompts per response.
    """

    table: pd.DataFrame
    n_others: int

    @property
    def on_topic(self) -> Interval:
        """Share of responses on topic, with Wilson's 95 % interval."""
        return score_interval(float(self.table["on_topic"].mean()), len(self.table))

    def __repr__(self) -> str:
        share = self.on_topic
        return (
            f"Relevance({len(self.table)} responses, {share.value:.0%} [{share.low:.0%}, "
            f"{share.high:.0%}] on topic, {1 / (self.n_others + 1):.0%} by chance)"
        )

    def plot(self) -> "go.Figure":
        """Relevance of the responses, and which are on topic."""
        from steerlens.views.bars import relevance_histogram

        return relevance_histogram(self.table)


def relevance(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    n_others: int = 4,
    max_tokens: int = 64,
    chat_format: str = "auto",
    seed: int = 0,
) -> Relevance:
    """How much each response is about its prompt.

    Args:
        model: The model that answered, or another; steered by nothing.
        prompts: For each response its prompt, without the instruction.
        responses: Texts.
        n_others: Other prompts that each response is also scored after, drawn from `prompts`.
        max_tokens: Only so many of a response's first tokens are scored.
        chat_format: As for `steerlens.generate`.
        seed: Draws the other prompts.

    Raises:
        SteerlensError: Not one prompt per response, or fewer than `n_others` + 1 different prompts.
    """
    if isinstance(responses, str) or len(prompts) != len(responses):
        raise SteerlensError(
            f"relevance needs one prompt per response; got {len(prompts)} prompts and "
            f"{1 if isinstance(responses, str) else len(responses)} responses"
        )
    if n_others < 1 or max_tokens < 1:
        raise SteerlensError(
            f"n_others and max_tokens must be at least 1; got {n_others} and {max_tokens}"
        )
    tokens = [tuple(ids) for ids in tokenize_prompts(model, prompts, chat_format=chat_format)]
    different = sorted(set(tokens))
    if len(different) <= n_others:
        raise SteerlensError(
            f"{n_others} other prompts are asked for, and there are {len(different)} different "
            "prompts in all; give more, or a smaller n_others"
        )
    tokenizer, rng = attached_tokenizer(model), random.Random(seed)
    names = [f"response {i}" for i in range(len(responses))]
    texts = literal_ids(tokenizer, [response.rstrip() for response in responses], names)
    rows: list[ForcedRow] = []
    for asked, text in zip(tokens, texts, strict=True):
        drawn = rng.sample([prompt for prompt in different if prompt != asked], n_others)
        for prompt in (asked, *drawn) if text else ():
            rows.append(ForcedRow(len(rows), prompt, tuple(text[:max_tokens]), None))
    totals, _ = log_likelihoods(model, rows)
    scored = iter(totals.reshape(-1, n_others + 1))
    table = []
    for text in texts:
        n = min(len(text), max_tokens)
        each = next(scored) / n if n else np.full(n_others + 1, np.nan)
        own, others = float(each[0]), each[1:]
        table.append(
            {
                "n_tokens": n,
                "own": own,
                "others": float(others.mean()),
                "relevance": own - float(others.mean()),
                "on_topic": bool(own > others.max()),
            }
        )
    return Relevance(pd.DataFrame(table), n_others)
