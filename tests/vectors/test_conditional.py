"""Claims about conditional steering: on the prompt, and on the running text."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from scipy.stats import binomtest
from steering_examples import n_hooks, random_vector

from steerlens.engine.batches import left_padded
from steerlens.engine.generation import generate
from steerlens.errors import FileFormatError, SteeringError
from steerlens.models.loading import tokenize_prompts
from steerlens.stats.rates import Interval
from steerlens.steering.interventions import Steering
from steerlens.steering.roles import TokenRoles
from steerlens.steering.rows import RowSteering
from steerlens.tasks import base_queries
from steerlens.vectors.conditional import Condition, fit_condition, threshold_for


def queries(kind: str, n: int) -> list[str]:
    found = [q.text for split in ("fit", "select") for q in base_queries(split)]
    kinds = {q.text: q.kind for split in ("fit", "select") for q in base_queries(split)}
    return [text for text in found if (kinds[text] == "yes-no") == (kind == "yes-no")][:n]


@pytest.fixture(scope="module")
def condition(model) -> Condition:
    """Holds for yes-no questions."""
    return fit_condition(model, queries("yes-no", 32), queries("other", 32), layers=[8, 12], seed=0)


def tiny_condition(model, layer=0, threshold=0.0, seed=0) -> Condition:
    direction = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed))
    rate = Interval(0.5, 0.1, 0.9)
    return Condition(direction / direction.norm(), layer, threshold, rate, rate, 0.5, "by hand")


# --- thresholds ---

# Whole numbers, so that scores tie.
SCORES = st.lists(st.integers(-50, 50).map(float), min_size=1, max_size=30)


@given(
    negative=SCORES,
    positive=SCORES,
    rate=st.floats(0, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_the_threshold_keeps_false_positives_in_bounds_and_no_lower_one_does(
    negative, positive, rate
):
    threshold = threshold_for(negative, positive, rate)
    scores = np.array(negative, dtype=float)
    assert (scores > threshold).mean() <= rate + 1e-9
    # any lower threshold that changes a decision lets in the highest negative left out
    left_out = scores[scores <= threshold].max()
    assert (scores >= left_out).mean() > rate - 1e-9
    every = np.array([*negative, *positive], dtype=float)
    assert not ((every > left_out) & (every <= threshold)).any()


# --- fitting ---


def test_rates_are_counted_on_prompts_that_chose_nothing_with_wilsons_interval(model, condition):
    n = condition.metadata["n_negative"][2]
    rate = condition.false_positive_rate
    independent = binomtest(round(rate.value * n), n).proportion_ci(method="wilson")
    assert (rate.low, rate.high) == pytest.approx((independent.low, independent.high))
    assert condition.metadata["n_positive"] == [16, 8, 8]


def test_yes_no_questions_are_told_from_other_queries(condition):
    assert condition.auroc > 0.9
    assert condition.true_positive_rate.value > condition.false_positive_rate.value
    assert condition.layer in (8, 12)
    assert "false positives" in repr(condition)


def test_scores_are_projections_of_the_last_prompt_token(model, hf_model, condition):
    prompts = queries("yes-no", 2)
    scores = condition.scores(model, prompts)
    for prompt, score in zip(prompts, scores, strict=True):
        [ids] = tokenize_prompts(model, [prompt])
        with torch.inference_mode():
            states = hf_model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        expected = states[condition.layer + 1][0, -1] @ condition.direction
        assert float(score) == pytest.approx(float(expected), rel=1e-3, abs=1e-2)


def test_labels_at_random_give_no_condition(model):
    # the null: the same queries, divided at random
    some = queries("other", 48)
    shuffled = list(np.random.default_rng(0).permutation(some))
    null = fit_condition(model, shuffled[:24], shuffled[24:], layers=[8])
    assert null.true_positive_rate.low < 0.5


@pytest.mark.parametrize(
    ("positive", "negative", "options", "words"),
    [
        (["a"] * 3, ["b"] * 20, {}, "at least 8 prompts of each kind.* got 3 and 20"),
        (
            [str(i) for i in range(9)],
            [str(i) for i in range(8, 17)],
            {},
            "none of both; got 9 and 9 with 1 in common",
        ),
        (
            [str(i) for i in range(9)],
            [f"b{i}" for i in range(9)],
            {"max_false_positive_rate": 1.5},
            "max_false_positive_rate",
        ),
    ],
)
def test_data_no_condition_can_be_learned_from_is_refused(
    tiny_model, positive, negative, options, words
):
    with pytest.raises(SteeringError, match=words):
        fit_condition(tiny_model, positive, negative, **options)


# --- deciding ---


def between(scores: torch.Tensor) -> float:
    """A threshold that no score is near."""
    ordered = scores.sort().values
    widest = int((ordered[1:] - ordered[:-1]).argmax())
    return float(ordered[widest : widest + 2].mean())


def test_only_prompts_for_which_it_holds_are_steered(tiny_model):
    prompts = ["one", "two words", "three little words", "four", "fifth"]
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    steering = vector.at(1, "add", 6.0)
    undecided = tiny_condition(tiny_model)
    scores = undecided.scores(tiny_model, prompts)
    threshold = between(scores)
    condition = tiny_condition(tiny_model, threshold=threshold)
    chosen = condition.choose(tiny_model, prompts, steering)
    assert [one is steering for one in chosen] == (scores > threshold).tolist()
    texts = generate(tiny_model, prompts, steering=chosen, max_new_tokens=6).tokens
    plain = generate(tiny_model, prompts, max_new_tokens=6).tokens
    steered = generate(tiny_model, prompts, steering=steering, max_new_tokens=6).tokens
    for i, held in enumerate(scores > threshold):
        assert texts[i] == (steered if held else plain)[i]


@pytest.mark.parametrize("condition_layer", [0, 1])
def test_inside_a_forward_pass_rows_are_decided_like_prompts_beforehand(
    tiny_model, condition_layer
):
    prompts = ["one", "two words", "three little words", "four", "fifth"]
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    steering = vector.at(1, "add", 3.0) + vector.at(2)
    scores = tiny_condition(tiny_model, condition_layer).scores(tiny_model, prompts)
    threshold = between(scores)
    condition = tiny_condition(tiny_model, condition_layer, threshold)
    tokens, mask = left_padded(tokenize_prompts(tiny_model, prompts))
    before = n_hooks(tiny_model)

    def logits(manager):
        with torch.inference_mode(), manager:
            out, cache = tiny_model(
                tokens, attention_mask=mask, return_type="logits_and_cache", use_cache=True
            )
            longer = torch.cat([mask, torch.ones(5, 1, dtype=mask.dtype)], dim=1)
            following = out[:, -1].argmax(-1, keepdim=True)
            later = tiny_model(
                following, attention_mask=longer, past_key_values=cache, use_cache=True
            )
        return torch.cat([out[:, -1:], later[:, -1:]], dim=1)

    plain, steered = logits(Steering(()).applied(tiny_model)), logits(steering.applied(tiny_model))
    mixed = logits(condition.applied(tiny_model, steering))
    expected = torch.where((scores > threshold)[:, None, None], steered, plain)
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)
    assert n_hooks(tiny_model) == before


def test_steering_below_the_layer_of_the_condition_is_refused(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with (
        pytest.raises(SteeringError, match="known at layer 2, after layer 1"),
        tiny_condition(tiny_model, layer=2).applied(tiny_model, vector.at(1)),
    ):
        pass


def test_a_condition_of_another_model_is_refused(tiny_model, condition):
    with pytest.raises(SteeringError, match=r"d_model 576.* the model has d_model 16"):
        condition.choose(tiny_model, ["a"], Steering(()))


# --- files ---


def test_a_condition_is_the_same_after_saving_and_loading(tmp_path, condition):
    loaded = Condition.load(condition.save(tmp_path / "c.safetensors"))
    assert torch.equal(loaded.direction, condition.direction)
    for name in ("layer", "threshold", "auroc", "rule", "false_positive_rate"):
        assert getattr(loaded, name) == getattr(condition, name)
    assert dict(loaded.metadata) == json.loads(json.dumps(dict(condition.metadata)))


@pytest.mark.parametrize("changes", [{"threshold": "high"}, {"metadata": []}, {"layer": None}])
def test_a_broken_condition_file_is_refused_in_one_sentence(tmp_path, tiny_model, changes):
    path = tiny_condition(tiny_model).save(tmp_path / "c.safetensors")
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["steerlens"])
        tensors = {"direction": file.get_tensor("direction")}
    save_file(tensors, path, metadata={"steerlens": json.dumps({**record, **changes})})
    with pytest.raises(FileFormatError, match="lacks a part of a condition"):
        Condition.load(path)


# --- only below the target ---


@given(seed=st.integers(0, 1000), strength=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_a_one_sided_projection_raises_and_never_lowers(seed, strength):
    vector = random_vector(1, 8, seed)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(seed)) * 3
    real = torch.ones(2, 5, dtype=torch.bool)
    steering = vector.at(0, strength=strength, only_below=True)
    moved = RowSteering([steering]).apply(0, x, TokenRoles(real, ~real)).double().numpy()
    u, z = vector.directions[0].double().numpy(), float(vector.targets[0])
    before = x.double().numpy()
    amount = np.maximum(strength * (z - before @ u), 0.0)
    np.testing.assert_allclose(moved, before + amount[..., None] * u, atol=1e-4)


def test_rows_of_a_batch_may_differ_in_whether_they_are_one_sided(tiny_model):
    prompts = ["one", "two words", "three little words"]
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    rows = [vector.at(1, strength=2.0, only_below=True), vector.at(1, strength=2.0), None]
    together = generate(tiny_model, prompts, steering=rows, max_new_tokens=8).tokens
    for prompt, steering, tokens in zip(prompts, rows, together, strict=True):
        alone = generate(tiny_model, [prompt], steering=steering, max_new_tokens=8).tokens[0]
        assert tokens == alone


def test_one_sided_steering_in_the_model_leaves_no_token_below_and_others_alone(model):
    vector = random_vector(30, 576)
    tokens, mask = left_padded(tokenize_prompts(model, ["Tell me about Rome.", "List fruits."]))
    kept = {}

    def run(steering, name):
        def keep(resid, hook):
            kept[name] = resid.clone()

        with (
            torch.inference_mode(),
            steering.applied(model),
            model.hooks(fwd_hooks=[("blocks.12.hook_out", keep)]),
        ):
            model(tokens, attention_mask=mask)

    run(Steering(()), "plain")
    projection = kept["plain"] @ vector.directions[12]
    middle = float(projection[mask.bool()].median())
    one_sided = vector.at(12, only_below=True)
    [one] = one_sided.interventions
    object.__setattr__(one, "target", middle)  # so that tokens lie on both sides of it
    run(one_sided, "steered")
    after = kept["steered"] @ vector.directions[12]
    above = (projection > middle) & mask.bool()
    assert above.any() and (~above & mask.bool()).any()
    assert torch.equal(kept["plain"][above], kept["steered"][above])
    assert (after[mask.bool()] > middle - 1e-2).all()


@pytest.mark.parametrize(
    "arguments", [{"operation": "add"}, {"operation": "ablate"}, {"strength": -1.0}]
)
def test_only_projections_can_be_one_sided(arguments):
    with pytest.raises(SteeringError, match="only_below raises projections"):
        random_vector(2, 8).at(0, only_below=True, **arguments)


def test_one_sidedness_is_told_in_words():
    steering = random_vector(2, 8).at(0, only_below=True)
    assert "only below its target" in repr(steering)
