r"""Teacher forcing: how far a model is, token by token, from what it does under an instruction.

`instructed_responses` lets the model answer the instructed prompts, greedily and unsteered.
`kl_to_instructed` feeds these responses after the *uninstructed* prompts, under any number of
steerings, and gives at every response token *t* of pair *i*

.. math:: D_{it} = \mathrm{KL}(p^+_{it} \,\|\, q_{it}) = \sum_v p^+_{it}(v) \log p^+_{it}(v)
                                                   - \sum_v p^+_{it}(v) \log q_{it}(v)

in nats, where :math:`p^+` follows the instructed and :math:`q` the uninstructed, perhaps steered,
prompt, both with the same response tokens before. The first sum is computed once per pair.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, product

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.generation import generate_from_tokens
from steerlens.engine.modules import device_of
from steerlens.engine.scoring import ForcedRow, Visit, score_rows
from steerlens.errors import SteeringError
from steerlens.models.loading import end_token_ids, model_info
from steerlens.steering.interventions import Steering

__all__ = ["instructed_responses", "kl_to_instructed"]

Rows = Sequence[Sequence[int]]
# Probabilities of instructed runs held at once: 40 responses of 32 tokens over a vocabulary of
# 49,152, or 8 over one of 262,144 (256 MB in float32).
_MOST_TARGETS = 2**26
# Positions compared at once: few enough that their log-probabilities stay in the processor's cache
# (on one core a position took 0.04 ms among 16, 0.07 ms among 128).
_NEIGHBOURS = 16


def instructed_responses(
    model: TransformerBridge,
    instructed: Rows,
    uninstructed: Rows,
    max_tokens: int,
    show_progress: bool | None,
) -> list[tuple[int, ...]]:
    """What the model answers under the instruction, greedily; the token that ends it included.

    Args:
        instructed: Instructed prompts as tokens.
        uninstructed: The prompts the responses will be fed after; a response is cut where it would
            leave the context there.
        max_tokens: Longest response.
        show_progress: Show a progress bar.

    Raises:
        SteeringError: The unsteered model's logits are no numbers.
    """
    finished, _ = generate_from_tokens(
        model, instructed, [None] * len(instructed), max_tokens, show_progress=show_progress
    )
    # It is predicted but never read, so any of the tokens that end a turn will do.
    end = min(end_token_ids(model), default=0)
    context = model_info(model).context_length
    responses = []
    for row, prompt in zip(finished, uninstructed, strict=True):
        if row.reason == "non-finite":
            raise SteeringError(
                f"the model's logits for instructed prompt {row.index} are no numbers, so there is "
                "no response to recover"
            )
        tokens = (*row.produced, end) if row.reason == "stop" else tuple(row.produced)
        responses.append(tokens[: min(max_tokens, context - len(prompt) + 1)])
    return responses


def kl_to_instructed(
    model: TransformerBridge,
    instructed: Rows,
    uninstructed: Rows,
    responses: Rows,
    steerings: Sequence[Steering | None],
    show_progress: bool | None,
    batch_size: int | None = None,
) -> Float[np.ndarray, "steering pair step"]:
    """KL(instructed‖q) in nats at each response token; 0 after a response's end.

    Args:
        instructed: Instructed prompts as tokens.
        uninstructed: Uninstructed prompts as tokens.
        responses: Response tokens of each pair, at least one.
        steerings: What is done to the uninstructed prompts; ``None`` for nothing.
        show_progress: Show a progress bar.
        batch_size: Rows per forward pass at most; by default as many as memory allows.

    Returns:
        Nats. NaN or infinite where a steering leaves no numbers in the logits.
    """
    n_pairs, n_steps = len(responses), max(map(len, responses))
    result = np.zeros((len(steerings), n_pairs, n_steps))
    size = max(1, _MOST_TARGETS // (n_steps * model.cfg.d_vocab))
    total = sum(map(len, responses)) * (len(steerings) + 1)
    disable = None if show_progress is None else not show_progress
    with tqdm(total=total, desc="causal recovery", unit="token", disable=disable) as bar:
        for start in range(0, n_pairs, size):
            block = range(start, min(start + size, n_pairs))
            targets = _Targets(model, len(block), n_steps, bar.update)
            fed = [
                ForcedRow(number, tuple(instructed[i]), tuple(responses[i]), None)
                for number, i in enumerate(block)
            ]
            score_rows(model, fed, targets.fill, batch_size)
            rows = [
                ForcedRow(number, tuple(uninstructed[i]), tuple(responses[i]), steering)
                for number, (steering, i) in enumerate(product(steerings, block))
            ]
            values = np.zeros((len(rows), n_steps))
            score_rows(model, rows, targets.compare(values), batch_size)
            result[:, block] = values.reshape(len(steerings), len(block), n_steps)
    return result


class _Targets:
    """Instructed distributions of some pairs at each step, and the distance of others to them."""

    def __init__(
        self,
        model: TransformerBridge,
        n_pairs: int,
        n_steps: int,
        done: Callable[[int], object],
    ) -> None:
        device = device_of(model)
        size = (n_pairs, n_steps)
        self.probabilities = torch.empty(
            *size, model.cfg.d_vocab, dtype=torch.float32, device=device
        )
        self.negative_entropy = torch.empty(size, dtype=torch.float32, device=device)
        self.done = done

    def fill(
        self, rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]
    ) -> None:
        """A visitor of the instructed runs; row *i* is pair *i*."""
        logprobs = torch.log_softmax(logits, -1, dtype=torch.float32)
        probabilities = logprobs.exp()
        self.probabilities[rows, steps] = probabilities
        # 0 · −∞ is 0 here: a token that cannot come adds nothing.
        terms = torch.where(probabilities > 0, probabilities * logprobs, 0.0)
        self.negative_entropy[rows, steps] = terms.sum(-1)
        self.done(len(rows))

    def compare(self, values: Float[np.ndarray, "row step"]) -> Visit:
        """A visitor that writes KL(instructed‖row); row *i* is of pair *i* modulo their number."""

        def visit(
            rows: list[int], steps: list[int], logits: Float[Tensor, "position vocab"]
        ) -> None:
            # Neighbours mostly share pair and step, so no target is copied. A sum, not a matrix
            # product, which over 49,152 terms is off by up to 3e-5 nats instead of 1e-6.
            for pair, step, here in self._neighbours(rows, steps):
                target = self.probabilities[pair, step]
                logprobs = torch.log_softmax(logits[here], -1, dtype=torch.float32)
                cross = (logprobs * target).sum(-1)
                kl = self.negative_entropy[pair, step] - cross
                values[rows[here], step] = kl.cpu().numpy()
            self.done(len(rows))

        return visit

    def _neighbours(self, rows: list[int], steps: list[int]) -> Iterator[tuple[int, int, slice]]:
        """Runs of positions that are compared with the same target."""
        n_pairs, start = len(self.probabilities), 0
        targets = ((row % n_pairs, step) for row, step in zip(rows, steps, strict=True))
        for (pair, step), run in groupby(targets):
            end = start + sum(1 for _ in run)
            while start < end:
                stop = min(start + _NEIGHBOURS, end)
                yield pair, step, slice(start, stop)
                start = stop
