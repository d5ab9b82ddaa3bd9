"""Answers as a table: one row per prompt, one column per setting, the baseline first."""

import html
from collections.abc import Callable, Sequence

from steerlens.explorer.answers import Grid
from steerlens.views.tokens import AS_WRITTEN

__all__ = ["answers_table"]

_CELL = "vertical-align:top;text-align:start;padding:.3em 1em .3em 0"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"


def answers_table(
    prompts: Sequence[str],
    names: Sequence[str],
    texts: Grid,
    passes: Callable[[int, str], bool | None] = lambda column, text: None,
) -> str:
    """HTML in which all that was asked and answered is escaped.

    Args:
        prompts: What was asked; shown where there are several.
        names: Of the columns.
        texts: The answers.
        passes: What the check says of a text in a column, if there is one.
    """
    width = f"width:{100 // len(names)}%"
    head = "".join(
        f'<th scope="col" style="{_CELL};{width}">{html.escape(name)}</th>' for name in names
    )
    rows = []
    for prompt, columns in zip(prompts, texts, strict=True):
        if len(prompts) > 1:
            rows.append(
                f'<tr><th scope="rowgroup" colspan="{len(names)}" style="{_CELL};{_TEXT};'
                f'font-weight:400;opacity:.75" dir="auto">{html.escape(prompt)}</th></tr>'
            )
        cells = (
            "".join(
                _sample(i, len(samples), text, passes(j, text)) for i, text in enumerate(samples)
            )
            for j, samples in enumerate(columns)
        )
        rows.append(
            "<tr>" + "".join(f'<td style="{_CELL}">{cell}</td>' for cell in cells) + "</tr>"
        )
    return (
        f'<table class="steerlens-answers {AS_WRITTEN}" style="width:100%;table-layout:fixed">'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _sample(number: int, n_samples: int, text: str, passed: bool | None) -> str:
    about = [f"sample {number + 1}"] if n_samples > 1 else []
    about += [] if passed is None else ["passes the check" if passed else "fails the check"]
    heading = f'<div style="opacity:.75">{" · ".join(about)}</div>' if about else ""
    return f'{heading}<div dir="auto" style="{_TEXT}">{html.escape(text)}</div>'
