"""The explorer's view: ipywidgets around `steerlens.explorer.session`.

Text of the model reaches a widget only escaped. Callbacks of the session arrive in its worker;
setting a widget's value there is what ipywidgets sends to the page.
"""

import html
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import plotly.graph_objects as go
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.run import SteeredRun
from steerlens.errors import SteerlensError
from steerlens.explorer.conversation import ConversationControls
from steerlens.explorer.decoding import DecodingControls
from steerlens.explorer.pins import Pin, pins_table
from steerlens.explorer.session import Session
from steerlens.explorer.trials import Trial, as_python, passes, task_of, vector_of
from steerlens.models.conversations import Conversation
from steerlens.models.loading import model_info
from steerlens.steering.operations import SCOPES, Operation
from steerlens.tasks import Task, catalogue
from steerlens.tasks.task_files import unique_tasks
from steerlens.vectors import SteeringVector
from steerlens.views import save

__all__ = ["Explorer", "explore"]

GivenTask = Task | str | os.PathLike[str]
# Widgets whose value is the field of `Trial` with the same name.
_CONTROLS = ("source", "layer", "operation", "strength", "scope", "adaptive", "max_new_tokens")


def explore(
    model: TransformerBridge,
    tasks: Sequence[GivenTask] | GivenTask = (),
    n_pairs: int = 32,
    conversation: Conversation = (),
) -> "Explorer":
    """Controls for steering a model by hand; show the result as a cell's last line.

    Args:
        model: A hooked model; while the explorer is answering, nothing else may use it.
        tasks: Tasks of your own (a `Task` or its file), offered before those of the catalogue.
        n_pairs: Contrast pairs a task's vector is fitted on.
        conversation: Messages to begin with; the last user's is the prompt.

    Raises:
        ModelError: Messages that are none.
        SteerlensError: ipywidgets or anywidget is not installed, two tasks have one id, or as
            `load_task`.
    """
    return Explorer(model, tasks, n_pairs, conversation)


def _ipywidgets() -> Any:
    try:
        import_module("anywidget")  # what plotly's own widget is built on
        return import_module("ipywidgets")
    except ImportError as error:
        raise SteerlensError(
            "the explorer needs ipywidgets and anywidget: pip install 'steerlens[notebook]'"
        ) from error


class Explorer:
    """The controls, and what they show.

    Attributes:
        view: The widget.
        pins: The trials kept, with their texts.
        run: What is shown; ``None`` while a trial runs.
        session: The worker.
        tasks: The tasks that may be picked, by id: those given, then the catalogue.
        conversation: System message, earlier turns and prompt.
    """

    def __init__(
        self,
        model: TransformerBridge,
        tasks: Sequence[GivenTask] | GivenTask = (),
        n_pairs: int = 32,
        conversation: Conversation = (),
    ) -> None:
        w = self._w = _ipywidgets()
        listed = [tasks] if isinstance(tasks, Task | str | os.PathLike) else tasks
        own = unique_tasks(listed)
        self.tasks: dict[str, Task] = {
            **own,
            **{k: v for k, v in catalogue.items() if k not in own},
        }
        self.model, self.n_pairs = model, n_pairs
        self.pins: list[Pin] = []
        self.run: SteeredRun | None = None
        self._shown: Trial | None = None
        self._vectors: dict[str, SteeringVector] = {}
        self.session = Session(model, self._show_text, self._show_run, self._say)
        n_layers = int(model.cfg.n_layers)
        wide = {
            "layout": w.Layout(width="48em", max_width="98%"),
            "style": {"description_width": "6em"},
        }
        narrow = {"style": {"description_width": "6em"}}
        self.source = w.Combobox(
            options=list(self.tasks),
            description="steer by",
            placeholder="a task, an instruction in your own words, or a file of a vector or a task",
            continuous_update=False,
            **wide,
        )
        self.conversation = ConversationControls(w, self._changed)
        self.prompt, self.system = self.conversation.prompt, self.conversation.system
        self.decoding = DecodingControls(w, self._changed)
        self.layer = w.IntSlider(n_layers * 4 // 5, 0, n_layers - 1, description="layer", **narrow)
        self.strength = w.FloatSlider(
            1.0, min=-4, max=4, step=0.25, description="strength", **narrow
        )
        self.operation = w.Dropdown(
            options=get_args(Operation), value="set_projection", description="operation", **narrow
        )
        self.scope = w.Combobox(
            options=SCOPES[:3],
            value="all",
            placeholder="first:8",
            description="scope",
            continuous_update=False,
            **narrow,
        )
        self.adaptive = w.BoundedFloatText(
            0.0, min=0, max=1, step=0.05, description="adaptive", **narrow
        )
        self.max_new_tokens = w.BoundedIntText(48, min=1, max=512, description="tokens", **narrow)
        self.baseline, self.steered, self.message = w.HTML(), w.HTML(), w.HTML()
        self.strips, self.details, self.pinned = w.VBox(), w.HTML(), w.HTML()
        self.python = w.Textarea(
            layout=w.Layout(width="48em", max_width="98%", height="9em", display="none")
        )
        self.file = w.Text("steering.safetensors", description="file", **narrow)
        buttons = []
        for name, what, tip in (
            ("pin", self.pin, "keep this steering and its texts, to compare"),
            ("save vector", self._save_vector, "write the vector to the file"),
            ("save figure", self._save_figure, "write the strips to the file (html, svg, png)"),
            ("as Python", self._show_python, "the lines that give this again"),
        ):
            button = w.Button(description=name, tooltip=tip)
            button.on_click(lambda _, what=what: what())
            buttons.append(button)
        for name in _CONTROLS:
            getattr(self, name).observe(self._changed, "value")
        self.replies = [w.Button(description="reply to this") for _ in range(2)]
        for side, button in enumerate(self.replies):
            button.tooltip = "keep this answer as an earlier turn, and type the next message"
            button.layout.display = "none"
            button.on_click(lambda _, side=side: self.reply(side == 1))
        columns = zip((self.baseline, self.steered), self.replies, strict=True)
        texts = w.GridBox(
            [w.VBox(list(column)) for column in columns],
            layout=w.Layout(
                grid_template_columns="minmax(0, 1fr) minmax(0, 1fr)", grid_gap="1.5em"
            ),
        )
        wrapped = w.Layout(flex_flow="row wrap")
        self.view = w.VBox(
            [
                self.source,
                self.conversation.view,
                w.Box([self.layer, self.strength, self.adaptive], layout=wrapped),
                w.Box([self.operation, self.scope, self.max_new_tokens], layout=wrapped),
                self.decoding.view,
                w.Box([*buttons, self.file], layout=wrapped),
                self.message,
                self.python,
                texts,
                self.strips,
                self.details,
                self.pinned,
            ]
        )
        if conversation:
            self.conversation.ask(conversation)

    @property
    def trial(self) -> Trial:
        """What the controls say now.

        Raises:
            SteerlensError: As `Decoding`.
        """
        names = (*_CONTROLS, "prompt", "system")
        values = {name: getattr(self, name).value for name in names}
        values["source"] = values["source"].strip()
        return Trial(**values, turns=self.conversation.turns, decoding=self.decoding.value)

    @property
    def vector(self) -> SteeringVector:
        """The vector of the trial; fitted, if need be, when the worker has ended.

        Raises:
            SteerlensError: See `steerlens.explorer.trials.vector_of`.
        """
        source = self.source.value.strip()
        if source in self._vectors:
            return self._vectors[source]
        with self.session.alone():
            return self._vector_of(source)

    def pin(self) -> None:
        """Keep the trial that is shown, to compare it with later ones."""
        if self.run is None or self._shown is None:
            self._say("nothing to pin yet; wait until both texts are there")
            return
        self.pins.append(Pin.of(self._shown, self.run))
        self.pinned.value = pins_table(self.pins)

    def reply(self, to_steered: bool = True) -> None:
        """Keep prompt and steered (or baseline) answer as earlier turns, for another message.

        Both answers to the next message follow the turns kept.
        """
        if self.run is None or self._shown is None:
            self._say("nothing to reply to yet; wait until both texts are there")
            return
        answer = self.run.steered if to_steered else self.run.baseline
        try:
            self.conversation.reply_to(self._shown.prompt, answer)
        except SteerlensError:
            self._say("this answer is blank, and no conversation can go on from it")

    def save_vector(self, path: str | Path) -> Path:
        """Write the vector in use to a file."""
        return self.vector.save(path)

    def save_figure(self, path: str | Path) -> Path:
        """Write what is shown to a file: HTML, SVG, PNG or PDF by its ending.

        Raises:
            SteerlensError: Nothing is shown yet; or see `steerlens.views.save`.
        """
        if self.run is None:
            raise SteerlensError("nothing to save yet; wait until both texts are there")
        return save(self.run.effects.plot(), path)

    def to_python(self) -> str:
        """The Python that gives the present trial again."""
        info = model_info(self.model)
        return as_python(self.trial, info.reference, self.n_pairs, info.dtype, self.tasks)

    def _vector_of(self, source: str) -> SteeringVector:
        if source not in self._vectors:
            self._vectors[source] = vector_of(self.model, source, self.n_pairs, self.tasks)
        return self._vectors[source]

    def _changed(self, _: Any) -> None:
        self.session.cancel()
        self.run = None
        # What the trial before gave would stand as this one's, for good where this one fails.
        self.baseline.value = self.steered.value = self.details.value = ""
        self.strips.children = ()
        for button in self.replies:
            button.layout.display = "none"
        if self.python.layout.display != "none":
            self.python.value = self._python_or_reason()
        if not self.prompt.value.strip():
            self._say("type your next message")
        elif self.source.value.strip():
            try:
                trial = self.trial
            except SteerlensError as error:
                self._say(str(error))
                return
            self._say("answering …")
            self.session.start(trial, self._vector_of)
        else:
            self._say("")

    def _show_text(
        self, baseline: Sequence[str], steered: Sequence[str], check: Task | None = None
    ) -> None:
        for name, texts in (("baseline", baseline), ("steered", steered)):
            shown = [
                _answer(f"{name} {i}" if len(texts) > 1 else name, text, passes(check, text))
                for i, text in enumerate(texts, 1)
            ]
            getattr(self, name).value = "".join(shown)

    def _show_run(self, trial: Trial, run: SteeredRun) -> None:
        self._shown, self.run = trial, run
        samples = run.samples or ((run.baseline, run.steered),)
        said = "click a token for its numbers"
        if len(samples) > 1:
            said += "; the strips are those of the first sample"
        texts = [pair[0] for pair in samples], [pair[1] for pair in samples]
        try:
            self._show_text(*texts, task_of(trial.source, self.tasks))
        except SteerlensError as error:  # a check of one's own may raise
            self._show_text(*texts)
            said = str(error)
        for button in self.replies:
            button.layout.display = ""
        figures = [go.FigureWidget(figure) for figure in (run.effects.plot(), run.plot())]
        for figure in figures:
            # The controls show the steering; a subtitle is misplaced by a widget not yet seen.
            figure.update_layout(title_subtitle_text="")
            for trace in figure.data:
                if trace.customdata is not None:
                    trace.on_click(self._show_token)
        self.strips.children = figures
        self._say(said)

    def _show_token(self, trace: Any, points: Any, _: Any) -> None:
        # What the strip says on hover: escaped already.
        if points.point_inds:
            self.details.value = str(trace.customdata[points.point_inds[0]])

    def _python_or_reason(self) -> str:
        try:
            return self.to_python()
        except SteerlensError as error:
            return f"# {error}"

    def _show_python(self) -> None:
        self.python.value = self._python_or_reason()
        self.python.layout.display = "" if self.python.layout.display == "none" else "none"

    def _save_vector(self) -> None:
        if self.session.is_running and self.source.value.strip() not in self._vectors:
            self._say("the vector is still being made; wait until both texts begin")
            return
        self._saving(self.save_vector)

    def _save_figure(self) -> None:
        self._saving(self.save_figure)

    def _saving(self, save_to: Any) -> None:
        try:
            self._say(f"written: {save_to(self.file.value)}")
        except (SteerlensError, OSError) as error:
            self._say(str(error))

    def _say(self, sentence: str) -> None:
        self.message.value = html.escape(sentence)

    def _repr_mimebundle_(self, **options: Any) -> Any:
        return self.view._repr_mimebundle_(**options)


def _answer(name: str, text: str, passed: bool | None) -> str:
    """An answer with what the check says of it, as HTML."""
    verdict = "" if passed is None else f" · {'passes' if passed else 'fails'} the check"
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:1.4"
    return f"<b>{name}</b>{verdict}<div dir='auto' style='{style}'>{html.escape(text)}</div>"
