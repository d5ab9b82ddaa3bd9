"""Several instructions at once: their rates together, beside each alone on the same queries."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analyses import behaviour
from steerlens.behaviour.evaluation import EvaluationPrompt
from steerlens.behaviour.evaluation.run import Evaluation
from steerlens.behaviour.plans import Plan
from steerlens.stats.rates import wilson
from steerlens.tasks import Task
from steerlens.tasks.task_files import unique_tasks

__all__ = ["claims", "one_by_one", "plan_of", "table"]

_STEERED = "uninstructed+steering"


def plan_of(model: Any, combinations: Sequence[Sequence[Task | str]]) -> Plan:
    """The plan of the notebook on format, with those searched for the other tasks."""
    tasks = unique_tasks(task for combination in combinations for task in combination)
    plans = [behaviour.planned(model, behaviour.FORMAT, "format")]
    for name, task in tasks.items():
        if name not in behaviour.FORMAT:
            plans.append(behaviour.planned(model, [task], name.replace(":", "-")))
    return behaviour.joined(*plans)


def one_by_one(prompts: Sequence[EvaluationPrompt]) -> list[EvaluationPrompt]:
    """Each instruction of each prompt alone, after the same query, with the same arguments.

    The instructed text stays that of both: only conditions without it are compared.
    """
    return [
        replace(
            prompt,
            key=f"{prompt.key}|{place}",
            row="",
            instruction_ids=(name,),
            kwargs=(kwargs,),
        )
        for prompt in prompts
        for place, (name, kwargs) in enumerate(
            zip(prompt.instruction_ids, prompt.kwargs, strict=True)
        )
    ]


def table(both: Evaluation, alone: Evaluation) -> pd.DataFrame:
    """A row a combination: each alone, each in company, all, and the product of rates alone."""
    together = [one for one in both.responses if one["condition"] == _STEERED]
    single = {
        one["key"]: bool(one["loose"]) for one in alone.responses if one["condition"] == _STEERED
    }
    rows = []
    for names in dict.fromkeys(tuple(one["instruction_id_list"]) for one in together):
        own = [one for one in together if tuple(one["instruction_id_list"]) == names]
        n = len(own)
        lonely = np.array([[single[f"{one['key']}|{i}"] for i in range(len(names))] for one in own])
        company = np.array([one["loose_each"] for one in own], dtype=bool)
        loops = np.array([bool(one["degenerate"]) for one in own])
        clean = company.all(axis=1) & ~loops
        rows.append(
            {
                "combination": " + ".join(names),
                "n": n,
                **{
                    f"{label} {i + 1}": behaviour.rate(wilson(int(found[:, i].sum()), n))
                    for label, found in (("alone", lonely), ("in company", company))
                    for i in range(len(names))
                },
                "all": behaviour.rate(wilson(int(company.all(axis=1).sum()), n)),
                "all, no loop": behaviour.rate(wilson(int(clean.sum()), n)),
                "degenerate": float(loops.mean()),
                **_kept(lonely, company),
            }
        )
    return pd.DataFrame(rows).set_index("combination")


def _kept(lonely: np.ndarray, company: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Rate of all together over the product of single rates, resampling prompts."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(lonely), size=(2000, len(lonely)))

    all_followed = np.asarray(company.all(axis=1))

    def share(index: np.ndarray) -> np.ndarray:
        product = lonely[index].mean(axis=-2).prod(axis=-1)
        found = all_followed[index].mean(axis=-1)
        kept: np.ndarray = np.divide(
            found, product, out=np.full_like(product, np.nan), where=product > 0
        )
        return kept

    ratios = share(draws)
    known = ratios[np.isfinite(ratios)]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    everything = np.arange(len(lonely))[None]
    return {"kept": float(share(everything)[0]), "kept_low": float(low), "kept_high": float(high)}


def claims(found: pd.DataFrame, both: Evaluation) -> list[tuple[str, str, str, str]]:
    """Rows of the table of verdicts."""
    model = both.summary["model"]["reference"]
    rows = [
        behaviour.claim(
            "several instructions can be steered at once",
            both,
            _STEERED,
            "uninstructed",
            "report split, combinations of instructions",
        )
    ]
    for name, row in found.iterrows():
        kept = f"{row.kept:.2f} [{row.kept_low:.2f}, {row.kept_high:.2f}]"
        verdict = "nothing to lose" if np.isnan(row.kept) else "yes" if row.kept >= 0.8 else "no"
        rows.append(
            (
                f"{name}: at least 80 % of the product of single rates",
                f"kept {kept}",
                f"{model}, report split, {row.n} prompts",
                verdict,
            )
        )
    return rows
