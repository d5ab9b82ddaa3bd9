"""Three small tasks for lm-eval, as files: choices, answers and whole texts."""

import json
from pathlib import Path

import yaml

_ROWS = (
    ("The capital of France is", "Paris", ("Paris", "Madrid", "a loaf of bread"), 0),
    ("Two and two are", "four", ("blue", "four", "seven hundred"), 1),
    ("A dog is an", "animal", ("number", "animal", "country"), 1),
    ("Water is", "wet", ("dry as bone", "wet", "square"), 1),
)
_MEAN = {"aggregation": "mean", "higher_is_better": True}
_KINDS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc", **_MEAN}],
    },
    "answers": {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **_MEAN}],
    },
    "texts": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}} {{answer}}.",
        "metric_list": [
            {
                "metric": "word_perplexity",
                "aggregation": "weighted_perplexity",
                "higher_is_better": False,
            }
        ],
    },
}


def write_harness_tasks(folder: Path) -> dict[str, Path]:
    """The files by kind; their data and what `datasets` makes of them stay in the folder."""
    names = ("question", "answer", "choices", "gold")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in _ROWS]
    data = folder / "data.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    files = {}
    for kind, config in _KINDS.items():
        files[kind] = folder / f"{kind}.yaml"
        task = {
            "task": f"tiny_{kind}",
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data)},
                "cache_dir": str(folder / "datasets"),
            },
            "test_split": "test",
            **config,
        }
        files[kind].write_text(yaml.safe_dump(task), encoding="utf-8")
    return files
