"""Token strips as figures: texts laid out in lines, every token a box that says more on hover.

`token_strip` (HTML) flows with the page it is on; `text_figure` draws the same as a plotly figure,
which can be saved as SVG, PNG or PDF and zoomed. `steerlens.views.layout` sets the tokens in lines.

Marks: a line under a token says that the intervention wrote to its position, a box that the vector
was read there; ▼ marks where a text parts from the other, ▲ where it meets it again.

>>> figure = text_figure([Section("answer", [{"token": "Rome", "kl": 0.3, "steered": True}])])
>>> [trace.name for trace in figure.data if trace.name]
['intervention applied']
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from steerlens.views.layout import Piece, lay_out
from steerlens.views.numbers import show
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
from steerlens.views.theme import (
    BLUE,
    LIGHT,
    ORANGE,
    VERMILLION,
    Picture,
    heading,
    plain_text,
    translucent,
)
from steerlens.views.tokens import details

__all__ = ["Section", "text_figure"]

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
    texts = [(section, *token_rows(section.tokens, quantity)) for section in sections]
    shaded = next((found for _, rows, found in texts if rows), texts[0][2] if texts else None)
    if shaded is None:
        texts, shaded = [(Section("", []), *token_rows([], quantity))], token_rows([], quantity)[1]
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
        self.steered: list[Piece] = []
        self.read: list[Piece] = []
        self.parts: list[Piece] = []
        self.meets: list[Piece] = []
        self.texts: list[tuple[Piece, str, bool]] = []
        self.headings: list[tuple[int, str]] = []
        self.scale: list[tuple[str, float, int]] = []

    def add_scale(self) -> None:
        """A line that says what the shades stand for."""
        decimals = scale_decimals(self.limit)
        lowest = show(-self.limit, decimals) if self.quantity.signed else "0"
        unit = f", {self.quantity.unit}" if self.quantity.unit else ""
        told = f"{self.quantity.name}{unit}:  {lowest}"
        # Labels are drawn a little smaller than tokens.
        column = _LABEL * len(told) + 1
        self.scale.append((told, 0.4, self.line))
        for step in range(-LEVELS if self.quantity.signed else 0, LEVELS + 1):
            if step:
                box = Piece(-1, "", self.line, column, _SWATCH)
                self.boxes.setdefault(step, []).append(box)
            column += _SWATCH
        told = f"{show(self.limit, decimals)}  (√ scale)"
        self.scale.append((told, column + 0.5, self.line))
        self.line += 1

    def add(self, section: Section, rows: Sequence[Token]) -> None:
        """Lay a section out below what is there."""
        self.line += 1
        if section.heading:
            self.headings.append((self.line, section.heading))
            self.line += 1
        pieces = lay_out([row["token"] for row in rows], self.columns)
        if not pieces:
            self.headings.append((self.line, "(no tokens)"))
            self.line += 1
        first = {piece.token: place for place, piece in reversed(list(enumerate(pieces)))}
        told = {token: _hover(rows[token]) for token in first}
        for piece in pieces:
            row = rows[piece.token]
            placed = Piece(
                piece.token, piece.text, piece.line + self.line, piece.start, piece.width
            )
            step = level(self.quantity.value(row), self.limit)
            if step:
                self.boxes.setdefault(step, []).append(placed)
            if row.get("steered"):
                self.steered.append(placed)
            if row.get("read"):
                self.read.append(placed)
            if pieces[first[piece.token]] is piece:
                if piece.token == section.parts_at:
                    self.parts.append(placed)
                if piece.token in section.meets_at:
                    self.meets.append(placed)
            is_prompt = row.get("role") == "prompt"
            self.texts.append((placed, told[piece.token], is_prompt))
        self.line = max(self.line, max((p[0].line for p in self.texts), default=-1) + 1)

    def figure(self) -> Picture:
        """All traces, boxes below, text above."""
        figure = Picture()
        for step, pieces in sorted(self.boxes.items()):
            colour = translucent(
                VERMILLION if step > 0 else BLUE, round(_STRONGEST * abs(step) / LEVELS, 3)
            )
            figure.add_trace(_outline(pieces, _box, fill=colour))
        if self.steered:
            line = {"color": BLUE, "width": 2}
            figure.add_trace(_outline(self.steered, _underline, "intervention applied", line=line))
        if self.read:
            line = {"color": ORANGE, "width": 2}
            figure.add_trace(_outline(self.read, _box, "vector read here", line=line))
        for pieces, symbol, name in (
            (self.parts, "triangle-down", "parts from the other text"),
            (self.meets, "triangle-up", "meets it again"),
        ):
            if pieces:
                figure.add_trace(_marks(pieces, symbol, name))
        if self.texts:
            figure.add_trace(_words(self.texts))
        figure.add_trace(_labels(self.scale))
        for line_number, said in self.headings:
            figure.add_annotation(
                text=f"<b>{plain_text(said)}</b>",
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


def _words(texts: Sequence[tuple[Piece, str, bool]]) -> go.Scatter:
    # A prompt is drawn thinner by its colour only where the theme's text colour is left alone.
    return go.Scatter(
        x=[piece.start + piece.width / 2 for piece, _, _ in texts],
        y=[-piece.line - 0.5 for piece, _, _ in texts],
        text=[plain_text(piece.text) for piece, _, _ in texts],
        customdata=[told for _, told, _ in texts],
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
    x: list[float | None] = []
    y: list[float | None] = []
    for piece in pieces:
        for across, down in corners(piece):
            x.append(round(across, 2))
            y.append(round(down, 2))
        x.append(None)
        y.append(None)
    return go.Scatter(
        x=x,
        y=y,
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
