"""Several steerings at once: added, met jointly at one layer, or each at its own place.

Everything is chosen on queries of the ``select`` split and counted on queries of the ``report``
split; all instructions of a combination are checked on the same response.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

import steerlens as sl
from analyses import behaviour
from steerlens.behaviour.answers import Answerer, Question
from steerlens.behaviour.plans import FitRecipe, VectorBook
from steerlens.models.loading import model_info
from steerlens.runs import Run
from steerlens.stats.rates import wilson
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.tasks.task_files import unique_tasks
from steerlens.vectors import SteeringVector
from steerlens.vectors.composition import joint_projection

__all__ = ["COMBINATIONS", "METHODS", "Part", "claims", "composed", "table"]

_TITLE, _LOWER = "detectable_format:title", "change_case:english_lowercase"
_GERMAN, _HIGHLIGHTS = (
    "language:response_language_de",
    "detectable_format:number_highlighted_sections",
)
# Which estimator's vector moves it, and the arguments of its check.
_VECTORS = {
    _TITLE: ("last_prompt", {}),
    _LOWER: ("response_rewrite", {}),
    _GERMAN: ("last_prompt", {}),
    _HIGHLIGHTS: ("last_prompt", {"num_highlights": 1}),
}
COMBINATIONS = [
    (_TITLE, _LOWER),
    (_TITLE, _GERMAN),
    (_TITLE, _HIGHLIGHTS),
    (_LOWER, _HIGHLIGHTS),
    (_GERMAN, _HIGHLIGHTS),
    (_TITLE, _LOWER, _HIGHLIGHTS),
    (_TITLE, _GERMAN, _HIGHLIGHTS),
]
METHODS = (
    "added at one layer",
    "jointly at one layer",
    "each at its own layer",
    "each at its own layer and tokens",
)
_SCOPES = ("prompt", "response", "all")
_LAYERS: Sequence[int] = (18, 20, 22, 24, 26, 28)
_STRENGTHS: Sequence[float] = (1.0, 2.0)
_BALANCES: Sequence[float] = (1.0, 1.5)
_N_SELECT, _N_REPORT, _N_TOKENS = 16, 48, 96
if behaviour.SMALL:
    COMBINATIONS, _LAYERS, _STRENGTHS, _BALANCES = COMBINATIONS[:1], (20, 24), (1.0,), (1.0,)
    _N_SELECT, _N_REPORT, _N_TOKENS = 2, 2, 8


@dataclass(frozen=True)
class Part:
    """A setting to ask about: what it steers, how, and the steering itself."""

    instructions: tuple[str, ...]
    method: str
    setting: str
    steering: Steering | None

    def label(self) -> dict[str, Any]:
        """What decides its answers."""
        return {
            "instructions": list(self.instructions),
            "method": self.method,
            "setting": self.setting,
            "steering": repr(self.steering),
        }


def composed(
    model: Any,
    combinations: Sequence[Sequence[Task | str]] = COMBINATIONS,
    name: str = "composition",
) -> pd.DataFrame:
    """Answers under the chosen settings, steered one by one and together.

    Queries are those of the first task. The run is kept, and resumed, as `name`.

    Returns:
        One row a response: ``split``, ``combination`` (names joined by ``+``), ``method``,
        ``setting``, ``prompt``, ``degenerate``, and ``passed``, a verdict an instruction.
    """
    info = model_info(model)
    tasks = unique_tasks(itertools.chain(*combinations))
    together = [tuple(unique_tasks(combination)) for combination in combinations]
    own = {key: task.hash for key, task in tasks.items() if behaviour.definition(task)}
    settings = {
        "model": info.weights_hash,
        "dtype": info.dtype,
        "combinations": [list(one) for one in together],
        **({"tasks": own} if own else {}),
        "layers": _LAYERS,
        "strengths": _STRENGTHS,
        "balances": _BALANCES,
        "sizes": [_N_SELECT, _N_REPORT, _N_TOKENS],
    }
    folder = behaviour.run_folder(name)
    with Run.open(folder, kind="analysis", settings=settings, resume=folder.exists()) as run:
        answerer = Answerer(model, run)
        book = VectorBook(answerer, FitRecipe(n_pairs=4) if behaviour.SMALL else FitRecipe())
        vectors = {key: book.vector(task, *_wanted(key)) for key, task in tasks.items()}
        placebos = {key: book.placebo(task, *_wanted(key)) for key, task in tasks.items()}
        chosen: list[Part] = []
        alone: dict[str, Part] = {}
        places: dict[str, list[Part]] = {}
        for key in tqdm(tasks, desc="each alone", unit="task"):
            by_scope = [_one(key, vectors[key], scope) for scope in _SCOPES]
            places[key] = [_best(answerer, tasks, tried) for tried in by_scope]
            alone[key] = _best(answerer, tasks, places[key])
        chosen += alone.values()
        for combination in tqdm(together, desc="together", unit="combination"):
            for method in METHODS:
                tried = _several(combination, method, vectors, alone, places)
                chosen.append(_best(answerer, tasks, tried))
            chosen += _references(combination, placebos, alone)
        splits = (("select", _N_SELECT), ("report", _N_REPORT))
        return pd.concat(
            [
                _answered(answerer, tasks, chosen, split, n).assign(split=split)
                for split, n in splits
            ]
        )


def table(found: pd.DataFrame) -> pd.DataFrame:
    """A row a combination and method: rate of all, of each, the product of rates alone, kept."""
    reported = found[found.split == "report"]
    alone = {
        str(name): np.array([one[0] for one in own.passed])
        for name, own in reported[reported.method == "alone"].groupby("combination")
    }
    selected = {
        (one.combination, one.method): float(one.every)
        for one in found[found.split == "select"]
        .assign(every=lambda frame: frame.passed.map(all))
        .groupby(["combination", "method"], as_index=False)
        .every.mean()
        .itertuples()
    }
    rows = []
    together = reported[reported.method != "alone"]
    for (combination, method), own in together.groupby(["combination", "method"], sort=False):
        passed = np.array(own.passed.tolist(), dtype=bool)
        lonely = np.stack([alone[name] for name in str(combination).split("+")], axis=1)
        every = wilson(int(passed.all(axis=1).sum()), len(passed))
        clean = passed.all(axis=1) & ~own.degenerate.to_numpy(dtype=bool)
        rows.append(
            {
                "combination": " + ".join(one.split(":")[1] for one in str(combination).split("+")),
                "method": method,
                "setting": own.setting.iloc[0],
                "on select": selected[combination, method],
                "n": len(passed),
                "all": behaviour.rate(every),
                "all, no loop": behaviour.rate(wilson(int(clean.sum()), len(passed))),
                "each": ", ".join(f"{one:.0%}" for one in passed.mean(axis=0)),
                "alone": ", ".join(f"{one:.0%}" for one in lonely.mean(axis=0)),
                "product": float(lonely.mean(axis=0).prod()),
                **_kept(lonely, passed),
            }
        )
    return pd.DataFrame(rows).set_index(["combination", "method"])


def claims(rates: pd.DataFrame, model: Any) -> list[tuple[str, str, str, str]]:
    """Rows of the table of verdicts: of each combination the method best on the select split."""
    where = f"{model_info(model).reference}, report split"
    steered = rates[rates.index.get_level_values("method").isin(METHODS)]
    rows = []
    for combination, own in steered.groupby(level="combination", sort=False):
        best = own.reset_index().iloc[int(own["on select"].to_numpy().argmax())]
        reached = "nothing to lose" if np.isnan(best.kept) else "no"
        if best.kept >= 0.8:
            reached = "yes" if best.kept_low >= 0.8 else "reached, interval open"
        rows.append(
            (
                f"{combination}: at least 80 % of the product of single rates",
                f"{best['method']}: all {best['all']}, kept {best.kept:.2f} "
                f"[{best.kept_low:.2f}, {best.kept_high:.2f}]",
                f"{where}, {best.n} prompts",
                reached,
            )
        )
    return rows


def _wanted(name: str) -> tuple[dict[str, Any], str]:
    estimator, kwargs = _VECTORS.get(name, ("last_prompt", {}))
    return dict(kwargs), estimator


def _one(name: str, vector: SteeringVector, scope: str) -> list[Part]:
    """``set_projection`` on these tokens, over layers and strengths."""
    return [
        Part(
            (name,),
            "alone",
            f"layer {layer}, ×{strength:g}, {scope}",
            vector.at(layer, strength=strength, scope=scope),
        )
        for layer in _LAYERS
        for strength in _STRENGTHS
    ]


def _several(
    names: tuple[str, ...],
    method: str,
    vectors: dict[str, SteeringVector],
    alone: dict[str, Part],
    places: dict[str, list[Part]],
) -> list[Part]:
    """What is tried: layers and strengths; balances of the single settings; or their tokens."""
    if method == "each at its own layer and tokens":
        return [
            Part(
                names,
                method,
                "; ".join(one.setting for one in some),
                _added([one.steering for one in some if one.steering is not None]),
            )
            for some in itertools.product(*(places[name] for name in names))
        ]
    if method == "each at its own layer":
        return [
            Part(names, method, f"strengths × {balance}", _sum(names, alone, balance))
            for balance in itertools.product(_BALANCES, repeat=len(names))
        ]
    tried = []
    for layer, strength in itertools.product(_LAYERS, _STRENGTHS):
        if method == "jointly at one layer":
            parts = [vectors[name].at(layer) for name in names]
            steering = joint_projection(parts).scaled(strength)
        else:
            steering = _added([vectors[name].at(layer, "add", strength) for name in names])
        tried.append(Part(names, method, f"layer {layer}, ×{strength:g}", steering))
    return tried


def _sum(names: Sequence[str], alone: dict[str, Part], balance: Sequence[float]) -> Steering:
    """The single settings together, each at a multiple of its strength."""
    return _added(
        [alone[name].steering.scaled(b) for name, b in zip(names, balance, strict=True)]  # type: ignore[union-attr]
    )


def _added(steerings: Sequence[Steering]) -> Steering:
    return Steering(tuple(one for part in steerings for one in part.interventions))


def _references(
    names: tuple[str, ...], placebos: dict[str, SteeringVector], alone: dict[str, Part]
) -> list[Part]:
    """No steering, and random directions at the single settings."""
    random = []
    for name in names:
        (one,) = alone[name].steering.interventions  # type: ignore[union-attr]
        random.append(placebos[name].at(one.layer, strength=one.strength, scope=one.scope))
    return [
        Part(names, "none", "", None),
        Part(names, "placebo", "as each at its own layer", _added(random)),
    ]


def _best(answerer: Answerer, tasks: Mapping[str, Task], tried: Sequence[Part]) -> Part:
    """Most responses of the select split that follow everything; then most parts; fewest loops."""
    found = _answered(answerer, tasks, tried, "select", _N_SELECT)

    def score(part: Part) -> tuple[float, float, float]:
        own = found[(found.method == part.method) & (found.setting == part.setting)]
        passed = np.array(own.passed.tolist(), dtype=bool)
        loops = own.degenerate.mean()
        return float(passed.all(axis=1).mean()), float(passed.mean()), -float(loops)

    return max(tried, key=score)


def _answered(
    answerer: Answerer,
    tasks: Mapping[str, Task],
    parts: Sequence[Part],
    split: str,
    n_prompts: int,
) -> pd.DataFrame:
    pairs = sl.contrast_pairs(next(iter(tasks.values())), n=n_prompts, split=split)
    queries = [pair.uninstructed for pair in pairs]
    asked = [Question(query, part.steering, part.label()) for part in parts for query in queries]
    answers = iter(answerer.ask(asked, _N_TOKENS))
    rows = []
    for part in parts:
        for i, answer in zip(range(len(queries)), answers, strict=False):
            rows.append(
                {
                    "combination": "+".join(part.instructions),
                    "method": part.method,
                    "setting": part.setting,
                    "prompt": i,
                    "passed": tuple(
                        tasks[key].check(answer.text, loose=True, **_wanted(key)[0])
                        for key in part.instructions
                    ),
                    "degenerate": is_degenerate(fluency(answer.text)),
                }
            )
    return pd.DataFrame(rows)


def _kept(lonely: np.ndarray, together: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Rate of all over the product of rates alone, resampling prompts."""
    every = np.asarray(together.all(axis=1))
    draws = np.random.default_rng(seed).integers(len(lonely), size=(4000, len(lonely)))
    draws = np.concatenate([np.arange(len(lonely))[None], draws])
    product = lonely[draws].mean(axis=1).prod(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = every[draws].mean(axis=1) / product
    known = ratios[1:][np.isfinite(ratios[1:])]
    low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
    return {"kept": float(ratios[0]), "kept_low": float(low), "kept_high": float(high)}
