"""Words to avoid: taking away the vector of using them, or adding one of avoiding them."""

import re
from collections import Counter
from typing import Any

import pandas as pd
import plotly.graph_objects as go

import steerlens as sl
from analyses import behaviour
from steerlens.behaviour.evaluation import fluency, is_degenerate
from steerlens.behaviour.evaluation.run import Evaluation
from steerlens.stats.rates import wilson
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet
from steerlens.tasks.task_files import load_task
from steerlens.views import condition_rates

__all__ = ["avoidance", "avoidance_plot", "claims"]

_USE, _AVOID = "keywords:existence", "keywords:forbidden_words"
_LAYERS = (16, 20, 24)
_STRENGTHS = (1.0, 2.0)
_SHORT = 5
_WAYS = ("include, subtracted", "avoid, added", "placebo")


def avoidance(model: Any, include: Task | str = _USE, avoid: Task | str = _AVOID) -> pd.DataFrame:
    """How often a word the model would use is still there, steered away from it in several ways.

    Layer and strength of each way are chosen on queries of the ``select`` split and measured on
    the ``report`` split.

    Args:
        model: A hooked model.
        include: A task with one argument that is words, asking to use them.
        avoid: Another one, asking to avoid them.

    Returns:
        One row a way: `n`, `rate` of responses with the word, `low`, `high`, `degenerate`,
        and the `setting` chosen.
    """
    n, n_tokens = (2, 8) if behaviour.SMALL else (16, 128)
    chosen: dict[str, tuple[int, float]] = {}
    rows = []
    for split in ("select", "report"):
        asked = _asked(model, include, split, n, n_tokens)
        vectors = [_vectors(model, include, avoid, word) for _, word, _ in asked]
        for way in _WAYS:
            sign = 1 if way == "avoid, added" else -1
            settings = [(layer, s) for layer in _LAYERS for s in _STRENGTHS]
            if split == "report":
                settings = [chosen[way if way != "placebo" else "include, subtracted"]]
            scored = [
                (
                    (layer, strength),
                    *_scored(
                        *(model, asked, [one[way] for one in vectors]),
                        *(layer, sign * strength, n_tokens),
                    ),
                )
                for layer, strength in settings
            ]
            # Fewest responses that use the word or loop; the weaker setting wins ties.
            setting, used, loops = min(scored, key=lambda one: (one[1] + one[2], one[0][1]))
            chosen[way] = setting
            if split == "report":
                rows.append(_row(way, used, loops, len(asked), setting))
        if split == "report":
            loops = sum(is_degenerate(fluency(text)) for _, _, text in asked)
            rows.insert(0, _row("unsteered", len(asked), loops, len(asked), None))
    return pd.DataFrame(rows)


def avoidance_plot(table: pd.DataFrame) -> go.Figure:
    """Rate of responses that still use the word, by way."""
    rows = table.assign(instruction="the word is used", condition=table["way"])
    return condition_rates(rows, title="How often the word is still there")


def claims(include: Evaluation, avoided: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Rows of the table of verdicts."""
    model = include.summary["model"]["reference"]
    steered = include.summary["conditions"]["uninstructed+steering"]["all"]
    ways: dict[Any, dict[str, Any]] = avoided.set_index("way").to_dict("index")  # type: ignore[assignment]
    rows = [
        behaviour.claim(
            "words can be steered in",
            include,
            "uninstructed+steering",
            "uninstructed",
            "report split",
        ),
        (
            "… in at least half of the answers",
            behaviour.percent(steered["loose"]),
            f"{model}, report split, {steered['n']} prompts",
            "shown"
            if steered["loose"]["low"] >= 0.5
            else "reached"
            if steered["loose"]["rate"] >= 0.5
            else "not reached",
        ),
    ]
    for way in ("include, subtracted", "avoid, added"):
        one = ways[way]
        rows.append(
            (
                f"a word is avoided: {way}",
                f"still used {behaviour.percent(one)}, degenerate {one['degenerate']:.0%}, "
                f"placebo still used {ways['placebo']['rate']:.0%}",
                f"{model}, report split, {one['n']} answers that used it",
                "halved" if one["rate"] <= 0.5 else "not halved",
            )
        )
    return rows


def _asked(
    model: Any, include: Task | str, split: str, n: int, n_tokens: int
) -> list[tuple[str, str, str]]:
    """Queries with the word their unsteered answer uses most, and that answer."""
    pairs = sl.contrast_pairs(include, n=n, split=split)
    prompts = [pair.uninstructed for pair in pairs]
    texts = sl.generate(model, prompts, max_new_tokens=n_tokens).texts
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        counts = Counter(word for word in re.findall("[a-z]+", text.lower()) if len(word) > _SHORT)
        if counts:
            found.append((prompt, counts.most_common(1)[0][0], text))
    return found


def _vectors(
    model: Any, include: Task | str, avoid: Task | str, word: str
) -> dict[str, sl.SteeringVector]:
    """Vectors for one word, fitted on the ``fit`` split."""
    used, avoided = (
        sl.cache_residuals(model, _pairs(task, word), batch_size=32, show_progress=False)
        for task in (include, avoid)
    )
    vectors = (
        sl.difference_of_means(used),
        sl.difference_of_means(avoided),
        sl.random_direction(used),
    )
    return dict(zip(_WAYS, vectors, strict=True))


def _pairs(task: Task | str, word: str) -> ContrastSet:
    """Pairs that ask for one word, or to avoid it."""
    n = 4 if behaviour.SMALL else 16
    drawn = sl.contrast_pairs(task, n=n, split="fit")
    [(argument, value)] = load_task(task).wording(drawn[0].kwargs).items()
    words = [word] if isinstance(value, list) else word
    return sl.contrast_pairs(task, n=n, split="fit", kwargs={argument: words})


def _scored(
    model: Any,
    asked: list[tuple[str, str, str]],
    vectors: list[sl.SteeringVector],
    layer: int,
    strength: float,
    n_tokens: int,
) -> tuple[int, int]:
    """How many responses use their word, and how many loop."""
    steerings = [vector.at(layer, "add", strength) for vector in vectors]
    texts = sl.generate(
        model, [prompt for prompt, _, _ in asked], steerings, max_new_tokens=n_tokens
    ).texts
    used = sum(
        re.search(rf"\b{re.escape(word)}\b", text.lower()) is not None
        for (_, word, _), text in zip(asked, texts, strict=True)
    )
    return used, sum(is_degenerate(fluency(text)) for text in texts)


def _row(
    way: str, used: int, loops: int, n: int, setting: tuple[int, float] | None
) -> dict[str, Any]:
    interval = wilson(used, n)
    said = "none" if setting is None else f"add ×{setting[1]:g} at layer {setting[0]}"
    return {
        "way": way,
        "n": n,
        "rate": interval.value,
        "low": interval.low,
        "high": interval.high,
        "degenerate": loops / n,
        "setting": said,
    }
