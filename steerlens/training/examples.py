r"""What a direction is trained on: responses that comply, beside those that do not.

Every example is of one base query of the ``fit`` split. The model answers it with the instruction
in the prompt and without. The *compliant* response is, in this order,

1. the instructed answer, where it passes the check and is not degenerate;
2. the task's rewrite of the uninstructed answer;

and the *plain* response the uninstructed answer, where that does not comply. A response that was
cut (at five eighths of the longest trained on, so that what a rewrite adds still fits) is ended at
its last full sentence, and all responses are trained on to the end
of their turn: a direction that learns from answers without an end learns to go on for ever. A task
without a check takes the instructed answers as they are.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.generation import generate
from steerlens.engine.sampling import Decoding
from steerlens.errors import SteerlensError
from steerlens.models.conversations import Prompt
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import end_token_ids, tokenize_prompts
from steerlens.tasks import Task
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.pairs import ContrastPair, ContrastSet

__all__ = ["DECODING", "Answers", "TrainingExample", "answer_tokens", "training_examples"]

Answers = Callable[[Sequence[Prompt]], Sequence[tuple[str, bool]]]
"""Answers prompts: the text, and whether it ended by itself."""

_SENTENCE_END = re.compile(r"[.!?…。！？][\"”')\]*]*(?=\s|$)")
# Greedy answers of small models loop; with this penalty few do (docs/results.md).
DECODING = Decoding(repetition_penalty=1.1)


@dataclass(frozen=True)
class TrainingExample:
    """One base query as tokens.

    Attributes:
        prompt: The uninstructed prompt.
        instructed: The instructed prompt.
        compliant: A response that shows the behaviour, its end included; empty where there is none.
        plain: A response that does not; empty where there is none.
        obeyed: The model's own response to the instructed prompt, whether or not it complies.
    """

    prompt: tuple[int, ...]
    instructed: tuple[int, ...]
    compliant: tuple[int, ...]
    plain: tuple[int, ...]
    obeyed: tuple[int, ...]


def training_examples(
    model: TransformerBridge,
    task: Task,
    pairs: ContrastSet,
    max_tokens: int = 64,
    answers: Answers | None = None,
    chat_format: str = "auto",
    show_progress: bool | None = None,
) -> tuple[TrainingExample, ...]:
    """Examples for one task.

    Args:
        model: A hooked model.
        task: The task.
        pairs: Its contrast pairs, of the ``fit`` split.
        max_tokens: Longest response, in tokens.
        answers: Answers prompts, for example from a run that remembers them; by default the model
            does, greedily with a repetition penalty of 1.1.
        chat_format: As for `steerlens.generate`.
        show_progress: Show progress bars on standard error; by default only in a terminal.
    """
    if answers is None:

        def answers(prompts: Sequence[Prompt]) -> Sequence[tuple[str, bool]]:
            generations = generate(
                model,
                prompts,
                max_new_tokens=answer_tokens(max_tokens),
                decoding=DECODING,
                chat_format=chat_format,
                show_progress=show_progress,
            )
            reasons = [reason == "stop" for reason in generations.finish_reasons]
            return list(zip(generations.texts, reasons, strict=True))

    texts = [pair.instructed for pair in pairs] + [pair.uninstructed for pair in pairs]
    answered = [finished(*answer) for answer in answers(texts)]
    tokens = tokenize_prompts(model, texts, chat_format=chat_format)
    tokenizer, end = attached_tokenizer(model), min(end_token_ids(model), default=None)

    def encoded(text: str) -> tuple[int, ...]:
        if not text:
            return ()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return (*ids[: max_tokens - 1], *([] if end is None or len(ids) >= max_tokens else [end]))

    examples = []
    for i, pair in enumerate(pairs):
        obeyed, plain = answered[i], answered[len(pairs) + i]
        examples.append(
            TrainingExample(
                prompt=tuple(tokens[len(pairs) + i]),
                instructed=tuple(tokens[i]),
                compliant=encoded(_compliant(task, pair, obeyed, plain)),
                plain=encoded("" if _complies(task, pair, plain) else plain),
                obeyed=encoded(obeyed),
            )
        )
    return tuple(examples)


def answer_tokens(max_tokens: int) -> int:
    """How long an answer may be for its compliant version to fit: capitals take more tokens."""
    return max(1, max_tokens * 5 // 8)


def finished(text: str, ended: bool) -> str:
    """A response up to its last full sentence, where it was cut; as it is where it has none.

    >>> finished("The sea is wide. It is also de", ended=False)
    'The sea is wide.'
    """
    if ended:
        return text.rstrip()
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text


def _complies(task: Task, pair: ContrastPair, text: str) -> bool:
    arguments: Mapping[str, Any] = pair.kwargs
    prompt = pair.instructed if isinstance(pair.instructed, str) else None
    return task.has_check and task.check(text, prompt=prompt, **arguments)


def _compliant(task: Task, pair: ContrastPair, obeyed: str, plain: str) -> str:
    if not task.has_check:
        return obeyed
    if _complies(task, pair, obeyed) and not is_degenerate(fluency(obeyed)):
        return obeyed
    if task.has_rewrite and not is_degenerate(fluency(plain)):
        try:
            return task.rewrite(plain, **pair.kwargs)
        except SteerlensError:
            return ""  # blank, or not to be made compliant
    return ""
