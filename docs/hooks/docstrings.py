"""Docstrings as Markdown: mathematics, tables, literal blocks and examples."""

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_INLINE = re.compile(r":math:`([^`]+)`")
_DISPLAY = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)
_TERM = re.compile(r"^( *)(``.*``)\n((?:\1    .*\n?)+)", re.MULTILINE)
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
_DIRECTIVE = re.compile(r" *# doctest: .*")
_TABLE = re.compile(r"^( *)(=+(?: +=+)+)\n((?:.*\n)*?)\1\2$(?!\n\S)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring when it is collected."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once for each module, class, function and attribute."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(text: str) -> str:
    """The same text in Markdown."""
    text = _DISPLAY.sub(_display, text)
    text = _INLINE.sub(lambda found: _mathml(found[1], "inline"), text)
    text = _TABLE.sub(_table, text)
    text = _TERM.sub(_definition, text)
    text = _DOCTEST.sub(_doctest, text)
    text = re.sub(r"^::\n", "", text, flags=re.MULTILINE)
    return re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _mathml(formula: str, display: str) -> str:
    # The span keeps Markdown from taking a formula at the beginning of a line for a block.
    return f"<span>{convert(' '.join(formula.split()), display=display)}</span>"


def _display(found: re.Match[str]) -> str:
    return f"{found[1]}<div>{_mathml(found[2], 'block')}</div>\n"


def _definition(found: re.Match[str]) -> str:
    indent, term, body = found.groups()
    first, _, rest = body.partition("\n")
    return f"\n{indent}{term}\n{indent}:   {first.strip()}\n{rest}"


def _doctest(found: re.Match[str]) -> str:
    return f"{found[1]}```pycon\n{_DIRECTIVE.sub('', found[0])}\n{found[1]}```"


def _table(found: re.Match[str]) -> str:
    """A simple table of reStructuredText; a row without a first cell goes on with the last."""
    indent, rule, body = found.groups()
    starts = [column.start() for column in re.finditer("=+", rule)]
    ends = [*starts[1:], None]
    rows: list[list[str]] = []
    heads = 0
    for line in body.splitlines():
        line = line.removeprefix(indent)
        if line == rule:
            heads = len(rows)
            continue
        cells = [line[start:end].strip() for start, end in zip(starts, ends, strict=True)]
        if rows and not cells[0]:
            rows[-1] = [f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)]
        else:
            rows.append(cells)
    if not heads:
        rows.insert(0, [""] * len(starts))
    rows.insert(1, ["---"] * len(starts))
    return "\n".join(f"{indent}| {' | '.join(row)} |" for row in rows)
