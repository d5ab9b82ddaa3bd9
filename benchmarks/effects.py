"""What looking at steering costs: ``python -m benchmarks.effects [--dtypes bfloat16,float32]``.

Two questions. How much longer does a steered answer take when what steering did is recorded too
(`record_run`, both modes), against generating that one steered answer and nothing else? And how
long does a picture of 2,000 tokens by 30 layers take (promised: under 2 s), and how large is its
page (promised, and tested: under 8 MB)? Generation and recording take turns within a round, and
each ratio is taken within its round, so that a drift of the machine's speed cancels. The result
joins the others of `make bench`.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import steerlens as sl
from benchmarks import table
from benchmarks.measure import timed
from benchmarks.work import INSTRUCTION
from steerlens.effects import TokenEffects, record_run
from steerlens.views.saving import page

PROMPT = "Tell me about the history of Rome, in detail."
LENGTHS = (8, 16, 32, 64, 128, 256)
N_TOKENS, N_LAYERS = 2000, 30
PICTURES = ("kl", "entropy_change", "propagation", "survival", "shift", "norm_change", "lens")


def recording(dtype: str, lengths: tuple[int, ...], n_rounds: int) -> list[dict[str, Any]]:
    """Seconds of a steered answer and of recording it, by length of the answer."""
    model = sl.load_model(dtype=dtype)
    pairs = sl.contrast_pairs(INSTRUCTION, n=16)
    vector = sl.difference_of_means(sl.cache_residuals(model, pairs, show_progress=False))
    steering = vector.at(layer=24, strength=1.5, scope="prompt")
    sl.steer(model, PROMPT, steering, max_new_tokens=8)  # the engine's check, once a model
    rows = []
    for length in lengths:
        given: dict[str, Any] = {"max_new_tokens": length, "show_progress": False}
        both = sl.generate(model, [PROMPT, PROMPT], steering=[None, steering], **given)
        prompt, (baseline, steered) = both.prompt_tokens[0], both.tokens
        alone, recorded = [], []
        for _ in range(n_rounds):
            alone.append(_seconds(sl.generate, model, PROMPT, steering, **given))
            recorded.append(_seconds(record_run, model, prompt, baseline, steered, steering))
        shares = [one / other for one, other in zip(recorded, alone, strict=True)]
        rows.append(
            {
                "dtype": dtype,
                "tokens": len(steered),
                "generation, s": statistics.median(alone),
                "recording, s": statistics.median(recorded),
                "share": statistics.median(shares),
                "share, min": min(shares),
                "share, max": max(shares),
            }
        )
    return rows


def drawing(n_rounds: int) -> list[dict[str, Any]]:
    """Seconds to draw effects of many tokens as JSON, and the size of the page."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "shared"))
    from plots_examples import made_up_effects

    effects = made_up_effects(N_TOKENS, N_LAYERS)
    rows = []
    for what in PICTURES:
        seconds = [_seconds(_drawn, effects, what) for _ in range(n_rounds)]
        rows.append(
            {
                "picture": what,
                "seconds": statistics.median(seconds),
                "slowest": max(seconds),
                "page, MB": len(page(effects.plot(what)).encode()) / 1e6,
            }
        )
    return rows


def _drawn(effects: TokenEffects, what: str) -> str:
    text: str = effects.plot(what).to_json()
    return text


def _seconds(work: Callable[..., Any], *given: Any, **named: Any) -> float:
    def run() -> int:
        work(*given, **named)
        return 1

    return timed(run).seconds


def main() -> None:
    """Measure, add it to the results, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lengths = tuple(int(one) for one in arguments.lengths.split(","))
    results = table.read()
    results["effects"] = {
        "pictures": drawing(arguments.rounds),
        "recording": [
            row
            for dtype in arguments.dtypes.split(",")
            for row in recording(dtype, lengths, arguments.rounds)
        ],
    }
    table.write(results)
    print(table.effects(results["effects"]))


if __name__ == "__main__":
    main()
