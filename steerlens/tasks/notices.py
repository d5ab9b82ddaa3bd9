"""What about contrast pairs would make evidence look better than it is: measured, and reported.

**Near-duplicates.** Base queries that are nearly the same share a group, which cross-validation
never splits (`steerlens.tasks.duplicates`); pairs that repeat another word for word are counted.

**Length.** If instructed prompts are always longer, a layer that does no more than count tokens
separates the two sides. `length_auroc` is what the number of tokens alone achieves: the chance that
an instructed prompt has more tokens than an uninstructed one, ties counting half. The metadata of
every cache holds it, to be read beside an AUROC of residuals.

The catalogue's instructed prompts are longer by construction, and its tasks are compared with each
other, so for them it is only recorded. Pairs brought along get a notice from 0.9 on (or up to 0.1),
because there the remedy is at hand: uninstructed prompts with a sentence of the same length that
asks for nothing.

>>> length_auroc([5, 7], [4, 5])
0.875
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.stats import mannwhitneyu

from steerlens.errors import SteerlensWarning
from steerlens.tasks.duplicates import near_duplicates

if TYPE_CHECKING:
    from steerlens.tasks import Task
    from steerlens.tasks.pairs import ContrastSet

__all__ = ["LENGTH_SEPARATES", "about_pairs", "length_auroc", "warn_of_pairs", "warn_of_task"]

LENGTH_SEPARATES = 0.9


def about_pairs(
    pairs: "ContrastSet", n_instructed: Sequence[int], n_uninstructed: Sequence[int]
) -> dict[str, Any]:
    """What a cache records about its pairs.

    Args:
        pairs: The pairs.
        n_instructed: Tokens of each instructed prompt.
        n_uninstructed: The same of the uninstructed ones.

    Returns:
        ``n_queries`` (groups of base queries), ``near_duplicates`` (base queries grouped with
        another one), ``identical_pairs`` (pairs that repeat another one), ``length_auroc``, and
        ``notices``: one sentence on each thing to beware of.
    """
    n_queries = len(set(pairs.query_groups))
    queries = list(dict.fromkeys(pair.base_query for pair in pairs))
    n_near = len(queries) - len(set(near_duplicates(queries)))
    sides = [
        ((p.instructed, p.instructed_response), (p.uninstructed, p.uninstructed_response))
        for p in pairs
    ]
    n_identical = len(pairs) - len(set(sides))
    n_same = sum(instructed == uninstructed for instructed, uninstructed in sides)
    auroc = length_auroc(n_instructed, n_uninstructed)
    notices = []
    if n_same:
        notices.append(
            f"{n_same} of {len(pairs)} pairs have the same text on both sides and contrast "
            "nothing: leave them out"
        )
    if n_identical:
        notices.append(
            f"{n_identical} of {len(pairs)} pairs repeat another one word for word; they are held "
            "out together and add nothing: leave them out"
        )
    if n_near:
        notices.append(
            f"{n_near} of {len(queries)} base queries are near-duplicates of others; they "
            f"are held out together, so the evidence is that of {n_queries} queries"
        )
    # Pairs that were drawn have a phrasing, and are longer by construction.
    brought = any(pair.phrasing is None for pair in pairs)
    if brought and max(auroc, 1 - auroc) >= LENGTH_SEPARATES:
        which = "longer" if auroc > 0.5 else "shorter"
        notices.append(
            "the length of the prompts alone separates the two sides with AUROC "
            f"{max(auroc, 1 - auroc):.2f} (instructed prompts are {which}), so a layer may do no "
            "more than that; compare with uninstructed prompts of the same length"
        )
    return {
        "n_queries": n_queries,
        "near_duplicates": n_near,
        "identical_pairs": n_identical,
        "length_auroc": auroc,
        "notices": notices,
    }


def warn_of_task(task: "Task", stacklevel: int = 3) -> None:
    """What too few texts of a task cost, each as a `SteerlensWarning`."""
    for notice in task.notices:
        warnings.warn(notice, SteerlensWarning, stacklevel=stacklevel)


def warn_of_pairs(metadata: Mapping[str, Any], stacklevel: int = 3) -> None:
    """Give each notice of `about_pairs` as a `SteerlensWarning`."""
    for notice in metadata.get("notices", ()):
        warnings.warn(notice, SteerlensWarning, stacklevel=stacklevel)


def length_auroc(n_instructed: Sequence[int], n_uninstructed: Sequence[int]) -> float:
    """AUROC of the number of tokens, instructed against uninstructed; ties count half."""
    u = mannwhitneyu(n_instructed, n_uninstructed, method="asymptotic").statistic
    return float(u / (len(n_instructed) * len(n_uninstructed)))
