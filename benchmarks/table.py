"""The benchmark's results as a page."""

from typing import Any

_HEAD = """# Benchmarks

`make bench` runs the contenders side by side in one process, interleaved, and writes this page and
`results.json`. All models hold the same weights (SmolLM2-135M-Instruct), all prompts are the
catalogue's, all decoding is greedy and runs to the full length. Ratios are what to read: absolute
rates are those of one machine on one day.
"""


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
        parts.append(_work(found["sizes"]))
        parts.append(_ratios(found))
        for task, members in found["tasks"].items():
            parts.append(_task(task, members))
        parts.append(_memory(found["memory"]))
        if "growth" in found:
            parts.append(_growth(found["growth"]))
    return "\n".join(parts).rstrip() + "\n"


def _work(sizes: dict[str, int]) -> str:
    return (
        f"Work: {sizes['n_prompts']} prompts × {sizes['n_new_tokens']} new tokens, at most "
        f"{sizes['batch_limit']} rows together; a sweep of 8 layers × 2 strengths × "
        f"{sizes['n_sweep_prompts']} prompts (peers run {sizes['n_peer_settings']} of its 16 "
        f"settings, bridge and repeng one, the recipe {sizes['n_recipe_rows']} row: rates are what "
        f"is compared); last-prompt residuals of {sizes['n_pairs']} pairs at all layers.\n"
    )


def _rate(found: dict[str, Any], task: str, name: str) -> float | None:
    row = found["tasks"][task]["measured"].get(name)
    return None if row is None else float(row["rate_median"])


def _ratios(found: dict[str, Any]) -> str:
    ours = _rate(found, "sweep", "steerlens")
    steered = _rate(found, "generation", "steerlens, steered")
    caching = _rate(found, "caching", "steerlens")
    memory = found["memory"]
    hf_peak = memory.get("generation: Hugging Face generate (sdpa)")
    rows: list[tuple[str, float | None, float | None]] = [
        ("sweep over the published recipe", ours, _rate(found, "sweep", "published recipe")),
        (
            "steered generation over Hugging Face generate",
            steered,
            _rate(found, "generation", "Hugging Face generate (sdpa)"),
        ),
        ("steered sweep over vLLM, unsteered", ours, found["vllm"].get("rate_median")),
        (
            "steered over our own unsteered",
            steered,
            _rate(found, "generation", "steerlens, unsteered"),
        ),
        (
            "caching over a plain forward pass",
            caching,
            _rate(found, "caching", "Hugging Face forward (sdpa)"),
        ),
        ("caching over steering-vectors", caching, _rate(found, "caching", "steering-vectors")),
        (
            "peak memory of the sweep over Hugging Face generate",
            memory.get("sweep: steerlens"),
            hf_peak,
        ),
    ]
    lines = ["| ratio | value |", "|---|---:|"]
    for name, above, below in rows:
        value = f"{above / below:.2f}" if above and below else "–"
        lines.append(f"| {name} | {value} |")
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
