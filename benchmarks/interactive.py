"""One answer at a time, as in a notebook: ``python -m benchmarks.interactive``.

Tokens/s of one row and of two (unsteered beside steered), and of many steered rows, against Hugging
Face `generate` (with a static cache for one and two), and what scoring and caching cover against
plain forward passes. llama.cpp at one stream is among `benchmarks.peers`. Contenders take turns
within a round, each ratio is taken within its round, and medians are printed as one JSON line with
the processor that gave them. Rates are whole calls: prompt, packing and all.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT = "Tell me about the history of Rome, in detail."
N_SCORED = 16


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of an answer")
    parser.add_argument("--rows", type=int, default=96, help="rows of the large batch; 0: none")
    arguments = parser.parse_args()
    print(json.dumps(measure(**vars(arguments))))


def measure(dtype: str, rounds: int, tokens: int, rows: int) -> dict[str, Any]:
    """Median rates and ratios of interleaved rounds."""
    import torch

    from benchmarks.work import Sizes, prepare
    from steerlens.engine.generation import generate
    from steerlens.models.adapter.pytorch import cpu_has

    sizes = Sizes(n_prompts=max(rows, 1), n_new_tokens=tokens, batch_limit=max(rows, 2))
    work = prepare(dtype, sizes)
    settings = generate(work.model, PROMPT, max_new_tokens=tokens).settings
    contenders = _contenders(work, rows)
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):  # the first is a warm-up
        for name, contender in contenders.items():
            started = time.perf_counter()
            n_tokens = contender()
            seconds = time.perf_counter() - started
            if number:
                rates[name].append(n_tokens / seconds)
            print(f"round {number} {name}: {n_tokens / seconds:.1f}", file=sys.stderr)
    pairs = [
        ("1 row", "1 row, Hugging Face"),
        ("2 rows", "2 rows, Hugging Face"),
        ("many rows, steered", "many rows, Hugging Face"),
        ("scoring", "scoring, plain forward"),
        ("caching", "caching, plain forward"),
    ]
    return {
        "processor": _processor(),
        "amx": cpu_has("amx_bf16") is not None,
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "kernels": f"{settings['kernels']}: {settings['kernels_reason']}",
        "rates": {name: round(statistics.median(own), 1) for name, own in rates.items()},
        "ratios": {
            f"{one} over {other}": round(
                statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 2
            )
            for one, other in pairs
            if one in rates and other in rates
        },
    }


def _contenders(work: Any, rows: int) -> dict[str, Callable[[], int]]:
    """What is measured; each returns its number of tokens."""
    import torch

    from benchmarks import contenders
    from benchmarks.contenders import hf_answers, our_answers
    from steerlens.engine.batches import left_padded, length_batches
    from steerlens.engine.likelihood import log_likelihoods
    from steerlens.engine.scoring import ForcedRow
    from steerlens.models.loading import tokenize_prompts

    [row] = tokenize_prompts(work.model, [PROMPT])
    steering = work.vector.at(24, "add", 0.5)
    texts = [own[-N_SCORED:] + own for own in work.rows]
    forced = [
        ForcedRow(i, tuple(text[:-N_SCORED]), tuple(text[-N_SCORED:]), None)
        for i, text in enumerate(texts)
    ]

    def ours(texts: list[list[int]], steered: Any) -> int:
        return sum(map(len, our_answers(work, texts, work.sizes.n_new_tokens, steered)))

    def hugging_face(n_rows: int) -> int:
        texts, n_new = [row] * n_rows, work.sizes.n_new_tokens
        answers = hf_answers(work, texts, n_new, cache_implementation="static")
        return sum(map(len, answers))

    def scored() -> int:
        log_likelihoods(work.model, forced)
        return sum(map(len, texts))

    def forward() -> int:
        for batch in length_batches([len(text) for text in texts], 16):
            tokens, mask = left_padded([texts[i] for i in batch])
            with torch.inference_mode():
                logits = work.hf(
                    input_ids=tokens,
                    attention_mask=mask,
                    position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
                    logits_to_keep=N_SCORED + 1,
                    use_cache=False,
                ).logits
                logits[:, :-1].log_softmax(-1)
        return sum(map(len, texts))

    measured: dict[str, Callable[[], int]] = {
        "1 row": lambda: ours([row], None),
        "1 row, steered": lambda: ours([row], steering),
        "1 row, Hugging Face": lambda: hugging_face(1),
        "2 rows": lambda: ours([row, row], [None, steering]),
        "2 rows, Hugging Face": lambda: hugging_face(2),
    }
    if rows:
        measured |= {
            "many rows, steered": lambda: contenders.ours_steered(work),
            "many rows, Hugging Face": lambda: contenders.hf_generate(work),
            "scoring": scored,
            "scoring, plain forward": forward,
            "caching": lambda: contenders.ours_caching(work),
            "caching, plain forward": lambda: contenders.hf_caching(work),
        }
    return measured


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    import platform

    return platform.processor()


if __name__ == "__main__":
    main()
