"""A plan: for each task, where and how hard to steer, chosen by behaviour.

`search` writes a folder with ``plan.json`` and the vectors it names; `Plan.load` reads it. For each
task the plan holds two choices: one for prompts that do **not** state the instruction
(``uninstructed``), one for prompts that do (``instructed``), each with its rate on the prompts it
was chosen on, corrected for the choosing, and the whole table that was searched.

Vectors of tasks whose arguments are words are not stored: they are fitted again for the words at
hand, by the plan's own recipe.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.behaviour.plans.candidates import Candidate, candidate_from_json, describe
from steerlens.behaviour.plans.fitting import FitRecipe, VectorBook, joined
from steerlens.behaviour.side_effects import described_cost
from steerlens.behaviour.unchecked import MEASURES
from steerlens.engine.sampling import Decoding
from steerlens.errors import FileFormatError, SteerlensError, unknown_name
from steerlens.files import local_path
from steerlens.models.conversations import Conversation, conversation_before
from steerlens.models.loading import model_info
from steerlens.steering.interventions import Steering
from steerlens.tasks import Task
from steerlens.tasks.task_files import load_task
from steerlens.vectors import SteeringVector
from steerlens.views.numbers import show_interval
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["CONTEXTS", "PLAN_FILE", "PLAN_SCHEMA", "Plan", "vector_file"]

PLAN_FILE = "plan.json"
PLAN_SCHEMA = "steerlens-plan/1"
CONTEXTS = ("uninstructed", "instructed")


@dataclass(frozen=True, eq=False, repr=False)
class Plan(Result):
    """The choices for each task.

    Attributes:
        data: The content of ``plan.json``.
        vectors: Saved vectors, by task id and estimator.
    """

    data: Mapping[str, Any]
    vectors: Mapping[tuple[str, str], SteeringVector]

    @classmethod
    def load(cls, folder: str | Path) -> "Plan":
        """Read a plan from its folder.

        Raises:
            FileFormatError: No plan in the folder, a file of another kind, or a vector it names is
                missing.
        """
        folder = local_path(folder)
        path = folder / PLAN_FILE
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileFormatError(
                f"{folder} holds no {PLAN_FILE}; make one with 'steerlens search --out {folder}'"
            ) from error
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read as a plan: {error}") from error
        if not isinstance(data, dict) or data.get("schema") != PLAN_SCHEMA:
            raise FileFormatError(f"{path} is no plan of the kind {PLAN_SCHEMA}")
        try:
            plan = cls(data, _load_vectors(folder, data))
            for name in plan.instructions:
                for context in CONTEXTS:
                    plan.candidate(name, context)
            FitRecipe(**data["recipe"])
            _ = plan.decoding, plan.conversation
        except (KeyError, TypeError, AttributeError) as error:
            raise FileFormatError(f"{path} lacks a part of a plan: {error!r}") from error
        return plan

    @property
    def instructions(self) -> tuple[str, ...]:
        """Ids of the tasks it has a choice for."""
        return tuple(self.data["instructions"])

    @property
    def recipe(self) -> FitRecipe:
        """How its vectors were fitted."""
        return FitRecipe(**self.data["recipe"])

    @property
    def decoding(self) -> Decoding:
        """How answers were decoded when it was chosen; greedy before plans said so."""
        return Decoding(**self.data.get("settings", {}).get("decoding", {}))

    @property
    def conversation(self) -> Conversation:
        """The messages that came before every prompt when it was chosen."""
        return conversation_before(self.data.get("settings", {}).get("conversation", ()))

    def check_model(self, model: TransformerBridge) -> None:
        """`SteerlensError` when the plan was searched on other weights, or configured otherwise."""
        info = model_info(model, exact=True)
        recorded = self.data["model"]
        for key in ("weights_hash", "configuration_hash"):
            # Plans of earlier versions do not name the configuration.
            before, now = recorded.get(key), getattr(info, key)
            if before != now and (key == "weights_hash" or before is not None):
                changed = ", whose weights were changed since loading," if info.edited else ""
                raise SteerlensError(
                    f"this plan was searched on {recorded['reference']} ({key} "
                    f"{str(before)[:19]}…), not on {info.reference}{changed} ({now[:19]}…); search "
                    "again with this model"
                )

    def candidate(self, task_id: str, context: str = "uninstructed") -> Candidate:
        """The candidate chosen for prompts that do or do not state the instruction.

        Raises:
            UnknownNameError: The plan has no such task, or a context that does not exist.
        """
        if task_id not in self.data["instructions"]:
            raise unknown_name("instruction of this plan", task_id, self.instructions)
        if context not in CONTEXTS:
            raise unknown_name("context", context, CONTEXTS)
        return candidate_from_json(self.data["instructions"][task_id][context]["parts"])

    def described(self, task_id: str, context: str = "uninstructed") -> str:
        """The choice in words, with what it did on the select split where the plan says so.

        Newer plans also say what it costs (`steerlens.behaviour.side_effects`).
        """
        choice = self.data["instructions"][task_id][context]
        cost = f"; {described_cost(choice)}" if "cost" in choice else ""
        return self._effect(task_id, context) + cost

    def _effect(self, task_id: str, context: str) -> str:
        choice = self.data["instructions"][task_id][context]
        setting, measure = describe(self.candidate(task_id, context)), self.measure(task_id)
        if measure not in choice:
            return setting
        if measure == "rate":
            return (
                f"{setting}; {choice['rate']:.0%} [{choice['low']:.0%}, {choice['high']:.0%}] of "
                f"{choice['n']} prompts, unsteered {choice['unsteered_rate']:.0%}; corrected for "
                f"choosing {choice['corrected_rate']:.0%}"
            )
        instead = "" if measure == "log_odds_change" else " (no check, so no rate of passing)"
        refused = choice.get("refused", {})
        shown = {**choice, **refused}
        ends = show_interval(*(shown[name] for name in (measure, "low", "high")))
        beside = ""
        if "placebo" in shown:
            placebo = show_interval(*(shown[f"placebo{end}"] for end in ("", "_low", "_high")))
            corrected = shown[f"corrected_{measure}"]
            beside = f", placebo {placebo}; corrected for choosing {corrected:.2f}"
        best = f"the best, {refused['setting']}, does not exceed its control: " if refused else ""
        return (
            f"{setting}; {best}{MEASURES[measure]} {ends} over {choice['n']} pairs{instead}{beside}"
        )

    def check_task(self, task: Task) -> None:
        """Refuse a task that the plan was searched for under another definition.

        Raises:
            SteerlensError: "the plan was searched for another definition of …".
        """
        was = self.data["instructions"].get(task.id, {}).get("task_hash")
        if was is not None and was != task.hash:
            raise SteerlensError(
                f"this plan was searched for another definition of task {task.id!r} ({was[:19]}…, "
                f"now {task.hash[:19]}…); search again"
            )

    def fill(self, book: VectorBook) -> None:
        """Give the saved vectors to a book, so that it does not fit them again."""
        for (task_id, estimator), vector in self.vectors.items():
            vector.check_model(book.model)
            book.keep(task_id, estimator, vector)

    def steering(
        self,
        book: VectorBook,
        tasks: Sequence[tuple[Task | str, Mapping[str, Any]]],
        context: str = "uninstructed",
        placebo: bool = False,
    ) -> Steering | None:
        """The steering for a prompt: that of each of its instructions, together, in order.

        Args:
            book: Holds or fits the vectors.
            tasks: Tasks, or their ids, with the arguments of their checks.
            context: As for `candidate`.
            placebo: Random directions instead.
        """
        steerings = [
            book.steering(task, kwargs, self.candidate(task.id, context), placebo)
            for task, kwargs in ((load_task(task), kwargs) for task, kwargs in tasks)
        ]
        return joined([steering for steering in steerings if steering is not None])

    def measure(self, task_id: str) -> str:
        """What the search chose by: "rate", "recovery" or "log_odds_change"."""
        return str(self.data["instructions"][task_id].get("measure", "rate"))

    @property
    def table(self) -> pd.DataFrame:
        """One row per task and context: the choice, and what it did on the select split.

        Columns: `instruction`, `context`, `choice`, `n`, and, by what was measured (`measure`):
        `rate` with `low` and `high`, `corrected_rate` (corrected for choosing the best of many)
        with its ends, `unsteered_rate` with its ends, `degenerate`, `perplexity`,
        `unsteered_perplexity`; or, for tasks without a check and for choices, which have one row,
        `recovery` or `log_odds_change` with `low` and `high`, the same with `corrected_`, and
        `placebo` with its ends. Of what was chosen also its `cost` and `accuracy_change`, with
        their ends and their placebos' (`steerlens.behaviour.side_effects`).
        """
        rows = []
        for name, record in self.data["instructions"].items():
            measure = self.measure(name)
            for context in CONTEXTS if measure == "rate" else CONTEXTS[:1]:
                choice = describe(self.candidate(name, context))
                row = {"instruction": name, "context": context, "choice": choice}
                rows.append({**row, "measure": measure, **record[context]})
        return pd.DataFrame(rows).drop(columns=["parts", "refused"], errors="ignore")

    @property
    def tried(self) -> pd.DataFrame:
        """Every candidate of every stage, for every task, as the search scored it."""
        records = self.data["instructions"]
        return pd.DataFrame(
            [{"instruction": name, **row} for name in records for row in records[name]["table"]]
        )

    def plot(self) -> "go.Figure":
        """Rates on the select split with and without the choice, by task and context.

        For tasks without a check causal recovery beside its placebo; those of choices, which are
        in nats, are left out beside others.
        """
        from steerlens.views import condition_rates

        rows: list[dict[str, Any]] = []
        changes: list[dict[str, Any]] = []
        for row in self.table.to_dict("records"):
            measure = row["measure"]
            about = {"instruction": row["instruction"], "n": row["n"]}
            if measure == "rate":
                for steered, kind in (("", "unsteered_"), ("+steering", "")):
                    ends = {name: row[f"{kind}{name}"] for name in ("rate", "low", "high")}
                    rows.append({**about, "condition": f"{row['context']}{steered}", **ends})
                continue
            about["instruction"] = f"{row['instruction']} ({measure.replace('_', ' ')})"
            listed = rows if measure == "recovery" else changes
            ends = {"rate": row[measure], "low": row["low"], "high": row["high"]}
            listed.append({**about, "condition": "uninstructed+steering", **ends})
            if pd.notna(row.get("placebo")):
                ends = {"rate": row["placebo"]}
                ends |= {name: row[f"placebo_{name}"] for name in ("low", "high")}
                listed.append({**about, "condition": "uninstructed+placebo", **ends})
        if not rows:
            nats = "change of log odds in nats"
            return condition_rates(changes, quantity=nats, is_share=False)
        is_recovery = all("recovery)" in row["instruction"] for row in rows)
        quantity = "causal recovery" if is_recovery else "rate of passing, or recovery if named"
        return condition_rates(rows, quantity=quantity)

    def __repr__(self) -> str:
        return f"Plan({self.data['model']['reference']}, {len(self.instructions)} instructions)"

    def _card(self) -> Mapping[str, Any]:
        table = self.table
        values = [row[row["measure"]] for row in table.to_dict("records")]
        before = table["unsteered_rate"].fillna(0) if "unsteered_rate" in table else 0.0
        columns = ["instruction", "context", "choice", "measure"]
        shown = table[columns].assign(value=values, low=table["low"], high=table["high"])
        return {"table": shown.assign(gain=shown["value"] - before), "largest": "gain"}


def vector_file(instruction: str, estimator: str) -> str:
    """Name of a saved vector in the plan's folder.

    >>> vector_file("detectable_format:title", "last_prompt")
    'vectors/detectable_format-title.last_prompt.safetensors'
    """
    return f"vectors/{instruction.replace(':', '-')}.{estimator}.safetensors"


def _load_vectors(folder: Path, data: Mapping[str, Any]) -> dict[tuple[str, str], SteeringVector]:
    return {
        (instruction, estimator): SteeringVector.load(folder / vector_file(instruction, estimator))
        for instruction, record in data["instructions"].items()
        for estimator in record["vectors"]
    }
