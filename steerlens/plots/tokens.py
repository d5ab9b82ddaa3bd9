"""A text shaded token by token: what steering did, where the reader reads.

Each token's background grows with |quantity| (vermillion above zero, blue below), at most 60 %
opaque over whatever page is behind, so the text keeps its own colour in light and dark. Levels
follow the square root of |quantity| / limit, because KL divergences are heavy-tailed and a linear
scale shows one token and hides the rest; the legend gives the range. A line under a token says
that the intervention was applied at its position; ▾ marks where the text parts from the baseline.

The result is HTML without scripts. Everything that came from a model is escaped; control
characters, which could hide or reorder text, are shown as their code.

>>> "&lt;b&gt;" in token_strip([{"token": "<b>", "kl": 0.2}])
True
>>> token_strip([])
'<p class="token-strip-empty">no tokens</p>'
"""

import html
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

import pandas as pd

from steerlens.errors import SteerlensError, unknown_name
from steerlens.plots.numbers import MISSING, finite, show
from steerlens.plots.tables import Rows

__all__ = ["LEVELS", "QUANTITIES", "strip_css", "strip_limit", "token_strip", "visible"]

Token = Mapping[str, Any]
LEVELS = 8


def _change(before: str, after: str) -> Callable[[Token], float | None]:
    def difference(token: Token) -> float | None:
        start, end = finite(token.get(before)), finite(token.get(after))
        return None if start is None or end is None else end - start

    return difference


# What a strip can be shaded by: the value of a token, its name, its unit.
QUANTITIES: Mapping[str, tuple[Callable[[Token], float | None], str, str]] = {
    "kl": (lambda token: finite(token.get("kl")), "KL(steered‖baseline)", "nats"),
    "logprob_change": (
        _change("logprob_baseline", "logprob_steered"), "change of log-probability", "nats",
    ),
    "projection_change": (
        _change("projection_before", "projection_after"), "change of projection", "residual units",
    ),
    "entropy_change": (
        lambda token: finite(token.get("entropy_change")), "change of entropy", "nats",
    ),
}  # fmt: skip
_SIGNED = {name for name in QUANTITIES if name != "kl"}


def token_strip(
    tokens: Rows,
    quantity: str = "kl",
    *,
    limit: float | None = None,
    parts_at: int | None = None,
    tooltips: bool = True,
    styled: bool = True,
) -> str:
    """Tokens as a block of HTML, shaded by `quantity`, with a legend.

    Args:
        tokens: one row a token, in order. Needs `token` (text) and what `quantity` is made of;
            shows where given `position`, `role` ("prompt" or "response"), `steered`, `kl`,
            `logprob_baseline`, `logprob_steered`, `projection_before`, `projection_after`,
            `entropy_change` and `promoted`, `suppressed` (pairs of a token and its change of
            log-probability). Logarithms are natural (nats).
        quantity: one of `QUANTITIES`.
        limit: |value| of the darkest level; by default the largest in these tokens. Give two
            strips that are to be compared the same limit.
        parts_at: index among the response tokens of the first that differs from the baseline.
        tooltips: put every token's numbers in its `title`.
        styled: put the style sheet in front (`strip_css()` has it for pages with many strips).

    Raises:
        SteerlensError: an unknown quantity, a token without its text or its value, or a limit
            that is not above zero.
    """
    if quantity not in QUANTITIES:
        raise unknown_name("quantity", quantity, QUANTITIES)
    rows = _records(tokens, quantity)
    if not rows:
        return '<p class="token-strip-empty">no tokens</p>'
    if limit is None:
        limit = strip_limit(rows, quantity)
    elif not (math.isfinite(limit) and limit > 0):
        raise SteerlensError(f"limit must be a number above zero, not {limit!r}")
    parting = _parting_index(rows, parts_at)
    blocks = []
    indexed = list(enumerate(rows))
    for role, block in groupby(indexed, key=lambda item: _role(item[1])):
        runs = []
        for steered, run in groupby(block, key=lambda item: bool(item[1].get("steered"))):
            spans = "".join(
                _span(token, quantity, limit, index == parting, tooltips) for index, token in run
            )
            runs.append(f'<span class="steered">{spans}</span>' if steered else spans)
        label = html.escape(role)
        blocks.append(
            f'<div class="tokens {label}" dir="auto" data-role="{label}">{"".join(runs)}</div>'
        )
    style = f"<style>{strip_css()}</style>" if styled else ""
    legend = _legend(quantity, limit, rows, parting is not None)
    return f'<div class="token-strip">{style}{"".join(blocks)}{legend}</div>'


def strip_limit(tokens: Rows, quantity: str = "kl") -> float:
    """The largest |quantity| among `tokens`, at least 1e-6: the limit a strip takes by itself.

    Raises:
        SteerlensError: as `token_strip`.
    """
    if quantity not in QUANTITIES:
        raise unknown_name("quantity", quantity, QUANTITIES)
    value_of = QUANTITIES[quantity][0]
    values = [abs(value_of(token) or 0.0) for token in _records(tokens, quantity)]
    return max([1e-6, *values])


def strip_css() -> str:
    """The style sheet of a strip."""
    return files("steerlens.plots").joinpath("tokens.css").read_text(encoding="utf-8")


def visible(token: str) -> str:
    """A token's text with newlines (⏎), tabs (⇥) and control characters made visible.

    >>> visible("a\\n"), visible("\\t"), visible(""), visible("\\u202eb")
    ('a⏎\\n', '⇥', '∅', '[U+202E]b')
    """
    # Printable text, as nearly all of it is, has nothing to look at.
    if token.isprintable():
        return token or "∅"
    return "".join(_visible_character(character) for character in token)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    # Zero-width joiners hold emoji and Indic text together; the other formats reorder or hide.
    if character in "\u200c\u200d":
        return character
    if unicodedata.category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"}:
        return f"[U+{ord(character):04X}]"
    return character


def _records(tokens: Rows, quantity: str) -> list[Token]:
    """The rows as mappings, each known to have its text and what `quantity` needs."""
    if isinstance(tokens, pd.DataFrame):
        rows = [{str(k): v for k, v in row.items()} for row in tokens.to_dict("records")]
    else:
        rows = [dict(row) for row in tokens]
    needed = {
        "logprob_change": ("logprob_baseline", "logprob_steered"),
        "projection_change": ("projection_before", "projection_after"),
    }.get(quantity, (quantity,))
    for index, row in enumerate(rows):
        for key in ("token", *needed):
            if key not in row:
                raise SteerlensError(f"token {index} of the strip has no {key!r}")
        if not isinstance(row["token"], str):
            raise SteerlensError(f"token {index} of the strip is {row['token']!r}, not text")
    return list(rows)


def _role(token: Token) -> str:
    role = token.get("role", "response")
    return "prompt" if role == "prompt" else "response"


def _parting_index(rows: Sequence[Token], parts_at: int | None) -> int | None:
    if parts_at is None:
        return None
    response = [index for index, token in enumerate(rows) if _role(token) == "response"]
    return response[parts_at] if 0 <= parts_at < len(response) else None


def _level(value: float | None, limit: float) -> int:
    """0 (nothing, or unknown) to `LEVELS`, negative below zero."""
    if value is None:
        return 0
    steps = math.ceil(LEVELS * math.sqrt(min(abs(value) / limit, 1.0)) - 0.5)
    return int(math.copysign(steps, value))


def _shade(level: int) -> str:
    return f"k{level}" if level >= 0 else f"n{-level}"


def _span(token: Token, quantity: str, limit: float, parts: bool, tooltip: bool) -> str:
    level = _level(QUANTITIES[quantity][0](token), limit)
    title = ""
    if tooltip:
        title = f' title="{html.escape(_details(token)).replace(chr(10), "&#10;")}"'
    mark = '<i class="parts" title="parts from the baseline here">▾</i>' if parts else ""
    # <b> (text drawn to the reader's attention) keeps long pages a third smaller than <span>; so
    # does leaving out the class of tokens without a shade.
    shaded = f' class="{_shade(level)}"' if level else ""
    return f"{mark}<b{shaded}{title}>{html.escape(visible(token['token']))}</b>"


def _details(token: Token) -> str:
    """Everything known about one token, one line each."""
    position = token.get("position")
    where = "" if finite(position) is None else f" at position {position}"
    steered = ", steered here" if token.get("steered") else ""
    lines = [f"{visible(token['token'])!r}{where} ({_role(token)}{steered})"]
    if "kl" in token:
        lines.append(f"KL(steered‖baseline) {show(token['kl'], 3)} nats")
    for name, before, after in (
        ("log-probability", "logprob_baseline", "logprob_steered"),
        ("projection", "projection_before", "projection_after"),
    ):
        if before in token or after in token:
            start, end = show(token.get(before)), show(token.get(after))
            change = show(_change(before, after)(token), signed=True)
            lines.append(f"{name} {start} → {end}" + (f" ({change})" if change != MISSING else ""))
    if "entropy_change" in token:
        lines.append(f"entropy change {show(token['entropy_change'], 3, signed=True)} nats")
    for name in ("promoted", "suppressed"):
        changes = token.get(name)
        if isinstance(changes, Sequence) and changes:
            listed = ", ".join(f"{visible(t)!r} {show(c, signed=True)}" for t, c in changes)
            lines.append(f"{name}: {listed}")
    return "\n".join(lines)


def _legend(quantity: str, limit: float, rows: Sequence[Token], parting: bool) -> str:
    """The range of the shading, and what the marks mean where there are any."""
    _, name, unit = QUANTITIES[quantity]
    levels = range(-LEVELS if quantity in _SIGNED else 0, LEVELS + 1)
    swatches = "".join(f'<b class="{_shade(level)}">&nbsp;</b>' for level in levels)
    lowest = show(-limit, _decimals(limit)) if quantity in _SIGNED else "0"
    marks = ""
    if any(token.get("steered") for token in rows):
        marks += ' · <span class="steered">underlined</span>: intervention applied'
    if parting:
        marks += " · <i>▾</i>: parts from the baseline"
    return (
        f'<div class="legend">{html.escape(name)}: {lowest} <span class="scale" aria-hidden="true">'
        f"{swatches}</span> {show(limit, _decimals(limit))} {unit} (square-root scale){marks}</div>"
    )


def _decimals(limit: float) -> int:
    """Decimals that show two significant digits of `limit`, at least two."""
    return max(2, 1 - math.floor(math.log10(limit)))
