"""Prompts from the catalogue: with one instruction, or several at once.

`catalogue_prompts` draws prompts with one instruction and `several` prompts with two or more, from
a split of queries and phrasings that nothing was fitted on. Both are deterministic: the prompts for
*n* are the first *n* of those for any larger *n*, and combinations see the queries in the same
order as single instructions.

>>> first = catalogue_prompts(["punctuation:no_comma"], 2)[0]
>>> first.key, first.prompt.startswith(first.prompt_without_instruction or "")
('punctuation:no_comma/0', True)
>>> several([("punctuation:no_comma", "length:brief")], 1)[0].key
'punctuation:no_comma+length:brief/0'
"""

import random
from collections.abc import Sequence
from typing import Any

from steerlens.behaviour.evaluation.prompts import ANSWERS, EvaluationPrompt
from steerlens.errors import SteerlensError
from steerlens.errors.arguments import arguments
from steerlens.tasks import Task, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastPair
from steerlens.tasks.task_files import load_task

__all__ = ["catalogue_prompts", "several"]

_LOWER, _UPPER = "change_case:english_lowercase", "change_case:english_capital"
_JSON = "detectable_format:json_format"
# Of each group at most one instruction can be asked for.
_EXCLUSIVE: tuple[frozenset[str], ...] = (
    *(
        frozenset(task_id for task_id in catalogue if task_id.startswith(beginning))
        for beginning in (
            ("length:", "length_constraints:number_words"),
            "length_constraints:number_sentences",
            # Both cases ask for English.
            ("language:", _LOWER, _UPPER),
        )
    ),
    frozenset({_LOWER, "change_case:capital_word_frequency"}),
    # "My answer is yes." and "Section 1" are looked for as they are spelled.
    *(
        frozenset({case, f"detectable_format:{form}"})
        for case in (_LOWER, _UPPER)
        for form in ("constrained_response", "multiple_sections")
    ),
    # The whole answer is to be JSON; only contrived texts are both.
    frozenset({_JSON, "startend:quotation"}),
    frozenset({_JSON, "combination:two_responses"}),
    frozenset({_JSON, "detectable_format:number_bullet_lists"}),
    # Words to include and to avoid are drawn from the same three keywords of a query.
    frozenset({"keywords:existence", "keywords:forbidden_words"}),
    frozenset({"keywords:frequency", "keywords:forbidden_words"}),
)


def _kwargs(task: Task, pair: ContrastPair) -> dict[str, Any]:
    """Arguments of the check; of choices the two answers."""
    if task.group != "choices":
        return dict(pair.kwargs)
    answers = pair.instructed_response, pair.uninstructed_response
    return dict(zip(ANSWERS, answers, strict=True))


@arguments
def catalogue_prompts(
    tasks: Sequence[str | Task], n_per_task: int, split: str = "report", seed: int = 0
) -> tuple[EvaluationPrompt, ...]:
    """Prompts with one instruction each.

    Args:
        tasks: Tasks, ids of the catalogue or files.
        n_per_task: Prompts for each, at least 1.
        split: "fit", "select" or "report", of both queries and phrasings.
        seed: Decides queries, phrasings and arguments.

    Returns:
        Task after task; the keys are "id/0", "id/1", ….

    Raises:
        UnknownNameError: A task or the split does not exist.
        PairsError: More prompts than the split holds.
        SteerlensError: No list of tasks, one of them twice, or fewer than 1 prompt.
    """
    _validate_request(tasks, n_per_task)
    prompts = []
    for task in map(load_task, tasks):
        # There are at least two pairs; the first do not depend on how many are drawn.
        pairs = contrast_pairs(task, max(n_per_task, 2), seed, split).pairs
        prompts += [
            EvaluationPrompt(
                key=f"{task.id}/{i}",
                prompt=pair.instructed,
                prompt_without_instruction=pair.uninstructed,
                instruction_ids=(task.id,),
                kwargs=(_kwargs(task, pair),),
                tasks={task.id: task},
            )
            for i, pair in enumerate(pairs[:n_per_task])
        ]
    return tuple(prompts)


def several(
    combinations: Sequence[Sequence[str | Task]],
    n_per_combination: int,
    split: str = "report",
    seed: int = 0,
) -> tuple[EvaluationPrompt, ...]:
    """Prompts with several instructions at once: their phrasings one after the other.

    Every instruction of a combination makes sense for its queries. Combinations that no response
    can follow are refused where the ids tell ("all lowercase" with "all capitals"); others may
    still be hard together.

    Args:
        combinations: Two or more tasks, ids of the catalogue or files each.
        n_per_combination: Prompts for each, at least 1 and at most as many as there are queries.
        split: "fit", "select" or "report".
        seed: Decides queries, phrasings and arguments.

    Returns:
        Combination after combination; the keys are "id+id/0", ….

    Raises:
        UnknownNameError: A task or the split does not exist.
        SteerlensError: A combination of one or of twice the same, a contradiction, no query that
            suits all, or more prompts than queries.
    """
    _validate_request(combinations, n_per_combination)
    return tuple(
        prompt
        for combination in combinations
        for prompt in _combined(combination, n_per_combination, split, seed)
    )


def _combined(
    combination: Sequence[str | Task], n: int, split: str, seed: int
) -> list[EvaluationPrompt]:
    is_text = isinstance(combination, str)
    tasks = [] if is_text else [load_task(task) for task in combination]
    ids = tuple(task.id for task in tasks)
    if len(set(ids)) < max(len(ids), 2):
        given = combination if is_text else list(ids)
        raise SteerlensError(f"a combination is two or more different instructions; got {given!r}")
    _refuse_contradictions(ids)
    shared = set.intersection(*(set(task.queries(split)) for task in tasks))
    queries = [query for query in tasks[0].queries(split) if query in shared]
    name = "+".join(ids)
    if n > len(queries):
        raise SteerlensError(
            f"{n} prompts were asked for; the {split!r} split of {name!r} gives at most "
            f"{len(queries)}"
        )
    # Strings seed `random` alike on every machine; queries as `contrast_pairs` orders them.
    random.Random(f"{seed}/{split}").shuffle(queries)
    rng = random.Random(f"{seed}/{split}/{name}")
    phrasings = [list(task.phrasings_for(split)) for task in tasks]
    for choices in phrasings:
        rng.shuffle(choices)
    own = {task.id: task for task in tasks if catalogue.get(task.id) != task}
    prompts = []
    for i, query in enumerate(queries[:n]):
        kwargs = tuple(task.sample_kwargs(rng, query) for task in tasks)
        text = query.text
        for k, (task, choices) in enumerate(zip(tasks, phrasings, strict=True)):
            # Each changes half as often as the one before, so that all pairings occur.
            text = task.instruct(text, choices[(i >> k) % len(choices)], kwargs[k])
        prompts.append(EvaluationPrompt(f"{name}/{i}", text, query.text, ids, kwargs, tasks=own))
    return prompts


def _refuse_contradictions(combination: Sequence[str]) -> None:
    for group in _EXCLUSIVE:
        both = [task_id for task_id in combination if task_id in group]
        if len(both) > 1:
            raise SteerlensError(
                f"{both[0]!r} and {both[1]!r} contradict each other; take one of them"
            )


def _validate_request(tasks: Sequence[Any], n: int) -> None:
    if isinstance(tasks, str) or not tasks:
        raise SteerlensError(f"a list of instructions is needed; got {tasks!r}")
    twice = next((task for i, task in enumerate(tasks) if task in tasks[:i]), None)
    if twice is not None:
        raise SteerlensError(f"{twice!r} was asked for twice; give each once")
    if n < 1:
        raise SteerlensError(f"at least 1 prompt per instruction is needed; got {n}")
