"""Texts as figures, shaded token by token; a token says more on hover.

`token_strip` (HTML) flows with the page it is on; `text_figure` draws the same as a plotly figure,
which can be saved and zoomed.

Marks: a line under a token says that the intervention wrote to its position, a box that the vector
was read there; ▼ marks where a text parts from the other, ▲ where it meets it again.

>>> figure = text_figure([Section("answer", [{"token": "Rome", "kl": 0.3, "steered": True}])])
>>> [trace.name for trace in figure.data if trace.name]
['intervention applied']
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from steerlens.views.layout import Piece, lay_out
from steerlens.views.numbers import show
from steerlens.views.picture import Picture, heading
from steerlens.views.quantities import (
    LEVELS,
    Quantity,
    Token,
    level,
    limit_of,
    scale_decimals,
    token_rows,
)
from steerlens.views.tables import Rows
from steerlens.views.theme import BLUE, LIGHT, ORANGE, VERMILLION, plain_text, translucent
from steerlens.views.tokens import details

__all__ = ["Section", "prompt_and_response", "text_figure"]

_COLUMN, _LINE, _MARGIN = 7.85, 25, {"l": 20, "r": 20, "t": 76, "b": 18}
_FONT = {"family": "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace", "size": 13}
_MARK = "#b3266d"
_LABEL, _SWATCH = 12 / 13, 1.6
# Opacity of the strongest shade: text stays readable on it in both themes.
_STRONGEST = 0.6


@dataclass(frozen=True)
class Section:
    """A text of a figure, under a heading of its own.

    Attributes:
        heading: What it is, for example ``"prompt"``; may be empty.
        tokens: Its rows, as `steerlens.views.token_strip` takes them.
        parts_at: Place of the token where it parts from another text.
        meets_at: Places where it meets it again.
    """

    heading: str
    tokens: Rows
    parts_at: int | None = None
    meets_at: Sequence[int] = ()


def prompt_and_response(table: pd.DataFrame) -> list[Section]:
    """Two sections of a table of tokens with the column `role`."""
    roles = ("prompt", "response")
    return [Section(role, table[table["role"] == role]) for role in roles]


def text_figure(
    sections: Sequence[Section],
    quantity: str = "kl",
    *,
    limit: float | None = None,
    columns: int = 96,
    title: str | None = None,
    subtitle: str | None = None,
) -> go.Figure:
    """Texts shaded token by token, one below the other.

    Args:
        sections: the texts; a section without tokens says so.
        quantity: as for `token_strip`; all sections share its scale.
        limit: |value| of the strongest shade; by default the largest in all sections.
        columns: characters a line.
        title: above the texts.
        subtitle: a smaller line below it.

    Raises:
        SteerlensError: as `token_strip`.
    """
    sections = sections or [Section("", [])]
    texts = [(section, *token_rows(section.tokens, quantity)) for section in sections]
    shaded = next((found for _, rows, found in texts if rows), texts[0][2])
    limit = limit_of([row for _, rows, _ in texts for row in rows], shaded, limit)
    drawing = _Drawing(shaded, limit, columns)
    drawing.add_scale()
    for section, rows, _ in texts:
        drawing.add(section, rows)
    figure = drawing.figure()
    margin = {**_MARGIN, "t": _MARGIN["t"] + (18 if subtitle else 0)}
    height = margin["t"] + margin["b"] + _LINE * drawing.line
    figure.update_xaxes(visible=False, range=[0, columns], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-drawing.line, 0], fixedrange=True)
    return figure.update_layout(
        template=LIGHT,
        width=round(columns * _COLUMN) + margin["l"] + margin["r"],
        height=height,
        margin=margin,
        hovermode="closest",
        hoverlabel={"align": "left", "font": {"family": _FONT["family"], "size": 12}},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom"},
        title=heading(title or "", subtitle),
    )


class _Drawing:
    """Traces of a figure of texts, filled section by section."""

    def __init__(self, quantity: Quantity, limit: float, columns: int) -> None:
        self.quantity, self.limit, self.columns = quantity, limit, columns
        self.line = 0
        self.boxes: dict[int, list[Piece]] = {}
        self.marked: dict[str, list[Piece]] = {"steered": [], "read": [], "parts": [], "meets": []}
        self.texts: list[tuple[Piece, str]] = []
        self.headings: list[tuple[int, str]] = []
        self.scale: list[tuple[str, float, int]] = []

    def add_scale(self) -> None:
        """A line that says what the shades stand for."""
        decimals = scale_decimals(self.limit)
        lowest = show(-self.limit, decimals) if self.quantity.signed else "0"
        unit = f", {self.quantity.unit}" if self.quantity.unit else ""
        label = f"{self.quantity.name}{unit}:  {lowest}"
        # Labels are drawn a little smaller than tokens.
        column = _LABEL * len(label) + 1
        self.scale.append((label, 0.4, self.line))
        for step in range(-LEVELS if self.quantity.signed else 0, LEVELS + 1):
            if step:
                box = Piece(-1, "", self.line, column, _SWATCH)
                self.boxes.setdefault(step, []).append(box)
            column += _SWATCH
        label = f"{show(self.limit, decimals)}  (√ scale)"
        self.scale.append((label, column + 0.5, self.line))
        self.line += 1

    def add_heading(self, text: str) -> None:
        self.headings.append((self.line, text))
        self.line += 1

    def add(self, section: Section, rows: Sequence[Token]) -> None:
        """Lay a section out below what is there."""
        self.line += 1
        if section.heading:
            self.add_heading(section.heading)
        pieces = lay_out([row["token"] for row in rows], self.columns)
        if not pieces:
            self.add_heading("(no tokens)")
            return
        hovers: dict[int, str] = {}
        for piece in pieces:
            row, placed = rows[piece.token], replace(piece, line=piece.line + self.line)
            step = level(self.quantity.value(row), self.limit)
            if step:
                self.boxes.setdefault(step, []).append(placed)
            marks = [mark for mark in ("steered", "read") if row.get(mark)]
            if piece.token not in hovers:  # the first piece of its token
                hovers[piece.token] = _hover(row)
                marks += ["parts"] * (piece.token == section.parts_at)
                marks += ["meets"] * (piece.token in section.meets_at)
            for mark in marks:
                self.marked[mark].append(placed)
            self.texts.append((placed, hovers[piece.token]))
        self.line += pieces[-1].line + 1

    def figure(self) -> Picture:
        """All traces, boxes below, text above."""
        traces = []
        for step, pieces in sorted(self.boxes.items()):
            colour = VERMILLION if step > 0 else BLUE
            fill = translucent(colour, round(_STRONGEST * abs(step) / LEVELS, 3))
            traces.append(_outline(pieces, _box, fill=fill))
        for mark, shape, name, colour in (
            ("steered", _underline, "intervention applied", BLUE),
            ("read", _box, "vector read here", ORANGE),
        ):
            if self.marked[mark]:
                line = {"color": colour, "width": 2}
                traces.append(_outline(self.marked[mark], shape, name, line=line))
        for mark, symbol, name in (
            ("parts", "triangle-down", "parts from the other text"),
            ("meets", "triangle-up", "meets it again"),
        ):
            if self.marked[mark]:
                traces.append(_marks(self.marked[mark], symbol, name))
        if self.texts:
            traces.append(_words(self.texts))
        figure = Picture([*traces, _labels(self.scale)])
        for line_number, text in self.headings:
            figure.add_annotation(
                text=f"<b>{plain_text(text)}</b>",
                x=0,
                y=-line_number - 0.62,
                xanchor="left",
                yanchor="middle",
                showarrow=False,
                opacity=0.75,
                font={"size": 12},
            )
        return figure


def _hover(row: Token) -> str:
    """Everything about a token, wrapped, as plotly reads it."""
    lines: list[str] = []
    for line in details(row).split("\n"):
        while len(line) > 90:
            cut = line.rfind(", ", 0, 90) + 1 or 90
            lines.append(line[:cut])
            line = f"    {line[cut:].lstrip()}"
        lines.append(line)
    return "<br>".join(plain_text(line) for line in lines)


def _words(texts: Sequence[tuple[Piece, str]]) -> go.Scatter:
    return go.Scatter(
        x=[piece.start + piece.width / 2 for piece, _ in texts],
        y=[-piece.line - 0.5 for piece, _ in texts],
        text=[plain_text(piece.text) for piece, _ in texts],
        customdata=[hover for _, hover in texts],
        mode="text",
        textposition="middle center",
        textfont=_FONT,
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
    )


def _labels(labels: Sequence[tuple[str, float, int]]) -> go.Scatter:
    return go.Scatter(
        x=[column for _, column, _ in labels],
        y=[-line - 0.5 for _, _, line in labels],
        text=[plain_text(text) for text, _, _ in labels],
        mode="text",
        textposition="middle right",
        textfont={**_FONT, "size": 12},
        hoverinfo="skip",
        showlegend=False,
    )


Corners = Callable[[Piece], list[tuple[float, float]]]


def _box(piece: Piece) -> list[tuple[float, float]]:
    left, right = piece.start + 0.04, piece.start + piece.width - 0.04
    top, bottom = -piece.line - 0.08, -piece.line - 0.9
    return [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]


def _underline(piece: Piece) -> list[tuple[float, float]]:
    bottom = -piece.line - 0.93
    return [(piece.start, bottom), (piece.start + piece.width, bottom)]


def _outline(
    pieces: Sequence[Piece],
    corners: Corners,
    name: str | None = None,
    fill: str | None = None,
    line: Mapping[str, Any] | None = None,
) -> go.Scatter:
    """Shapes around pieces as one trace: thousands of separate shapes would take seconds to draw.

    Pieces that touch are not joined, so that each keeps its edge.
    """
    ends = (None, None)  # a gap after each shape
    points = [point for piece in pieces for point in (*corners(piece), ends)]
    return go.Scatter(
        x=[across if across is None else round(across, 2) for across, _ in points],
        y=[down if down is None else round(down, 2) for _, down in points],
        mode="lines",
        line=dict(line) if line else {"width": 0},
        fill="toself" if fill else None,
        fillcolor=fill,
        name=name,
        showlegend=name is not None,
        hoverinfo="skip",
    )


def _marks(pieces: Sequence[Piece], symbol: str, name: str) -> go.Scatter:
    return go.Scatter(
        x=[piece.start for piece in pieces],
        y=[-piece.line - 0.08 for piece in pieces],
        mode="markers",
        marker={"symbol": symbol, "size": 9, "color": _MARK},
        name=name,
        hoverinfo="skip",
        cliponaxis=False,
    )
