"""What a picture takes: a DataFrame or a list of rows, checked before anything is drawn.

>>> layer_table([{"layer": 1, "auroc": 0.9}, {"layer": 0, "auroc": None}], ["auroc"], "ranking")
   layer  auroc
0      0    NaN
1      1    0.9
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from steerlens.errors import SteerlensError
from steerlens.views.numbers import finite

__all__ = ["Rows", "layer_table", "strength_table", "table_of"]

Rows = pd.DataFrame | Sequence[Mapping[str, Any]]


def table_of(rows: Rows, required: Iterable[str], what: str) -> pd.DataFrame:
    """`rows` as a DataFrame with the `required` columns; no rows gives an empty table.

    Raises:
        SteerlensError: a column is missing; the sentence names it and the columns there are.
    """
    needed = list(required)
    if not isinstance(rows, pd.DataFrame):
        if not rows:
            return pd.DataFrame(columns=needed)
        rows = pd.DataFrame([dict(row) for row in rows])
    for column in needed:
        if column not in rows.columns:
            present = ", ".join(repr(str(name)) for name in rows.columns) or "no columns"
            raise SteerlensError(f"{what}: column {column!r} is missing; there are: {present}")
    return rows


def layer_table(rows: Rows, values: Iterable[str], what: str) -> pd.DataFrame:
    """`rows` sorted by their integer `layer`, with the `values` columns as floats (gaps are NaN).

    Raises:
        SteerlensError: a column is missing, a layer is malformed or comes twice, or a value is not
            a number.
    """
    columns = list(values)
    table = table_of(rows, ["layer", *columns], what)
    return _sorted(table, "layer", [_layer(value, what) for value in table["layer"]], columns, what)


def strength_table(rows: Rows, values: Iterable[str], what: str) -> pd.DataFrame:
    """As `layer_table`, sorted by `strength`, which every row must have."""
    columns = list(values)
    table = table_of(rows, ["strength", *columns], what)
    strengths = [finite(value) for value in table["strength"]]
    if None in strengths:
        raise SteerlensError(f"{what}: a row has no strength; give a number in every row")
    return _sorted(table, "strength", strengths, columns, what)


def _sorted(
    table: pd.DataFrame, across: str, places: Sequence[Any], columns: Sequence[str], what: str
) -> pd.DataFrame:
    if len(set(places)) != len(places):
        twice = next(place for place in places if places.count(place) > 1)
        raise SteerlensError(f"{what}: {across} {twice} comes more than once; give one row each")
    cleaned = {column: [finite(value) for value in table[column]] for column in columns}
    kind = int if across == "layer" else float
    result = pd.DataFrame({across: pd.Series(places, dtype=kind), **cleaned})
    return result.sort_values(across, ignore_index=True).astype(dict.fromkeys(columns, float))


def _layer(value: object, what: str) -> int:
    number = finite(value)
    if number is None or number != int(number) or number < 0:
        raise SteerlensError(f"{what}: {value!r} is not a layer; give a whole number from 0")
    return int(number)
