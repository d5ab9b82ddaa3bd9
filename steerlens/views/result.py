"""The base of every result: a table, a picture of it, and a short view in a notebook.

A result is a frozen dataclass whose numbers are in `table`. It says what it is in `__repr__`, draws
itself in `plot` by handing its table to a view, and shows its heading with the rows that matter in
a notebook. A subclass writes the first two, and `_card` where other rows than the first matter.

>>> from dataclasses import dataclass
>>> @dataclass(frozen=True, eq=False, repr=False)
... class Scores(Result):
...     table: pd.DataFrame
...     def __repr__(self):
...         return "Scores(2 layers)"
>>> "Scores(2 layers)" in Scores(pd.DataFrame({"layer": [0, 1]}))._repr_html_()
True
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from steerlens.views.summaries import summary

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Result"]


class Result:
    """A table, its picture, and its view in a notebook."""

    if TYPE_CHECKING:  # a field or a property of the subclass

        @property
        def table(self) -> pd.DataFrame: ...

    def plot(self) -> "go.Figure":
        """The picture of this result."""
        raise NotImplementedError(f"{type(self).__name__} has no picture")

    def _card(self) -> Mapping[str, Any]:
        """Arguments of `steerlens.views.summary` that differ from ``repr`` and the table."""
        return {}

    def _around_layer(self, layer: int) -> Mapping[str, Any]:
        """A card that shows the row of one layer amid its neighbours."""
        return {"around": self.table["layer"].tolist().index(layer)}

    def _repr_html_(self) -> str:
        return summary(**{"heading": repr(self), "table": self.table, **self._card()})
