"""A made-up evaluation with its real summary, harmless or hostile."""

import random

from steerlens.behaviour.evaluation.run import Evaluation
from steerlens.behaviour.evaluation.summary import summarise

HOSTILE_RESPONSE = '</script><script>alert("x")</script><img src=x onerror=alert(1)>'
CONDITIONS = ("uninstructed", "instructed", "uninstructed+steering")


def evaluation_example(text: str = "A title: <<Rome>>", n: int = 8) -> Evaluation:
    """Responses of two instructions under three conditions, with their real summary."""
    draw = random.Random(0)
    rows = [
        {
            "key": row,
            "row": str(row),
            "condition": condition,
            "prompt": f"Prompt {row} {text}",
            "response": text,
            "instruction_id_list": [("detectable_format:title", "punctuation:no_comma")[row % 2]],
            "strict": False,
            "loose": draw.random() < 0.5,
            "judge_perplexity": 10.0 + row,
            "degenerate": row == 3,
            "degenerate_why": "loops" if row == 3 else None,
            "n_words": 4,
            "steering": None if condition != CONDITIONS[2] else "last_prompt at layer 24",
        }
        for row in range(n)
        for condition in CONDITIONS
    ]
    described = {
        "model": {"reference": "tiny", "weights_hash": "sha256:0", "dtype": "float32"},
        "data": {"file": "prompts.jsonl", "hash": "0", "n_rows": n, "left_out": {"x:y": 2}},
        "plan": "abc",
        "settings": {"max_new_tokens": 16, "judge": None},
    }
    return Evaluation({**described, **summarise(rows)}, tuple(rows))
