"""The explorer's conversations and samples are those of `sl.steer`."""

import json

import pytest
from explorer_example import answered, quiet_explorer
from steering_examples import random_vector

import steerlens as sl
from steerlens.errors import ModelError

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")

SYSTEM = {"role": "system", "content": "Be <b>brief</b>."}
TURNS = [{"role": "user", "content": "Hi <i>."}, {"role": "assistant", "content": "Yes?"}]
ASKS = {"role": "user", "content": "Go."}


@pytest.fixture
def vector(tiny_model, tmp_path):
    made = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    return str(made.save(tmp_path / "v.safetensors"))


def test_a_conversation_is_answered_as_steer_does_and_goes_on(tiny_model, vector):
    # given an explorer that begins with a conversation
    explorer = quiet_explorer(tiny_model, conversation=[SYSTEM, *TURNS, ASKS])
    explorer.a.layer.value, explorer.decoding.max_new_tokens.value = 1, 6
    steering = sl.load_vector(vector).at(1, "set_projection")
    # when it is answered
    explorer.a.source.value = vector
    run = answered(explorer)
    # then the texts are those of steer, and the turns are shown as text
    expected = sl.steer(tiny_model, [SYSTEM, *TURNS, ASKS], steering, max_new_tokens=6)
    assert (run.baseline, run.steered) == (expected.baseline, expected.steered)
    assert "Hi &lt;i&gt;." in explorer.conversation._shown.value
    # and a reply keeps the steered answer, and waits for the next message
    explorer.shown.replies[1].click()
    assert explorer.run is None and explorer.message.value == "type your next message"
    assert (
        explorer.conversation.prompt.value == ""
        and explorer.conversation.system.value == SYSTEM["content"]
    )
    explorer.conversation.prompt.value = "On."
    asked = [SYSTEM, *TURNS, ASKS, {"role": "assistant", "content": run.steered}]
    asked.append({"role": "user", "content": "On."})
    run = answered(explorer)
    expected = sl.steer(tiny_model, asked, steering, max_new_tokens=6)
    assert (run.baseline, run.steered) == (expected.baseline, expected.steered)
    assert f"sl.steer(model, {asked!r}, steering" in explorer.to_python()
    # and one without earlier turns keeps the system message
    explorer.conversation._anew.click()
    explorer.conversation.prompt.value = "Go."
    answered(explorer)
    assert list(explorer.question.asked[0]) == [SYSTEM, ASKS]


def test_a_pasted_conversation_takes_the_place_of_what_is_there(tiny_model):
    explorer = quiet_explorer(tiny_model)
    explorer.conversation.prompt.value = json.dumps([*TURNS, ASKS])
    assert (
        list(explorer.question.asked[0]) == [*TURNS, ASKS]
        and explorer.conversation.prompt.value == "Go."
    )
    explorer.conversation.prompt.value = typed = (
        '[{"role": "bot"}]'  # no conversation: a message like another
    )
    assert explorer.question.asked[0][-1]["content"] == typed
    with pytest.raises(ModelError, match="message 0 of the conversation has the role 'bot'"):
        quiet_explorer(tiny_model, conversation=[{"role": "bot", "content": "a"}])


def test_every_sample_is_shown_and_is_one_of_steers(tiny_model, vector):
    explorer = quiet_explorer(tiny_model)
    explorer.a.layer.value, explorer.decoding.max_new_tokens.value = 1, 5
    widgets = explorer.decoding.widgets
    explorer.a.source.value = vector
    widgets["samples"].value = 3
    assert "samples is for tokens that are drawn" in explorer.message.value
    widgets["temperature"].value = 1.0
    run = answered(explorer)
    steering = sl.load_vector(vector).at(1, "set_projection")
    decoding = sl.Decoding(1.0, samples=3)
    made = {"max_new_tokens": 5, "decoding": decoding}
    expected = sl.steer(tiny_model, explorer.conversation.prompt.value, steering, **made)
    assert run.samples == expected.samples and len(set(run.samples)) == 3
    assert (run.baseline, run.steered) == run.samples[0]
    assert run.finish_reasons == expected.finish_reasons
    shown = explorer.shown.texts.value
    assert all(shown.count(f"sample {i}</div>") == 2 for i in (1, 2, 3))
    assert "first sample" in explorer.message.value
    assert explorer.to_python().splitlines()[-1].endswith("temperature=1.0, samples=3)")
