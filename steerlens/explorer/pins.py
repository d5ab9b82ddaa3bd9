"""Pinned trials side by side: what each wrote, token by token, in shades that can be compared.

All strips share one limit, that of the strongest change among them, so that a darker token is a
stronger change whichever pin it is in. Text of the model is escaped; nothing runs.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steerlens.effects.run import SteeredRun
from steerlens.explorer.trials import Setting
from steerlens.views.numbers import show
from steerlens.views.tokens import strip_css, strip_legend, strip_limit, token_strip

__all__ = ["Pin", "pins_table"]

_CELL = "vertical-align:top;text-align:start;padding:.3em .8em .3em 0"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"


@dataclass(frozen=True)
class Pin:
    """A setting kept with what it gave.

    Attributes:
        setting: How the model was steered.
        asked: The question in words.
        baseline: The unsteered response.
        steered: The steered response.
        tokens: Rows of `TokenEffects.table`, those of the steered response.
        parts_at: The first of them that the baseline does not have; ``None`` where there is none.
        mean_kl: `TokenEffects.mean_kl`; ``None`` where it is not known.
    """

    setting: Setting
    asked: str
    baseline: str
    steered: str
    tokens: tuple[dict[str, Any], ...] = ()
    parts_at: int | None = None
    mean_kl: float | None = None

    @classmethod
    def of(cls, setting: Setting, asked: str, run: SteeredRun) -> "Pin":
        """The setting with what its run gave."""
        table = run.effects.table
        rows = table[table["role"] == "response"].to_dict("records")
        tokens = tuple({str(name): value for name, value in row.items()} for row in rows)
        texts = (run.baseline, run.steered)
        return cls(setting, asked, *texts, tokens, run.parts_at, run.effects.mean_kl)


def pins_table(pins: Sequence[Pin]) -> str:
    """One row per pin: its setting, its baseline, and its steered response as a strip of KL."""
    if not pins:
        return ""
    limit = max(strip_limit(pin.tokens) for pin in pins)
    head = "".join(f'<th style="{_CELL}">{name}</th>' for name in ("pin", "baseline", "steered"))
    rows = "".join(_row(number, pin, limit) for number, pin in enumerate(pins, 1))
    legend = strip_legend(
        [token for pin in pins for token in pin.tokens],
        limit=limit,
        parting=any(pin.parts_at is not None for pin in pins),
    )
    return f"<style>{strip_css()}</style><table><tr>{head}</tr>{rows}</table>{legend}"


def _row(number: int, pin: Pin, limit: float) -> str:
    steered = token_strip(
        pin.tokens, limit=limit, parts_at=pin.parts_at, styled=False, legend=False
    )
    about = html.escape(f"{number}. {pin.setting.describe()}, {pin.asked}")
    if pin.mean_kl is not None:
        about += f"<br>mean KL over the response {show(pin.mean_kl, 3)} nats"
    return (
        f'<tr><td style="{_CELL};max-width:18em">{about}</td>'
        f'<td style="{_CELL};{_TEXT};max-width:24em" dir="auto">{html.escape(pin.baseline)}</td>'
        f'<td style="{_CELL};max-width:30em">{steered}</td></tr>'
    )
