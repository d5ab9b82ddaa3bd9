"""Claims about free mode: each text under its own model, against plain Hugging Face runs."""

import pytest
import torch
from hf_reference import adding, one_pass
from steering_examples import random_vector

from steerlens.effects import record_run

LAYER, STRENGTH = 14, 3.0
PROMPT = list(range(500, 507))
BASELINE = [520, 521, 530, 531, 532, 533, 534, 540]
STEERED = [520, 521, 600, 601, 530, 531, 532, 533, 534, 541, 542]


@pytest.fixture(scope="module")
def vector():
    return random_vector(30, 576)


@pytest.fixture(scope="module")
def both(model, vector):
    return record_run(model, PROMPT, BASELINE, STEERED, vector.at(LAYER, "add", STRENGTH))


@pytest.mark.parametrize("response", ["baseline", "steered"])
def test_each_text_is_scored_by_the_model_that_wrote_it(both, hf_model, vector, response):
    shift = STRENGTH * vector.gaps[LAYER] * vector.directions[LAYER]
    ids = [*PROMPT, *(BASELINE if response == "baseline" else STEERED)]
    run = one_pass(hf_model, ids, [] if response == "baseline" else [adding(LAYER, shift)])

    own = getattr(both[1], response)
    assert own.token_ids == tuple(ids)
    expected = run.logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    torch.testing.assert_close(own.logprob[1:].double(), expected, rtol=0, atol=1e-4)
    assert own.logprob[0].isnan()
    entropy = -(run.logprobs.exp() * run.logprobs).sum(-1)
    torch.testing.assert_close(own.entropy.double(), entropy, rtol=0, atol=1e-4)
    scale = run.resid[LAYER].norm(dim=-1)
    projection = run.resid[LAYER] @ vector.directions[LAYER].double()
    torch.testing.assert_close(
        own.projection[0].double() / scale, projection / scale, rtol=0, atol=1e-4
    )
    assert bool(own.steered.any()) == (response == "steered")


@pytest.mark.parametrize(
    ("baseline", "steered"),
    [
        (STEERED, STEERED),
        (STEERED[:3], STEERED),
        (STEERED, STEERED[:3]),
        ([], STEERED),
        (STEERED, []),
        ([9, 8], STEERED),
    ],
    ids=["equal", "shorter", "longer", "empty baseline", "empty steered", "nothing shared"],
)
@pytest.mark.parametrize("hooked", [False, True], ids=["fast", "plain"])
def test_the_baseline_is_whole_however_the_texts_part(
    model, vector, hf_model, baseline, steered, hooked
):
    hooks = [("blocks.2.attn.hook_pattern", lambda resid, hook: None)] if hooked else []
    with model.hooks(fwd_hooks=hooks):
        _, free = record_run(model, PROMPT, baseline, steered, vector.at(LAYER))

    ids = [*PROMPT, *baseline]
    run = one_pass(hf_model, ids)
    expected = run.logprobs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    torch.testing.assert_close(free.baseline.logprob[1:].double(), expected, rtol=0, atol=1e-4)
    assert free.baseline.projection.shape == (1, len(ids))


def test_the_texts_part_and_meet_where_they_were_made_to(both):
    _, free = both

    assert free.mode == "free"
    assert free.alignment.parts_at == 2
    assert free.alignment.meets_at == (2, 4)
    frame = free.table
    assert frame.groupby("text").size().to_dict() == {"baseline": 15, "steered": 18}
    runs = frame[frame.text == "steered"]["span"].tolist()[7:]
    assert runs[:2] == [0, 0] and runs[4:9] == [1] * 5
    assert all(run is not run or str(run) == "<NA>" for run in (runs[2], runs[3]))
    assert "kl" not in frame, "distributions of different texts are not compared"
