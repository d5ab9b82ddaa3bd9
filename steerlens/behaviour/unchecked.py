r"""Behaviour without a check: how far steering goes towards it, without generating under it.

================== ==============================================================================
task               measure
================== ==============================================================================
prompts that ask   ``recovery``: causal recovery over the instructed run's own response
                   (`steerlens.attribution.causal`)
choices            ``log_odds_change``: change of the log odds of the matching answer, in nats
                   (`steerlens.attribution.choices`)
any with a check   ``rate``: responses that pass (`steerlens.tasks.checks`)
================== ==============================================================================

Both of the first two are ratios of sums over prompts *i*, of a gain :math:`a_i` and a weight
:math:`b_i`:

.. math:: \frac{\sum_i a_i}{\sum_i b_i}, \qquad
   a_i = \mathrm{KL}(p^+_i \| p^-_i) - \mathrm{KL}(p^+_i \| q_i), \quad
   b_i = \mathrm{KL}(p^+_i \| p^-_i)

for recovery; for choices :math:`a_i` is the change of an item's log odds and :math:`b_i = 1`.
"""

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from steerlens.attribution.log_odds import steered_log_odds
from steerlens.attribution.model_evidence import require_effect
from steerlens.attribution.teacher_forcing import instructed_responses, kl_to_instructed
from steerlens.behaviour.answers import Answerer, Records
from steerlens.errors import SteerlensError
from steerlens.models.conversations import Conversation, asked_text, continued
from steerlens.models.identity import digest_of_rows
from steerlens.models.loading import tokenize_prompts
from steerlens.stats.queries import numbered_queries, ratio_interval
from steerlens.stats.rates import Interval
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.choices import ChoiceItem
from steerlens.tasks.pairs import ContrastPair

__all__ = ["MEASURES", "Effects", "check_measurable", "measure_of", "measured"]

MEASURES: Mapping[str, str] = {
    "rate": "rate of passing",
    "recovery": "causal recovery",
    "log_odds_change": "change of log odds (nats)",
}
"""What behaviour is measured by, in words."""

# Settings measured together, and lost together when a run is stopped.
_SETTINGS_AT_ONCE = 8

Array = np.ndarray
Labelled = tuple[Mapping[str, Any], Steering | None]
"""A steering, and everything that decides it as plain data."""


def measure_of(task: Task) -> str:
    """What a task's behaviour is measured by: one of `MEASURES`."""
    if task.group == "choices":
        return "log_odds_change"
    return "rate" if task.has_check else "recovery"


def check_measurable(task: Task, split: str = "select") -> None:
    """Refuse a task whose behaviour nothing can measure on the pairs of a split.

    Raises:
        SteerlensError: No check, and answers to the same prompts, or prompts of one base query.
        PairsError: The split to fit on, or this one, has fewer than 2 pairs.
    """
    for name in ("fit", split):
        if task.n_pairs(name) < 2:
            task.pairs(2, split=name)  # raises, and says what is lacking
    if measure_of(task) == "rate":
        return
    pairs = task.pairs(max(2, task.n_pairs(split)), split=split)
    if task.group != "choices" and pairs.same_prompts:
        raise SteerlensError(
            f"task {task.id!r} has no check, and both sides of its pairs have the same prompt, so "
            "there is no instruction whose effect steering could recover; give it a check"
        )
    numbered_queries(pairs.query_groups)


@dataclass(frozen=True, eq=False)
class Effects:
    """What settings do to prompts; see the module.

    Attributes:
        measure: "recovery" or "log_odds_change".
        unsteered: KL(instructed‖uninstructed) over the horizon, or log odds, in nats.
        steered: The same of the steered run; not finite where logits are no numbers.
        neither: For choices, by how much the probability of neither answer rises, the mean over
            items; 0 for other tasks.
    """

    measure: str
    unsteered: Float[Array, "prompt"]
    steered: Float[Array, "setting prompt"]
    neither: Float[Array, "setting"]

    @property
    def gains(self) -> Float[Array, "setting prompt"]:
        """What is summed above the line."""
        sign = -1.0 if self.measure == "recovery" else 1.0
        return np.asarray(sign * (self.steered - self.unsteered))

    @property
    def weights(self) -> Float[Array, "prompt"]:
        """What is summed below it."""
        return self.unsteered if self.measure == "recovery" else np.ones_like(self.unsteered)

    def interval(self, setting: int, queries: Sequence[Hashable]) -> Interval:
        """The effect of a setting with its 95 % interval; prompts of one base query have none."""
        gains, weights = self.gains[setting], self.weights
        if len(set(queries)) < 2:
            return Interval(float(gains.sum() / weights.sum()), np.nan, np.nan)
        ends = ratio_interval(gains[:, None], weights, queries)
        value, low, high = (float(end[0]) for end in ends)
        return Interval(value, low, high)


def measured(
    answerer: Answerer,
    task: Task,
    pairs: Sequence[ContrastPair],
    settings_for: Callable[[Mapping[str, Any]], Sequence[Labelled]],
    horizon: int,
    before: Conversation = (),
) -> Effects:
    """What each setting does to the uninstructed prompts (or questions), kept in the run.

    Args:
        answerer: Holds the model, and remembers.
        task: A task without a check, or with choices.
        pairs: Its pairs, none of which the vectors were fitted on.
        settings_for: Steerings for the arguments of a pair, always as many.
        horizon: Tokens of the instructed response that recovery is summed over; choices have one.
        before: Messages that come before every prompt.

    Raises:
        SteeringError: The instruction has no effect on these pairs.
        PairsError: The two answers of an item begin alike to their end.
    """
    compute = _log_odds if task.group == "choices" else _kl
    # A vector of words is another for other words.
    groups: dict[str, list[int]] = {}
    for place, pair in enumerate(pairs):
        groups.setdefault(json.dumps(task.wording(pair.kwargs), sort_keys=True), []).append(place)
    unsteered = np.zeros(len(pairs))
    steered, neither = np.zeros((0, len(pairs))), np.zeros(0)
    for places in groups.values():
        some = [pairs[place] for place in places]
        settings = settings_for(some[0].kwargs)
        if not len(steered):
            steered, neither = np.zeros((len(settings), len(pairs))), np.zeros(len(settings))
        for start in range(0, len(settings), _SETTINGS_AT_ONCE):
            block = settings[start : start + _SETTINGS_AT_ONCE]
            bare, *after = compute(answerer, some, block, horizon, before)
            unsteered[places] = np.array(bare["values"], dtype=float)
            for setting, record in enumerate(after, start):
                steered[setting, places] = np.array(record["values"], dtype=float)
                neither[setting] = record["neither"] - bare["neither"]
    if task.group != "choices" and len(steered):
        require_effect(unsteered, f"first {horizon} response tokens")
    return Effects(measure_of(task), unsteered, steered, neither)


def _kl(
    answerer: Answerer,
    pairs: Sequence[ContrastPair],
    settings: Sequence[Labelled],
    horizon: int,
    before: Conversation,
) -> Records:
    """KL(instructed‖·) of each pair over the horizon: unsteered first, then under each setting."""
    model = answerer.model
    with answerer.alone:
        instructed, uninstructed = (
            tokenize_prompts(model, [continued(before, prompt) for prompt in side])
            for side in zip(*((pair.instructed, pair.uninstructed) for pair in pairs), strict=True)
        )
    tokens = digest_of_rows([*instructed, *uninstructed])

    def respond() -> Records:
        responses = instructed_responses(model, instructed, uninstructed, horizon, False)
        return [{"tokens": list(response)} for response in responses]

    content = {"tokens": tokens, "horizon": horizon}
    told = answerer.remembered({**content, "what": "instructed responses"}, respond)

    def compare() -> Records:
        responses = [record["tokens"] for record in told]
        steerings = [None, *(steering for _, steering in settings)]
        kl = kl_to_instructed(model, instructed, uninstructed, responses, steerings, False)
        return [{"values": row, "neither": 0.0} for row in kl.sum(-1).tolist()]

    labels = [dict(label) for label, _ in settings]
    return answerer.remembered({**content, "what": "recovery", "settings": labels}, compare)


def _log_odds(
    answerer: Answerer,
    pairs: Sequence[ContrastPair],
    settings: Sequence[Labelled],
    horizon: int,
    before: Conversation,
) -> Records:
    """Log odds of each item's matching answer: unsteered first, then under each setting."""
    items = [
        ChoiceItem(
            asked_text(pair.uninstructed), pair.instructed_response, pair.uninstructed_response
        )
        for pair in pairs
        if pair.instructed_response and pair.uninstructed_response
    ]
    model = answerer.model
    with answerer.alone:
        prompts = tokenize_prompts(model, [continued(before, item.question) for item in items])
    steerings = [None, *(steering for _, steering in settings)]
    # Only prompts' own scope tells the question's last token from those after it.
    scopes = {each.scope for _, steering in settings if steering for each in steering.interventions}
    is_response = "prompt" not in scopes
    content = {
        "what": "log odds",
        "tokens": digest_of_rows(prompts),
        "answers": [[item.matching, item.other] for item in items],
        "settings": [dict(label) for label, _ in settings],
    }

    def compare() -> Records:
        log_odds, neither = steered_log_odds(
            model,
            items,
            steerings,
            show_progress=False,
            answer_is_response=is_response,
            before=before,
        )
        means = np.nan_to_num(neither, nan=1.0).mean(-1)
        return [
            {"values": row, "neither": mean}
            for row, mean in zip(log_odds.tolist(), means.tolist(), strict=True)
        ]

    return answerer.remembered(content, compare)
