"""Claims about effects of a direction on later components, against plain Hugging Face hooks."""

import numpy as np
import pytest
import torch
from hf_reference import Change, chat_tokens, modules_at_the_end
from steering_examples import n_hooks

from steerlens.activations.cache import cache_residuals
from steerlens.attribution.downstream_components import reading_components
from steerlens.errors import SteeringError, SteerlensError
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import difference_of_means

LAYER = 26
TASK = "detectable_format:title"


@pytest.fixture(scope="module")
def vector(model):
    return difference_of_means(cache_residuals(model, contrast_pairs(TASK, n=8, seed=0)))


@pytest.fixture(scope="module")
def held_out():
    return contrast_pairs(TASK, n=3, seed=0, split="select")


@pytest.fixture(scope="module")
def reading(model, held_out, vector):
    return reading_components(model, held_out, vector, LAYER, n_placebos=8)


def at_the_end(push):
    """`push` added after LAYER at the last token."""

    def of(resid):
        resid = resid.clone()
        resid[-1] += push
        return resid

    return Change(LAYER, of)


@torch.no_grad()
def test_effects_equal_a_plain_hugging_face_computation(model, hf_model, held_out, vector, reading):
    push = vector.directions[LAYER] * vector.gaps[LAYER]
    delta = torch.zeros(model.cfg.d_vocab, dtype=torch.float64)
    runs = []
    for pair in held_out:
        instructed, _ = modules_at_the_end(hf_model, chat_tokens(model.tokenizer, pair.instructed))
        ids = chat_tokens(model.tokenizer, pair.uninstructed)
        before, seen = modules_at_the_end(hf_model, ids)
        after, changed = modules_at_the_end(hf_model, ids, [at_the_end(push)])
        delta += instructed.softmax(-1) - before.softmax(-1)
        runs.append((before, after, seen, changed))
    delta /= delta.clamp_min(0).sum()
    assert delta.sum() == pytest.approx(0, abs=1e-9)
    unembed, norm = hf_model.lm_head.weight.double(), hf_model.model.norm
    expected, free = [], []
    for before, after, seen, changed in runs:
        final = seen["layers.29"][1]
        scale = 1 / (final.square().mean() + norm.variance_epsilon).sqrt()
        d = scale * norm.weight.double() * (unembed.T @ delta)
        terms = [(changed[f"layers.{LAYER}"][1] - seen[f"layers.{LAYER}"][1]) @ d]
        for i in range(LAYER + 1, 30):
            z = changed[f"layers.{i}.self_attn.o_proj"][0] - seen[f"layers.{i}.self_attn.o_proj"][0]
            weight = hf_model.model.layers[i].self_attn.o_proj.weight.double()
            terms += [
                weight[:, h * 64 : h * 64 + 64] @ z[h * 64 : h * 64 + 64] @ d for h in range(9)
            ]
            terms.append((changed[f"layers.{i}.mlp"][1] - seen[f"layers.{i}.mlp"][1]) @ d)
        expected.append([float(term) for term in terms])
        free.append(float(delta @ (after - before)))
    assert np.allclose(reading.effects, expected, atol=1e-4)
    assert reading.table.effect.to_numpy() == pytest.approx(np.mean(expected, 0), abs=1e-4)
    assert reading.actual == pytest.approx(np.mean(free), abs=1e-3)


def test_effects_and_the_direct_term_sum_to_the_change_of_the_stream(reading):
    assert reading.metadata["closure"] < 1e-6
    assert reading.table.effect.sum() == pytest.approx(reading.total)
    assert reading.table.share.sum() == pytest.approx(1)
    assert list(reading.table.component[:2]) == ["direct", "L27H0"]
    assert len(reading.table) == 1 + 3 * 10


def test_the_largest_effects_are_drawn(reading):
    [bars] = reading.plot(n=4).data
    assert max(bars.x) == pytest.approx(reading.table.effect.max(), rel=1e-3)
    assert "<table" in reading._repr_html_()


def test_the_title_direction_raises_the_logits_that_the_instruction_raises(reading):
    assert reading.total > 1
    assert abs(reading.table.placebo.sum()) < reading.total / 2


def test_strength_zero_has_no_effect(model, held_out, vector):
    none = reading_components(model, held_out, vector, LAYER, strength=0.0, n_placebos=2)
    assert np.abs(none.effects).max() < 1e-4


def test_setting_the_projection_pushes_by_what_is_missing(model, held_out, vector):
    small = reading_components(
        model, held_out, vector, LAYER, operation="set_projection", strength=0.01, n_placebos=2
    )
    double = reading_components(
        model, held_out, vector, LAYER, operation="set_projection", strength=0.02, n_placebos=2
    )
    assert double.table.effect[0] == pytest.approx(2 * small.table.effect[0], rel=1e-3)


def test_the_bridge_gives_the_same_and_nothing_stays_hooked(tiny_model):
    queries = ["ab", "cd", "e", "f g"]
    pairs = ContrastSet.from_prompts([f"{query} now!!" for query in queries], queries)
    vector = difference_of_means(cache_residuals(tiny_model, pairs))
    before = n_hooks(tiny_model)
    ours = reading_components(tiny_model, pairs, vector, 0, n_placebos=3)
    with tiny_model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: None)]):
        theirs = reading_components(tiny_model, pairs, vector, 0, n_placebos=3)
    numbers = ["effect", "low", "high", "placebo", "placebo_low", "placebo_high"]
    assert np.allclose(ours.table[numbers], theirs.table[numbers], atol=1e-5)
    assert n_hooks(tiny_model) == before


def test_nothing_responds_above_the_last_layer(model, held_out, vector):
    with pytest.raises(SteeringError, match="layer 29 is the model's last"):
        reading_components(model, held_out, vector, 29)


def test_pairs_whose_sides_start_alike_have_no_logit_direction(model, vector):
    same = ContrastSet.from_prompts(["Hi.", "Why?"], ["Hi.", "Why?"])
    with pytest.raises(SteeringError, match="does not change the first response token"):
        reading_components(model, same, vector, LAYER)


def test_one_base_query_is_refused(model, vector):
    pairs = ContrastSet.from_prompts(["A!", "A!!"], ["A", "A"], ["A", "A"])
    with pytest.raises(SteerlensError, match="one base query"):
        reading_components(model, pairs, vector, LAYER)


@pytest.mark.parametrize("wrong", [{"n_placebos": 1}, {"batch_size": 0}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(model, held_out, vector, wrong):
    with pytest.raises(SteeringError, match="at least 2 n_placebos"):
        reading_components(model, held_out, vector, LAYER, **wrong)
