"""Claims about the lines that use a written vector in another tool: they are run as printed."""

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

import steerlens as sl
from steerlens.behaviour.plans import Plan
from steerlens.behaviour.plans.exporting import choice_as_vector
from steerlens.cli.main import main
from steerlens.cli.vectors import FORMATS
from steerlens.errors import SteeringError
from steerlens.models.loading import tokenize_prompts
from steerlens.vectors.formats.usage import TOOLS

LAYERS = (1, 2)


@pytest.fixture
def vector():
    noise = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    norms = noise.norm(dim=-1)
    ends = torch.zeros(2), torch.zeros(2)
    return sl.SteeringVector(noise / norms[:, None], norms, *ends, LAYERS, {"n_layers": 3})


def printed(vector, form, tmp_path, capsys):
    """The lines that `convert` prints."""
    vector.save(tmp_path / "v.safetensors")
    out = tmp_path / f"out{FORMATS[form]}"
    command = ["convert", "--vector", str(tmp_path / "v.safetensors"), "--out", str(out)]
    assert main([*command, "--format", form]) == 0
    return capsys.readouterr().out.split("\n\n", 1)[1]


def ours(model, tokens, vector):
    steering = vector.at(1, "add") + vector.at(2, "add")
    with steering.applied(model), torch.inference_mode():
        return model(tokens)


@pytest.fixture
def tokens(tiny_model):
    return torch.tensor(tokenize_prompts(tiny_model, ["What is rain?"]))


@pytest.mark.parametrize("form", ["steering-vectors", "repeng"])
def test_the_printed_lines_do_in_the_tool_what_add_does_here(
    form, vector, tiny_model, tiny_folder, tokens, tmp_path, capsys, monkeypatch
):
    # repeng 0.4 asks for a name that numpy 2 dropped.
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    pytest.importorskip(form.replace("-", "_"))
    lines = printed(vector, form, tmp_path, capsys)
    lines = lines.replace("model.generate(…)", "seen = model(tokens).logits")
    lines = lines.replace("hf_seen = model", "seen = hf_model")
    names = {"hf_model": LlamaForCausalLM.from_pretrained(tiny_folder).eval(), "tokens": tokens}
    with torch.inference_mode():
        exec(lines, names)
    # Float32 logits of some units.
    assert torch.allclose(names["seen"], ours(tiny_model, tokens, vector), atol=1e-4)


class Recorder(ModuleType):
    """Stands in for a library that is not installed: keeps what it is called with."""

    def __init__(self, name, calls):
        super().__init__(name)
        self.calls = calls

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls[name] = (args, kwargs)
            return SimpleNamespace(generate=lambda *a, **k: self.calls.update(generate=(a, k)))

        return call


@pytest.mark.parametrize("form", ["vllm-lens", "easysteer"])
def test_the_printed_lines_hand_over_what_was_written(form, vector, tmp_path, capsys, monkeypatch):
    calls = {}
    for name in ("vllm", "vllm_lens", "vllm.steer_vectors", "vllm.steer_vectors.request"):
        monkeypatch.setitem(sys.modules, name, Recorder(name, calls))
    exec(printed(vector, form, tmp_path, capsys), {})
    assert "generate" in calls
    if form == "vllm-lens":
        handed = calls["SteeringVector"][1]
        assert handed["layer_indices"] == [1, 2]
        shifts = vector.gaps[:, None] * vector.directions
        assert torch.allclose(handed["activations"], shifts)
        return
    args, options = calls["SteerVectorRequest"]
    assert options["target_layers"] == [1, 2] and args == ("steerlens", 1)
    # EasySteer reads the tensors direction.N of a control vector.
    import gguf

    found = {t.name: t.data for t in gguf.GGUFReader(options["steer_vector_local_path"]).tensors}
    assert set(found) == {"direction.1", "direction.2"}


def test_every_format_has_its_lines_and_the_help_names_the_tools(capsys):
    assert set(TOOLS) == set(FORMATS)
    assert main(["convert", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for name in ("llama.cpp", "llama-cpp-python", "repeng", "easysteer", "vllm-lens"):
        assert name in shown


def part(operation="add", scope="all", strength=2.0, layer=1):
    return {
        "estimator": "last_prompt", "layer": layer, "operation": operation, "strength": strength,
        "scope": scope,
    }  # fmt: skip


def plan_of(vector, parts):
    choice = {"parts": parts}
    data = {
        "model": {"reference": "tiny"},
        "instructions": {"t": {"uninstructed": choice, "instructed": {"parts": []}}},
    }
    return Plan(data, {("t", "last_prompt"): vector})


def test_a_plan_that_adds_becomes_one_vector(vector, tiny_model, tokens):
    plan = plan_of(vector, [part(), part(strength=-0.5), part(layer=2)])
    exported = choice_as_vector(plan, "t")
    assert exported.layers == (1, 2)
    chosen = vector.at(1, "add", 1.5) + vector.at(2, "add", 2.0)
    with chosen.applied(tiny_model), torch.inference_mode():
        expected = tiny_model(tokens)
    assert torch.allclose(ours(tiny_model, tokens, exported), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "chose no steering"),
        ([part("set_projection")], "other tools can only add a vector on every token"),
        ([part(scope="prompt")], "other tools can only add a vector on every token"),
    ],
)
def test_a_choice_that_other_tools_cannot_do_is_refused(vector, parts, sentence):
    with pytest.raises(SteeringError, match=sentence):
        choice_as_vector(plan_of(vector, parts), "t")
