"""The table of architectures in ``docs/architectures.md``: measured, written, and read back.

A row says what a family's tiny random model does in float32: which path its calls take, whether its
residuals and its steered greedy tokens are those of plain Hugging Face, or with which sentence it
is refused. Tests compare rows of the committed table with what they measure. To write it anew:

    python tests/shared/architecture_table.py
"""

import re
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import transformers
from architectures import FAMILIES, UNKNOWN, write_family
from beside_hugging_face import Sides
from family import SWITCH

from steerlens.engine.choosing import running
from steerlens.errors import ModelError, SteerlensError
from steerlens.models.loading import load_model

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"
HEAD = ("Family", "Such as", "Path", "Residuals", "Steered tokens", "Why")
LIMIT = 1e-4
"""Relative error up to which residuals and logits count as equal; rounding is below 2e-5."""
SHORT = 8
"""Tokens of a row that no change with length concerns."""

# Models that people know by other names than their family's.
SUCH_AS = {
    "llama": "Llama 1 and 2, SmolLM and SmolLM2, TinyLlama, Yi, Vicuna",
    "llama-3 rope": "Llama 3.1, 3.2 and 3.3",
    "llama, linear rope": "LongChat",
    "mistral": "Mistral 7B, Zephyr, Mistral Nemo",
    "mistral, with images": "Mistral Small 3.1 and 3.2",
    "mixtral": "Mixtral 8x7B",
    "qwen2": "Qwen 1.5, 2 and 2.5",
    "qwen2-moe": "Qwen1.5-MoE-A2.7B",
    "qwen3": "Qwen3 0.6B to 32B",
    "qwen3-moe": "Qwen3-30B-A3B",
    "qwen3-next": "Qwen3-Next-80B-A3B",
    "gemma-3": "Gemma 3 270M and 1B",
    "gemma-3, with images": "Gemma 3 4B, 12B and 27B",
    "gemma-4, inputs per layer": "Gemma 4 E2B and E4B",
    "phi": "Phi-1.5 and Phi-2",
    "phi-3": "Phi-3-mini-4k, Phi-4",
    "phi-3, longrope": "Phi-3-mini-128k, Phi-4-mini",
    "gpt-neox": "Pythia, GPT-NeoX-20B",
    "gpt-neox, sequential": "RedPajama-INCITE",
    "gpt-j": "GPT-J-6B",
    "gpt-bigcode": "StarCoder, SantaCoder",
    "opt": "OPT 125M to 66B",
    "opt, norm after": "OPT-350M",
    "falcon": "Falcon 7B",
    "falcon, alibi": "Falcon-RW-1B",
    "falcon, new": "Falcon 40B, Falcon 2 11B",
    "stablelm": "StableLM 2 1.6B",
    "stablelm, parallel": "StableLM 2 12B",
    "cohere": "Command R",
    "cohere-2": "Command R7B, Command A",
    "granite": "Granite 3",
    "granite-hybrid, no positions": "Granite 4 H",
    "deepseek-2": "DeepSeek-V2-Lite",
    "deepseek-3": "DeepSeek-V3 and R1",
    "smollm-3": "SmolLM3-3B",
    "llama-4, with images": "Llama 4 Scout and Maverick",
    "ministral-3": "the language model of Ministral 3",
    "qwen3.5, with images": "Qwen3.5",
}


@dataclass(frozen=True)
class ArchitectureRow:
    """One line of the table, as text."""

    family: str
    such_as: str
    path: str
    residuals: str = ""
    tokens: str = ""
    why: str = ""


def row_of(name: str, both: Sides) -> ArchitectureRow:
    """What a family's model does in float32."""
    such_as = SUCH_AS.get(name, "")
    try:
        resid, _ = both.residual_errors()
        tokens, expected, logits, how = both.greedy_errors()
        with running(both.model, SHORT) as short:
            is_fast = short.is_fast
    except SteerlensError as error:
        return ArchitectureRow(name, such_as, "refused", why=_general(str(error)))
    is_equal = tokens == expected and bool(logits.max() < LIMIT)
    path = "fast" if how["attention"] == "sdpa" else "fast, then plain" if is_fast else "plain"
    return ArchitectureRow(
        name,
        such_as,
        path,
        "equal" if resid.max() < LIMIT else f"off by {resid.max():.1g}",
        "equal" if is_equal else f"logits off by {logits.max():.1g}",
        "" if path == "fast" else _general(how["attention_reason"]),
    )


def row_of_unknown(name: str, folder: Path) -> ArchitectureRow:
    """What `load_model` says to a family that has no hooks in TransformerLens."""
    try:
        load_model(write_family(name, folder), device="cpu")
        return ArchitectureRow(name, SUCH_AS.get(name, ""), "loaded")
    except ModelError as error:
        why = _general(str(error).split(" cannot be set up: ")[1])
    return ArchitectureRow(name, SUCH_AS.get(name, ""), "refused", why=why)


def _general(reason: str) -> str:
    """A reason without what is only so at toy size, or in this release of TransformerLens."""
    reason = re.sub(rf"beyond ({SWITCH}|{SWITCH - 1}) tokens", "beyond a certain length", reason)
    return re.sub(r"TransformerLens [\d.]+", "TransformerLens", reason)


def committed() -> dict[str, ArchitectureRow]:
    """The rows of the page, by family."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(_line(HEAD)) + 2
    rows = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        row = ArchitectureRow(*(cell.strip() for cell in line.strip("|").split("|")))
        rows[row.family] = row
    return rows


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure every family and write the table into the page."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = [row_of(name, Sides(name, "float32")) for name in FAMILIES]
    for name in UNKNOWN:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of_unknown(name, Path(folder)))
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(_line(HEAD)) + 2
    stop = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    lines[start:stop] = [_line(astuple(row)) for row in rows]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
