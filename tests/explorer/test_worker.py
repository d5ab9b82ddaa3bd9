"""The explorer's worker: the newest work is done, older work ends soon and leaves nothing."""

import threading
import time

import pytest
import torch
from explorer_example import answered, quiet_explorer
from steering_examples import n_hooks, random_vector

from steerlens.errors.cancellation import CancelledError, cancelled_by, check_cancelled
from steerlens.explorer.sources import Fitted
from steerlens.explorer.worker import Worker
from steerlens.tasks.pairs import ContrastSet

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")


@pytest.fixture
def explorer(tiny_model, tmp_path):
    explorer = quiet_explorer(tiny_model)
    explorer.a.layer.value, explorer.decoding.max_new_tokens.value = 1, 40
    made = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    explorer.sources.fitted["own vector"] = Fitted(made)
    return explorer


def test_cancelling_leaves_the_model_as_it_was(tiny_model, explorer) -> None:
    # Given a generation that is cancelled at its third token
    tokens = torch.tensor([[5, 6, 7]])
    before = tiny_model(tokens)
    show, n_steps = explorer.shown.show_texts, []

    def after_three(*told) -> None:
        n_steps.append(told)
        show(*told)
        if len(n_steps) == 3:
            explorer.stop()

    explorer.shown.show_texts = after_three
    # When it has run
    explorer.a.source.value = "own vector"
    explorer.worker.wait(60.0)
    # Then it stopped there, and the model computes what it did before
    assert len(n_steps) == 3 and explorer.run is None and explorer.message.value == "stopped"
    assert torch.equal(tiny_model(tokens), before) and n_hooks(tiny_model) == 0


def test_a_moved_slider_ends_what_runs_and_only_the_last_setting_is_shown(explorer) -> None:
    # Given a run under way
    begun = threading.Event()
    show = explorer.shown.show_texts

    def slowly(*told) -> None:
        begun.set()
        time.sleep(0.01)
        show(*told)

    explorer.shown.show_texts = slowly
    explorer.a.source.value = "own vector"
    assert begun.wait(60.0)
    # When the slider is dragged over several strengths
    for strength in (1.5, 2.0, 2.5, 3.0):
        explorer.a.strength.value = strength
    assert explorer.run is None and explorer.shown.texts.value == ""
    # Then the last one is answered
    run = answered(explorer)
    assert explorer.answers.trial.settings[0].strength == 3.0
    assert "×3" in run.settings["steering"][0]


def test_what_is_being_shown_when_a_slider_moves_is_cleared(explorer) -> None:
    # Given a worker in the midst of showing its run
    entered, show = threading.Event(), explorer._show_run

    def show_slowly(*told) -> None:
        entered.set()
        time.sleep(0.2)
        show(*told)

    explorer._show_run = show_slowly
    explorer.decoding.max_new_tokens.value = 2
    explorer.a.source.value = "own vector"
    assert entered.wait(60.0)
    # When the source is taken away
    explorer.a.source.value = ""
    explorer.worker.wait(60.0)
    # Then nothing of the older setting is left or comes later
    assert explorer.shown.strips[0].figure is None and explorer.run is None


def test_a_vector_is_made_once_whoever_asks_for_it_meanwhile(explorer, monkeypatch) -> None:
    # Given a worker that is making the vector of a new instruction
    made, go_on = [], threading.Event()

    def make(source):
        made.append(source)
        assert go_on.wait(60.0)
        return Fitted(random_vector(3, 16))

    monkeypatch.setattr(explorer.sources, "_fit", make)
    explorer.decoding.max_new_tokens.value = 2
    explorer.a.source.value = "Answer like a pirate."
    while not made:
        time.sleep(0.01)
    # When it is to be saved, asked for, and the layer moves
    explorer._save_vector()
    assert "still being made" in explorer.message.value
    asked = threading.Thread(target=lambda: explorer.vector)
    asked.start()
    explorer.a.layer.value = 0
    asked.join(0.1)
    # Then the others wait for it
    assert asked.is_alive()
    go_on.set()
    asked.join(60.0)
    answered(explorer)
    assert made == ["Answer like a pirate."]


def test_an_unforeseen_fault_is_told_and_not_waited_for(explorer, monkeypatch) -> None:
    def fail(_):
        raise ValueError("unforeseen <b>")

    monkeypatch.setattr(explorer.sources, "_fit", fail)
    explorer.a.source.value = "Answer like a pirate."
    explorer.worker.wait(60.0)
    assert explorer.message.value == "ValueError: unforeseen <b>"


def test_work_that_is_kept_ends_only_for_work_that_needs_something_else() -> None:
    worker, ended = Worker(print), []

    def fit(name: str):
        def work() -> None:
            with worker.kept(name):
                time.sleep(0.1)
                check_cancelled()
                ended.append(name)

        return work

    def started(name: str, needs: str) -> None:
        begun = threading.Event()

        def work() -> None:
            begun.set()
            fit(name)()

        worker.start(work)
        assert begun.wait(10.0)
        time.sleep(0.02)
        worker.start(lambda: None, [needs])
        worker.wait(10.0)

    started("a", needs="a")
    assert ended == ["a"]
    started("b", needs="c")
    assert ended == ["a"]


def test_passes_and_evidence_end_between_blocks_and_layers(tiny_model, monkeypatch) -> None:
    """What takes long looks for the event: a pass before each block, a ranking at each layer."""
    from steerlens.activations.cache import ResidualCache, cache_residuals
    from steerlens.attribution.separability import rank_layers

    class Counting(threading.Event):
        n_looks = 0

        def is_set(self) -> bool:
            self.n_looks += 1
            return super().is_set()

    pairs = ContrastSet.from_prompts(["Why? Shout.", "Who? Shout."], ["Why?", "Who?"])
    event, n_layers = Counting(), tiny_model.cfg.n_layers
    with cancelled_by(event):
        cache_residuals(tiny_model, pairs, show_progress=False)
    assert event.n_looks >= n_layers
    event.set()
    noise = torch.randn(2, 8, 3, 4)
    with cancelled_by(event):
        with pytest.raises(CancelledError):
            cache_residuals(tiny_model, pairs, show_progress=False)
        with pytest.raises(CancelledError):
            rank_layers(ResidualCache.from_tensors(noise[0], noise[1]))
    assert n_hooks(tiny_model) == 0
    cache_residuals(tiny_model, pairs, show_progress=False)
