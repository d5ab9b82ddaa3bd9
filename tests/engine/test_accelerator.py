"""The engine on CUDA or MPS, where there is one, and the benchmark that says more about it."""

import json

import pytest
import torch

import steerlens as sl
from benchmarks import accelerator, contenders, rounding
from benchmarks.models import SHAPES, RandomModel
from benchmarks.work import inputs
from steerlens.engine.modules import fast_modules

TINY = SHAPES["tiny"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def device():
    return torch.accelerator.current_accelerator()


@pytest.mark.accelerator
def test_in_float32_engine_and_bridge_give_the_same_tokens_and_residuals(device):
    found = accelerator.equality(RandomModel(TINY, device), 64, 8)

    assert found["rows_with_the_same_tokens"] == 64
    # On a CPU both are 1e-6; an error of masks or positions is above 1e-2.
    assert found["largest_log_probability_difference"] < 1e-3
    assert found["largest_residual_difference"] < 1e-4


@pytest.mark.accelerator
def test_in_bfloat16_the_engine_is_as_near_to_float32_as_the_bridge_is(device):
    kl = rounding.matrix(rounding.measure(RandomModel(TINY, device), 12, 8))

    engine, bridge = kl["engine, all together"], kl["bridge, one at a time"]
    # Both round: distances of two right computations differ by less than a factor of 1.5 on a CPU.
    assert engine["float32"] < 2 * bridge["float32"]


@pytest.mark.accelerator
def test_a_steered_answer_and_its_effects_are_those_of_the_cpu(device, roomy_folder, roomy_model):
    model = sl.load_model(roomy_folder)
    assert torch.device(model.cfg.device).type == device.type
    pairs = sl.contrast_pairs("detectable_format:title", n=4)
    cache = sl.cache_residuals(model, pairs, show_progress=False)
    there = sl.cache_residuals(roomy_model, pairs, show_progress=False)
    torch.testing.assert_close(cache.instructed, there.instructed, rtol=1e-4, atol=1e-4)

    steering = sl.difference_of_means(there).at(1, "set_projection", 1.0)
    run, expected = (
        sl.steer(each, "Hello.", steering, max_new_tokens=8) for each in (model, roomy_model)
    )

    assert run.steered == expected.steered
    assert run.effects.table["kl"].to_numpy() == pytest.approx(
        expected.effects.table["kl"].to_numpy(), rel=1e-3, abs=1e-4, nan_ok=True
    )


def test_the_benchmark_runs_where_there_is_no_accelerator_when_told_to(capsys):
    accelerator.main(["--device", "cpu", "--quick"])

    found = json.loads(capsys.readouterr().out.splitlines()[-1])["shapes"]["tiny"]
    assert found["equality"]["rows_with_the_same_tokens"] == found["equality"]["rows"]
    assert found["equality"]["largest_residual_difference"] < 1e-5
    assert found["left_out"] == {}
    assert found["path"]["attention"] == "sdpa"
    assert set(found["over_hugging_face"]) == set(found["speed"])


def test_without_an_accelerator_the_benchmark_ends_with_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)

    accelerator.main([])

    assert capsys.readouterr().out.startswith("There is no accelerator here: ")


def test_hugging_face_inside_the_bridge_answers_as_a_model_of_its_own():
    source = RandomModel(TINY, CPU)
    bridge, plain = source.bridge(torch.float32), source.plain(torch.float32, "sdpa")
    work = inputs(bridge, bridge.original_model, accelerator.QUICK)

    with fast_modules(bridge):
        inside = contenders.hf_answers(work, work.rows, 4)

    assert inside == contenders.hf_answers(work, work.rows, 4, plain)
    assert inside == contenders.our_answers(work, work.rows, 4)
