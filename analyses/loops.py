"""Loops are the decoding's: the same prompts greedy and with a repetition penalty.

    python -m analyses.loops

Part 1: *title*, prompts of the select split, mean difference at layer 24 (64 fit pairs, projection
set to its target on all tokens), 128 tokens: unsteered, asked and steered. Part 2: base queries of
the select split, unsteered, 256 tokens. Rates are out of all answers, with Wilson's intervals. The
tables go to standard output as Markdown, the answers to ``loops.json`` in the folder of runs.
"""

import json
import os
from pathlib import Path

import steerlens as sl
from steerlens.files import write_text
from steerlens.stats.rates import wilson
from steerlens.tasks.checks import follows
from steerlens.tasks.fluency import fluency, is_degenerate

MODEL = "smollm2-135m-instruct"
TASK = "detectable_format:title"
LAYER, N_PROMPTS = 24, 16
DECODINGS = (
    sl.Decoding(),
    sl.Decoding(repetition_penalty=1.1),
    sl.Decoding(temperature=0.7, top_p=0.95),
)


def share(which: list[bool]) -> str:
    """A count, and its rate in percent with the interval."""
    rate = wilson(sum(which), len(which))
    return f"{sum(which)} ({rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}])"


def main() -> None:
    """Both tables."""
    model = sl.load_model(MODEL, dtype="float32")
    task = sl.catalogue[TASK]
    fitted = sl.contrast_pairs(task, n=64, split="fit")
    vector = sl.difference_of_means(sl.cache_residuals(model, fitted))
    pairs = list(sl.contrast_pairs(task, n=N_PROMPTS, split="select"))
    plain = [pair.uninstructed for pair in pairs]
    asked = [pair.instructed for pair in pairs]
    steering = vector.at(LAYER, "set_projection", 1.0, "all")
    conditions = {
        "unsteered": (plain, None),
        "asked": (asked, None),
        "steered": (plain, steering),
    }
    kept = []
    print("| decoding | condition | n | pass | pass, no loop | loop |\n|---|---|---|---|---|---|")
    for decoding in DECODINGS:
        for name, (prompts, what) in conditions.items():
            answers = sl.generate(model, prompts, what, max_new_tokens=128, decoding=decoding)
            passed = [
                follows(task, text, pair.kwargs, pair.instructed, loose=True)
                for text, pair in zip(answers.texts, pairs, strict=True)
            ]
            loops = [is_degenerate(fluency(text)) for text in answers.texts]
            clean = [p and not d for p, d in zip(passed, loops, strict=True)]
            cells = decoding.describe(), name, f"{len(pairs)}", *map(share, (passed, clean, loops))
            print("| " + " | ".join(cells) + " |", flush=True)
            kept.append(
                {"decoding": decoding.describe(), "condition": name, "texts": answers.texts}
            )
    print("\n| decoding | n | loop | cut at 256 tokens |\n|---|---|---|---|")
    queries = [query.text for query in sl.base_queries("select")]
    for decoding in DECODINGS:
        answers = sl.generate(model, queries, max_new_tokens=256, decoding=decoding)
        loops = [is_degenerate(fluency(text)) for text in answers.texts]
        cut = [reason == "length" for reason in answers.finish_reasons]
        cells = decoding.describe(), f"{len(queries)}", share(loops), share(cut)
        print("| " + " | ".join(cells) + " |", flush=True)
        kept.append({"decoding": decoding.describe(), "condition": "256", "texts": answers.texts})
    folder = Path(os.environ.get("STEERLENS_RUNS", "runs"))
    write_text(folder / "loops.json", json.dumps(kept, ensure_ascii=False))


if __name__ == "__main__":
    main()
