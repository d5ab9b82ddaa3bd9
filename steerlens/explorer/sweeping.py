"""A sweep of strength × layer: one answer per cell and prompt, a map of what they come to.

A cell shows the share of its answers that pass the task's check; without a check, the mean
KL(steered‖baseline) at the first response token, in nats. ↻ marks a cell with a degenerate answer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.generation import generate_from_tokens
from steerlens.engine.rows import Row, choose_tokens
from steerlens.engine.sampling import stream_seed
from steerlens.errors.cancellation import check_cancelled
from steerlens.explorer.sources import Fitted, passes
from steerlens.explorer.trials import Question, Setting
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.fluency import fluency, is_degenerate
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["Cell", "Sweep", "sweep"]

# Rows decoded together: few enough that cells are filled in one after the other.
_TOGETHER = 12


@dataclass(frozen=True)
class Cell:
    """One answer of a sweep.

    Attributes:
        text: The answer.
        passed: Whether it passes the task's check; ``None`` without one.
        kl: KL(steered‖baseline) at the first response token, in nats.
        degenerate: Whether it falls into a loop, says nothing, or ends in logits that are none.
    """

    text: str
    passed: bool | None
    kl: float
    degenerate: bool


@dataclass(frozen=True, eq=False, repr=False)
class Sweep(Result):
    """Answers over strengths and layers.

    Attributes:
        layers: The columns of the map.
        strengths: Its rows.
        prompts: What was asked.
        cells: By strength, layer and number of the prompt; those that have not ended are missing.
    """

    layers: tuple[int, ...]
    strengths: tuple[float, ...]
    prompts: tuple[str, ...]
    cells: Mapping[tuple[float, int, int], Cell]

    @property
    def table(self) -> pd.DataFrame:
        """One row per answer: ``layer, strength, prompt, text, passed, kl, degenerate``."""
        rows = [
            {
                "layer": layer,
                "strength": strength,
                "prompt": self.prompts[i],
                "text": cell.text,
                "passed": cell.passed,
                "kl": cell.kl,
                "degenerate": cell.degenerate,
            }
            for (strength, layer, i), cell in self.cells.items()
        ]
        columns = ["layer", "strength", "prompt", "text", "passed", "kl", "degenerate"]
        return pd.DataFrame(rows, columns=columns)

    def at(self, layer: int, strength: float) -> list[Cell]:
        """The answers of one cell, in the order of the prompts."""
        places = [(strength, layer, i) for i in range(len(self.prompts))]
        return [self.cells[place] for place in places if place in self.cells]

    @property
    def value(self) -> str:
        """What the map shows: ``"passed"`` or ``"kl"``."""
        return "kl" if any(cell.passed is None for cell in self.cells.values()) else "passed"

    def plot(self) -> "go.Figure":
        """The map."""
        from steerlens.views.maps import setting_map

        table = self.table.astype({self.value: float})
        means = table.groupby(["layer", "strength"], as_index=False).agg(
            value=(self.value, "mean"), marked=("degenerate", "any")
        )
        name = "share that passes" if self.value == "passed" else "first-token KL, nats"
        highest = 1.0 if self.value == "passed" else None
        return setting_map(means, self.layers, self.strengths, name, highest=highest, mark="↻")

    def __repr__(self) -> str:
        n_cells = len(self.layers) * len(self.strengths)
        return f"Sweep({n_cells} cells, {len(self.cells)} of {n_cells * len(self.prompts)} answers)"


def sweep(
    model: TransformerBridge,
    question: Question,
    setting: Setting,
    fitted: Fitted,
    layers: Sequence[int],
    strengths: Sequence[float],
    told: Callable[[Sweep], None],
    kept: dict[Any, Cell],
) -> Sweep:
    """Answer each prompt once under every strength at every layer.

    Args:
        model: A hooked model.
        question: What is asked; one sample of each answer is drawn.
        setting: All but layer and strength.
        fitted: Its source.
        layers: Columns of the map; the rows nearest to the setting's layer begin first.
        strengths: Rows of the map.
        told: Called as answers end.
        kept: Answers of earlier sweeps; new ones are added.

    Raises:
        SteerlensError: As `answer`; a check that raises.
    """
    question = replace(question, decoding=replace(question.decoding, samples=1))
    prompts = [tuple(row) for row in tokenize_prompts(model, list(question.asked))]
    nearest = sorted(layers, key=lambda layer: abs(layer - setting.layer))
    places = [
        (strength, layer, i)
        for layer, strength, i in product(nearest, strengths, range(len(prompts)))
    ]
    settings = {p: replace(setting, layer=p[1], strength=p[0]) for p in places}
    keys = {p: (question, settings[p], p[2]) for p in places}
    cells = {p: kept[key] for p, key in keys.items() if key in kept}
    shape = (tuple(layers), tuple(strengths), question.prompts)
    told(Sweep(*shape, dict(cells)))
    missing = [p for p in places if p not in cells]
    if not missing:
        return Sweep(*shape, cells)
    steerings = [settings[p].steering(fitted.vector) for p in missing]
    steerings[0].check_model(model)
    # The unsteered run of each prompt comes first, for its first distribution.
    n = len(prompts)
    rows_of = [*range(n), *(p[2] for p in missing)]
    baselines: dict[int, Tensor] = {}
    kl: dict[int, float] = {}
    running: dict[int, Row] = {}

    def close() -> None:
        ended = [row for row in running.values() if row.reason is not None and row.index >= n]
        for row in ended:
            del running[row.index]
            place = missing[row.index - n]
            text = model.tokenizer.decode(row.produced, skip_special_tokens=True)
            cells[place] = kept[keys[place]] = Cell(
                text=text,
                passed=passes(fitted.task, text),
                kl=kl.get(row.index, float("nan")),
                degenerate=row.reason == "non-finite" or is_degenerate(fluency(text)),
            )
        if ended:
            told(Sweep(*shape, dict(cells)))

    def choose(logits: Float[Tensor, "row vocab"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
        check_cancelled()
        close()
        for row, own in sorted(zip(rows, logits, strict=True), key=lambda pair: pair[0].index):
            running[row.index] = row
            if not row.produced:
                logprobs = own.float().log_softmax(-1)
                if row.index < n:
                    baselines[row.index] = logprobs
                elif (before := baselines.get(rows_of[row.index])) is not None:
                    difference = logprobs - before
                    kl[row.index] = float((logprobs.exp() * difference).nansum())
        return choose_tokens(logits, rows)

    generate_from_tokens(
        model,
        [prompts[i] for i in rows_of],
        [*[None] * n, *steerings],
        question.max_new_tokens,
        batch_size=_TOGETHER,
        choose=choose,
        show_progress=False,
        decodings=[question.decoding] * len(rows_of),
        seeds=[stream_seed(question.decoding.seed, i) for i in rows_of],
    )
    check_cancelled()
    close()
    return Sweep(*shape, cells)
