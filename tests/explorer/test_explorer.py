"""The explorer without a browser: its widgets' state, and its worker."""

import re
import sys
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from plots_examples import made_up_run
from report_example import HOSTILE
from steering_examples import random_vector
from transformer_lens.model_bridge import TransformerBridge

from steerlens.activations.cache import ResidualCache, cache_residuals
from steerlens.errors import SteerlensError
from steerlens.explorer import explore
from steerlens.explorer.trials import (
    Trial,
    as_python,
    kind_of,
    passes,
    read_at,
    task_of,
    vector_of,
)
from steerlens.models.loading import model_info
from steerlens.tasks import Task, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import difference_of_means
from steerlens.views.tokens import LEVELS

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")


def test_a_moved_slider_gives_the_texts_that_generate_gives(model: TransformerBridge) -> None:
    import steerlens as sl

    # Given an explorer of the real model
    explorer = explore(model, n_pairs=4)
    explorer.max_new_tokens.value = 6
    # When an instruction is picked and then the layer moved
    explorer.source.value = "change_case:english_lowercase"
    explorer.layer.value = 20
    explorer.session.wait(120.0)
    # Then the texts are those of the last setting, with a strip, and no hook stays
    assert explorer.run is not None, explorer.message.value
    vector = explorer.vector
    expected = sl.generate(model, explorer.prompt.value, vector.at(20), max_new_tokens=6)
    assert explorer.run.steered == expected.texts[0]
    assert len(explorer.strips.children) == 2
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    # And the strip marks the token the vector was read at, the last of the prompt
    frame = explorer.run.effects.table
    assert frame.position[frame.read].tolist() == [explorer.run.effects.n_prompt - 1]
    # And it can be pinned, and reproduced
    explorer.pin()
    assert explorer.pins[0].trial.layer == 20
    assert "layer 20" in explorer.pinned.value
    dtype = model_info(model).dtype
    assert explorer.to_python() == as_python(explorer.trial, "smollm2-135m-instruct", 4, dtype)
    # And a click on a token gives its numbers
    words = next(t for t in explorer.strips.children[0].data if t.customdata is not None)
    explorer._show_token(words, SimpleNamespace(point_inds=[1]), None)
    assert explorer.details.value == words.customdata[1] != ""


def pirate(check=lambda text: "arr" in text.lower()) -> Task:
    asked = ["Answer like a pirate.", "Talk as a pirate would.", "Use pirate speech."]
    return Task("pirate", asked, [f"Why {what}?" for what in "abcdefgh"], check)


def test_a_task_of_ones_own_is_offered_steered_by_and_checked(tiny_model, tmp_path) -> None:
    # Given an explorer with a task defined in Python, and one in a file
    (tmp_path / "rude.yaml").write_text(
        "id: rude\nphrasings: [Be rude., Do be rude., Be very rude.]\n"
        "queries: [Why so, Who is it, How far]"
    )
    explorer = explore(tiny_model, [pirate(), tmp_path / "rude.yaml"], n_pairs=4)
    assert explorer.source.options[:2] == ("pirate", "rude")
    # When the first is picked
    explorer.max_new_tokens.value = 4
    explorer.layer.value = 1
    explorer.source.value = "pirate"
    explorer.session.wait(60.0)
    # Then its vector steers, its check judges both texts, and the Python says where it comes from
    assert explorer.run is not None, explorer.message.value
    pairs = contrast_pairs(pirate(), n=4)
    expected = difference_of_means(cache_residuals(tiny_model, pairs, show_progress=False))
    assert torch.equal(explorer.vector.directions, expected.directions)
    assert "fails the check" in explorer.baseline.value
    assert "contrast_pairs(task, n=4)" in explorer.to_python()
    # And where a check raises, its sentence is shown beside the texts
    explorer.tasks["pirate"] = pirate(lambda text: 1 / 0)
    explorer.layer.value = 0
    explorer.session.wait(60.0)
    assert "raised ZeroDivisionError" in explorer.message.value
    assert "steered" in explorer.steered.value


def test_choices_and_typed_files_are_explored_too(tiny_model, tmp_path) -> None:
    lines = [
        f'{{"question": "Is {x} warm?", "answer_matching_behavior": "yes", '
        '"answer_not_matching_behavior": "no"}' for x in ("tea", "ice", "snow", "rain")
    ]  # fmt: skip
    path = tmp_path / "warm.jsonl"
    path.write_text("\n".join(lines))
    vector = vector_of(tiny_model, str(path), 8)
    assert vector.metadata["position"] == "answer"
    lines = as_python(Trial(str(path), "Hi!", 1), "a-model", 8)
    assert "position='answer'" in lines and f"contrast_pairs({str(path)!r}, n=2)" in lines
    assert passes(task_of(str(path)), "yes") is None  # no check
    assert passes(catalogue["punctuation:no_comma"], "plain words") is True
    assert passes(catalogue["length_constraints:number_words_at_most"], "so") is None  # how many?
    with pytest.raises(SteerlensError, match=r"missing\.yaml"):
        vector_of(tiny_model, "missing.yaml", 4)


def test_cancelling_leaves_the_model_as_it_was(tiny_model: TransformerBridge) -> None:
    # Given a generation that is cancelled at its third token
    tokens = torch.tensor([[5, 6, 7]])
    before = tiny_model(tokens)
    explorer = explore(tiny_model)
    n_steps = 0

    def after_three(baseline: str, steered: str) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:
            explorer.session.cancel()

    explorer.session.on_text = after_three
    rows = torch.randn(2, 4, 3, tiny_model.cfg.d_model)
    vector = difference_of_means(ResidualCache.from_tensors(rows[0], rows[1]))
    # When it has run
    explorer.max_new_tokens.value = 40
    explorer.layer.value = 1
    explorer.operation.value = "add"
    explorer.session.start(explorer.trial, lambda _: vector)
    explorer.session.wait(60.0)
    # Then it stopped there, and the model computes what it did before
    assert n_steps == 3 and explorer.run is None
    assert torch.equal(tiny_model(tokens), before)


def test_hostile_text_is_shown_as_text(tiny_model: TransformerBridge) -> None:
    explorer = explore(tiny_model)
    explorer._show_text(["<script>alert(1)</script>"], ["<img src=x onerror=alert(1)>"])
    assert "<script" not in explorer.baseline.value and "<img" not in explorer.steered.value


def test_pins_are_compared_token_by_token_in_shades_of_one_scale(tiny_model) -> None:
    # Given two pinned settings, the second with ten times the effect of the first
    explorer = explore(tiny_model)
    for layer, times in ((1, 1.0), (2, 10.0)):
        run = made_up_run(["A", " b"], ["A", HOSTILE, " c"])
        run = replace(run, effects=replace(run.effects, kl=torch.full_like(run.effects.kl, times)))
        explorer._shown, explorer.run = Trial("own words", "Hi!", layer), run
        # When each is kept
        explorer.pin()
    # Then each row is a strip of the response alone, the stronger one darker, with one legend
    pinned = explorer.pinned.value
    first, second = pinned.split("<tr>")[2:]
    assert "at layer 1 on all" in first and "at layer 2 on all" in second
    assert "mean KL over the response 1" in first and "response 10" in second
    assert f'class="k{LEVELS}"' in second and f'class="k{LEVELS}"' not in first
    assert pinned.count('class="legend"') == 1 and pinned.count('data-role="prompt"') == 0
    assert first.count('class="parts"') == 1
    # And the model's text is text
    assert HOSTILE not in pinned


def test_the_exported_python_gives_the_same_texts(model: TransformerBridge, monkeypatch) -> None:
    import steerlens as sl

    # Given the lines for an instruction in own words, on the model that is loaded already
    setting = Trial("Answer in capital letters.", "Hi there!", 20, max_new_tokens=5)
    lines = as_python(setting, "smollm2-135m-instruct", 4)
    monkeypatch.setattr(sl, "load_model", lambda _, dtype: model)
    # When they run
    names: dict = {}
    exec(compile(lines, "export", "exec"), names)
    # Then the steered text is that of the explorer's own vector
    steering = setting.steering(vector_of(model, setting.source, 4))
    expected = sl.generate(model, setting.prompt, steering, max_new_tokens=5)
    assert names["run"].steered == expected.texts[0]
    # And the token the vector was read at is marked as it is there
    assert names["run"].effects.read.sum() == 1


def test_a_source_is_told_apart_and_a_mistyped_one_is_refused(tiny_model, tmp_path) -> None:
    assert kind_of("change_case:english_lowercase") == "task"
    with pytest.raises(SteerlensError, match="no file"):
        vector_of(tiny_model, str(tmp_path / "none.safetensors"), 4)
    with pytest.raises(SteerlensError, match="at least two"):
        vector_of(tiny_model, "change_case:lowercase", 4)


def test_a_faulty_setting_is_told_and_the_explorer_goes_on(tiny_model) -> None:
    explorer = explore(tiny_model)
    explorer.source.value = "nonsense"
    explorer.session.wait(60.0)
    assert "is no task and no vector file" in explorer.message.value
    explorer.pin()
    assert "nothing to pin" in explorer.message.value
    with pytest.raises(SteerlensError, match="nothing to save"):
        explorer.save_figure("figure.html")


def test_the_exported_python_loads_the_model_in_its_own_dtype() -> None:
    setting = Trial("detectable_format:title", "Hi there!", 20)
    lines = as_python(setting, "smollm2-135m-instruct", 4, "bfloat16")
    assert "sl.load_model('smollm2-135m-instruct', dtype='bfloat16')" in lines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_unforeseen_fault_is_told_and_not_waited_for(tiny_model) -> None:
    # Given a source that fails as no SteerlensError
    def fail(_: str):
        raise ValueError("unforeseen <b>")

    explorer = explore(tiny_model)
    explorer._say("answering …")
    # When its setting runs
    explorer.session.start(explorer.trial, fail)
    explorer.session.wait(60.0)
    # Then the fault is said, as text
    assert explorer.message.value == "ValueError: unforeseen &lt;b&gt;"


def test_strips_of_the_setting_before_are_gone_when_a_slider_moves(tiny_model, monkeypatch) -> None:
    # Given an explorer that shows a run
    explorer = explore(tiny_model)
    run = made_up_run(["a", "b"], ["a", "c"])
    explorer._show_run(Trial("detectable_format:title", "Hi!", 1), run)
    assert len(explorer.strips.children) == 2
    # When a control changes, and nothing has run yet
    monkeypatch.setattr(explorer.session, "start", lambda *_: None)
    explorer.layer.value = 0
    # Then nothing is left to be clicked or pinned
    assert explorer.strips.children == () and explorer.run is None


def test_hostile_tokens_told_at_a_click_are_text(tiny_model) -> None:
    # Given a run whose tokens are markup
    explorer = explore(tiny_model)
    run = made_up_run([HOSTILE], ["x", HOSTILE])
    explorer._show_run(Trial("detectable_format:title", "Hi!", 1), run)
    # When each of them is clicked
    for figure in explorer.strips.children:
        for trace in figure.data:
            for index in range(len(trace.customdata if trace.customdata is not None else ())):
                explorer._show_token(trace, SimpleNamespace(point_inds=[index]), None)
                # Then the only tags are the line breaks of the strip
                tags = re.findall(r"<[^>]*>", explorer.details.value)
                assert set(tags) <= {"<br>"}


def test_a_run_that_is_being_shown_when_a_slider_moves_is_cleared(tiny_model) -> None:
    # Given a worker in the midst of showing its run
    explorer, entered = explore(tiny_model), threading.Event()
    show = explorer.session.on_run

    def show_slowly(setting, run) -> None:
        entered.set()
        time.sleep(0.3)
        show(setting, run)

    explorer.session.on_run = show_slowly
    explorer.max_new_tokens.value = 2
    explorer.session.start(explorer.trial, lambda _: random_vector(3, 16))
    assert entered.wait(60.0)
    # When a slider moves
    explorer.strength.value = 2.0
    explorer.session.wait(60.0)
    # Then nothing of the older setting is left or comes later
    assert explorer.strips.children == () and explorer.run is None


def test_a_vector_asked_for_while_the_worker_makes_it_is_made_once(tiny_model, monkeypatch) -> None:
    # Given a worker that is making the vector of a new instruction
    explorer, made, go_on = explore(tiny_model), [], threading.Event()

    def make(model, source, n_pairs, tasks):
        made.append(source)
        assert go_on.wait(60.0)
        return random_vector(3, 16)

    monkeypatch.setattr("steerlens.explorer.widgets.vector_of", make)
    explorer.source.value = "Answer like a pirate."
    # When it is to be saved, and asked for
    explorer._save_vector()
    asked = threading.Thread(target=lambda: explorer.vector)
    asked.start()
    asked.join(0.1)
    # Then the one is put off in a sentence, and the other waits for the model
    assert "still being made" in explorer.message.value
    assert asked.is_alive()
    go_on.set()
    asked.join(60.0)
    explorer.session.wait(60.0)
    assert made == ["Answer like a pirate."]


def test_where_a_file_says_it_was_read_is_marked_only_if_the_prompt_has_it() -> None:
    def marked(position):
        return read_at(replace(random_vector(3, 8), metadata={"position": position}), n_prompt=4)

    assert [marked("last_prompt"), marked(-4), marked(3)] == ["last_prompt", -4, 3]
    for foreign in (None, "mean over <b>", 4, -5, True, [1], {"a": 1}):
        assert marked(foreign) is None
    assert read_at(replace(random_vector(3, 8), metadata={}), n_prompt=4) is None


def test_a_prompt_longer_than_the_context_is_told_in_a_sentence(tiny_model) -> None:
    # Given a prompt of more tokens than the model reads
    explorer = explore(tiny_model)
    explorer.prompt.value = "Rome " * 60
    # When it runs
    explorer.session.start(explorer.trial, lambda _: random_vector(3, 16))
    explorer.session.wait(60.0)
    # Then that is said, and nothing is shown
    assert "at most 128; shorten it" in explorer.message.value
    assert explorer.run is None and explorer.strips.children == ()


@pytest.mark.parametrize("package", ["ipywidgets", "anywidget"])
def test_without_widgets_one_sentence_says_what_to_install(
    tiny_model, monkeypatch, package
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SteerlensError, match=r"pip install 'steerlens\[notebook\]'"):
        explore(tiny_model)


def test_after_a_faulty_setting_nothing_of_the_one_before_is_left(tiny_model) -> None:
    # Given an explorer that shows both texts of a setting
    explorer = explore(tiny_model)
    run = made_up_run(["an older", " baseline"], ["an older", " answer"])
    explorer._show_run(Trial("detectable_format:title", "Hi!", 1), run)
    explorer.details.value = "numbers of an older token"
    assert "older baseline" in explorer.baseline.value and "older answer" in explorer.steered.value
    # When a setting is wrong
    explorer.source.value = "nonsense"
    explorer.session.wait(60.0)
    # Then its sentence stands alone
    assert "is no task and no vector file" in explorer.message.value
    shown = (explorer.baseline, explorer.steered, explorer.details)
    assert [one.value for one in shown] == ["", "", ""] and explorer.strips.children == ()


def test_without_a_source_nothing_is_shown_and_nothing_is_waited_for(tiny_model) -> None:
    explorer = explore(tiny_model)
    explorer.source.value = "nonsense"
    explorer.session.wait(60.0)
    explorer.source.value = ""
    assert explorer.message.value == "" and explorer.baseline.value == ""
