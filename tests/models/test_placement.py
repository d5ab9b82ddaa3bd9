"""Placement and quantisation: what is passed on to transformers, and what is refused before."""

import copy
import importlib.util

import pytest
import torch
from transformers import BitsAndBytesConfig

import steerlens as sl
from steerlens.cli.main import main
from steerlens.cli.options import RunModelOptions
from steerlens.errors import ModelError, UnknownNameError
from steerlens.models import loading as models
from steerlens.models.loading import load_model, model_info
from steerlens.models.placement import placement_options, quantization_name
from steerlens.tasks.pairs import ContrastSet

EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}


def test_nothing_asked_for_passes_nothing_on():
    assert placement_options(None, None, None) == {}


def test_memory_and_map_reach_transformers_as_given(tiny_folder, monkeypatch):
    seen = {}
    whole = models.read_model

    def spy(folder, name, **options):
        seen.update(copy.deepcopy(options))
        return whole(folder, name, **options)

    monkeypatch.setattr(models, "read_model", spy)
    model = load_model(tiny_folder, device_map="auto", max_memory={"cpu": "1GiB"})
    assert (seen["device_map"], seen["max_memory"]) == ("auto", {"cpu": "1GiB"})
    plain = load_model(tiny_folder, device="cpu")
    texts = [sl.generate(one, ["Hi"], max_new_tokens=4).texts for one in (model, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"max_memory": {"cpu": "1GiB"}}, "give device_map='auto' with it"),
        ({"device_map": "auto", "max_memory": {"cpu": "lots"}}, "such as '20GiB'"),
        ({"device_map": "auto", "max_memory": {7: "1GiB"}}, "names GPU 7"),
        ({"device_map": "auto", "max_memory": {"gpu": 1}}, "'cpu', 'mps'"),
        ({"device_map": "autto"}, "did you mean 'auto'"),
        ({"quantization_config": {"load_in_8bit": True}}, "dictionary with 'quant_method'"),
        ({"quantization_config": {"quant_method": "bitsandbites"}}, "did you mean 'bitsandbytes"),
    ],
)
def test_what_cannot_be_placed_is_said_before_anything_is_read(tiny_folder, given, words):
    with pytest.raises((ModelError, UnknownNameError), match=words):
        load_model(tiny_folder, **given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--max-memory", "70GiB"], "give sizes such as 0=70GiB,cpu=200GiB"),
        (["--max-memory", "cpu=1GiB"], "needs a device_map"),
        (["--device-map", "{'': 0}"], "is no JSON object"),
        (["--quantize", "bitsandbytes-3bit"], "did you mean 'bitsandbytes-"),
        (["--device", "cpu", "--device-map", "auto"], "give one of them"),
    ],
)
def test_the_commands_refuse_a_placement_with_one_line(given, words, tiny_folder, tmp_path, capsys):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"instructed": "Hi. No commas.", "uninstructed": "Hi."}\n' * 4)
    assert main(["rank", "--model", str(tiny_folder), "--pairs", str(pairs), *given]) == 2
    assert words in capsys.readouterr().err


def test_the_commands_pass_a_placement_on(tiny_folder, monkeypatch):
    seen = {}
    monkeypatch.setattr(models, "load_model", lambda ref, **given: seen.update(given))
    room = {"device_map": '{"": "cpu"}', "max_memory": "0=70GiB,cpu=1000"}
    RunModelOptions(model="m", quantize="bitsandbytes-4bit", **room).load()
    assert seen["device_map"] == {"": "cpu"}
    assert seen["max_memory"] == {0: "70GiB", "cpu": 1000}
    assert placement_options(None, None, seen["quantization_config"])[
        "quantization_config"
    ].load_in_4bit


@pytest.mark.parametrize(
    "given",
    [
        {"device_map": {"": "disk"}},
        {"device_map": {"model.embed_tokens": "cpu", "model.layers": "disk", "lm_head": "cpu"}},
        {"device_map": "auto", "max_memory": {"cpu": "10KB"}},
        {"device_map": "auto", "max_memory": {"cpu": 30_000, "disk": "1GB"}},
    ],
)
def test_a_model_that_would_stay_on_the_disk_is_refused_with_one_sentence(tiny_folder, given):
    with pytest.raises(ModelError, match=r"leaves 1 part of .* on the disk \(.*more memory"):
        load_model(tiny_folder, **given)


def test_a_quantisation_is_named_and_tells_models_apart():
    assert quantization_name(None) is None
    assert quantization_name(EIGHT) == "bitsandbytes-8bit"
    assert quantization_name(BitsAndBytesConfig(load_in_8bit=True)) == "bitsandbytes-8bit"
    double = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert quantization_name(double).startswith("bitsandbytes-4bit-")


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed"
)
def test_a_missing_quantisation_library_is_one_sentence(tiny_folder):
    with pytest.raises(ModelError, match=r"cannot be loaded: .*bitsandbytes"):
        load_model(tiny_folder, device="cpu", quantization_config=EIGHT)


def test_a_quantised_model_runs_and_says_so(model):
    pytest.importorskip("bitsandbytes")
    small = load_model("smollm2-135m-instruct", device="cpu", quantization_config=EIGHT)
    info = model_info(small)
    assert info.quantization == "bitsandbytes-8bit"
    assert info.weights_hash == model_info(model).weights_hash
    assert info.precision != model_info(model).precision
    rows = ContrastSet.from_prompts(["Name a city. No commas.", "Hi!"], ["Name a city.", "Hi"])
    ours, plain = (sl.cache_residuals(one, rows, layers=[10]).instructed for one in (small, model))
    assert torch.cosine_similarity(ours, plain, dim=-1).min() > 0.95
