r"""What trained directions do to the catalogue's tasks, with their settings chosen on ``select``.

    python -m analyses.trained [TASK ...]

For each task a quick search (`steerlens.behaviour.search.SearchSettings.quick`) over directions
that were trained to comply, at two layers and two strengths, decoded with a repetition penalty of
1.1; then, once, prompts of the ``report`` split under all five conditions, with the penalty and
greedily. Then what each setting does to the perplexity of plain text, and, where
``STEERLENS_DATA`` names the folder, IFEval's prompts with one format instruction.
A degenerate answer is a failure. Plans and answers are kept among the runs, in ``trained``, and a
killed run goes on from them. The tables go to standard output as Markdown.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import steerlens as sl
from analyses import behaviour
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import Evaluation, catalogue_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.plans import Plan, VectorBook
from steerlens.behaviour.search import SearchSettings
from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.stats.queries import mean_interval
from steerlens.stats.rates import paired_difference

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
DECODINGS = {"penalty": sl.Decoding(repetition_penalty=1.1), "greedy": sl.Decoding()}
N_PROMPTS, N_TOKENS = 16, 128


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


def evaluated(
    model: Any, prompts: Any, name: str, plan: Plan, n_tokens: int, decoding: str
) -> Evaluation:
    """Prompts under every condition."""
    folder = behaviour.run_folder("trained") / f"{name}-{decoding}"
    settings = EvaluationSettings(
        max_new_tokens=n_tokens, decoding=DECODINGS[decoding], skip_unknown=True
    )
    return sl.evaluate(model, prompts, folder, plan, settings, resume=folder.exists())


def table(result: Evaluation, title: str) -> None:
    """Clean passes of each task and of all under every condition, and loops under steering."""
    conditions = result.summary["conditions"]
    print(f"\n{title}\n\n| task | {' | '.join(CONDITIONS)} | loops, steered |")
    print(f"|---|{'---:|' * (len(CONDITIONS) + 1)}")
    for name in ("all", *conditions["uninstructed"]["instructions"]):
        rates = {
            condition: record["all"] if name == "all" else record["instructions"][name]
            for condition, record in conditions.items()
        }
        cells = [behaviour.percent(rates[condition]["clean"]) for condition in CONDITIONS]
        cells.append(behaviour.percent(rates["uninstructed+steering"]["degenerate"]))
        print(f"| {name} | {' | '.join(cells)} |")


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


def perplexities(model: Any, plan: Plan, tasks: Sequence[str]) -> None:
    """What each chosen setting does to plain text: perplexity over the unsteered model's.

    The text is eight passages of the catalogue's base queries, read without a chat template, all of
    it steered.
    """
    queries = [query.text for query in sl.base_queries("report")]
    texts = [" ".join(queries[i::8]) for i in range(8)]
    tokenizer, start = model.tokenizer, model.tokenizer.bos_token_id
    rows = [tuple(tokenizer(text, add_special_tokens=False)["input_ids"])[:96] for text in texts]
    book = VectorBook(Answerer(model))
    for (task, estimator), vector in plan.vectors.items():
        book.keep(task, estimator, vector)
    print("\n| task | perplexity of plain text, steered / unsteered | placebo / unsteered |")
    print("|---|---:|---:|")
    unsteered = mean_nll(model, rows, start, None)
    for task in tasks:
        candidate = plan.candidate(task, "uninstructed")
        if not candidate:
            continue
        cells = []
        for placebo in (False, True):
            steering = book.steering(sl.catalogue[task], {}, candidate, placebo)
            ratios = np.exp(mean_nll(model, rows, start, steering) - unsteered)
            centre, low, high = mean_interval(np.log(ratios)[:, None], range(len(rows)))
            ends = [float(np.exp(end[0])) for end in (centre, low, high)]
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*ends))
        print(f"| {task} | {' | '.join(cells)} |")


def mean_nll(
    model: Any, rows: Sequence[tuple[int, ...]], start: int, steering: sl.Steering | None
) -> np.ndarray:
    """Mean negative log-likelihood per token of each text, in nats."""
    totals = np.zeros(len(rows))
    forced = [ForcedRow(i, (start,), row, steering) for i, row in enumerate(rows)]

    def visit(indices: list[int], steps: list[int], logits: torch.Tensor) -> None:
        logprobs = torch.log_softmax(logits.float(), -1)
        for place, (i, step) in enumerate(zip(indices, steps, strict=True)):
            totals[i] -= float(logprobs[place, rows[i][step]])

    score_rows(model, forced, visit)
    return totals / [len(row) for row in rows]


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
        prompts = catalogue_prompts(tasks, N_PROMPTS)
        result = evaluated(model, prompts, "report", plan, N_TOKENS, decoding)
        table(result, f"Report split, {decoding}")
        names = moved(result)
        print(f"\nmoved by 25 points, interval above 0: {len(names)} of {len(tasks)}: {names}")
    perplexities(model, plan, tasks)
    given = behaviour.given_prompts("ifeval_single_format.jsonl")
    for decoding in DECODINGS if given is not None else ():
        result = evaluated(model, given, "ifeval", plan, 256, decoding)
        table(result, f"IFEval's prompts with one of these instructions, 256 tokens, {decoding}")


if __name__ == "__main__":
    main()
