"""Prompts from the catalogue: with one instruction, or several at once.

`catalogue_prompts` draws prompts with one instruction and `several` prompts with two or more, from
a split of queries and phrasings that nothing was fitted on. Both are deterministic: the prompts for
*n* are the first *n* of those for any larger *n*, and combinations see the queries in the order in
which single instructions see them.

>>> first = catalogue_prompts(["punctuation:no_comma"], 2)[0]
>>> first.key, first.prompt.startswith(first.prompt_without_instruction or "")
('punctuation:no_comma/0', True)
>>> several([("punctuation:no_comma", "length:brief")], 1)[0].key
'punctuation:no_comma+length:brief/0'
"""

import random
from collections.abc import Sequence
from typing import Any

from steerlens.behaviour.evaluation.prompts import EvaluationPrompt
from steerlens.errors import SteerlensError
from steerlens.errors.arguments import arguments
from steerlens.tasks import base_queries, catalogue
from steerlens.tasks.pairs import contrast_pairs

__all__ = ["catalogue_prompts", "several"]

_WORDS_FIXED = frozenset(
    i for i in catalogue if i.startswith(("length:", "length_constraints:number_words"))
)
_LANGUAGES = frozenset(i for i in catalogue if i.startswith("language:"))
_SENTENCES = frozenset(i for i in catalogue if i.startswith("length_constraints:number_sentences"))
_LOWER, _UPPER = "change_case:english_lowercase", "change_case:english_capital"
_JSON = "detectable_format:json_format"
# Of each group at most one instruction can be asked for.
_EXCLUSIVE: tuple[frozenset[str], ...] = (
    _WORDS_FIXED,
    _SENTENCES,
    # Both cases ask for English.
    frozenset({_LOWER, _UPPER}) | _LANGUAGES,
    frozenset({_LOWER, "change_case:capital_word_frequency"}),
    # "My answer is yes." and "Section 1" are looked for as they are spelled.
    frozenset({_LOWER, "detectable_format:constrained_response"}),
    frozenset({_UPPER, "detectable_format:constrained_response"}),
    frozenset({_LOWER, "detectable_format:multiple_sections"}),
    frozenset({_UPPER, "detectable_format:multiple_sections"}),
    # The whole answer is to be JSON; only contrived texts are both.
    frozenset({_JSON, "startend:quotation"}),
    frozenset({_JSON, "combination:two_responses"}),
    frozenset({_JSON, "detectable_format:number_bullet_lists"}),
    # Words to include and to avoid are drawn from the same three keywords of a query.
    frozenset({"keywords:existence", "keywords:forbidden_words"}),
    frozenset({"keywords:frequency", "keywords:forbidden_words"}),
)


@arguments
def catalogue_prompts(
    instruction_ids: Sequence[str], n_per_instruction: int, split: str = "report", seed: int = 0
) -> tuple[EvaluationPrompt, ...]:
    """Prompts with one instruction each, from the catalogue.

    Args:
        instruction_ids: Ids in the catalogue.
        n_per_instruction: Prompts for each, at least 1.
        split: "fit", "select" or "report"; both queries and phrasings are of this split.
        seed: Decides queries, phrasings and arguments.

    Returns:
        Instruction after instruction; the keys are "id/0", "id/1", ….

    Raises:
        UnknownNameError: An instruction or the split does not exist.
        PairsError: More prompts than the split holds.
        SteerlensError: No list of ids, one of them twice, or fewer than 1 prompt.
    """
    _validate_request(instruction_ids, n_per_instruction)
    prompts = []
    for instruction_id in instruction_ids:
        # Pairs come in twos at least; the first of them do not depend on how many are drawn.
        pairs = contrast_pairs(instruction_id, max(n_per_instruction, 2), seed, split).pairs
        prompts += [
            EvaluationPrompt(
                key=f"{instruction_id}/{i}",
                prompt=pair.instructed,
                prompt_without_instruction=pair.uninstructed,
                instruction_ids=(instruction_id,),
                kwargs=(dict(pair.kwargs),),
            )
            for i, pair in enumerate(pairs[:n_per_instruction])
        ]
    return tuple(prompts)


def several(
    combinations: Sequence[Sequence[str]],
    n_per_combination: int,
    split: str = "report",
    seed: int = 0,
) -> tuple[EvaluationPrompt, ...]:
    """Prompts with several instructions at once: their phrasings one after the other.

    A query is one that every instruction of the combination makes sense for. Combinations that no
    response can follow are refused where the ids tell ("all lowercase" with "all capitals"); others
    may still be hard together.

    Args:
        combinations: Two or more ids of the catalogue each.
        n_per_combination: Prompts for each, at least 1 and at most as many as there are queries.
        split: "fit", "select" or "report".
        seed: Decides queries, phrasings and arguments.

    Returns:
        Combination after combination; the keys are "id+id/0", ….

    Raises:
        UnknownNameError: An instruction or the split does not exist.
        SteerlensError: A combination of one or of twice the same, a contradiction, no query that
            suits all, or more prompts than queries.
    """
    _validate_request(combinations, n_per_combination)
    return tuple(
        prompt
        for combination in combinations
        for prompt in _combined(combination, n_per_combination, split, seed)
    )


def _combined(combination: Sequence[str], n: int, split: str, seed: int) -> list[EvaluationPrompt]:
    _refuse_contradictions(combination)
    instructions = [catalogue[i] for i in combination]
    queries = [
        query
        for query in base_queries(split)
        if all(one.query_kinds is None or query.kind in one.query_kinds for one in instructions)
    ]
    name = "+".join(combination)
    if n > len(queries):
        raise SteerlensError(
            f"{n} prompts were asked for; the {split!r} split of {name!r} gives at most "
            f"{len(queries)}"
        )
    # Strings seed `random` alike on every machine; queries as `contrast_pairs` orders them.
    random.Random(f"{seed}/{split}").shuffle(queries)
    rng = random.Random(f"{seed}/{split}/{name}")
    phrasings = [list(one.phrasings_for(split)) for one in instructions]
    for some in phrasings:
        rng.shuffle(some)
    prompts = []
    for i, query in enumerate(queries[:n]):
        kwargs = tuple(one.sample_kwargs(rng, query) for one in instructions)
        text = query.text
        for place, (one, some) in enumerate(zip(instructions, phrasings, strict=True)):
            # Each place changes half as often as the one before, so that all pairings occur.
            text = one.instruct(text, some[(i >> place) % len(some)], kwargs[place])
        prompts.append(
            EvaluationPrompt(f"{name}/{i}", text, query.text, tuple(combination), kwargs)
        )
    return prompts


def _refuse_contradictions(combination: Sequence[str]) -> None:
    if (
        isinstance(combination, str)
        or len(set(combination)) != len(combination)
        or len(combination) < 2
    ):
        raise SteerlensError(
            f"a combination is two or more different instructions; got {combination!r}"
        )
    for group in _EXCLUSIVE:
        both = [i for i in combination if i in group]
        if len(both) > 1:
            raise SteerlensError(
                f"{both[0]!r} and {both[1]!r} contradict each other; take one of them"
            )


def _validate_request(asked: Sequence[Any], n: int) -> None:
    if isinstance(asked, str) or not asked:
        raise SteerlensError(f"a list of instructions is needed; got {asked!r}")
    twice = next((one for i, one in enumerate(asked) if one in asked[:i]), None)
    if twice is not None:
        raise SteerlensError(f"{twice!r} was asked for twice; give each once")
    if n < 1:
        raise SteerlensError(f"at least 1 prompt an instruction is needed; got {n}")
