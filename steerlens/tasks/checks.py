"""Verdicts: does a response follow its instructions?

For every instruction of a prompt, *strict* is the check's answer on the response as it stands and
*loose* its answer on any of IFEval's eight variants of it (`ifeval.loose_variants`); a strict pass
is a loose one. A prompt is followed when all its instructions are. Ids are IFEval's,
checked as lm-eval checks them, or the catalogue's.

A blank response follows nothing. Words and sentences are counted as IFEval's own checks count them.

Caveat: a check sees the form only, not whether the question was answered; read verdicts beside
perplexity and `steerlens.tasks.fluency`.

>>> both = verdict("no pauses here", ["punctuation:no_comma", "length:brief"], [{}, {}])
>>> both.strict, both.all_loose, both.n_words
((True, False), False, 3)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.errors import SteerlensError, unknown_name
from steerlens.tasks import Instruction, Task, catalogue, ifeval

__all__ = ["Verdict", "checked_task", "follows", "is_known", "verdict"]


@dataclass(frozen=True)
class Verdict:
    """What the checks say of one response.

    Attributes:
        strict: For each instruction, whether the response as it stands follows it.
        loose: For each instruction, whether one of the response's loose variants does.
        n_words: Words of the response.
        n_sentences: Sentences of the response.
    """

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    n_words: int
    n_sentences: int

    @property
    def all_strict(self) -> bool:
        """Whether every instruction is followed strictly."""
        return all(self.strict)

    @property
    def all_loose(self) -> bool:
        """Whether every instruction is followed loosely."""
        return all(self.loose)


def is_known(instruction_id: str) -> bool:
    """Whether there is a check for this id, IFEval's or the catalogue's."""
    return instruction_id in catalogue or instruction_id in ifeval.known_ifeval_ids()


def checked_task(instruction_id: str, tasks: Mapping[str, Task] | None = None) -> Task:
    """The task of that id; for an id that only IFEval has, one that is nothing but its check.

    Args:
        instruction_id: The id of a task of `tasks`, of the catalogue, or of IFEval.
        tasks: Tasks of one's own, by id.

    Raises:
        UnknownNameError: "unknown instruction …; did you mean …?"
    """
    if tasks is not None and instruction_id in tasks:
        return tasks[instruction_id]
    if instruction_id in catalogue:
        return catalogue[instruction_id]
    if instruction_id in ifeval.known_ifeval_ids():
        return Instruction(instruction_id, instruction_id, group="check")
    known = dict.fromkeys([*ifeval.known_ifeval_ids(), *catalogue])
    raise unknown_name("instruction", instruction_id, known)


def verdict(
    response: str,
    instruction_ids: Sequence[str],
    kwargs: Sequence[Mapping[str, Any]],
    prompt: str | None = None,
    tasks: Mapping[str, Task] | None = None,
) -> Verdict:
    """Check a response against each of its instructions.

    Args:
        response: The model's answer, without the prompt; any text, also an empty one.
        instruction_ids: IFEval's or the catalogue's ids; at least one.
        kwargs: The arguments of each instruction's check, in the same order.
        prompt: The user's prompt, for checks that compare with it.
        tasks: Tasks of one's own, by id.

    Raises:
        UnknownNameError: "unknown instruction …; did you mean …?"
        SteerlensError: Ids and arguments differ in number, or a check cannot use its arguments.
    """
    if isinstance(instruction_ids, str) or not instruction_ids:
        raise SteerlensError(
            f"instruction_ids must be a list of at least one id; got {instruction_ids!r}"
        )
    if len(instruction_ids) != len(kwargs):
        raise SteerlensError(
            f"each instruction needs its arguments: {len(instruction_ids)} ids and {len(kwargs)} "
            "sets of arguments were given"
        )
    named = [checked_task(name, tasks) for name in instruction_ids]
    asked = list(zip(named, kwargs, strict=True))
    strict = [follows(task, response, arguments, prompt, False) for task, arguments in asked]
    # The response itself is the first loose variant, so a strict pass needs no second look.
    loose = [
        passed or (task.has_loose_check and follows(task, response, arguments, prompt, True))
        for passed, (task, arguments) in zip(strict, asked, strict=True)
    ]
    return Verdict(
        strict=tuple(strict),
        loose=tuple(loose),
        n_words=ifeval.count_words(response),
        n_sentences=ifeval.count_sentences(response),
    )


def follows(
    task: Task, response: str, kwargs: Mapping[str, Any], prompt: str | None, loose: bool
) -> bool:
    """Whether a response follows a task; arguments that are None count as absent."""
    arguments = {name: value for name, value in kwargs.items() if value is not None}
    try:
        return task.check(response, loose=loose, prompt=prompt, **arguments)
    except RecursionError:
        # Python's JSON reader on "[[[[…", which a model steered too hard does write.
        return False
