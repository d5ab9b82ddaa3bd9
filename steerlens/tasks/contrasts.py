"""What the uninstructed side of a pair carries: nothing, a neutral sentence, or another task.

An instruction makes a prompt longer and puts a sentence where none was, so a contrast with the bare
query also holds "there is a sentence more". Two other contrasts take that away:

============== ==================================================================================
``"none"``     the bare query
``"neutral"``  the query and a sentence that asks for nothing, at the instruction's place and of
               its length
``"others"``   the query with the instruction of another task, each in turn
============== ==================================================================================

Neutral sentences are those of this module, alone or two together; the one nearest in length is
taken, at random among those equally near. Lengths are counted in words and signs, or in tokens by
the counter of a model (`steerlens.models.loading.token_counter`).

>>> from steerlens.tasks.drawing import contrast_pairs
>>> pair = contrast_pairs("change_case:english_lowercase", n=2, contrast="neutral")[0]
>>> pair.uninstructed.startswith(pair.base_query), pair.uninstructed == pair.base_query
(True, False)
"""

import functools
import os
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import permutations

from steerlens.errors import PairsError, unknown_name
from steerlens.models.conversations import Prompt, asked_text, with_asked_text
from steerlens.tasks import BaseQuery, Task
from steerlens.tasks.grids import asked_on, other_tasks
from steerlens.tasks.pairs import ContrastPair, ContrastSet

__all__ = ["CONTRASTS", "NEUTRAL", "contrasted"]

CONTRASTS = ("none", "neutral", "others")
NEUTRAL = (
    "It rained here.",
    "The bus was late.",
    "My neighbour has a garden.",
    "I came across this yesterday.",
    "The window is open right now.",
    "A friend of mine raised this question.",
    "I am sitting in a small café.",
    "We talked about it on the train home.",
    "My sister was wondering about this over breakfast.",
    "I have been busy all week with other things.",
    "The library was closed, so I am asking you.",
    "It came up while we were waiting for the bus.",
    "There was something about this on the radio the other day.",
    "I am writing from my phone because my computer is being repaired.",
    "My colleagues and I were chatting about this in the kitchen at work.",
    "It has been on my mind since I read an article about it last month.",
    "Somebody at the market mentioned this to me when I was buying apples and bread.",
    "I moved to a new flat in the spring and still have a few boxes in the hall.",
    "Last summer we spent two weeks by the sea, and a man on the beach told us about it.",
    "The weather has been mild for the time of year, and the trees in our street are green "
    "already.",
)
Count = Callable[[str], int]


def contrasted(
    pairs: ContrastSet,
    task: Task,
    contrast: str,
    others: Iterable[Task | str | os.PathLike[str]] | None = None,
    seed: int = 0,
    count_tokens: Count | None = None,
) -> ContrastSet:
    """The same pairs with another uninstructed side.

    Args:
        pairs: Pairs of the task against the bare query.
        task: Their task.
        contrast: One of `CONTRASTS`.
        others: The tasks of contrast ``"others"``; the rest of the catalogue by default.
        seed: Of the sentences, or of phrasings and arguments.
        count_tokens: Counts the tokens of a text, for contrast ``"neutral"``.

    Raises:
        UnknownNameError: A contrast that does not exist.
        PairsError: An instruction that does not follow the query, or no other task that can be
            asked on the same queries.
    """
    if contrast not in CONTRASTS:
        raise unknown_name("contrast", contrast, CONTRASTS)
    if contrast == "none":
        return pairs
    if pairs.same_prompts:
        raise PairsError(
            f"contrast {contrast!r} changes the prompt of one side; pairs of choices have one "
            "prompt for both"
        )
    make = (
        _neutral(pairs, seed, count_tokens)
        if contrast == "neutral"
        else _others(pairs, task, others, seed)
    )
    sides = zip(pairs, make, strict=True)
    changed = tuple(replace(pair, uninstructed=text) for pair, text in sides)
    return replace(pairs, pairs=changed, contrast=contrast)


def _neutral(pairs: ContrastSet, seed: int, count_tokens: Count | None) -> list[Prompt]:
    count = functools.cache(count_tokens or _words_and_signs)
    texts = [*NEUTRAL, *(" ".join(two) for two in permutations(NEUTRAL, 2))]
    rng = random.Random(f"{seed}/neutral")
    sides: list[Prompt] = []
    for number, pair in enumerate(pairs):
        separator, instruction = _instruction(pair, number)
        length = count(instruction)
        distances = [abs(count(text) - length) for text in texts]
        nearest = [text for text, d in zip(texts, distances, strict=True) if d == min(distances)]
        text = f"{asked_text(pair.uninstructed)}{separator}{rng.choice(nearest)}"
        sides.append(with_asked_text(pair.uninstructed, text))
    return sides


def _instruction(pair: ContrastPair, number: int) -> tuple[str, str]:
    """What the instructed prompt has after the uninstructed one, and the space between."""
    asked = asked_text(pair.uninstructed)
    instructed = asked_text(pair.instructed)
    rest = instructed.removeprefix(asked)
    text = rest.lstrip()
    is_same = asked and pair.instructed == with_asked_text(pair.uninstructed, instructed)
    if not is_same or rest == instructed or not text:
        raise PairsError(
            f"contrast 'neutral' puts a sentence in the place of the instruction, but in pair "
            f"{number} the instructed prompt is not the uninstructed one with something after it; "
            "give pairs whose uninstructed side holds such a sentence already"
        )
    return rest[: len(rest) - len(text)], text


def _others(
    pairs: ContrastSet,
    task: Task,
    others: Iterable[Task | str | os.PathLike[str]] | None,
    seed: int,
) -> list[Prompt]:
    split = pairs.split or "fit"
    known = {query.text: query for query in task.queries(split)}
    queries = [
        known.get(p.uninstructed, BaseQuery(p.uninstructed, "own", (), split)) for p in pairs
    ]
    rows = [asked_on(other, queries, split, seed) for other in other_tasks(task, others)]
    asked = [row for row in rows if row is not None]
    if not asked:
        raise PairsError(
            f"none of the {len(rows)} other tasks can be asked on the queries of {task.id!r}; give "
            "tasks with phrasings"
        )
    random.Random(f"{seed}/others").shuffle(asked)
    return [asked[place % len(asked)][place] for place in range(len(pairs))]


def _words_and_signs(text: str) -> int:
    return len(re.findall(r"\w+|[^\w\s]", text))
