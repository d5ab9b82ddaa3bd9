"""What a search would take on 8 and 64 GPUs: arithmetic on hardware figures, no measurement.

    python -m benchmarks.extrapolation [--dtype bfloat16]

A decoding step reads all weights, and the keys and values of all active rows, once; it multiplies
each weight with each row. So it takes at least

    max((weights + key-value bytes) / bandwidth, 2 · parameters · rows / peak FLOP/s)

and with an efficiency below 1, that divided by it. On this machine the first term alone is
measured: memory bandwidth (adding up 1 GiB), and the time of a step of one row, whose bytes over
bandwidth and time are the efficiency. Both in CPU seconds of one thread, which waiting for other
processes does not count in. The table gives times for a range of efficiencies around it.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import steerlens as sl
from steerlens.engine.generation import generate_from_tokens
from steerlens.models.loading import tokenize_prompts

# Tokens a search of the catalogue's 31 instructions writes (docs/scaling.md).
TOKENS = 3_028_407
# And of the longest of them, whose stages, one or two pieces each, wait for each other.
LONGEST = 243_000
# Rows decoded together, and the positions each holds on average: prompt and half a response.
ROWS, POSITIONS = 96, 160
# Beside the answers of one worker: residuals to fit on, which workers compute, and the driver's own
# causal recovery, as shares of them; seconds of checks for each instruction. See docs/scaling.md.
CACHE, DRIVER, CHECKS = 8.4 / 98.0, 1.3 / 98.0, 31 * 1.3
# The middle one was measured here (see `efficiency`); the others are half and twice of it, about.
EFFICIENCIES = (0.15, 0.27, 0.5)


@dataclass(frozen=True)
class Gpu:
    """A GPU's datasheet.

    Attributes:
        name: Its name.
        bandwidth: Of its memory, bytes/s.
        flops: Peak of dense bfloat16 products, FLOP/s.
    """

    name: str
    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Shape:
    """A model by what a step reads and multiplies.

    Attributes:
        name: Its name.
        parameters: Number of weights.
        token_bytes: Keys and values of a token: 2 · layers · heads · width · bytes.
        gpus: How many 80 GB GPUs hold it, one after the other.
    """

    name: str
    parameters: float
    token_bytes: int
    gpus: int


GPUS = (Gpu("A100 80GB SXM", 2.039e12, 312e12), Gpu("H100 80GB SXM", 3.35e12, 989e12))
# Llama 3: 32 and 80 layers, 8 key-value heads of 128, bfloat16. 141 GB need two 80 GB GPUs; with
# keys, values and activations, and room to spare, four are taken.
SHAPES = (
    Shape("8B", 8.03e9, 2 * 32 * 8 * 128 * 2, 1),
    Shape("70B", 70.6e9, 2 * 80 * 8 * 128 * 2, 4),
)


def step_seconds(shape: Shape, gpu: Gpu, efficiency: float, rows: int = ROWS) -> float:
    """Seconds of a decoding step in bfloat16; layers on several GPUs run one after the other."""
    read = 2 * shape.parameters + rows * POSITIONS * shape.token_bytes
    multiplied = 2 * shape.parameters * rows
    return max(read / gpu.bandwidth, multiplied / gpu.flops) / efficiency


def table() -> list[str]:
    """Lines of markdown: a row a model, GPU and number of GPUs."""
    lines = [
        "| | tokens/s of a worker | workers | workers' part, min | with the driver's part, min |",
        "|---|---:|---:|---:|---:|",
    ]
    for shape in SHAPES:
        for gpu in GPUS:
            rates = [ROWS / step_seconds(shape, gpu, one) for one in EFFICIENCIES]
            for n in (8, 64):
                workers = n // shape.gpus
                one = [TOKENS / rate / 60 for rate in rates]
                # No sooner than the longest instruction, two pieces at a time.
                least = [LONGEST / 2 / rate / 60 for rate in rates]
                spread = [t * (1 + CACHE) / workers for t in one]
                there = [max(pair) for pair in zip(spread, least, strict=True)]
                cells = (
                    f"{rates[1]:,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})",
                    f"{workers}",
                    _range(there),
                    _range([t + DRIVER * o + CHECKS / 60 for t, o in zip(there, one, strict=True)]),
                )
                lines.append(f"| {shape.name}, {n} × {gpu.name} | " + " | ".join(cells) + " |")
    return lines


def _range(minutes: list[float]) -> str:
    return f"{minutes[1]:.1f} ({minutes[-1]:.1f}–{minutes[0]:.1f})"


def cpu_seconds(call: Callable[[], Any], times: int) -> float:
    """The least CPU time of some calls."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


def efficiency(dtype: str) -> tuple[float, float, float, float]:
    """Bandwidth in bytes/s, bytes and CPU seconds of a step of one row, and their efficiency."""
    torch.set_num_threads(1)
    many = torch.ones(2**28)
    bandwidth = many.numel() * 4 / cpu_seconds(many.sum, 7)
    model = sl.load_model(dtype=dtype, device="cpu")
    tokens = tokenize_prompts(model, ["Tell me about Rome."])

    def never_ending(logits: torch.Tensor, _rows: Any) -> torch.Tensor:
        return torch.full((len(logits),), tokens[0][0], device=logits.device)

    def answered(n: int) -> Callable[[], Any]:
        return lambda: generate_from_tokens(
            model, tokens, [None], n, batch_size=1, choose=never_ending, show_progress=False
        )

    answered(64)()
    few, more = (cpu_seconds(answered(n), 3) for n in (48, 112))
    step = (more - few) / 64
    config = model.cfg
    heads = getattr(config, "n_key_value_heads", None) or config.n_heads
    size = next(model.parameters()).element_size()
    distinct = {one.data_ptr(): one for one in model.original_model.parameters()}
    weights = sum(one.numel() * one.element_size() for one in distinct.values())
    held = (len(tokens[0]) + 80) * 2 * config.n_layers * heads * config.d_head * size
    read = weights + held
    return bandwidth, read, step, read / bandwidth / step


def main() -> None:
    """Print the efficiency here, and the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    print("\n".join(table()))
    bandwidth, read, step, share = efficiency(arguments.dtype)
    print(
        f"here, one thread, {arguments.dtype}: {bandwidth / 1e9:.1f} GB/s, a step of one row reads "
        f"{read / 1e6:.0f} MB in {1e3 * step:.1f} ms: efficiency {share:.2f}"
    )


if __name__ == "__main__":
    main()
