"""What about contrast pairs would make evidence look better than it is, measured and said.

**Near-duplicates.** Base queries that are nearly the same share a group, which cross-validation
never splits (`steerlens.tasks.duplicates`); pairs that repeat another word for word are counted.

**Length.** If instructed prompts are always longer, a layer that does no more than count tokens
separates the two sides. `length_auroc` is the chance that an instructed prompt has more tokens than
an uninstructed one, of any pair, ties counting half: what the number of tokens alone achieves. The
metadata of every cache have it, for an AUROC of residuals to be read beside.

Where an instruction is put after a query, the instructed prompt is longer by construction. All
pairs of the catalogue are made that way and compared with each other, so for them it is recorded
and nothing is said. For pairs brought along it is said from 0.9 on (or up to 0.1, where the
instructed side is the shorter one), because there the remedy is at hand: uninstructed prompts with
a sentence of the same length that asks for nothing.

>>> length_auroc([5, 7], [4, 5])
0.875
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from steerlens.errors import SteerlensWarning
from steerlens.tasks.duplicates import near_duplicates

if TYPE_CHECKING:
    from steerlens.tasks.pairs import ContrastSet

__all__ = ["LENGTH_SEPARATES", "about_pairs", "length_auroc", "warn_of_pairs"]

LENGTH_SEPARATES = 0.9


def about_pairs(
    pairs: "ContrastSet", n_instructed: Sequence[int], n_uninstructed: Sequence[int]
) -> dict[str, Any]:
    """What a cache records about its pairs.

    Args:
        pairs: The pairs.
        n_instructed: Tokens of each instructed prompt.
        n_uninstructed: Tokens of each uninstructed prompt.

    Returns:
        ``n_queries`` (groups of base queries), ``near_duplicates`` (base queries that were put
        together with another one), ``identical_pairs`` (pairs that repeat another one),
        ``length_auroc``, and ``notices``: a sentence each on what to beware of.
    """
    n_queries = len(set(pairs.query_groups))
    texts = list(dict.fromkeys(pair.base_query for pair in pairs))
    n_near = len(texts) - len(set(near_duplicates(texts)))
    n_identical = len(pairs) - len(
        {
            (
                pair.instructed,
                pair.uninstructed,
                pair.instructed_response,
                pair.uninstructed_response,
            )
            for pair in pairs
        }
    )
    n_same = sum(
        pair.instructed == pair.uninstructed
        and pair.instructed_response == pair.uninstructed_response
        for pair in pairs
    )
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
            f"{n_near} of {len(texts)} base queries are near-duplicates of others; they "
            f"are held out together, so the evidence is that of {n_queries} queries"
        )
    if pairs.instruction_id is None and max(auroc, 1 - auroc) >= LENGTH_SEPARATES:
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


def warn_of_pairs(metadata: Mapping[str, Any], stacklevel: int = 3) -> None:
    """Each of the notices as a `SteerlensWarning`.

    Args:
        metadata: As `about_pairs` gives it.
        stacklevel: Whose line the warning names; 3 is the caller of the function that warns.
    """
    for notice in metadata.get("notices", ()):
        warnings.warn(notice, SteerlensWarning, stacklevel=stacklevel)


def length_auroc(n_instructed: Sequence[int], n_uninstructed: Sequence[int]) -> float:
    """AUROC of the number of tokens, instructed against uninstructed; ties count half."""
    ranks = rankdata(np.concatenate([n_instructed, n_uninstructed]))
    n, m = len(n_instructed), len(n_uninstructed)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
