"""How soon the explorer answers: from a moved slider to the first text, and from stop to idle.

    python -m benchmarks.explorer

One JSON line, in milliseconds. ``first_text`` is measured in the kernel, from the change of the
slider's value to the first steered token's text in the widget: with nothing under way (``idle``),
and while an older trial decodes (``answering``) or evidence is gathered (``evidence``), which has
to end first. ``cancel`` is from stop to the end of the worker, at moments spread over fitting a
vector, decoding, a sweep, and each kind of evidence. The browser adds its own.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import steerlens as sl
from steerlens.models.loading import model_info

MODEL, TASK, OTHER = "smollm2-135m-instruct", "detectable_format:title", "punctuation:no_comma"
ROUNDS, DELAYS = 10, (0.05, 0.2, 0.35, 0.5, 0.8, 1.1)
_PATIENCE = 600.0


def main() -> None:
    """Measure, and print the line."""
    model = sl.load_model(MODEL)
    explorer = sl.explore(model, n_pairs=16)
    explorer.curves.gathers.value = False
    explorer.a.source.value = TASK
    explorer.worker.wait(_PATIENCE)
    first = {
        "idle": [_first_text(explorer, i, lambda: None) for i in range(ROUNDS)],
        "answering": [_first_text(explorer, i, lambda: _answer(explorer)) for i in range(ROUNDS)],
        "evidence": [_first_text(explorer, i, lambda: _gather(explorer)) for i in range(ROUNDS)],
    }
    cancel = {
        "fitting": [_cancel(explorer, lambda: _fit(explorer), delay) for delay in DELAYS],
        "answering": [_cancel(explorer, lambda: _answer(explorer), delay) for delay in DELAYS],
        "sweep": [_cancel(explorer, lambda: _sweep(explorer), delay) for delay in DELAYS],
        **{
            kind: [_cancel(explorer, lambda k=kind: _gather(explorer, k), d) for d in DELAYS]
            for kind in ("auroc", "recovery", "specific_auroc")
        },
    }
    info = model_info(model)
    print(
        json.dumps(
            {
                "first_text": {name: _spread(values) for name, values in first.items()},
                "cancel": {name: _spread(values) for name, values in cancel.items()},
                "dtype": info.dtype,
                "threads": torch.get_num_threads(),
                "cores": os.cpu_count(),
            }
        )
    )


def _spread(values: Sequence[float]) -> dict[str, int]:
    """Least, median and most, in milliseconds."""
    numbers = (min(values), statistics.median(values), max(values))
    return {
        name: round(1000 * n) for name, n in zip(("least", "median", "most"), numbers, strict=True)
    }


def _first_text(explorer: Any, i: int, before: Callable[[], None]) -> float:
    """Seconds from a move of the layer's slider to the first steered text."""
    before()
    time.sleep(0.6)  # a movement of its own
    show, seen = explorer.shown.show_texts, []

    def watched(trial: Any, texts: Any, *more: Any) -> None:
        show(trial, texts, *more)
        if texts[0][1][0]:
            seen.append(time.perf_counter())
            explorer.worker.cancel()

    explorer.shown.show_texts = watched
    started = time.perf_counter()
    explorer.a.layer.value = (8, 14, 20, 26)[i % 4] if explorer.a.layer.value != 20 else 12
    explorer.worker.wait(_PATIENCE)
    explorer.shown.show_texts = show
    return seen[0] - started


def _cancel(explorer: Any, begin: Callable[[], None], delay: float) -> float:
    """Seconds from stop to the end of the worker."""
    begin()
    time.sleep(delay)
    started = time.perf_counter()
    explorer.stop()
    explorer.worker.wait(_PATIENCE)
    return time.perf_counter() - started


def _answer(explorer: Any) -> None:
    explorer._baselines.clear()
    explorer._changed(None)


def _fit(explorer: Any) -> None:
    explorer.sources.fitted.pop(OTHER, None)
    explorer.worker.start(lambda: explorer.sources.fit(OTHER))


def _sweep(explorer: Any) -> None:
    explorer._cells.clear()
    explorer.start_sweep()


def _gather(explorer: Any, kind: str = "recovery") -> None:
    """Gather one kind of evidence, again and again."""
    fitted = explorer.sources.fitted[TASK]

    def work() -> None:
        from steerlens.explorer.evidence import LayerEvidence

        while True:
            evidence = LayerEvidence(fitted)
            evidence._pieces = [piece for piece in evidence._pieces if piece[0] == kind]
            for _ in evidence.gather(explorer.model):
                pass

    explorer.worker.start(work)


if __name__ == "__main__":
    main()
