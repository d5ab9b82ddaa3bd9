"""How answering scales with workers on one machine.

    python -m benchmarks.workers [--rows 192] [--dtype float32]

The same pieces are answered by this process with one thread and with all, and by Ray with one and
two workers of one CPU each. Printed: seconds to start the workers, seconds to answer, tokens a
second, and whether the texts are those of this process.
"""

import argparse
import time
from typing import Any

import torch

import steerlens as sl
from steerlens.behaviour.answers import Answer, Answerer, Question
from steerlens.models.loading import model_info
from steerlens.workers import WorkerSettings
from steerlens.workers.pool import worker_pool

PIECE_ROWS, BATCH, NEW_TOKENS = 24, 24, 96


def asked(model: Any, rows: int, elsewhere: Any = None) -> tuple[float, list[Answer]]:
    """Seconds and answers; every second row is steered."""
    pairs = sl.contrast_pairs("detectable_format:title", n=max(2, rows // 2), split="fit")
    vector = sl.difference_of_means(sl.cache_residuals(model, pairs[:8], show_progress=False))
    steering = vector.at(layer=24)
    questions = []
    for pair in pairs:
        questions.append(Question(pair.uninstructed))
        questions.append(Question(pair.uninstructed, steering, {"layer": 24}))
    answerer = Answerer(
        model, batch_size=BATCH, piece_rows=PIECE_ROWS, elsewhere=elsewhere, show_progress=False
    )
    started = time.perf_counter()
    answers = answerer.ask(questions[:rows], NEW_TOKENS)
    return time.perf_counter() - started, answers


def main() -> None:
    """Print one line an engine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=192)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    model = sl.load_model(dtype=arguments.dtype, device="cpu")
    print(f"{model_info(model).reference}, {arguments.dtype}, {arguments.rows} rows")
    threads = torch.get_num_threads()
    texts: list[str] = []

    def told(name: str, start: float, seconds: float, answers: list[Answer]) -> None:
        own = [one.text for one in answers]
        texts[:] = texts or own
        rate = sum(one.n_tokens for one in answers) / seconds
        same = sum(a == b for a, b in zip(own, texts, strict=True))
        print(
            f"{name:28} start {start:5.1f} s  answers {seconds:6.1f} s  {rate:6.0f} tokens/s  "
            f"{same} of {len(own)} texts as the first",
            flush=True,
        )

    asked(model, 24)
    for n in dict.fromkeys((1, threads)):
        torch.set_num_threads(n)
        told(f"local, {n} threads", 0.0, *asked(model, arguments.rows))
    for workers in (1, 2):
        begun = time.perf_counter()
        with worker_pool(model, WorkerSettings(workers=workers, cpus=1)) as pool:
            start = time.perf_counter() - begun
            asked(model, 24 * workers, pool)
            told(f"ray, {workers} workers of 1 CPU", start, *asked(model, arguments.rows, pool))


if __name__ == "__main__":
    main()
