"""What a page shows when a reader points at a token, packed small.

As text in the page, a token's numbers take about 250 bytes, several times everything else together;
as rounded columns, deflated and in base64, about 50. The page's script inflates them when it loads
and inserts them as text.

>>> import base64, json, zlib
>>> packed = pack_details([[{"token": "a", "kl": 0.12345, "promoted": [["b", 1.234]]}]])
>>> unpacked = json.loads(zlib.decompress(base64.b64decode(packed)))
>>> unpacked["words"], unpacked["strips"][0]["kl"], unpacked["strips"][0]["promoted"]
(['b'], [0.123], [[0, 1.2]])
"""

import base64
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.views.numbers import compact
from steerlens.views.tokens import visible

__all__ = ["CHANGES", "DECIMALS", "MARKS", "pack_details"]

# Decimals the page shows of each number, beside at most three significant digits.
DECIMALS = {
    "kl": 4,
    "logprob_baseline": 2,
    "logprob_steered": 2,
    "projection_before": 2,
    "projection_after": 2,
    "entropy_change": 3,
}
CHANGES = ("promoted", "suppressed")
MARKS = ("steered", "read")


def pack_details(strips: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    """The tokens of every strip, in order, as base64 of deflated JSON.

    The JSON is `{"words": [text], "strips": [{column: [value a token]}]}`. The columns are those of
    `DECIMALS`; `offset` (position minus place in the strip, as constants pack best); `steered` and
    `read` (0 or 1); and `promoted`, `suppressed`, where a token has a flat list
    `[word, change, word, …]` with `word` an index into `words` and the change in two significant
    digits.
    """
    count = Counter(
        word
        for strip in strips
        for token in strip
        for name in CHANGES
        for word, _ in token.get(name) or ()
    )
    # Frequent words first: short numbers for most.
    words = {word: index for index, (word, _) in enumerate(count.most_common())}
    shown = [visible(word) for word in words]
    document = {"words": shown, "strips": [_columns(strip, words) for strip in strips]}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=True)
    return base64.b64encode(zlib.compress(text.encode("ascii"), level=9)).decode("ascii")


def _columns(strip: Sequence[Mapping[str, Any]], words: Mapping[str, int]) -> dict[str, list[Any]]:
    columns = {
        name: _short([token.get(name) for token in strip], 3, decimals)
        for name, decimals in DECIMALS.items()
    }
    positions = compact((token.get("position") for token in strip), 9)
    columns["offset"] = [
        None if position is None else int(position) - place
        for place, position in enumerate(positions)
    ]
    for name in MARKS:
        columns[name] = [int(bool(token.get(name))) for token in strip]
    for name in CHANGES:
        listed = [token.get(name) or () for token in strip]
        sizes = iter(_short([size for changes in listed for _, size in changes], 2, 2))
        columns[name] = [
            [part for word, _ in changes for part in (words[word], next(sizes))]
            for changes in listed
        ]
    return columns


def _short(values: Sequence[object], digits: int, decimals: int) -> list[Any]:
    """Values in at most so many significant digits and decimals, without a ".0"."""
    rounded = [
        None if value is None else round(value, decimals) for value in compact(values, digits)
    ]
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]
