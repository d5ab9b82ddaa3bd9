r"""What trained directions do to the catalogue's tasks, with their settings chosen on ``select``.

    python -m analyses.trained [TASK ...]

For each task a quick search (`steerlens.behaviour.search.SearchSettings.quick`) over directions
that were trained to comply, at two layers and two strengths, decoded with a repetition penalty of
1.1; then, once, prompts of the ``report`` split under all five conditions, with the penalty and
greedily.
A degenerate answer is a failure. Plans and answers are kept among the runs, in ``trained``, and a
killed run goes on from them. The tables go to standard output as Markdown.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace

import steerlens as sl
from analyses import behaviour
from steerlens.behaviour.evaluation import Evaluation, catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.search import SearchSettings
from steerlens.stats.rates import paired_difference

TASKS = (
    "change_case:english_capital",
    "change_case:english_lowercase",
    "change_case:capital_word_frequency",
    "punctuation:no_comma",
    "detectable_format:json_format",
    "detectable_format:title",
    "startend:quotation",
    "detectable_format:number_bullet_lists",
    "detectable_format:number_highlighted_sections",
    "detectable_format:multiple_sections",
    "detectable_format:constrained_response",
    "startend:end_checker",
    "detectable_content:postscript",
    "detectable_content:number_placeholders",
    "combination:two_responses",
    "language:response_language_de",
    "language:response_language_fr",
    "language:response_language_es",
    "language:response_language_it",
    "length:extremely_brief",
    "length:brief",
)
CONDITIONS = (
    "uninstructed",
    "uninstructed+placebo",
    "instructed",
    "uninstructed+steering",
    "instructed+steering",
)
DECODINGS = {"penalty": sl.Decoding(repetition_penalty=1.1), "greedy": sl.Decoding()}
N_PROMPTS, N_TOKENS = 16, 128


def plan_for(model: object, task: str) -> Plan:
    """The task's plan, searched where there is none yet."""
    folder = behaviour.run_folder("trained") / task.replace(":", "_")
    if (folder / "plan.json").exists():
        return Plan.load(folder)
    settings = SearchSettings.quick(decoding=DECODINGS["penalty"])
    recipe = replace(settings.recipe, estimators=("trained_comply",))
    settings = replace(settings, recipe=recipe)
    return sl.search(model, [task], folder, settings, resume=folder.exists())  # type: ignore[arg-type]


def evaluated(model: object, plan: Plan, tasks: Sequence[str], decoding: str) -> Evaluation:
    """The tasks' prompts of the report split under every condition."""
    folder = behaviour.run_folder("trained") / f"report-{decoding}"
    settings = EvaluationSettings(max_new_tokens=N_TOKENS, decoding=DECODINGS[decoding])
    prompts = catalogue_prompts(tasks, N_PROMPTS)
    return sl.evaluate(model, prompts, folder, plan, settings, resume=folder.exists())  # type: ignore[arg-type]


def table(result: Evaluation, title: str) -> None:
    """Clean passes of each task and of all, and how much steering adds."""
    conditions = result.summary["conditions"]
    print(f"\n{title}\n\n| task | {' | '.join(CONDITIONS)} | loops, steered |")
    print(f"|---|{'---:|' * (len(CONDITIONS) + 1)}")
    for name in ("all", *conditions["uninstructed"]["instructions"]):
        cells = []
        for condition in CONDITIONS:
            record = conditions[condition]
            rates = record["all"] if name == "all" else record["instructions"][name]
            cells.append(behaviour.percent(rates["clean"]))
        cells.append(behaviour.percent(rates_of(conditions, "uninstructed+steering", name)))
        print(f"| {name} | {' | '.join(cells)} |")


def rates_of(conditions: dict, condition: str, name: str) -> dict:  # type: ignore[type-arg]
    """Share of degenerate answers."""
    record = conditions[condition]
    rates = record["all"] if name == "all" else record["instructions"][name]
    return dict(rates["degenerate"])


def moved(result: Evaluation) -> list[str]:
    """Tasks that steering moves by 25 points over unsteered, with the interval above 0."""
    clean: dict[str, dict[str, list[bool]]] = {}
    for row in result.responses:
        passes = bool(row["loose"]) and not row["degenerate"]
        task = clean.setdefault(" + ".join(row["instruction_id_list"]), {})
        task.setdefault(row["condition"], []).append(passes)
    found = []
    for name, by_condition in clean.items():
        gain = paired_difference(
            by_condition["uninstructed+steering"], by_condition["uninstructed"]
        )
        if gain.value >= 0.25 and gain.low > 0:
            found.append(name)
    return found


def main() -> None:
    """Search, evaluate, print."""
    tasks = sys.argv[1:] or TASKS
    model = sl.load_model(behaviour.MODEL, dtype="float32")
    plans = [plan_for(model, task) for task in tasks]
    plan = behaviour.joined(*plans)
    for task in tasks:
        for context in ("uninstructed", "instructed"):
            print(f"{task} ({context}): {plan.described(task, context)}")
    for decoding in DECODINGS:
        result = evaluated(model, plan, tasks, decoding)
        table(result, f"Report split, {decoding}")
        names = moved(result)
        print(f"\nmoved by 25 points, interval above 0: {len(names)} of {len(tasks)}: {names}")


if __name__ == "__main__":
    main()
