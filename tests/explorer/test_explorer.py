"""The explorer without a browser: what it answers, shows, keeps and says."""

import re
import sys
from dataclasses import replace

import pytest
import torch
from explorer_example import answered, quiet_explorer
from plots_examples import made_up_run
from report_example import HOSTILE
from steering_examples import n_hooks, random_vector

import steerlens as sl
from steerlens.activations.cache import cache_residuals
from steerlens.errors import SteerlensError
from steerlens.explorer import explore
from steerlens.explorer.pins import Pin, pins_table
from steerlens.explorer.sources import Sources, passes, read_at
from steerlens.explorer.trials import Setting, Trial
from steerlens.tasks import Task, catalogue
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import difference_of_means
from steerlens.views.tokens import LEVELS

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")


@pytest.fixture
def vector_file(tiny_model, tmp_path):
    made = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    return str(made.save(tmp_path / "v.safetensors"))


def test_a_moved_slider_gives_the_texts_that_generate_gives(model, monkeypatch) -> None:
    # Given an explorer of the real model
    explorer = quiet_explorer(model, n_pairs=2)
    explorer.decoding.max_new_tokens.value = 5
    # When an instruction is typed and then the layer moved
    explorer.a.source.value = "Answer in capital letters."
    explorer.a.layer.value = 20
    run = answered(explorer, 120.0)
    # Then the texts are those of the last setting, with a strip, and no hook stays
    prompt = explorer.conversation.prompt.value
    expected = sl.generate(model, prompt, explorer.vector.at(20), max_new_tokens=5)
    assert run.steered == expected.texts[0]
    assert all(plot.figure is not None for plot in explorer.shown.strips)
    assert n_hooks(model) == 0
    # And the strip marks the token the vector was read at, the last of the prompt
    frame = run.effects.table
    assert frame.position[frame.read].tolist() == [run.effects.n_prompt - 1]
    # And it can be pinned
    explorer.pin()
    assert explorer.pins[0].setting.layer == 20
    assert "layer 20" in explorer.pinned.value
    # And a click on a token gives its numbers
    strip = explorer.shown.strips[0]
    [place, *_] = [i for i, t in enumerate(strip.figure.data) if t.customdata is not None]
    strip._received(strip, {"kind": "click", "trace": place, "index": 1}, [])
    assert explorer.shown.details.value == strip.figure.data[place].customdata[1] != ""
    # And the Python gives the same run again, on the model that is loaded already
    lines = explorer.to_python()
    assert "sl.load_model('smollm2-135m-instruct', dtype='float32')" in lines
    monkeypatch.setattr(sl, "load_model", lambda _, dtype: model)
    names: dict = {}
    exec(compile(lines, "export", "exec"), names)
    assert names["run"].steered == run.steered
    assert names["run"].effects.read.sum() == 1


def test_several_prompts_under_two_settings_are_those_that_generate_gives(
    tiny_model, vector_file
) -> None:
    # Given two prompts, of different lengths, and two settings
    explorer = quiet_explorer(tiny_model)
    explorer.decoding.max_new_tokens.value = 4
    explorer.conversation.add("Why?")
    explorer.a.source.value = vector_file
    explorer.comparison.children[0].value = True
    explorer.b.layer.value, explorer.b.operation.value = 0, "add"
    # When they are answered
    answered(explorer)
    # Then each column is what generate gives for its setting
    prompts = explorer.conversation.texts
    vector = sl.load_vector(vector_file)
    steerings = [None, vector.at(2, "set_projection"), vector.at(0, "add")]
    for column, steering in enumerate(steerings):
        expected = sl.generate(tiny_model, prompts, steering, max_new_tokens=4)
        shown = [texts[column][0] for texts in explorer.answers.texts]
        assert shown == list(expected.texts)
    # And the tokens of any of them can be asked for, and pinned
    explorer.shown.shown.value = (1, 1)
    run = answered(explorer)
    assert run.prompt == "Why?" and run.steered == explorer.answers.texts[1][2][0]
    assert run.settings["steering"] == [i.describe() for i in steerings[2].interventions]
    explorer.pin()
    assert explorer.pins[0].setting == explorer.b.value
    # And the Python has both settings
    assert explorer.to_python().count("vector.at(") == 2
    # And with its section closed, the second setting is left out
    explorer.comparison.children[0].value = False
    answered(explorer)
    assert explorer.trial.settings == (explorer.a.value,)


def test_unsteered_answers_are_kept_while_the_steering_changes(
    tiny_model, vector_file, monkeypatch
) -> None:
    # Given an explorer that has answered
    explorer = quiet_explorer(tiny_model)
    explorer.decoding.max_new_tokens.value = 4
    explorer.a.source.value = vector_file
    before = answered(explorer)
    # When only the layer changes
    import steerlens.explorer.answers as answers

    n_rows = []
    decode = answers.generate_from_tokens

    def counted(model, rows, *args, **kwargs):
        n_rows.append(len(rows))
        return decode(model, rows, *args, **kwargs)

    monkeypatch.setattr(answers, "generate_from_tokens", counted)
    explorer.a.layer.value = 0
    after = answered(explorer)
    # Then one row is decoded, and both answers are there
    assert n_rows == [1] and after.baseline == before.baseline
    # And another prompt has a baseline of its own
    explorer.conversation.prompt.value = "Why?"
    answered(explorer)
    assert n_rows == [1, 2]


def pirate(check=lambda text: "arr" in text.lower()) -> Task:
    asked = ["Answer like a pirate.", "Talk as a pirate would.", "Use pirate speech."]
    return Task("pirate", asked, [f"Why {what}?" for what in "abcdefgh"], check)


def test_a_task_of_ones_own_is_offered_steered_by_and_checked(tiny_model, tmp_path) -> None:
    # Given an explorer with a task defined in Python, and one in a file
    (tmp_path / "rude.yaml").write_text(
        "id: rude\nphrasings: [Be rude., Do be rude., Be very rude.]\n"
        "queries: [Why so, Who is it, How far]"
    )
    explorer = quiet_explorer(tiny_model, [pirate(), tmp_path / "rude.yaml"], n_pairs=4)
    assert explorer.a.source.options[:2] == ("pirate", "rude")
    # When the first is picked
    explorer.decoding.max_new_tokens.value = 4
    explorer.a.source.value = "pirate"
    answered(explorer)
    # Then its vector steers, its check judges both texts, and the Python says where it comes from
    pairs = contrast_pairs(pirate(), n=4)
    expected = difference_of_means(cache_residuals(tiny_model, pairs, show_progress=False))
    assert torch.equal(explorer.vector.directions, expected.directions)
    assert explorer.shown.texts.value.count("fails the check") == 2
    assert "contrast_pairs(task, n=4)" in explorer.to_python()
    # And where a check raises, its sentence is shown beside the texts
    explorer.sources.add(pirate(lambda text: 1 / 0))
    explorer.a.layer.value = 0
    answered(explorer)
    assert "raised ZeroDivisionError" in explorer.message.value
    assert "steered" in explorer.shown.texts.value


def test_pairs_typed_into_the_explorer_become_a_task(tiny_model) -> None:
    explorer = quiet_explorer(tiny_model)
    explorer.decoding.max_new_tokens.value = 4
    # Sides of different lengths are refused in a sentence
    explorer.pairs.instructed.value = "Why? Shout.\nWho? Shout."
    explorer.pairs.uninstructed.value = "Why?"
    explorer._use_pairs()
    assert "the sides differ in length: 2 'instructed' and 1" in explorer.message.value
    # Else they are picked, and steered by
    asked = ["Why?", "Who?", "How far is it?", "When was it?"]
    explorer.pairs.instructed.value = "\n".join(f"{text} Shout." for text in asked)
    explorer.pairs.uninstructed.value = "\n".join(asked)
    explorer._use_pairs()
    answered(explorer)
    assert explorer.a.source.value == "own pairs" == explorer.a.source.options[0]
    expected = difference_of_means(
        cache_residuals(tiny_model, explorer.pairs.task.pairs(2), show_progress=False)
    )
    assert torch.allclose(explorer.vector.directions, expected.directions, atol=1e-5)


def test_choices_and_typed_files_are_explored_too(tiny_model, tmp_path) -> None:
    lines = [
        f'{{"question": "Is {x} warm?", "answer_matching_behavior": "yes", '
        '"answer_not_matching_behavior": "no"}' for x in ("tea", "ice", "snow", "rain")
    ]  # fmt: skip
    path = tmp_path / "warm.jsonl"
    path.write_text("\n".join(lines))
    explorer = quiet_explorer(tiny_model, n_pairs=8)
    explorer.decoding.max_new_tokens.value = 2
    explorer.a.source.value = str(path)
    answered(explorer)
    assert explorer.vector.metadata["position"] == "answer"
    lines = explorer.to_python()
    assert "position='answer'" in lines and f"contrast_pairs({str(path)!r}, n=2)" in lines
    sources = Sources(tiny_model)
    assert passes(sources.task_of(str(path)), "yes") is None  # no check
    assert passes(catalogue["punctuation:no_comma"], "plain words") is True
    assert passes(catalogue["length_constraints:number_words_at_most"], "so") is None  # how many?
    for source, said in (
        ("missing.yaml", r"missing\.yaml"),
        (str(tmp_path / "none.safetensors"), "no file"),
        ("change_case:lowercase", "at least two"),
    ):
        with pytest.raises(SteerlensError, match=said):
            sources.fit(source)


def test_a_chat_goes_on_from_the_last_answer(tiny_model, vector_file) -> None:
    explorer = quiet_explorer(tiny_model)
    explorer.decoding.max_new_tokens.value = 4
    explorer.a.source.value = vector_file
    first = answered(explorer)
    explorer.conversation.follows.value = True
    explorer.conversation.prompt.value = "And then?"
    answered(explorer)
    asked = [
        {"role": "user", "content": first.prompt},
        {"role": "assistant", "content": first.steered},
        {"role": "user", "content": "And then?"},
    ]
    assert list(explorer.question.asked[0]) == asked
    expected = sl.generate(tiny_model, [asked], max_new_tokens=4)
    assert explorer.run.baseline == expected.texts[0]


def test_hostile_text_is_shown_as_text(tiny_model) -> None:
    explorer = explore(tiny_model)
    trial = Trial(replace(explorer.question, prompts=(HOSTILE, "b")), (Setting("a b", 1),))
    texts = ((("<script>alert(1)</script>",), ("<img src=x onerror=alert(1)>",)),) * 2
    explorer.shown.show_texts(trial, texts)
    shown = explorer.shown.texts.value
    assert "<script" not in shown and "<img" not in shown and HOSTILE not in shown
    # Nor do tokens told at a click hold any tag but the line breaks of the strip
    explorer.shown.show_tokens(explorer.shown.drawn(made_up_run([HOSTILE], ["x", HOSTILE])))
    for number, plot in enumerate(explorer.shown.strips):
        for place, trace in enumerate(plot.figure.data):
            for index in range(len(trace.customdata if trace.customdata is not None else ())):
                explorer.shown._show_token(number, place, index)
                tags = re.findall(r"<[^>]*>", explorer.shown.details.value)
                assert set(tags) <= {"<br>"}


def test_pins_are_compared_token_by_token_in_shades_of_one_scale() -> None:
    # Given two pinned settings, the second with ten times the effect of the first
    pins = []
    for layer, times in ((1, 1.0), (2, 10.0)):
        run = made_up_run(["A", " b"], ["A", HOSTILE, " c"])
        run = replace(run, effects=replace(run.effects, kl=torch.full_like(run.effects.kl, times)))
        pins.append(Pin.of(Setting("own words", layer), "'Hi!'", run))
    # Then each row is a strip of the response alone, the stronger one darker, with one legend
    pinned = pins_table(pins)
    first, second = pinned.split("<tr>")[2:]
    assert "at layer 1 on all" in first and "at layer 2 on all" in second
    assert "mean KL over the response 1" in first and "response 10" in second
    assert f'class="k{LEVELS}"' in second and f'class="k{LEVELS}"' not in first
    assert pinned.count('class="legend"') == 1 and pinned.count('data-role="prompt"') == 0
    assert first.count('class="parts"') == 1
    # And the model's text is text
    assert HOSTILE not in pinned


def test_a_faulty_setting_is_told_and_leaves_nothing_of_the_one_before(
    tiny_model, vector_file
) -> None:
    explorer = quiet_explorer(tiny_model)
    explorer.decoding.max_new_tokens.value = 2
    explorer.a.source.value = vector_file
    answered(explorer)
    explorer.a.source.value = "nonsense"
    explorer.worker.wait(60.0)
    assert "is no task and no vector file" in explorer.message.value
    shown = explorer.shown
    assert (shown.texts.value, shown.details.value) == ("", "")
    assert all(plot.figure is None and not plot.drawing for plot in shown.strips)
    explorer.pin()
    assert "nothing to pin" in explorer.message.value
    with pytest.raises(SteerlensError, match="nothing to save"):
        explorer.save_figure("figure.html")
    # A prompt longer than the context, too
    explorer.conversation.prompt.value = "Rome " * 60
    explorer.a.source.value = vector_file
    explorer.worker.wait(60.0)
    assert "at most 128; shorten it" in explorer.message.value and explorer.run is None
    # And without a source nothing is waited for
    explorer.a.source.value = ""
    assert explorer.message.value == "" and shown.texts.value == ""


def test_where_a_file_says_it_was_read_is_marked_only_if_the_prompt_has_it() -> None:
    def marked(position):
        return read_at(replace(random_vector(3, 8), metadata={"position": position}), n_prompt=4)

    assert [marked("last_prompt"), marked(-4), marked(3)] == ["last_prompt", -4, 3]
    for foreign in (None, "mean over <b>", 4, -5, True, [1], {"a": 1}):
        assert marked(foreign) is None
    assert read_at(replace(random_vector(3, 8), metadata={}), n_prompt=4) is None


@pytest.mark.parametrize("package", ["ipywidgets", "anywidget"])
def test_without_widgets_one_sentence_says_what_to_install(
    tiny_model, monkeypatch, package
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SteerlensError, match=r"pip install 'steerlens\[notebook\]'"):
        explore(tiny_model)
