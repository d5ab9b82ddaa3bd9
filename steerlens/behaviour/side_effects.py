r"""Side effects: what steering costs on text that has nothing to do with the task.

Two things are measured, without generating anything, on texts written for this package
(`steerlens.tasks.plain`) or on your own:

**Perplexity of plain text.** A passage's first 32 tokens are its prompt, the rest is its response;
so every scope touches the tokens it is for. With :math:`\ell_i` the mean negative log-likelihood
per token of passage *i*'s response, in nats, the *cost* is the ratio of perplexities

.. math:: \exp\Big(\frac{1}{n} \sum_i (\ell_i^\text{steered} - \ell_i^\text{unsteered})\Big)

1 costs nothing, 1.1 is a tenth more perplexity. Its interval is Student's over passages, of the
mean in the exponent.

**Common questions.** ``Question: …`` is the prompt, ``Answer: …`` the response, of which the answer
alone is scored. A question counts as right if the right answer has the highest log-likelihood among
four. The change of accuracy has Newcombe's interval (`steerlens.stats.rates`).

Beside each setting stands its **placebo**: the same push on the same tokens in a random direction.
A cost that the placebo has as well is the push's; what exceeds it is the direction's.

A strength that adapts while decoding is measured at its full value, the most it can cost.

    effects = sl.side_effects(model, vector.at(layer=20, strength=2.0))
    effects.table

**Caveat.** A steering that is meant to change every text (capitals, another language) *should* make
plain text less likely; its cost says how far it goes, not that it is broken. The questions tell
more there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.plain_text import PlainText
from steerlens.errors import SteeringError
from steerlens.errors.arguments import whole_number
from steerlens.stats.queries import mean_interval
from steerlens.stats.rates import Interval, paired_difference, wilson
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention
from steerlens.tasks.plain import CommonQuestion, common_questions, plain_passages
from steerlens.views.numbers import show_interval
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SideEffects", "described_cost", "random_push", "side_effects"]

Array = np.ndarray
UNSTEERED = "unsteered"


@dataclass(frozen=True, eq=False, repr=False)
class SideEffects(Result):
    """Result of `side_effects`; see the module.

    Attributes:
        settings: Names of the rows: "unsteered", then each setting, followed by its placebo.
        nll: Mean negative log-likelihood per token, in nats.
        right: Whether the right answer is the likeliest.
        descriptions: Each setting in words.
    """

    settings: tuple[str, ...]
    nll: Float[Array, "setting passage"]
    right: Bool[Array, "setting question"]
    descriptions: Mapping[str, str]

    def cost(self, setting: str) -> Interval:
        """Perplexity under a setting over that without steering."""
        change = self.nll[self._row(setting)] - self.nll[0]
        if not np.isfinite(change).all():
            return Interval(np.nan, np.nan, np.nan)
        ends = mean_interval(change[:, None], range(len(change)))
        return Interval(*(float(np.exp(end[0])) for end in ends))

    def accuracy_change(self, setting: str) -> Interval:
        """Accuracy under a setting minus that without steering."""
        return paired_difference(self.right[self._row(setting)], self.right[0])

    @property
    def table(self) -> pd.DataFrame:
        """One row per setting.

        Columns: `setting`, `perplexity`, `cost` (its ratio to the unsteered one) with `cost_low`
        and `cost_high`, `accuracy` and `accuracy_change`, each with its ends.
        """
        rows = []
        for i, setting in enumerate(self.settings):
            accuracy = wilson(int(self.right[i].sum()), self.right.shape[1])
            rows.append(
                {
                    "setting": setting,
                    "perplexity": float(np.exp(self.nll[i].mean())),
                    **_ends("cost", self.cost(setting)),
                    **_ends("accuracy", accuracy),
                    **_ends("accuracy_change", self.accuracy_change(setting)),
                }
            )
        return pd.DataFrame(rows)

    def summary(self, setting: str) -> dict[str, float | None]:
        """A setting's cost and its placebo's, as numbers for a plan; ``None`` for NaN."""
        named = {"": setting, "placebo_": placebo_name(setting)}
        values = {"unsteered_accuracy": float(self.right[0].mean())}
        for prefix, name in named.items():
            if name in self.settings:
                values |= _ends(f"{prefix}cost", self.cost(name))
                values |= _ends(f"{prefix}accuracy_change", self.accuracy_change(name))
        return {
            name: round(value, 4) if np.isfinite(value) else None for name, value in values.items()
        }

    def plot(self) -> "go.Figure":
        """The cost of each setting beside its placebo's."""
        from steerlens.views import condition_rates

        rows = []
        for setting in self.settings[1:]:
            is_placebo = setting.startswith("placebo of ")
            condition = "uninstructed+placebo" if is_placebo else "uninstructed+steering"
            rows.append((setting.removeprefix("placebo of "), condition, self.cost(setting)))
        return condition_rates(
            [
                {"instruction": name, "condition": condition.split("+")[1], "n": self.nll.shape[1]}
                | {"rate": ends.value, "low": ends.low, "high": ends.high}
                for name, condition, ends in rows
            ],
            quantity="perplexity of plain text, steered / unsteered",
            is_share=False,
        )

    def _row(self, setting: str) -> int:
        return self.settings.index(setting)

    def _card(self) -> Mapping[str, Any]:
        columns = ["setting", "cost", "cost_low", "cost_high", "accuracy", "accuracy_change"]
        return {"table": self.table[columns]}

    def __repr__(self) -> str:
        costs = (
            f"{name} ×{self.cost(name).value:.2f}"
            for name in self.settings[1:]
            if not name.startswith("placebo of ")
        )
        return f"SideEffects({', '.join(costs)}; {self.nll.shape[1]} passages)"


def side_effects(
    model: TransformerBridge,
    steering: Any,
    placebo: Any = None,
    texts: Sequence[str] | None = None,
    questions: Sequence[CommonQuestion] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    show_progress: bool | None = None,
) -> SideEffects:
    """What steering does to the perplexity of plain text and to common questions.

    Args:
        model: A hooked model.
        steering: A `Steering`, or several by name.
        placebo: Another as its placebo, or one for each name; by default the same push in a random
            direction (`random_push`).
        texts: Passages instead of the package's, of at least 33 tokens; at most 128 are read.
        questions: Questions instead of the package's.
        batch_size: Most rows per forward pass; by default as many as a pass holds.
        seed: Draws the random directions.
        show_progress: Show a progress bar on standard error; by default only in a terminal.

    Raises:
        SteeringError: A steering that does not fit the model, or none at all.
        SteerlensError: Fewer than 2 texts, a text that is too short, or no question.
    """
    named = _named(steering)
    placebos = _placebos(named, placebo, whole_number("seed", seed))
    settings: dict[str, Steering | None] = {UNSTEERED: None}
    for name, chosen in named.items():
        settings |= {name: chosen, placebo_name(name): placebos[name]}
    plain = PlainText(
        model,
        plain_passages() if texts is None else texts,
        common_questions() if questions is None else questions,
    )
    disable = None if show_progress is None else not show_progress
    total = plain.n_tokens * len(settings)
    with tqdm(desc="side effects", total=total, unit="token", disable=disable) as bar:
        nll, right = plain.measured(list(settings.values()), batch_size, bar.update)
    return SideEffects(
        settings=tuple(settings),
        nll=nll,
        right=right,
        descriptions={name: repr(chosen) for name, chosen in settings.items() if chosen},
    )


def placebo_name(setting: str) -> str:
    """Name of a setting's placebo."""
    return f"placebo of {setting}"


def described_cost(numbers: Mapping[str, Any]) -> str:
    """What `SideEffects.summary` says, in words.

    >>> described_cost({"cost": 1.25, "cost_low": 1.2, "cost_high": 1.31, "accuracy_change": -0.05})
    'perplexity of plain text ×1.25 [1.20, 1.31], common questions -5 points'
    """

    def ratio(prefix: str) -> str:
        value, low, high = (numbers.get(f"{prefix}cost{end}") for end in ("", "_low", "_high"))
        return f"×{show_interval(value, low, high)}"

    if numbers["cost"] is None:
        return "plain text leaves the model without numbers"
    text = f"perplexity of plain text {ratio('')}"
    if "placebo_cost" in numbers:
        text += f" (placebo {ratio('placebo_')})"
    return f"{text}, common questions {100 * numbers['accuracy_change']:+.0f} points"


def random_push(steering: Steering, seed: int = 0) -> Steering:
    """The same push on the same tokens, each in a random direction: a placebo without data.

    An intervention x + s φ(a + w·x) z becomes x + s φ(a + w·x) ‖z‖ r, with r uniform on the sphere.
    """
    generator = torch.Generator().manual_seed(seed)
    largest = torch.finfo(torch.float32).max

    def pushed(each: Intervention) -> Intervention:
        write, read, offset, slope, least = each.terms
        noise = torch.randn(write.shape, generator=generator, dtype=torch.float32)
        return Intervention(
            layer=each.layer,
            write=noise / noise.norm() * write.norm().cpu(),
            read=slope * (write if read is None else read),
            bias=min(max(offset, -largest), largest),
            gate="relu" if least == 0 else "identity",
            scope=each.scope,
            label=f"placebo of {each.label}",
            n_layers=each.n_layers,
        )

    # Nothing is written in a random direction where nothing is written at all.
    moving = [each for each in steering.interventions if float(each.terms[0].norm()) > 0]
    return Steering(tuple(map(pushed, moving)))


def _named(steering: object) -> dict[str, Steering]:
    """Steerings by name; a single one is "steered"."""
    named: dict[str, Any] = {"steered": steering}
    if isinstance(steering, Mapping):
        named = dict(steering)
    for name, each in named.items():
        if not isinstance(each, Steering):
            raise SteeringError(
                f"{name} must be a Steering; got {type(each).__name__}; a vector becomes one with "
                "vector.at(layer=…)"
            )
    if not named or UNSTEERED in named:
        raise SteeringError("give at least one steering, none of them named 'unsteered'")
    return named


def _placebos(named: Mapping[str, Steering], placebo: object, seed: int) -> dict[str, Steering]:
    if placebo is None:
        return {name: random_push(steering, seed) for name, steering in named.items()}
    single = dict.fromkeys(named, placebo)
    placebos: dict[str, Any] = dict(placebo) if isinstance(placebo, Mapping) else single
    lacking = [name for name in named if not isinstance(placebos.get(name), Steering)]
    if lacking or len(placebos) != len(named):
        raise SteeringError(f"every setting needs a Steering as its placebo; got {placebo!r}")
    return placebos


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
