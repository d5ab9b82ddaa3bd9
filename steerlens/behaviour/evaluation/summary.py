"""From responses to rates: intervals on every rate, tests on every difference.

`summarise` takes the rows of ``responses.jsonl`` and gives plain data:

* ``conditions``: for each condition, over all prompts and by instruction: n, strict and loose rate
  with Wilson intervals, the rate of responses that pass loosely and are not degenerate (``clean``),
  median judge perplexity, share of degenerate responses, median length;
* ``differences``: steered − unsteered conditions over the same prompts: difference of loose, clean
  and degenerate rates with Newcombe's intervals, exact McNemar p of the loose ones and the
  same after Holm's correction over all differences, ratio of median perplexities.

Rows of tasks without a check (``measure`` is not "rate") have no rates of passing (None). Under
steering and placebo they have ``effects``: causal recovery, or the change of log odds, with its
95 % interval over base queries.

Several samples of a prompt count as one prompt (`steerlens.stats.rates`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from steerlens.behaviour.evaluation.conditions import CONDITIONS, UNSTEERED
from steerlens.behaviour.unchecked import Effects
from steerlens.models.conversations import users_text
from steerlens.stats.rates import (
    Interval,
    holm,
    mcnemar_exact,
    median_ratio_bootstrap,
    paired_difference,
    score_interval,
)
from steerlens.tasks.duplicates import near_duplicates

__all__ = ["COMPARISONS", "summarise"]

# Each condition with the one it is compared with; steering is also compared with prompting.
COMPARISONS = (*UNSTEERED.items(), ("uninstructed+steering", "instructed"))


def summarise(records: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
    """Rates and differences of evaluated responses.

    Args:
        records: Rows of ``responses.jsonl``.
        seed: Seed of the bootstrap.
    """
    frame = pd.DataFrame(list(records))
    if "measure" not in frame:
        frame["measure"] = "rate"
    if "sample" not in frame:
        frame["sample"] = 0
    frame = frame.astype(dict.fromkeys(("strict", "loose", "degenerate"), bool))
    # A pass that counts even for those to whom a loop is no answer.
    frame["clean"] = frame["loose"] & ~frame["degenerate"]
    frame["judge_perplexity"] = pd.to_numeric(frame["judge_perplexity"])
    frame["instructions"] = frame["instruction_id_list"].map(" + ".join)
    present = _by_condition(frame)
    counted = _by_condition(frame[frame["measure"] == "rate"])
    differences = [
        _difference(name, other, counted[name], counted[other], seed)
        for name, other in COMPARISONS
        if name in counted and other in counted
        if set(counted[name]["row"]) & set(counted[other]["row"])
    ]
    unsteered = present.get("uninstructed")
    adjusted = holm([difference["p"] for difference in differences])
    return {
        "conditions": {
            name: {
                "all": _rates(rows, unsteered),
                "instructions": {
                    str(asked): _rates(part, unsteered)
                    for asked, part in rows.groupby("instructions")
                },
            }
            for name, rows in present.items()
        },
        "differences": [{**one, "p_holm": p} for one, p in zip(differences, adjusted, strict=True)],
    }


def _by_condition(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    groups = dict(list(frame.groupby("condition")))
    return {name: groups[name] for name in CONDITIONS if name in groups}


def _rates(rows: pd.DataFrame, unsteered: pd.DataFrame | None) -> dict[str, Any]:
    checked = rows[rows["measure"] == "rate"]
    rates: dict[str, Any] = {
        kind: _rate(some, kind) if len(some) else None
        for kind, some in (
            ("strict", checked),
            ("loose", checked),
            ("degenerate", rows),
            ("clean", checked),
        )
    }
    effects = _effects(rows, unsteered)
    perplexity = rows["judge_perplexity"].median()
    return {
        "n": int(rows["row"].nunique()),
        **rates,
        **({"effects": effects} if effects else {}),
        "median_perplexity": None if pd.isna(perplexity) else float(perplexity),
        "median_words": float(rows["n_words"].median()),
    }


def _rate(rows: pd.DataFrame, kind: str) -> dict[str, float]:
    """A mean over prompts, which all have the same number of samples."""
    interval = score_interval(float(rows[kind].mean()), int(rows["row"].nunique()))
    return _with_ends("rate", interval)


def _effects(rows: pd.DataFrame, unsteered: pd.DataFrame | None) -> dict[str, Any]:
    """What steered rows without a check gain over the unsteered ones, by measure."""
    effects: dict[str, Any] = {}
    if unsteered is None or not str(rows["condition"].iloc[0]).startswith("uninstructed+"):
        return effects
    # They are measured on prompts, whatever the samples.
    first = rows[(rows["measure"] != "rate") & (rows["sample"] == 0)]
    for measure, some in first.groupby("measure"):
        unsteered_first = unsteered[unsteered["sample"] == 0]
        both = some.merge(unsteered_first, on="row", suffixes=("", "_unsteered"))
        measured = Effects(
            str(measure),
            both["measured_unsteered"].to_numpy(float),
            both["measured"].to_numpy(float)[None],
            np.zeros(1),
        )
        queries = near_duplicates([users_text(asked) for asked in both["prompt_unsteered"]])
        interval = measured.interval(0, queries)
        low, high = (end if np.isfinite(end) else None for end in (interval.low, interval.high))
        effects[str(measure)] = {
            "value": interval.value, "low": low, "high": high, "n": len(both),
        }  # fmt: skip
    return effects


def _difference(
    name: str, other: str, rows: pd.DataFrame, others: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """One condition minus another, over the prompts both have."""
    key = ["row", "sample"]
    both = rows.merge(others, on=key, suffixes=("", "_other")).sort_values(key)
    n = int(both["row"].nunique())
    samples = len(both) // n
    sides = {
        kind: (both[kind].tolist(), both[f"{kind}_other"].tolist())
        for kind in ("loose", "clean", "degenerate")
    }
    columns = ["judge_perplexity", "judge_perplexity_other"]
    known = both.dropna(subset=columns).groupby("row")[columns].median()
    perplexities, of_other = (known[name].tolist() for name in columns)
    ratio = median_ratio_bootstrap(perplexities, of_other, seed=seed)
    return {
        "condition": name,
        "minus": other,
        "n": n,
        **{
            kind: _with_ends("difference", paired_difference(*side, samples))
            for kind, side in sides.items()
        },
        "perplexity_ratio": None if ratio is None else _with_ends("ratio", ratio),
        "p": mcnemar_exact(*sides["loose"], samples),
    }


def _with_ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high}
