"""Claims about lm-eval's tasks under a steering, beside lm-eval's own models."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from harness_tasks import write_harness_tasks

import steerlens as sl
from steerlens.cli.main import main
from steerlens.errors import SteeringError, SteerlensError, UnknownNameError
from steerlens.harness import register, run_tasks

LAYER = 14


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_harness_tasks(tmp_path_factory.mktemp("harness"))


def shift(width):
    noise = torch.randn(width, generator=torch.Generator().manual_seed(0))
    return 15.0 * noise / noise.norm()


def adding(layer, width):
    vector = shift(width)
    return sl.Steering(
        (sl.Intervention(layer, vector / vector.norm(), float(vector.norm()), operation="add"),)
    )


def evaluated(lm, names):
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([str(name) for name in names])
    for task in loaded["tasks"].values():
        task.set_config(key="num_fewshot", value=0)
    return evaluator.evaluate(lm=lm, task_dict=loaded, bootstrap_iters=0, limit=2)


def responses(result, task):
    samples = sorted(result["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def log_likelihoods(result):
    choices = responses(result, "tiny_choices")
    values = [answer[0][0] for document in choices for answer in document]
    return np.array(values + [document[0][0] for document in responses(result, "tiny_texts")])


def test_it_equals_lm_evals_own_models_unsteered_and_adding(model, hf_model, files, tmp_path):
    from lm_eval.models.hf_steered import SteeredModel
    from lm_eval.models.huggingface import HFLM

    run = run_tasks(model, list(files.values()), adding(LAYER, 576), placebo=False, limit=2)
    hook = {
        "steering_vector": shift(576),
        "steering_coefficient": 1.0,
        "action": "add",
        "bias": None,
    }
    torch.save({f"layers.{LAYER}": hook}, tmp_path / "steer.pt")
    options = {"tokenizer": model.tokenizer, "device": "cpu", "batch_size": 4}
    theirs = {
        "unsteered": HFLM(pretrained=hf_model, **options),
        "steered": SteeredModel(hf_model, str(tmp_path / "steer.pt"), **options),
    }
    seen = {}
    for condition, lm in theirs.items():
        expected, found = evaluated(lm, files.values()), run.results[condition]
        seen[condition] = log_likelihoods(found)
        # Fused against eager attention in float32: 1e-5 was seen.
        np.testing.assert_allclose(seen[condition], log_likelihoods(expected), atol=1e-3, rtol=0)
        assert responses(found, "tiny_answers") == responses(expected, "tiny_answers")
        for task in ("tiny_choices", "tiny_answers", "tiny_texts"):
            for name, value in expected["results"][task].items():
                if "," in name and "stderr" not in name:
                    assert found["results"][task][name] == pytest.approx(value, rel=1e-4), name
    assert np.abs(seen["steered"] - seen["unsteered"]).max() > 0.05


def test_the_table_has_conditions_with_intervals_and_changes(tiny_model, files):
    run = run_tasks(tiny_model, list(files.values()), adding(1, 16), limit=3)
    table = run.table.set_index(["task", "condition"])
    assert set(run.table["condition"]) == {"unsteered", "steered", "placebo"}
    choices = table.loc["tiny_choices"]
    assert (choices["n"] == 3).all()
    assert (choices["low"] <= choices["value"]).all() and (
        choices["value"] <= choices["high"]
    ).all()
    steered, unsteered = choices.loc["steered", "value"], choices.loc["unsteered", "value"]
    assert choices.loc["steered", "change"] == pytest.approx(steered - unsteered)
    texts = table.loc["tiny_texts"]
    assert texts["low"].isna().all() and texts.loc["steered", "change"] != 0
    assert run.plot().data and "3 tasks" in run._repr_html_()


def test_generation_options_of_a_task_are_followed_or_refused(tiny_model, files, tmp_path):
    from steerlens.harness import SteeredLM

    lm = SteeredLM(tiny_model)
    length, decoding = lm._decoding(
        {"until": ["\n", ""], "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    )
    assert (length, decoding.stop, decoding.top_p) == (256, ("\n",), 0.9)
    assert lm._decoding({"max_tokens": 5, "top_p": 0.9})[1] == sl.Decoding()
    with pytest.raises(SteerlensError, match="num_beams is not supported"):
        lm._decoding({"num_beams": 4})


def test_a_text_longer_than_the_context_is_read_in_windows(tiny_model, files):
    from types import SimpleNamespace

    from steerlens.harness import SteeredLM

    text = "rain and snow " * 20
    lm = SteeredLM(tiny_model, max_length=100)
    request = SimpleNamespace(args=(text,))
    [total] = lm.loglikelihood_rolling([request], disable_tqdm=True)
    tokens = lm.tok_encode(text)
    # Every token once: 100 after the beginning of the text, the next 100 after 100 others at most.
    expected, starts = 0.0, range(0, len(tokens), 100)
    for start in starts:
        end = min(start + 100, len(tokens))
        begin = max(end - 101, 0)
        read = tokens[begin:end] if start else [lm.prefix_token_id, *tokens[:end]]
        with torch.inference_mode():
            logits = tiny_model(torch.tensor([read[:-1]]))[0].log_softmax(-1)
        predicted = logits[range(len(read) - 1), read[1:]]
        expected += float(predicted[-(end - start) :].sum())
    assert total == pytest.approx(expected, abs=1e-3)


def test_lm_eval_finds_the_model_by_name_once_it_is_registered(tiny_folder, files, tmp_path):
    from lm_eval.api.registry import get_model

    register()
    register()
    adding(1, 16).save(tmp_path / "steering.safetensors")
    arguments = f"pretrained={tiny_folder},steering={tmp_path / 'steering.safetensors'}"
    lm = get_model("steerlens").create_from_arg_string(arguments, {"batch_size": "1"})
    assert lm.steering.layers == (1,) and lm.batch_size is None
    with pytest.raises(UnknownNameError, match=r"argument of lm-eval's model .*'vectr'"):
        get_model("steerlens").create_from_arg_string(f"pretrained={tiny_folder},vectr=x")


def test_importing_steerlens_registers_nothing():
    code = """
import sys, steerlens, steerlens.cli.main
assert "lm_eval" not in sys.modules
import lm_eval.models
from lm_eval.api.registry import MODEL_REGISTRY
import steerlens.harness
assert "steerlens" not in MODEL_REGISTRY
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


def test_the_command_writes_a_table(tiny_folder, tiny_model, files, tmp_path, capsys):
    vector = sl.SteeringVector(
        directions=shift(16)[None] / 15.0,
        gaps=torch.tensor([15.0]),
        targets=torch.tensor([1.0]),
        baselines=torch.tensor([0.0]),
        layers=(1,),
        metadata={"model": "tiny", "n_layers": 3},
    )
    vector.save(tmp_path / "v.safetensors")
    arguments = ["harness", "--model", str(tiny_folder), "--tasks", str(files["choices"])]
    steering = ["--vector", str(tmp_path / "v.safetensors"), "--layer", "1", "--operation", "add"]
    out = ["--out", str(tmp_path / "run.json"), "--json", "--no-placebo"]
    assert main([*arguments, *steering, *out]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [row["condition"] for row in record["table"]] == ["unsteered", "steered"]
    assert "add ×1 at layer 1" in record["steering"]
    assert json.loads((tmp_path / "run.json").read_text())["table"] == record["table"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metric_list": [{"metric": "acuracy"}]}, r"unknown metric in .*'acuracy'"),
        ({"metric_list": [{"aggregation": "mean"}]}, "has no 'metric'"),
        ({"task": None}, "no name under 'task'"),
        ({"dataset_kwargs": {"data_files": {"test": "absent.jsonl"}}}, "cannot load .*absent"),
    ],
)
def test_a_task_file_that_cannot_be_run_is_refused(tiny_model, files, tmp_path, change, sentence):
    import yaml

    config = yaml.safe_load(files["choices"].read_text()) | change
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(SteerlensError, match=sentence):
        run_tasks(tiny_model, [path])


def test_bad_input_is_named(tiny_model, tiny_folder, files, tmp_path, capsys, monkeypatch):
    with pytest.raises(SteerlensError, match=r"no task file .*absent\.yaml"):
        run_tasks(tiny_model, [tmp_path / "absent.yaml"])
    with pytest.raises(SteerlensError, match="no task was given"):
        run_tasks(tiny_model, [])
    with pytest.raises(SteeringError, match="has d_model 8, the model 16"):
        run_tasks(tiny_model, [files["choices"]], adding(1, 8))
    command = ["harness", "--model", str(tiny_folder), "--tasks", str(files["choices"])]
    assert main([*command, "--layer", "1"]) == 2
    assert "--layer is for --vector" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(command) == 2
    assert "lm-eval, which is not installed; run 'pip install lm-eval'" in capsys.readouterr().err
