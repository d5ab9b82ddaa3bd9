"""A text shaded token by token: what steering did, where the reader reads.

Each token's background grows with |quantity| (vermillion above zero, blue below). Shades follow the
square root of |quantity| / limit, because KL divergences are heavy-tailed and a linear scale shows
one token and hides the rest. A line under a token says that the intervention wrote to its position,
a box that the vector was read there; ▾ marks where the text parts from the baseline.

The result is HTML without scripts. Everything that came from a model is escaped; control
characters, which could hide or reorder text, are shown as their code. Notebooks are told not to set
mathematics: between two dollar signs a model writes prices, and MathJax makes links of ``\\href``.

>>> "&lt;b&gt;" in token_strip([{"token": "<b>", "kl": 0.2}])
True
>>> token_strip([])
'<p class="token-strip-empty">no tokens</p>'
"""

import html
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby

import pandas as pd

from steerlens.views.numbers import MISSING, finite, show
from steerlens.views.quantities import (
    LEVELS,
    QUANTITIES,
    Quantity,
    Token,
    level,
    limit_of,
    scale_decimals,
    token_rows,
)
from steerlens.views.tables import Rows

__all__ = [
    "AS_WRITTEN",
    "LEVELS",
    "QUANTITIES",
    "details",
    "one_line",
    "strip_css",
    "strip_excerpt",
    "strip_legend",
    "strip_limit",
    "token_strip",
    "visible",
]

AS_WRITTEN = "mathjax_ignore tex2jax_ignore"
"""Classes whose text MathJax 3 and 2 leave as it is."""
# Tokens of a text in an excerpt.
_MOST_PROMPT, _MOST_RESPONSE = 80, 240


def token_strip(
    tokens: Rows,
    quantity: str = "kl",
    *,
    limit: float | None = None,
    parts_at: int | None = None,
    tooltips: bool = True,
    styled: bool = True,
    legend: bool = True,
) -> str:
    """Tokens as a block of HTML, shaded by `quantity`, with a legend.

    Args:
        tokens: one row per token, in order, with `token` (text) and what `quantity` is made of.
            Other columns of `TokenEffects.table` are shown where there are any.
        quantity: one of `QUANTITIES`, or another numeric column of the rows.
        limit: |value| of the darkest level; by default the largest in these tokens. Give two
            strips that are to be compared the same limit.
        parts_at: index among the response tokens of the first that differs from the baseline.
        tooltips: put every token's numbers in its `title`.
        styled: put the style sheet in front (`strip_css()` has it for pages with many strips).
        legend: put the range of the shading and the meaning of the marks below.

    Raises:
        SteerlensError: an unknown quantity, a token without its text or its value, or a limit
            that is not above zero.
    """
    rows, shaded = token_rows(tokens, quantity)
    if not rows:
        return '<p class="token-strip-empty">no tokens</p>'
    limit = limit_of(rows, shaded, limit)
    parting = _parting_index(rows, parts_at)
    blocks = []
    indexed = list(enumerate(rows))
    for role, block in groupby(indexed, key=lambda item: _role(item[1])):
        runs = []
        for steered, run in groupby(block, key=lambda item: bool(item[1].get("steered"))):
            spans = "".join(
                _span(token, shaded, limit, index == parting, tooltips) for index, token in run
            )
            runs.append(f'<span class="steered">{spans}</span>' if steered else spans)
        label = html.escape(role)
        blocks.append(
            f'<div class="tokens {label}" dir="auto" data-role="{label}">{"".join(runs)}</div>'
        )
    style = f"<style>{strip_css()}</style>" if styled else ""
    below = _legend(shaded, rows, limit, parting is not None) if legend else ""
    return f'<div class="token-strip {AS_WRITTEN}">{style}{"".join(blocks)}{below}</div>'


def strip_excerpt(table: pd.DataFrame, quantity: str = "kl", parts_at: int | None = None) -> str:
    """A strip of the end of the prompt and the beginning of the response."""
    prompt, response = table[table["role"] == "prompt"], table[table["role"] == "response"]
    kept = pd.concat([prompt.tail(_MOST_PROMPT), response.head(_MOST_RESPONSE)])
    rest = len(table) - len(kept)
    more = f'<p style="opacity:.7">… {rest:,} tokens more; .plot() shows all</p>' if rest else ""
    return token_strip(kept, quantity, parts_at=parts_at) + more


def strip_limit(tokens: Rows, quantity: str = "kl") -> float:
    """The largest |quantity| among `tokens`, at least 1e-6: the limit a strip takes by itself."""
    rows, shaded = token_rows(tokens, quantity)
    return limit_of(rows, shaded)


def strip_legend(tokens: Rows, quantity: str = "kl", *, limit: float, parting: bool = False) -> str:
    """One legend for several strips with the same limit, whose rows are all in `tokens`.

    `parting` says whether one of them shows where it parts from the baseline.
    """
    rows, shaded = token_rows(tokens, quantity)
    below = _legend(shaded, rows, limit_of(rows, shaded, limit), parting)
    return f'<div class="token-strip">{below}</div>'


def strip_css() -> str:
    """The style sheet of a strip."""
    return files("steerlens.views").joinpath("tokens.css").read_text(encoding="utf-8")


def visible(token: str) -> str:
    """A token's text with newlines (⏎), tabs (⇥) and control characters made visible.

    A token without text (a later one of a character that takes several) is a middle dot.

    >>> visible("a\\n"), visible("\\t"), visible(""), visible("\\u202eb")
    ('a⏎\\n', '⇥', '·', '[U+202E]b')
    """
    if token.isprintable():  # nearly always
        return token or "·"
    return "".join(map(_visible_character, token))


def _visible_character(character: str) -> str:
    if character in "\n\t":
        return {"\n": "⏎\n", "\t": "⇥"}[character]
    # Zero-width joiners hold emoji and Indic text together; the other formats reorder or hide.
    if character in "\u200c\u200d":
        return character
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f"[U+{ord(character):04X}]"
    return character


def one_line(text: str) -> str:
    """A token's text for a label: as `visible`, without the line break after a ⏎."""
    return visible(text).replace("\n", "")


def _role(token: Token) -> str:
    role = token.get("role", "response")
    return "prompt" if role == "prompt" else "response"


def _parting_index(rows: Sequence[Token], parts_at: int | None) -> int | None:
    if parts_at is None:
        return None
    response = [index for index, token in enumerate(rows) if _role(token) == "response"]
    return response[parts_at] if 0 <= parts_at < len(response) else None


def _shade(step: int) -> str:
    return f"k{step}" if step >= 0 else f"n{-step}"


def _span(token: Token, quantity: Quantity, limit: float, parts: bool, tooltip: bool) -> str:
    step = level(quantity.value(token), limit)
    title = ""
    if tooltip:
        title = f' title="{html.escape(details(token)).replace(chr(10), "&#10;")}"'
    mark = '<i class="parts" title="parts from the baseline here">▾</i>' if parts else ""
    # <b> (text drawn to the reader's attention) keeps long pages a third smaller than <span>; so
    # does leaving out the class of tokens without a shade.
    classes = [_shade(step)] if step else []
    if token.get("read"):
        classes.append("read")
    shaded = f' class="{" ".join(classes)}"' if classes else ""
    return f"{mark}<b{shaded}{title}>{html.escape(visible(token['token']))}</b>"


def details(token: Token) -> str:
    """Everything known about one token, one line each."""
    position = token.get("position")
    where = "" if finite(position) is None else f" at position {position}"
    marks = ", steered here" if token.get("steered") else ""
    marks += ", vector read here" if token.get("read") else ""
    lines = [f"{visible(token['token'])!r}{where} ({_role(token)}{marks})"]
    if "kl" in token:
        lines.append(f"KL(steered‖baseline) {show(token['kl'], 3)} nats")
    for name, quantity in (
        ("log-probability", QUANTITIES["logprob_change"]),
        ("projection", QUANTITIES["projection_change"]),
    ):
        before, after = quantity.columns
        if before in token or after in token:
            start, end = show(token.get(before)), show(token.get(after))
            change = show(quantity.value(token), signed=True)
            lines.append(f"{name} {start} → {end}" + (f" ({change})" if change != MISSING else ""))
    if "entropy_change" in token:
        lines.append(f"entropy change {show(token['entropy_change'], 3, signed=True)} nats")
    for column in ("surprisal", "entropy", "projection", "contribution"):
        if column in token:
            quantity = QUANTITIES[column]
            number = show(token[column], 3, signed=quantity.signed)
            lines.append(f"{quantity.name} {number} {quantity.unit}")
    for name in ("promoted", "suppressed"):
        changes = token.get(name)
        if isinstance(changes, Sequence) and changes:
            listed = ", ".join(f"{visible(t)!r} {show(c, signed=True)}" for t, c in changes)
            lines.append(f"{name}: {listed}")
    return "\n".join(lines)


def _legend(quantity: Quantity, rows: Sequence[Token], limit: float, parting: bool) -> str:
    """The range of the shading, and what the marks mean where there are any."""
    levels = range(-LEVELS if quantity.signed else 0, LEVELS + 1)
    swatches = "".join(f'<b class="{_shade(step)}">&nbsp;</b>' for step in levels)
    decimals = scale_decimals(limit)
    lowest = show(-limit, decimals) if quantity.signed else "0"
    marks = ""
    if any(token.get("steered") for token in rows):
        marks += ' · <span class="steered">underlined</span>: intervention applied'
    if any(token.get("read") for token in rows):
        marks += ' · <b class="read">boxed</b>: vector read'
    if parting:
        marks += " · <i>▾</i>: parts from the baseline"
    return (
        f'<div class="legend">{html.escape(quantity.name)}: {lowest} <span class="scale" '
        f'aria-hidden="true">{swatches}</span> {show(limit, decimals)} {html.escape(quantity.unit)}'
        f" (square-root scale){marks}</div>"
    )
