r"""What trained directions do to the catalogue's tasks, with their settings chosen on ``select``.

    python -m analyses.trained [TASK ...]

For each task a quick search (`steerlens.behaviour.search.SearchSettings.quick`) over directions
that were trained to comply (for tasks that need longer answers than are trained on, over
differences of means), decoded with a repetition penalty of 1.1; then, once, prompts of the
``report`` split under all five conditions, greedily. Then how many answers are about their question
(`steerlens.behaviour.relevance`), what each setting does to plain text and common questions
(`steerlens.side_effects`), several instructions at once, and, where ``STEERLENS_DATA`` names the
folder, IFEval's prompts with one format instruction, greedily and with the penalty.
A degenerate answer is a failure. Plans and answers are kept among the runs, in ``trained``, and a
killed run goes on from them; several processes may take different tasks. The tables go to standard
output as Markdown.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

import steerlens as sl
from analyses import behaviour, together
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import Evaluation, catalogue_prompts, several
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.evaluation.summary import summarise
from steerlens.behaviour.plans import Plan, VectorBook
from steerlens.behaviour.relevance import relevance
from steerlens.behaviour.search import SearchSettings
from steerlens.stats.rates import paired_difference, wilson

TASKS = tuple(sl.catalogue)
# Training takes answers of 64 tokens; a task that needs longer ones has means.
_LONG = 100
CONDITIONS = (
    "uninstructed",
    "uninstructed+placebo",
    "instructed",
    "uninstructed+steering",
    "instructed+steering",
)
# Whose answers are asked what they are about.
READ = ("uninstructed", "instructed", "uninstructed+steering")
TITLE, LOWER = "detectable_format:title", "change_case:english_lowercase"
NO_COMMA, BRIEF = "punctuation:no_comma", "length:extremely_brief"
# Those of `analyses/06-several-instructions.py`.
COMBINATIONS = (
    (TITLE, LOWER),
    (TITLE, NO_COMMA),
    (LOWER, NO_COMMA),
    (TITLE, LOWER, NO_COMMA),
    (TITLE, BRIEF),
)
DECODINGS = {"penalty": sl.Decoding(repetition_penalty=1.1), "greedy": sl.Decoding()}
N_PROMPTS, N_TOKENS = 16, 256


def plan_for(model: Any, task: str) -> Plan:
    """The task's plan, searched where there is none yet."""
    folder = behaviour.run_folder("trained") / task.replace(":", "_")
    if (folder / "plan.json").exists():
        return Plan.load(folder)
    settings = SearchSettings.quick(decoding=DECODINGS["penalty"])
    drawn = sl.contrast_pairs(task, n=8, split="select")
    if max(sl.catalogue[task].tokens_to_tell(pair.kwargs) or 0 for pair in drawn) <= _LONG:
        recipe = replace(settings.recipe, estimators=("trained_comply",))
        settings = replace(settings, recipe=recipe)
    return sl.search(model, [task], folder, settings, resume=folder.exists())


def evaluated(model: Any, prompts: Any, name: str, plan: Plan, decoding: str) -> Evaluation:
    """Prompts under every condition."""
    folder = behaviour.run_folder("trained") / f"{name}-{decoding}"
    settings = EvaluationSettings(
        max_new_tokens=N_TOKENS, decoding=DECODINGS[decoding], skip_unknown=True
    )
    return sl.evaluate(model, prompts, folder, plan, settings, resume=folder.exists())


def table(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Clean passes of each task and of all under every condition, loops, and median words."""
    conditions = summarise(rows)["conditions"]
    print(f"\n{title}\n\n| task | {' | '.join(CONDITIONS)} | loops, steered | words |")
    print(f"|---|{'---:|' * (len(CONDITIONS) + 2)}")
    for name in ("all", *conditions["uninstructed"]["instructions"]):
        rates = {
            condition: record["all"] if name == "all" else record["instructions"][name]
            for condition, record in conditions.items()
        }
        cells = [behaviour.percent(rates[condition]["clean"]) for condition in CONDITIONS]
        cells.append(behaviour.percent(rates["uninstructed+steering"]["degenerate"]))
        words = pd.DataFrame([row for row in rows if name in ("all", *row["instruction_id_list"])])
        median = words.groupby("condition")["n_words"].median()
        cells.append(f"{median['uninstructed']:.0f} → {median['uninstructed+steering']:.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


def clean(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[bool]]:
    """By condition, which answers pass and do not loop."""
    passes: dict[str, list[bool]] = {condition: [] for condition in CONDITIONS}
    for row in rows:
        passes[row["condition"]].append(bool(row["loose"]) and not row["degenerate"])
    return passes


def moved(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tasks that steering moves by 25 points over unsteered, with the interval above 0."""
    found = []
    for name in dict.fromkeys(" + ".join(row["instruction_id_list"]) for row in rows):
        passes = clean([row for row in rows if " + ".join(row["instruction_id_list"]) == name])
        gain = paired_difference(passes["uninstructed+steering"], passes["uninstructed"])
        if gain.value >= 0.25 and gain.low > 0:
            found.append(name)
    return found


def differences(rows: Sequence[Mapping[str, Any]]) -> None:
    """Clean passes and loops of one condition minus another."""
    passes = clean(rows)
    loops: dict[str, list[bool]] = {condition: [] for condition in CONDITIONS}
    for row in rows:
        loops[row["condition"]].append(bool(row["degenerate"]))
    for what, by_condition in (("clean passes", passes), ("loops", loops)):
        for condition, other in (
            ("uninstructed+steering", "uninstructed"),
            ("uninstructed+steering", "uninstructed+placebo"),
            ("uninstructed+steering", "instructed"),
            ("instructed+steering", "instructed"),
        ):
            gain = paired_difference(by_condition[condition], by_condition[other])
            print(f"{what}: {condition} − {other}: {behaviour.rate(gain)}")


def topics(model: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """How many answers are about their question, by condition."""
    queries = {row["key"]: row["prompt"] for row in rows if row["condition"] == "uninstructed"}
    rows = [row for row in rows if row["condition"] in READ]
    scored = relevance(
        model,
        [queries[row["key"]] for row in rows],
        [row["response"] for row in rows],
        n_others=3,
        max_tokens=32,
    ).table
    frame = pd.concat([pd.DataFrame(list(rows)), scored["on_topic"]], axis=1)
    frame["task"] = frame["instruction_id_list"].map(" + ".join)
    frame["clean"] = frame["loose"].astype(bool) & ~frame["degenerate"].astype(bool)
    frame["good"] = frame["clean"] & frame["on_topic"]
    for column, title in (
        ("on_topic", "Answers about their question (by chance 25 %)"),
        ("good", "Answers that pass, do not loop, and are about their question"),
    ):
        print(f"\n{title}\n\n| task | {' | '.join(READ)} |\n|---|{'---:|' * len(READ)}")
        for name in ("all", *dict.fromkeys(frame["task"])):
            own = frame if name == "all" else frame[frame["task"] == name]
            counts = own.groupby("condition")[column].agg(["sum", "count"])
            cells = [behaviour.rate(wilson(*map(int, counts.loc[each]))) for each in READ]
            print(f"| {name} | {' | '.join(cells)} |")


def costs(model: Any, plan: Plan, tasks: Sequence[str]) -> None:
    """What each chosen setting does to plain text and to common questions."""
    book = VectorBook(Answerer(model))
    for (task, estimator), vector in plan.vectors.items():
        book.keep(task, estimator, vector)
    steerings: dict[str, Any] = {}
    placebos: dict[str, Any] = {}
    for task in tasks:
        candidate = plan.candidate(task, "uninstructed")
        # Settings for given words have a direction for each.
        if candidate and all((task, spec.estimator) in plan.vectors for spec in candidate):
            steerings[task] = book.steering(sl.catalogue[task], {}, candidate)
            placebos[task] = book.steering(sl.catalogue[task], {}, candidate, placebo=True)
    effects = sl.side_effects(model, steerings, placebos)
    print("\n" + effects.table.to_markdown(index=False, floatfmt=".2f"))


def at_once(model: Any, plan: Plan) -> None:
    """Several instructions at once, each at its own setting, beside each alone."""
    prompts = several(COMBINATIONS, N_PROMPTS)
    both = evaluated(model, prompts, "at-once", plan, "greedy")
    alone = evaluated(model, together.one_by_one(prompts), "one-by-one", plan, "greedy")
    print("\n" + together.table(both, alone).to_markdown(index=False, floatfmt=".2f"))


def main() -> None:
    """Search, evaluate, print."""
    tasks = sys.argv[1:] or TASKS
    model = sl.load_model(behaviour.MODEL, dtype="float32")
    plans = [plan_for(model, task) for task in tasks]
    rows: list[Mapping[str, Any]] = []
    for task, plan in zip(tasks, plans, strict=True):
        for context in ("uninstructed", "instructed"):
            print(f"{task} ({context}): {plan.described(task, context)}", flush=True)
        prompts = catalogue_prompts([task], N_PROMPTS)
        name = f"report/{task.replace(':', '_')}"
        rows += evaluated(model, prompts, name, plan, "greedy").responses
    table(rows, f"Report split, greedy, {N_TOKENS} tokens")
    names = moved(rows)
    print(f"\nmoved by 25 points, interval above 0: {len(names)} of {len(tasks)}: {names}\n")
    differences(rows)
    topics(model, rows)
    whole = behaviour.joined(*plans)
    costs(model, whole, tasks)
    if {task for combination in COMBINATIONS for task in combination} <= set(tasks):
        at_once(model, whole)
    given = behaviour.given_prompts("ifeval_single_format.jsonl")
    for decoding in DECODINGS if given is not None else ():
        result = evaluated(model, given, "ifeval", whole, decoding)
        table(result.responses, f"IFEval's prompts with one of these instructions, {decoding}")
        differences(result.responses)


if __name__ == "__main__":
    main()
