"""Claims about passes over a text: hooks gone, memory linear, other endings the same."""

import threading

import pytest
import torch
from steering_examples import n_hooks, random_vector
from torch.profiler import ProfilerActivity, profile

from steerlens.effects import token_effects
from steerlens.effects.streams import both_streams, other_ending
from steerlens.engine import choose_path

IDS = list(range(100, 124))
OTHER = [*IDS[:10], *range(300, 320)]


@pytest.fixture(scope="module")
def steering():
    return random_vector(30, 576).at(12, "add", 2.0)


def test_layers_are_observed_in_order_with_streams_that_part_at_the_intervention(model, steering):
    seen = []

    def observe(layer, baseline, before, after):
        seen.append((layer, bool((baseline == before).all()), bool((before == after).all())))

    with (
        torch.inference_mode(),
        both_streams(model, IDS, 5, steering, [3, 12, 20], observe, [20]) as (
            baseline,
            steered,
        ),
    ):
        assert baseline.logits(slice(2, 5)).shape == (3, model.cfg.d_vocab)
        assert set(baseline.resid) == set(steered.resid) == {20}

    assert seen == [(3, True, True), (12, True, False), (20, False, True)]


@pytest.mark.parametrize("hooked", [False, True], ids=["fast", "plain"])
def test_another_ending_is_read_as_if_it_stood_alone(model, steering, hooked):
    hooks = [("blocks.2.attn.hook_pattern", lambda resid, hook: None)] if hooked else []
    with torch.inference_mode(), model.hooks(fwd_hooks=hooks):
        with both_streams(model, IDS, 5, steering, remember=True) as (baseline, _):
            ending = other_ending(model, baseline, 10, OTHER, [12])
            logits = ending.logits(slice(0, 20))
        alone = model(torch.tensor([OTHER]), use_cache=False)[0, 10:]

    torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-3)
    assert ending.resid[12].shape == (20, 576)


def test_the_model_is_as_before_also_after_an_error(model, steering):
    with pytest.raises(RuntimeError, match="stop"), both_streams(model, IDS, 5, steering):
        raise RuntimeError("stop")

    assert n_hooks(model) == 0
    assert choose_path(model).is_fast


def test_no_pass_holds_the_logits_of_a_long_text(model, steering, monkeypatch):
    """500 tokens × 49,152 logits would be one allocation of 98 MB."""
    largest = 0
    whole = torch.Tensor.float

    def spy(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel() if tensor.shape[-1] == model.cfg.d_vocab else 0)
        return whole(tensor)

    monkeypatch.setattr(torch.Tensor, "float", spy)
    token_effects(model, IDS, list(range(500)), random_vector(30, 576).at(28))

    assert 0 < largest <= 64 * model.cfg.d_vocab


def largest_allocation(work):
    """Bytes of the largest single allocation, whichever operation makes it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    events = profiled.profiler.kineto_results.events()
    return max(one.nbytes() for one in events if one.name() == "[memory]")


def test_nothing_has_the_size_of_the_text_squared_or_of_text_times_vocabulary(tiny_model):
    # Given a text for which either, in float32, is more than the logits of a chunk
    n_tokens, n_vocab = 120, tiny_model.cfg.d_vocab
    steering = random_vector(3, 16).at(1, "add")
    token_effects(tiny_model, [5], [6], steering)  # the engine's check, once a model
    assert choose_path(tiny_model).is_fast

    largest = largest_allocation(
        lambda: token_effects(tiny_model, [5] * 20, [6] * (n_tokens - 20), steering)
    )

    assert 0 < largest < 4 * n_tokens * min(n_tokens, n_vocab)


def test_another_thread_waits_until_the_streams_have_been_read(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    ids = torch.tensor([[5, 6, 7]])
    expected = tiny_model(ids)
    found: list[torch.Tensor] = []
    other = threading.Thread(target=lambda: found.append(tiny_model(ids)))
    with both_streams(tiny_model, [5, 6, 7, 8], 2, vector.at(1, "add"), [1]) as (baseline, _):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        assert baseline.logits(slice(0, 4)).shape == (4, tiny_model.cfg.d_vocab)
    other.join(30)
    torch.testing.assert_close(found[0], expected)
