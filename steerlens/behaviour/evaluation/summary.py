"""From responses to rates: intervals on every rate, tests on every difference.

`summarise` takes the rows of ``responses.jsonl`` and gives plain data:

* ``conditions``: for each condition, over all prompts and by instruction: n, strict and loose rate
  with Wilson intervals, the rate of responses that pass loosely and are not degenerate (``clean``),
  median judge perplexity, share of degenerate responses, median length;
* ``differences``: steered − unsteered conditions over the same prompts: difference of loose, clean
  and degenerate rates with Newcombe's intervals, exact McNemar p of the loose ones and the
  same after Holm's correction over all differences, ratio of median perplexities.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from steerlens.behaviour.evaluation.conditions import CONDITIONS, UNSTEERED
from steerlens.stats.rates import (
    Interval,
    holm,
    mcnemar_exact,
    median_ratio_bootstrap,
    paired_difference,
    wilson,
)

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
    frame = frame.astype(dict.fromkeys(("strict", "loose", "degenerate"), bool))
    # A pass that counts even for those to whom a loop is no answer.
    frame["clean"] = frame["loose"] & ~frame["degenerate"]
    frame["judge_perplexity"] = pd.to_numeric(frame["judge_perplexity"])
    frame["instructions"] = frame["instruction_id_list"].map(" + ".join)
    by_condition = dict(list(frame.groupby("condition")))
    present = {name: by_condition[name] for name in CONDITIONS if name in by_condition}
    differences = [
        _difference(name, other, present[name], present[other], seed)
        for name, other in COMPARISONS
        if name in present and other in present
        if set(present[name]["row"]) & set(present[other]["row"])
    ]
    adjusted = holm([difference["p"] for difference in differences])
    return {
        "conditions": {
            name: {
                "all": _rates(rows),
                "instructions": {
                    str(asked): _rates(part) for asked, part in rows.groupby("instructions")
                },
            }
            for name, rows in present.items()
        },
        "differences": [{**one, "p_holm": p} for one, p in zip(differences, adjusted, strict=True)],
    }


def _rates(rows: pd.DataFrame) -> dict[str, Any]:
    n = len(rows)
    rates = {
        kind: _with_ends("rate", wilson(int(rows[kind].sum()), n))
        for kind in ("strict", "loose", "degenerate", "clean")
    }
    perplexity = rows["judge_perplexity"].median()
    return {
        "n": n,
        **rates,
        "median_perplexity": None if pd.isna(perplexity) else float(perplexity),
        "median_words": float(rows["n_words"].median()),
    }


def _difference(
    name: str, other: str, rows: pd.DataFrame, others: pd.DataFrame, seed: int
) -> dict[str, Any]:
    """One condition minus another, over the prompts both have."""
    both = rows.merge(others, on="row", suffixes=("", "_other")).sort_values("row")
    sides = {
        kind: (both[kind].tolist(), both[f"{kind}_other"].tolist())
        for kind in ("loose", "clean", "degenerate")
    }
    known = both.dropna(subset=["judge_perplexity", "judge_perplexity_other"])
    perplexities = known["judge_perplexity"].tolist(), known["judge_perplexity_other"].tolist()
    ratio = median_ratio_bootstrap(*perplexities, seed=seed)
    return {
        "condition": name,
        "minus": other,
        "n": len(both),
        **{
            kind: _with_ends("difference", paired_difference(*side)) for kind, side in sides.items()
        },
        "perplexity_ratio": None if ratio is None else _with_ends("ratio", ratio),
        "p": mcnemar_exact(*sides["loose"]),
    }


def _with_ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, "low": interval.low, "high": interval.high}
