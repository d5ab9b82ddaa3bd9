"""Fewer tokens, or less strength: do they keep the passes of steering without its loops?

    python -m analyses.scopes

*Title*, *bullet list* and *highlighted sections*, prompts of the select split, mean difference at
layer 24 (64 fit pairs, projection set to its target), 96 greedy tokens: unsteered, asked, and
steered on all tokens, on the prompt, on the first N tokens of the response, on both, and on all
tokens with an adaptive strength (`steerlens.steering.adaptive`). Rates have Wilson's intervals;
differences to scope ``all`` are paired. The tables go to standard output as Markdown, the answers
to ``scopes.json`` in the folder of runs.
"""

import json
import os
from pathlib import Path

import numpy as np

import steerlens as sl
from analyses.loops import share
from steerlens.files import write_text
from steerlens.stats.rates import paired_difference
from steerlens.tasks.checks import follows
from steerlens.tasks.fluency import fluency, is_degenerate

MODEL = "smollm2-135m-instruct"
TASKS = {
    "title": "detectable_format:title",
    "bullets": "detectable_format:number_bullet_lists",
    "highlights": "detectable_format:number_highlighted_sections",
}
LAYER, N_PROMPTS, N_TOKENS = 24, 12, 96
FIRST, ADAPTIVE = (8, 32), (0.0001, 0.001, 0.01, 0.1, 0.5)


def steerings(vector: sl.SteeringVector) -> dict[str, sl.Steering]:
    """What is compared, by name."""

    def at(scope: str, adaptive: float = 0.0) -> sl.Steering:
        return vector.at(LAYER, "set_projection", 1.0, scope, adaptive=adaptive)

    return {
        "all": at("all"),
        "prompt": at("prompt"),
        **{f"first:{n}": at(f"first:{n}") for n in FIRST},
        **{f"prompt + first:{n}": at("prompt") + at(f"first:{n}") for n in FIRST},
        **{f"all, adaptive {a:g}": at("all", a) for a in ADAPTIVE},
    }


def main() -> None:
    """One table over all tasks, and one of each."""
    model = sl.load_model(MODEL, dtype="float32")
    verdicts: dict[str, dict[str, list[tuple[bool, bool]]]] = {}
    lowered: dict[str, list[float]] = {}
    kept = []
    for name, task_id in TASKS.items():
        task = sl.catalogue[task_id]
        fitted = sl.contrast_pairs(task, n=64, split="fit")
        vector = sl.difference_of_means(sl.cache_residuals(model, fitted))
        pairs = list(sl.contrast_pairs(task, n=N_PROMPTS, split="select"))
        plain, asked = ([getattr(p, s) for p in pairs] for s in ("uninstructed", "instructed"))
        rows = {"unsteered": (plain, None), "asked": (asked, None)}
        rows |= {key: (plain, steering) for key, steering in steerings(vector).items()}
        # One stream of rows: conditions decode together.
        answers = sl.generate(
            model,
            [prompt for prompts, _ in rows.values() for prompt in prompts],
            [steering for prompts, steering in rows.values() for _ in prompts],
            max_new_tokens=N_TOKENS,
        )
        for k, condition in enumerate(rows):
            part = slice(k * len(pairs), (k + 1) * len(pairs))
            texts = answers.texts[part]
            passed = [
                follows(task, text, pair.kwargs, pair.instructed, loose=True)
                for text, pair in zip(texts, pairs, strict=True)
            ]
            loops = [is_degenerate(fluency(text)) for text in texts]
            verdict = list(zip(passed, loops, strict=True))
            verdicts.setdefault(condition, {})[name] = verdict
            shares = answers.shares[part]
            lowered.setdefault(condition, []).extend(value for row in shares for value in row)
            kept.append({"task": name, "condition": condition, "texts": texts, "shares": shares})
    print("| steering | n | pass | pass, no loop | loop | no loop, minus `all` | tokens lowered |")
    print("|---|---|---|---|---|---|---|")
    clean = {
        condition: np.array([p and not d for rows in by_task.values() for p, d in rows])
        for condition, by_task in verdicts.items()
    }
    for condition, by_task in verdicts.items():
        passed, loops = zip(*(pair for rows in by_task.values() for pair in rows), strict=True)
        gain = paired_difference(clean[condition], clean["all"])
        less = np.array(lowered[condition]) < 1
        cells = [
            condition,
            f"{len(passed)}",
            *map(share, (list(passed), clean[condition].tolist(), list(loops))),
            f"{gain.value:+.0%} [{gain.low:+.0%}, {gain.high:+.0%}]",
            f"{less.mean():.0%}" if len(less) else "–",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)
    print("\n| steering | " + " | ".join(f"{name}: pass / no loop / loop" for name in TASKS) + " |")
    print("|---|" + "---|" * len(TASKS))
    for condition, by_task in verdicts.items():
        cells = [
            f"{sum(p for p, _ in rows)} / {sum(p and not d for p, d in rows)} / "
            f"{sum(d for _, d in rows)}"
            for rows in by_task.values()
        ]
        print("| " + " | ".join([condition, *cells]) + " |", flush=True)
    folder = Path(os.environ.get("STEERLENS_RUNS", "runs"))
    write_text(folder / "scopes.json", json.dumps(kept, ensure_ascii=False))


if __name__ == "__main__":
    main()
