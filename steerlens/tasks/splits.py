"""Dividing texts of one's own into `fit`, `select` and `report`.

A vector is fitted on one set of texts, its layer and strength are chosen on a second, and what it
does is reported on a third. The catalogue's splits are part of its data. Texts that a user brings
are divided here: near-duplicates stay together (`steerlens.tasks.duplicates`), and
half of the texts go to `fit`, a quarter to `select` and a quarter to `report`. Groups are taken in
the order of a hash of their text, each by the split that lacks most, so the division is the same on
every machine and for any order of the texts.

>>> parts = divide([f"Tell me about the number {n}." for n in range(8)])
>>> {split: len(places) for split, places in parts.items()}
{'fit': 4, 'select': 2, 'report': 2}
"""

import hashlib
from collections.abc import Sequence

from steerlens.tasks.queries import SPLITS

__all__ = ["SHARES", "divide"]

SHARES = {"fit": 0.5, "select": 0.25, "report": 0.25}


def divide(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Which texts each split holds, by their places in `texts`.

    With fewer than three groups of texts not every split can have its own: two make `fit` and
    `select`, one makes `fit` alone, and the other splits are empty.
    """
    from steerlens.tasks.duplicates import near_duplicates  # slow to import

    groups: dict[int, list[int]] = {}
    for place, group in enumerate(near_duplicates(texts)):
        groups.setdefault(group, []).append(place)
    parts: dict[str, list[int]] = {split: [] for split in SPLITS}
    for places in sorted(
        groups.values(), key=lambda places: min(_digest(texts[i]) for i in places)
    ):
        shortfall = {split: SHARES[split] * len(texts) - len(parts[split]) for split in SPLITS}
        parts[max(SPLITS, key=shortfall.__getitem__)] += places
    return {split: tuple(sorted(places)) for split, places in parts.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
