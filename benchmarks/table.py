"""The benchmark's results: one file of numbers, and the page made of it."""

import json
import statistics
from pathlib import Path
from typing import Any

from steerlens.files import write_text

_HERE = Path(__file__).parent

_HEAD = """# Benchmarks

`make bench` runs the contenders side by side in one process, interleaved, and writes this page and
`results.json`. All models hold the same weights (SmolLM2-135M-Instruct), all prompts are the
catalogue's, all decoding is greedy and runs to the full length. Ratios are what to read: absolute
rates are those of one machine on one day.
"""


def read() -> dict[str, Any]:
    """The results of the last run."""
    results: dict[str, Any] = json.loads((_HERE / "results.json").read_text())
    return results


def write(results: dict[str, Any]) -> None:
    """Keep the results and make their page anew."""
    write_text(_HERE / "results.json", json.dumps(results, indent=1) + "\n")
    write_text(_HERE / "README.md", page(results))


def page(results: dict[str, Any]) -> str:
    """The whole page as Markdown."""
    parts = [
        _HEAD,
        f"Measured {results['made'][:10]} on {results['machine']['cores']} cores "
        f"({results['machine']['system']}), {results['rounds']} rounds, with "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ".\n",
    ]
    for dtype, found in results["dtypes"].items():
        parts.append(f"## {dtype}\n")
        parts.append(_work(found["sizes"], found["steering_vectors_batch_size"]))
        parts.append(_ratios(found))
        for task, members in found["tasks"].items():
            parts.append(_task(task, members))
        parts.append(_memory(found["memory"]))
        if "growth" in found:
            parts.append(_growth(found["growth"]))
    if "rounding" in results:
        parts.append(_rounding(results["rounding"]))
    if "effects" in results:
        parts.append(effects(results["effects"]))
    return "\n".join(parts).rstrip() + "\n"


def _work(sizes: dict[str, int], peer_batch_size: int) -> str:
    return (
        f"Work: {sizes['n_prompts']} prompts × {sizes['n_new_tokens']} new tokens, at most "
        f"{sizes['batch_limit']} rows together; a sweep of 8 layers × 2 strengths × "
        f"{sizes['n_sweep_prompts']} prompts (peers run {sizes['n_peer_settings']} of its 16 "
        f"settings, bridge and repeng one, the recipe {sizes['n_recipe_rows']} row: rates are what "
        f"is compared); last-prompt residuals of {sizes['n_pairs']} pairs at all layers "
        f"(steering-vectors in batches of {peer_batch_size}, its best of 1 to 32).\n"
    )


def _rate(found: dict[str, Any], task: str, name: str) -> float | None:
    row = found["tasks"][task]["measured"].get(name)
    return None if row is None else float(row["rate_median"])


def _paired(found: dict[str, Any], task: str, above: str, below: str) -> float | None:
    """Median over rounds of the ratio within a round: drift of the machine cancels."""
    members = found["tasks"][task]["measured"]
    if above not in members or below not in members:
        return None
    pairs = zip(members[above]["rates"], members[below]["rates"], strict=False)
    return statistics.median(one / other for one, other in pairs)


def _ratios(found: dict[str, Any]) -> str:
    memory = found["memory"]
    vllm = found["vllm"].get("rate_median")
    ours = _rate(found, "sweep", "steerlens")
    peak = memory.get("generation: Hugging Face generate (sdpa)")
    sweep = memory.get("sweep: steerlens")
    steered, plain = "steerlens, steered", "steerlens, unsteered"
    hf = "Hugging Face generate (sdpa)"
    rows: list[tuple[str, float | None]] = [
        (
            "sweep over the published recipe",
            _paired(found, "sweep", "steerlens", "published recipe"),
        ),
        (
            "steered generation over Hugging Face generate",
            _paired(found, "generation", steered, hf),
        ),
        ("steered sweep over vLLM, unsteered", ours / vllm if ours and vllm else None),
        ("steered over our own unsteered", _paired(found, "generation", steered, plain)),
        (
            "caching over a plain forward pass",
            _paired(found, "caching", "steerlens", "Hugging Face forward (sdpa)"),
        ),
        (
            "caching over steering-vectors",
            _paired(found, "caching", "steerlens", "steering-vectors"),
        ),
        (
            "peak memory of the sweep over Hugging Face generate",
            sweep / peak if sweep and peak else None,
        ),
    ]
    lines = ["| ratio (median of rounds) | value |", "|---|---:|"]
    for name, value in rows:
        lines.append(f"| {name} | {'–' if value is None else f'{value:.2f}'} |")
    if "left_out" in found["vllm"]:
        lines.append(f"\nvLLM was left out: {found['vllm']['left_out']}.")
    return "\n".join(lines) + "\n"


def _task(task: str, members: dict[str, Any]) -> str:
    lines = [f"### {task}, tokens/s\n", "| contender | median | min – max |", "|---|---:|---:|"]
    for name, row in members["measured"].items():
        spread = f"{row['rate_min']:.1f} – {row['rate_max']:.1f}"
        lines.append(f"| {name} | {row['rate_median']:.1f} | {spread} |")
    for name, reason in members["left_out"].items():
        lines.append(f"\n{name} was left out: {reason}")
    return "\n".join(lines) + "\n"


def _memory(memory: dict[str, int]) -> str:
    lines = ["### peak memory above the loaded models\n", "| run | MiB |", "|---|---:|"]
    lines += [f"| {name} | {peak / 2**20:.0f} |" for name, peak in memory.items()]
    return "\n".join(lines) + "\n"


def _rounding(rounding: dict[str, Any]) -> str:
    """Mean KL between every two paths, as `benchmarks.rounding` measured it."""
    names = list(rounding["mean_kl"])
    lines = [
        "## Rounding in bfloat16\n",
        f"`python -m benchmarks.rounding`: mean KL per token in 10⁻³ nats, of the row's path from "
        f"the column's, {rounding['n_rows']} rows of mixed steering × {rounding['n_new_tokens']} "
        "tokens, the same tokens for all. Two right computations in bfloat16 are this far apart.\n",
        "| | " + " | ".join(str(i + 1) for i in range(len(names))) + " |",
        "|---|" + "---:|" * len(names),
    ]
    for i, (name, row) in enumerate(rounding["mean_kl"].items()):
        values = " | ".join(f"{1e3 * row[other]:.2f}" for other in names)
        lines.append(f"| {i + 1} {name} | {values} |")
    return "\n".join(lines) + "\n"


def effects(found: dict[str, list[dict[str, Any]]]) -> str:
    """What drawing and recording per-token effects cost, as `benchmarks.effects` measured it."""
    return "\n".join(
        [
            "## Looking at effects\n",
            "`python -m benchmarks.effects`: pictures of 2,000 tokens × 30 layers, and what it "
            "costs to record what steering did to one answer, over generating that answer.\n",
            _rows(found["pictures"]),
            _rows(found["recording"]),
        ]
    )


def _rows(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
    for row in rows:
        cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _growth(growth: dict[str, list[dict[str, Any]]]) -> str:
    parts = ["### how it grows\n"]
    for rows in growth.values():
        if not rows:
            continue
        names = list(rows[0])
        parts.append("| " + " | ".join(names) + " |")
        parts.append("|" + "---:|" * len(names))
        for row in rows:
            parts.append("| " + " | ".join(f"{row[name]:.4g}" for name in names) + " |")
        parts.append("")
    return "\n".join(parts)
