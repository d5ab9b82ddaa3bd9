"""Texts that are nearly the same count as one.

Held-out evidence is about other queries only if the queries differ: where "Tell me about Rome." is
fitted on and "tell me about Rome, please" held out, a direction is tested on what it has seen. So
near-duplicates share a group, which cross-validation never splits.

**Rule.** A text is compared by its words: Unicode normalised, in lower case, without punctuation.
Two texts are near-duplicates if

- their words are the same in the same order;
- or the two sets of words have a Jaccard index of at least 0.9 (`SAME`);
- or of at least 0.75 (`ADDED`), and one set contains the other: something was added.

Groups are the connected components of this relation. Under the rule "Name a river." and "Name a
lake." are two queries, and so are short texts from a template that differ in one word; templates of
twenty words that differ in one are near-duplicates. No two of the catalogue's base queries are.

>>> near_duplicates(["Why is it so?", "why is it so", "Why is it so, please?", "Why is it red?"])
(0, 0, 0, 1)
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, vstack
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

__all__ = ["ADDED", "SAME", "near_duplicates"]

SAME = 0.9
ADDED = 0.75
# Texts compared with all others at once: 20 MB for 10,000.
_ROWS = 512


def near_duplicates(texts: Sequence[str]) -> tuple[int, ...]:
    """The number of each text's group, in the order in which groups first appear.

    Takes about a second for 5,000 texts.
    """
    first: dict[tuple[str, ...], int] = {}
    distinct = [first.setdefault(_words(text), len(first)) for text in texts]
    groups = _components(list(first))
    number: dict[int, int] = {}
    return tuple(number.setdefault(groups[i], len(number)) for i in distinct)


def _components(texts: Sequence[tuple[str, ...]]) -> list[int]:
    """The connected component of each text under the module's rule."""
    if not any(texts):
        return list(range(len(texts)))
    vectoriser = CountVectorizer(analyzer=lambda words: words, binary=True, dtype=np.float32)
    words = vectoriser.fit_transform(texts)
    sizes = words.sum(axis=1).A1
    links = []
    for start in range(0, len(texts), _ROWS):
        rows = slice(start, start + _ROWS)
        both = (words[rows] @ words.T).toarray()
        size = sizes[rows, None]
        jaccard = both / np.maximum(size + sizes - both, 1)
        # Rounding must not decide at the bounds.
        added = (both == np.minimum(size, sizes)) & (jaccard > ADDED - 1e-6)
        links.append(csr_matrix((jaccard > SAME - 1e-6) | added))
    components: list[int] = connected_components(vstack(links), directed=False)[1].tolist()
    return components


def _words(text: str) -> tuple[str, ...]:
    """The text's words; a text of nothing but punctuation is one word, itself."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(
        char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in plain
    )
    # What is no word may be all that a text has, or what tells two apart ("2 + 3", "2 × 3").
    symbols = [char for char in plain if unicodedata.category(char)[0] == "S"]
    return tuple(kept.split() + symbols) or tuple(plain.split())
