"""From responses to rates: intervals on every rate, tests on every difference.

`summarise` takes the rows of ``responses.jsonl`` and gives plain data:

* ``conditions``: for each condition, over all prompts and by instruction: n, strict and loose rate
  with Wilson intervals, the rate of responses that pass loosely and are not degenerate (``clean``),
  median judge perplexity, share of degenerate responses, median length;
* ``differences``: steered − unsteered conditions over the same prompts: difference of loose and of
  clean rates with paired-bootstrap intervals, exact McNemar p of the loose ones and the same after
  Holm's correction over all differences, ratio of median perplexities, difference of degenerate
  shares.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.behaviour.evaluation.conditions import CONDITIONS, UNSTEERED
from steerlens.stats.rates import (
    holm,
    mcnemar_exact,
    median_ratio_bootstrap,
    paired_bootstrap,
    wilson,
)

__all__ = ["COMPARISONS", "summarise"]

# Each condition with the one it is compared with; steering is also compared with prompting.
COMPARISONS = (*UNSTEERED.items(), ("uninstructed+steering", "instructed"))

Record = Mapping[str, Any]


def summarise(records: Sequence[Record], seed: int = 0) -> dict[str, Any]:
    """Rates and differences of evaluated responses.

    Args:
        records: Rows of ``responses.jsonl``.
        seed: Seed of the bootstrap.
    """
    by_condition = {
        name: {record["row"]: record for record in records if record["condition"] == name}
        for name in CONDITIONS
    }
    present = {name: rows for name, rows in by_condition.items() if rows}
    differences = [
        _difference(name, other, present[name], present[other], seed)
        for name, other in COMPARISONS
        if name in present and other in present and set(present[name]) & set(present[other])
    ]
    adjusted = holm([one["p"] for one in differences])
    return {
        "conditions": {
            name: {
                "all": _rates(list(rows.values())),
                "instructions": {
                    instruction: _rates(own)
                    for instruction, own in _by_instruction(list(rows.values())).items()
                },
            }
            for name, rows in present.items()
        },
        "differences": [{**one, "p_holm": p} for one, p in zip(differences, adjusted, strict=True)],
    }


def _by_instruction(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(" + ".join(record["instruction_id_list"]), []).append(record)
    return dict(sorted(groups.items()))


def _rates(records: Sequence[Record]) -> dict[str, Any]:
    n = len(records)
    result: dict[str, Any] = {"n": n}
    for kind, verdicts in {
        **{kind: [bool(r[kind]) for r in records] for kind in ("strict", "loose", "degenerate")},
        "clean": [_clean(record) for record in records],
    }.items():
        interval = wilson(sum(verdicts), n)
        result[kind] = {"rate": interval.value, "low": interval.low, "high": interval.high}
    known = [r["judge_perplexity"] for r in records if r["judge_perplexity"] is not None]
    result["median_perplexity"] = statistics.median(known) if known else None
    result["median_words"] = statistics.median(record["n_words"] for record in records)
    return result


def _clean(record: Record) -> bool:
    """A pass that counts even for those to whom a loop is no answer."""
    return bool(record["loose"]) and not record["degenerate"]


def _difference(
    name: str, other: str, rows: Mapping[str, Record], others: Mapping[str, Record], seed: int
) -> dict[str, Any]:
    """One condition minus another, over the prompts both have."""
    shared = sorted(set(rows) & set(others))
    a, b = [rows[key] for key in shared], [others[key] for key in shared]
    passed = [[bool(record["loose"]) for record in side] for side in (a, b)]
    loops = [[float(record["degenerate"]) for record in side] for side in (a, b)]
    gain = paired_bootstrap([float(x) for x in passed[0]], [float(x) for x in passed[1]], seed=seed)
    clean = [[float(_clean(record)) for record in side] for side in (a, b)]
    kept = paired_bootstrap(clean[0], clean[1], seed=seed)
    cost = paired_bootstrap(loops[0], loops[1], seed=seed)
    ratio = median_ratio_bootstrap(
        [record["judge_perplexity"] for record in a],
        [record["judge_perplexity"] for record in b],
        seed=seed,
    )
    return {
        "condition": name,
        "minus": other,
        "n": len(shared),
        "loose": {"difference": gain.value, "low": gain.low, "high": gain.high},
        "clean": {"difference": kept.value, "low": kept.low, "high": kept.high},
        "degenerate": {"difference": cost.value, "low": cost.low, "high": cost.high},
        "perplexity_ratio": None
        if ratio is None
        else {"ratio": ratio.value, "low": ratio.low, "high": ratio.high},
        "p": mcnemar_exact(passed[0], passed[1]),
    }
