"""The explorer decodes as `sl.steer` does under the same settings."""

import pytest
from explorer_example import answered, quiet_explorer
from steering_examples import random_vector

import steerlens as sl

pytest.importorskip("ipywidgets", reason="the explorer needs ipywidgets")
pytest.importorskip("anywidget", reason="the explorer's strips need anywidget")


def test_the_row_of_decoding_gives_what_steer_gives(tiny_model, tmp_path):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    explorer = quiet_explorer(tiny_model, n_pairs=4)
    widgets = explorer.decoding.widgets
    explorer.a.layer.value, explorer.decoding.max_new_tokens.value = 1, 12
    explorer.conversation.system.value = "Be brief."
    # Bad input is one sentence, and goes with its cause.
    widgets["top_k"].value = 40
    explorer.a.source.value = str(vector.save(tmp_path / "v.safetensors"))
    assert "top_k is for tokens that are drawn" in explorer.message.value
    assert explorer.run is None
    assert explorer._python_or_reason().startswith("# top_k is for")
    widgets["temperature"].value, widgets["seed"].value = 1.2, 5
    widgets["repetition_penalty"].value = 1.5
    answered(explorer)
    asked = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": explorer.conversation.prompt.value},
    ]
    steering, made = vector.at(1, "set_projection"), {"max_new_tokens": 12}
    decoding = sl.Decoding(1.2, top_k=40, seed=5, repetition_penalty=1.5)
    expected = sl.steer(tiny_model, asked, steering, **made, decoding=decoding)
    assert (explorer.run.baseline, explorer.run.steered) == (expected.baseline, expected.steered)
    assert explorer.run.settings["decoding"] == expected.settings["decoding"]
    # A text to stop at, taken from what was written; what is shown on the way ends there too.
    widgets["stop"].value = stop = next(c for c in expected.steered if "!" < c < "~")
    answered(explorer)
    assert explorer.run.finish_reasons[1] == "stop_text"
    assert explorer.run.steered == expected.steered[: expected.steered.index(stop) + 1]
    call = explorer.to_python().splitlines()[-1]
    assert call.startswith(f"run = sl.steer(model, {asked!r}, steering, max_new_tokens=12")
    given = f"temperature=1.2, top_k=40, repetition_penalty=1.5, stop={(stop,)!r}, seed=5)"
    assert call.endswith(given)
