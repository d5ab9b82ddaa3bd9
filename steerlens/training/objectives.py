r"""What a direction is trained for. All losses are in nats, teacher-forced after the plain prompt.

With :math:`q` the steered model's probabilities after the *uninstructed* prompt:

``imitate``
    causal recovery, maximised: :math:`\sum_t \mathrm{KL}(p^+_t \,\|\, q_t)` over the instructed
    run's own response, :math:`p^+` the unsteered model's after the *instructed* prompt;
``comply``
    cross-entropy, :math:`-\sum_t \log q(y_t)`, of compliant responses :math:`y` with their end;
``prefer``
    compliant :math:`y` against plain :math:`y'` of one query, by mean log-probability per token
    and without a reference model (Meng et al. 2024, SimPO, arXiv 2405.14734, eq. 6; for steering
    vectors Cao et al. 2024, BiPO, arXiv 2406.00045, with a reference, and Wu et al. 2025, RePS,
    arXiv 2505.20809, without), beside a tenth of ``comply``, without which both become unlikely:

    .. math:: -\log \sigma\!\left(\tfrac{\beta}{|y|} \log q(y) - \tfrac{\beta}{|y'|} \log q(y')
              - \gamma\right) - \tfrac{1}{10 |y|} \log q(y), \qquad \beta = 2,\ \gamma = 1

A loss is the mean over the examples of a batch, for the first two of the mean over a response's
tokens. With a `loop_weight` each objective has a second term, against loops: the last tokens of the
response are written twice more, and that the model goes on with them is made unlikely (Welleck et
al. 2020, *Neural Text Generation with Unlikelihood Training*, arXiv 1908.04319, eq. 4, on repeated
spans), :math:`-\tfrac{1}{T} \sum_t \log(1 - q(y_t))` over the copies but their first token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from steerlens.errors import SteeringError, unknown_name
from steerlens.training.examples import TrainingExample

__all__ = [
    "OBJECTIVES",
    "Forced",
    "Objective",
    "check_objective",
    "example_loss",
    "forced_texts",
    "log_probabilities",
    "usable",
]

Objective = Literal["imitate", "comply", "prefer", "regress"]
OBJECTIVES: tuple[str, ...] = get_args(Objective)
_BETA, _MARGIN, _ANCHOR = 2.0, 1.0, 0.1
_LONGEST_SPAN = 16
# Above this 1 − q is rounding in float32.
_ALMOST_SURE = 1 - 1e-6
_NEEDS = {
    "imitate": "answers to the instructed prompts",
    "regress": "answers to the instructed prompts",
    "comply": "compliant responses",
    "prefer": "compliant responses beside plain ones",
}


@dataclass(frozen=True)
class Forced:
    """A response that is fed after a prompt.

    Attributes:
        prompt: Prompt tokens.
        response: Response tokens, each of which is predicted.
        loops_from: The token from which on the response repeats itself; ``None`` for none.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]
    loops_from: int | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """Everything that is read: the last token is predicted only."""
        return self.prompt + self.response[:-1]

    def looped(self) -> "Forced":
        """The response without its end, and its last tokens twice more."""
        begun = self.response[:-1] or self.response
        span = begun[-min(_LONGEST_SPAN, max(1, len(begun) // 2)) :]
        return Forced(self.prompt, begun + span + span, len(begun) + 1)


def check_objective(objective: str) -> None:
    """`UnknownNameError` for a name that is no objective."""
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, OBJECTIVES)


def forced_texts(
    example: TrainingExample, objective: str, with_loops: bool = False
) -> tuple[Forced, ...]:
    """What an objective feeds of an example; nothing where the example does not serve it."""
    better = example.obeyed if objective in ("imitate", "regress") else example.compliant
    if not better or (objective == "prefer" and not example.plain):
        return ()
    texts = [Forced(example.prompt, better)]
    if objective == "prefer":
        texts.append(Forced(example.prompt, example.plain))
    return (*texts, *([texts[0].looped()] if with_loops else []))


def usable(examples: Sequence[TrainingExample], objective: str, least: int) -> int:
    """How many examples serve an objective.

    Raises:
        SteeringError: Too few, with the objectives that can be had instead.
    """
    check_objective(objective)
    serving = {
        name: sum(bool(forced_texts(example, name)) for example in examples) for name in OBJECTIVES
    }
    if serving[objective] >= least:
        return serving[objective]
    possible = [name for name in OBJECTIVES if serving[name] >= least]
    instead = f"; {', '.join(possible)} can be had" if possible else ""
    raise SteeringError(
        f"objective {objective!r} needs {_NEEDS[objective]}: {serving[objective]} of "
        f"{len(examples)} base queries have them, and at least {least} must{instead}"
    )


def log_probabilities(logits: Float[Tensor, "step vocab"]) -> Float[Tensor, "step vocab"]:
    """Log-probabilities in float32, or in the logits' own dtype where that is wider."""
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), -1)


def example_loss(
    objective: str,
    logits: Sequence[Float[Tensor, "_ vocab"]],
    texts: Sequence[Forced],
    target: Float[Tensor, "step vocab"] | None = None,
    loop_weight: float = 0.0,
) -> Float[Tensor, ""]:
    """The loss of one example.

    Args:
        objective: Its name.
        logits: Of each of its texts, those that predict the response.
        texts: See `forced_texts`.
        target: For ``imitate``, log-probabilities of the instructed run.
        loop_weight: Weight of the term against loops; above 0 the last text is the one that loops.
    """
    logprobs = [log_probabilities(each) for each in logits]
    scores = [
        each.gather(-1, torch.tensor(text.response, device=each.device)[:, None])[:, 0]
        for each, text in zip(logprobs, texts, strict=True)
    ]
    if objective == "imitate":
        assert target is not None  # the instructed run of the same example
        terms = torch.where(target > -torch.inf, target.exp() * (target - logprobs[0]), 0.0)
        loss = terms.sum(-1).mean()
    elif objective == "comply":
        loss = -scores[0].mean()
    else:
        better, worse = scores[0].mean(), scores[1].mean()
        loss = -logsigmoid(_BETA * (better - worse) - _MARGIN) - _ANCHOR * better
    if loop_weight:
        repeated = scores[-1][texts[-1].loops_from :]
        loss = loss - loop_weight * torch.log1p(-repeated.exp().clamp_max(_ALMOST_SURE)).mean()
    return loss
