"""The explorer: one state, which small views show, and one worker, whose work they begin.

What has changed cancels what is under way. Then the worker fits the vectors that are missing,
answers, records what the steering did to each token, and goes on with evidence about layers until
something changes again. Its callbacks arrive in its thread; setting a widget's value there is what
ipywidgets sends to the page. Text of the model reaches a widget only escaped.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ipywidgets as w
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.run import SteeredRun
from steerlens.errors import SteerlensError
from steerlens.explorer.answers import Answers, answer
from steerlens.explorer.answers_view import AnswersView
from steerlens.explorer.conversation import ConversationControls
from steerlens.explorer.curves import CurvesView
from steerlens.explorer.decoding import DecodingControls
from steerlens.explorer.elements import NARROW, Status, button, row, section
from steerlens.explorer.evidence import LayerEvidence
from steerlens.explorer.own_pairs import OwnPairs
from steerlens.explorer.pins import Pin, pins_table
from steerlens.explorer.python_lines import as_python
from steerlens.explorer.settings import SettingControls
from steerlens.explorer.sources import Fitted, Sources, passes
from steerlens.explorer.sweep_view import SweepView
from steerlens.explorer.sweeping import sweep
from steerlens.explorer.trials import Question, Setting, Trial
from steerlens.explorer.worker import Worker
from steerlens.models.conversations import Conversation
from steerlens.tasks import Task
from steerlens.vectors import SteeringVector
from steerlens.views import save

__all__ = ["Explorer"]


class Explorer:
    """The controls, and what they show; arguments as for `steerlens.explore`.

    Attributes:
        view: The widget.
        sources: The tasks that may be picked, and the vectors fitted so far.
        conversation: System message, earlier turns and prompts.
        decoding: How answers are decoded.
        a: The setting.
        b: Another one, compared with it while its section is open.
        curves: Evidence about layers.
        map: The sweep of strength × layer.
        pairs: Pairs of your own.
        shown: The answers, and the tokens of one of them.
        answers: What is shown; ``None`` while a trial runs.
        run: What a setting did to each token; ``None`` until it is known.
        pins: The settings kept, with their texts.
        message: What the explorer says.
        worker: Does all of it.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tasks: Sequence[Task | str | os.PathLike[str]] | Task | str | os.PathLike[str] = (),
        n_pairs: int = 32,
        conversation: Conversation = (),
    ) -> None:
        self.model, self.sources = model, Sources(model, tasks, n_pairs)
        self.worker = Worker(self._say)
        self.pins: list[Pin] = []
        self.answers: Answers | None = None
        self.run: SteeredRun | None = None
        self._evidence: dict[str, LayerEvidence] = {}
        self._baselines: dict[Any, Any] = {}
        self._cells: dict[Any, Any] = {}
        self._source = ""
        n_layers, names = int(model.cfg.n_layers), list(self.sources.tasks)
        self.conversation = ConversationControls(self._changed, self._last)
        self.decoding = DecodingControls(self._changed)
        self.a = SettingControls(n_layers, names, self._changed, "steer by")
        self.b = SettingControls(n_layers, names, self._changed, "steer by")
        self.pairs = OwnPairs(self._use_pairs)
        self.curves = CurvesView(self._pick_layer)
        self.map = SweepView(n_layers, self.start_sweep, self._use_cell)
        self._compared = False
        self.comparison = section("compare with a second setting", [self.b.view], self._compare)
        self.message = Status()
        self.shown, self.pinned = AnswersView(self.reply, self._show_other), w.HTML()
        self.python = w.Textarea(layout={"width": "auto", "height": "9em", "display": "none"})
        self.file = w.Text("steering.safetensors", description="file", **NARROW)
        buttons = [
            button("stop", self.stop, "end what is under way"),
            button("pin", self.pin, "keep this setting and its texts, to compare"),
            button("save vector", self._save_vector, "write the vector to the file"),
            button("save figure", lambda: self._saving(self.save_figure), "html, svg or png"),
            button("as Python", self._show_python, "the lines that give this again"),
        ]
        left = w.VBox([self.a.view, self.comparison, self.pairs.view, self.decoding.view])
        self.view = w.VBox(
            [
                self.conversation.view,
                w.GridBox(
                    [left, self.curves.view],
                    layout={
                        "grid_template_columns": "repeat(auto-fit, minmax(min(100%, 24em), 1fr))",
                        "grid_gap": "1em",
                    },
                ),
                row([*buttons, self.file]),
                self.message,
                self.python,
                self.shown.view,
                self.map.view,
                self.pinned,
            ]
        )
        if conversation:
            self.conversation.ask(conversation)

    @property
    def question(self) -> Question:
        """What is asked, as the controls say now.

        Raises:
            SteerlensError: As `Decoding`.
        """
        asked = self.conversation
        return Question(
            asked.texts,
            asked.system.value,
            asked.turns,
            self.decoding.value,
            self.decoding.max_new_tokens.value,
        )

    @property
    def trial(self) -> Trial:
        """What the controls say now.

        Raises:
            SteerlensError: As `Decoding`.
        """
        settings = [self.a.value]
        if self._compared and self.b.source.value.strip():
            settings.append(self.b.value)
        return Trial(self.question, tuple(settings))

    @property
    def vector(self) -> SteeringVector:
        """The vector of the first setting; fitted, if need be, when the worker has ended.

        Raises:
            SteerlensError: See `Sources.fit`.
        """
        source = self.a.value.source
        if source in self.sources.fitted:
            return self.sources.fitted[source].vector
        with self.worker.alone():
            return self.sources.fit(source).vector

    def pin(self) -> None:
        """Keep the setting that is shown, to compare it with later ones."""
        if self.run is None or self.answers is None:
            self._say("nothing to pin yet; wait until the tokens are there")
            return
        (prompt, setting), trial = self.shown.shown.value, self.answers.trial
        self.pins.append(Pin.of(trial.settings[setting], trial.question.describe(prompt), self.run))
        self.pinned.value = pins_table(self.pins)

    def reply(self, column: int = 1) -> None:
        """Keep prompt and answer (0: the baseline's) as earlier turns, for another message."""
        answers = self.answers
        if answers is None or len(answers.trial.question.prompts) > 1:
            self._say("a reply needs one prompt, answered; wait until the answers are there")
            return
        try:
            text = answers.texts[0][column][0]
            self.conversation.reply_to(answers.trial.question.prompts[0], text)
        except SteerlensError:
            self._say("this answer is blank, and no conversation can go on from it")

    def stop(self) -> None:
        """End what is under way."""
        self.worker.cancel()
        self._say("stopped")

    def start_sweep(self) -> None:
        """Fill in the map of strength × layer, from where it was stopped."""
        try:
            question, setting = self.question, self.a.value
            layers, strengths = self.map.axes
        except SteerlensError as error:
            self._say(str(error))
            return
        if not question.prompts or not setting.source:
            self._say("a sweep needs a prompt and something to steer by")
            return

        def work() -> None:
            [fitted] = self._fit([setting])
            self.worker.tell(self._say, "sweeping …")
            sweep(
                *(self.model, question, setting, fitted, layers, strengths),
                lambda so_far: self.worker.tell(self.map.show, so_far),
                self._cells,
            )
            self.worker.tell(self._say, "click a cell for its text")
            self._gather(setting.source)

        self.worker.start(work, [setting.source])

    def save_vector(self, path: str | Path) -> Path:
        """Write the vector in use to a file."""
        return self.vector.save(path)

    def save_figure(self, path: str | Path) -> Path:
        """Write what is shown to a file: HTML, SVG, PNG or PDF by its ending.

        Raises:
            SteerlensError: Nothing is shown yet; or see `steerlens.views.save`.
        """
        if self.run is None:
            raise SteerlensError("nothing to save yet; wait until the tokens are there")
        return save(self.run.effects.plot(), path)

    def to_python(self) -> str:
        """The Python that gives the present trial again."""
        return as_python(self.trial, self.sources)

    def _changed(self, _: Any) -> None:
        """Something was set: give up what is under way, and begin anew."""
        source = self.a.value.source
        needs = [source, self.b.value.source]
        self.worker.cancel(but=needs)
        # What the trial before gave would stand as this one's, for good where this one fails.
        self.answers = self.run = None
        self.shown.clear()
        if self.python.layout.display != "none":
            self.python.value = self._python_or_reason()
        if source != self._source:
            self._source = source
            self.curves.clear()
            self.map.clear()
        self.curves.mark(self.a.layer.value)
        if not self.conversation.texts:
            self._say("type your next message")
        elif not source:
            self._say("")
        else:
            try:
                trial = self.trial
            except SteerlensError as error:
                self._say(str(error))
                return
            self._say("answering …")
            self.worker.start(lambda: self._answer(trial), needs)

    def _answer(self, trial: Trial) -> None:
        """The worker's work."""
        fitted = self._fit(trial.settings)
        tell = self.worker.tell
        tell(self._say, "answering …")
        answers = answer(
            *(self.model, trial, [each.vector for each in fitted]),
            lambda texts: tell(self.shown.show_texts, trial, texts),
            self._baselines,
        )
        tell(self._show_answers, answers)
        self._record(answers)
        self._gather(trial.settings[0].source)

    def _fit(self, settings: Sequence[Setting]) -> list[Fitted]:
        fitted = []
        for setting in settings:
            source = setting.source
            if source not in self.sources.fitted:
                self.worker.tell(self._say, f"fitting the vector of {source!r} …")
            with self.worker.kept(source):
                fitted.append(self.sources.fit(source))
        return fitted

    def _gather(self, source: str) -> None:
        """Evidence about the layers of a source, as far as it is wanted and missing."""
        evidence = self._evidence.get(source)
        if evidence is None or evidence.fitted is not self.sources.fitted[source]:
            evidence = self._evidence[source] = LayerEvidence(self.sources.fitted[source])
        if not self.curves.gathers.value:
            return
        self.worker.tell(self.curves.show, evidence, self.curves.drawn(evidence))
        for _ in evidence.gather(self.model):
            self.worker.tell(self.curves.show, evidence, self.curves.drawn(evidence))

    def _show_answers(self, answers: Answers) -> None:
        self.answers, trial = answers, answers.trial
        tasks = [self.sources.fitted[setting.source].task for setting in trial.settings]

        def check(column: int, text: str) -> bool | None:
            return passes(tasks[max(column - 1, 0)], text)

        try:
            self.shown.show_texts(trial, answers.texts, check)
            self._say("recording what it did to each token …")
        except SteerlensError as error:  # a check of one's own may raise
            self.shown.show_texts(trial, answers.texts)
            self._say(str(error))
        self.shown.offer(trial)

    def _show_other(self, place: tuple[int, int]) -> None:
        """Record the tokens of the answer that was picked."""
        answers = self.answers
        if answers is None:
            return
        self.run = None
        self.shown.clear_tokens()

        def work() -> None:
            self._record(answers, *place)
            self._gather(answers.trial.settings[0].source)

        self.worker.start(work)

    def _record(self, answers: Answers, prompt: int = 0, setting: int = 0) -> None:
        run = answers.record(self.model, prompt, setting)
        # Drawn before, not while, a moved slider may have to wait.
        self.worker.tell(self._show_run, run, self.shown.drawn(run))

    def _show_run(self, run: SteeredRun, figures: list[Any]) -> None:
        self.run = run
        self.shown.show_tokens(figures)
        if self.message.value.startswith("recording"):  # else a check has failed
            first = "; the strips are those of the first sample" if len(run.samples) > 1 else ""
            self._say(f"click a token for its numbers{first}")

    def _pick_layer(self, layer: int) -> None:
        self.a.layer.value = layer

    def _use_cell(self, layer: int, strength: float) -> None:
        self.a.set(replace(self.a.value, layer=layer, strength=strength))

    def _use_pairs(self) -> None:
        try:
            task = self.pairs.task
        except SteerlensError as error:
            self._say(str(error))
            return
        self.worker.cancel()
        self.sources.add(task)
        self._cells.clear()
        self._source = ""
        for panel in (self.a, self.b):
            panel.source.options = list(self.sources.tasks)
        self.a.set(replace(self.a.value, source=task.id))

    def _compare(self, shown: bool) -> None:
        self._compared = shown
        if shown and not self.b.source.value:
            self.b.set(self.a.value)
        else:
            self._changed(None)

    def _last(self) -> tuple[str, str] | None:
        """The prompt that was answered, with its first steered answer."""
        answers = self.answers
        if answers is None:
            return None
        return answers.trial.question.prompts[0], answers.texts[0][1][0]

    def _python_or_reason(self) -> str:
        try:
            return self.to_python()
        except SteerlensError as error:
            return f"# {error}"

    def _show_python(self) -> None:
        self.python.value = self._python_or_reason()
        self.python.layout.display = "" if self.python.layout.display == "none" else "none"

    def _save_vector(self) -> None:
        if self.worker.is_running and self.a.value.source not in self.sources.fitted:
            self._say("the vector is still being made; wait until the answers begin")
            return
        self._saving(self.save_vector)

    def _saving(self, save_to: Any) -> None:
        try:
            self._say(f"written: {save_to(self.file.value)}")
        except (SteerlensError, OSError) as error:
            self._say(str(error))

    def _say(self, sentence: str) -> None:
        self.message.value = sentence

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.view._repr_mimebundle_(**options)
