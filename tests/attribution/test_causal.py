"""Claims about causal recovery over responses, against a plain Hugging Face computation."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hf_reference import Change, Push, chat_tokens, greedy, kl, one_pass
from steering_examples import random_vector

from steerlens.activations.cache import cache_residuals
from steerlens.attribution import teacher_forcing
from steerlens.attribution.causal import causal_recovery, first_token_recovery
from steerlens.errors import SteeringError, SteerlensError, UnknownNameError
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import difference_of_means, random_direction

SHARES = ["recovery", "low", "high", "placebo", "placebo_low", "placebo_high"]
END = frozenset({2})


@pytest.fixture(scope="module")
def fitted(model):
    cache = cache_residuals(model, contrast_pairs("detectable_format:title", n=16, seed=0))
    return difference_of_means(cache), random_direction(cache)


@pytest.fixture(scope="module")
def held_out():
    """A pair with a long response, and one whose response ends early."""
    long, _ = contrast_pairs("detectable_format:title", n=2, seed=0, split="select")
    return ContrastSet.from_prompts(
        [long.instructed, "What is 2+2? Answer with one number only."],
        [long.uninstructed, "What is 2+2?"],
    )


@pytest.fixture(scope="module")
def tiny():
    """Pairs and vectors for the tiny model."""
    pairs = ContrastSet.from_prompts(["ab!!!", "cde!!!", "f!!!"], ["ab", "cde", "f"])
    return pairs, random_vector(3, 16, 1), random_vector(3, 16, 2)


def greedy_response(hf_model, prompt, n):
    """Greedy, one whole forward pass a token; the end token is the last."""
    tokens = greedy(hf_model, prompt, (), n, END, again=True)
    return tokens if len(tokens) == n else [*tokens, *END]


def logprobs(hf_model, prompt, response, change=None):
    """What predicts each response token."""
    run = one_pass(hf_model, prompt, [change] if change else (), response)
    return run.logprobs[len(prompt) - 1 : -1]


def test_recovery_equals_a_plain_hugging_face_computation(model, hf_model, fitted, held_out):
    vector, placebo = fitted
    settings = list(product(("add", "set_projection"), ("prompt", "response", "all"), (25,)))
    n_tokens, horizons = 9, (1, 4, 9)
    whole = np.zeros((2, n_tokens))
    remaining = np.zeros((2, len(settings), 2, n_tokens))
    for i, pair in enumerate(held_out):
        instructed, uninstructed = (
            chat_tokens(model.tokenizer, text) for text in (pair.instructed, pair.uninstructed)
        )
        response = greedy_response(hf_model, instructed, n_tokens)
        n = len(response)
        target = logprobs(hf_model, instructed, response)
        whole[i, :n] = kl(target, logprobs(hf_model, uninstructed, response))
        for (k, one), (s, (operation, scope, layer)) in product(
            enumerate((vector, placebo)), enumerate(settings)
        ):
            u, gap, z = (getattr(one, of)[layer] for of in ("directions", "gaps", "targets"))
            push = Push(layer, u, float(gap), float(z), operation, 1.0, scope)
            steered = logprobs(hf_model, uninstructed, response, push)
            remaining[k, s, i, :n] = kl(target, steered)
    assert not whole[1, 7:].any(), "the second response was meant to end early"

    result = causal_recovery(
        model,
        held_out,
        vector,
        layers=(25,),
        operations=("add", "set_projection"),
        scopes=("prompt", "response", "all"),
        horizons=horizons,
        placebo=placebo,
    )
    table = result.table.set_index(["operation", "scope", "layer", "horizon"])
    assert len(table) == len(settings) * len(horizons)
    for (s, setting), h in product(enumerate(settings), horizons):
        row = table.loc[(*setting, h)]
        for k, names in enumerate((SHARES[:3], SHARES[3:])):
            left, all_of_it = remaining[k, s, :, :h].sum(1), whole[:, :h].sum(1)
            assert row[names[0]] == pytest.approx(1 - left.sum() / all_of_it.sum(), abs=1e-3)
            # The jackknife leaves one of two queries at a time; t has one degree of freedom, and
            # multiplies the rounding of both.
            ratio = left.sum() / all_of_it.sum()
            reach = 12.7062 * np.sqrt(((left / all_of_it - ratio) ** 2).sum() / 2)
            ends = [row[names[1]], row[names[2]]]
            expected = pytest.approx([1 - ratio - reach, 1 - ratio + reach], abs=3e-2, rel=1e-2)
            assert ends == expected
    assert result.metadata["kl_instructed_uninstructed"] == pytest.approx(
        {h: whole[:, :h].sum() / 2 for h in horizons}, rel=1e-3
    )


def test_the_response_is_the_greedy_one_and_its_end_counts(model, hf_model, held_out):
    instructed, uninstructed = (
        [chat_tokens(model.tokenizer, getattr(pair, side)) for pair in held_out]
        for side in ("instructed", "uninstructed")
    )
    found = teacher_forcing.instructed_responses(model, instructed, uninstructed, 9, False)
    expected = [greedy_response(hf_model, ids, 9) for ids in instructed]
    assert [list(tokens) for tokens in found] == expected
    assert len(found[1]) < 9 and found[1][-1] in END


def test_strength_zero_recovers_nothing_anywhere(model, fitted, held_out):
    table = causal_recovery(
        model,
        held_out,
        fitted[0],
        layers=(3, 24, 29),
        operations=("add", "set_projection"),
        strengths=(0.0,),
        scopes=("prompt", "response", "all"),
        horizons=(1, 4),
    ).table
    assert len(table) == 36
    assert table[["recovery", "low", "high"]].abs().to_numpy().max() < 1e-4


def test_one_token_gives_the_first_token_recovery(model, fitted, held_out):
    vector, placebo = fitted
    layers = (6, 24)
    table = causal_recovery(
        model, held_out, vector, layers, scopes=("all",), horizons=(1,), placebo=placebo
    ).table
    first = first_token_recovery(model, held_out, vector, layers, placebo).table
    pd.testing.assert_frame_equal(table[["layer", *SHARES]], first, atol=1e-4)


def test_titles_are_recovered_late_and_not_early_and_the_placebo_does_not(model, fitted):
    vector, placebo = fitted
    pairs = contrast_pairs("detectable_format:title", n=8, seed=0, split="select")
    result = causal_recovery(
        model, pairs, vector, (6, 24), scopes=("prompt",), horizons=(4,), placebo=placebo
    )
    late, early = (result.table.set_index("layer").loc[layer] for layer in (24, 6))
    assert result.best_layer == 24
    assert late.low > max(late.placebo_high, early.recovery)


def test_on_the_first_token_scope_response_does_nothing_and_the_others_agree(tiny_model, tiny):
    pairs, vector, _ = tiny
    table = causal_recovery(
        tiny_model,
        pairs,
        vector,
        operations=("add",),
        scopes=("all", "prompt", "response"),
        horizons=(1, 8),
    ).table
    first = table[table.horizon == 1].pivot(index="layer", columns="scope", values="recovery")
    later = table[table.horizon == 8].pivot(index="layer", columns="scope", values="recovery")
    assert first.response.abs().max() < 1e-5
    assert (first["all"] - first["prompt"]).abs().max() < 1e-5
    assert first["all"].abs().min() > 1e-3
    assert later.response.abs().min() > 1e-3


def test_layers_and_settings_ride_together_without_touching_each_other(tiny_model, tiny):
    pairs, vector, placebo = tiny
    grid = {
        "operations": ("add", "set_projection", "ablate"),
        "strengths": (0.5, 2.0),
        "scopes": ("prompt", "all"),
        "horizons": (2, 9),
    }
    together = causal_recovery(tiny_model, pairs, vector, placebo=placebo, **grid).table
    assert len(together) == 3 * 3 * 2 * 2 * 2
    names = ["operation", "strength", "scope", "layer"]
    for values, rows in together.groupby(names):
        operation, strength, scope, layer = values
        alone = causal_recovery(
            tiny_model,
            pairs,
            vector,
            (layer,),
            (operation,),
            (strength,),
            (scope,),
            grid["horizons"],
            placebo,
        ).table
        pd.testing.assert_frame_equal(rows.reset_index(drop=True), alone, atol=1e-4)


def test_pairs_taken_one_at_a_time_give_the_same(tiny_model, tiny, monkeypatch):
    pairs, vector, _ = tiny
    whole = causal_recovery(tiny_model, pairs, vector, horizons=(1, 7)).table
    monkeypatch.setattr(teacher_forcing, "_MOST_TARGETS", 1)
    pd.testing.assert_frame_equal(
        whole, causal_recovery(tiny_model, pairs, vector, horizons=(1, 7)).table, atol=1e-4
    )


def test_the_best_is_the_highest_over_the_longest_horizon_and_resamples_say_how_sure(
    tiny_model, tiny
):
    pairs, vector, _ = tiny
    result = causal_recovery(tiny_model, pairs, vector, operations=("add",), horizons=(8, 1))
    longest = result.table[result.table.horizon == 8].reset_index(drop=True)
    assert result.best == longest.iloc[longest.recovery.argmax()].to_dict()
    assert result.best_layer == result.best["layer"]
    assert result.selection.layer.tolist() == [0, 1, 2]
    assert result.selection.frequency.sum() == pytest.approx(1.0)
    named = "best:" if (longest.low > 0).any() else "no layer's interval of recovery over 8 tokens"
    assert repr(result).startswith(f"ResponseRecovery({named}")
    assert f": layer {result.best_layer}, add ×1 on" in repr(result)


def test_a_response_shorter_than_the_horizon_counts_to_its_end(tiny_model, tiny):
    pairs, vector, _ = tiny
    short = causal_recovery(tiny_model, pairs, vector, horizons=(200,))
    longer = causal_recovery(tiny_model, pairs, vector, horizons=(200, 4000))
    ends = longer.table.pivot_table(index=["layer", "scope"], columns="horizon", values="recovery")
    assert (ends[200] - ends[4000]).abs().max() < 1e-6
    # Prompt and response fill the context of 128 at most.
    assert short.metadata["n_tokens"] <= 128


def test_an_absurd_strength_is_nan_and_never_best(tiny_model, tiny):
    pairs, vector, _ = tiny
    result = causal_recovery(
        tiny_model, pairs, vector, operations=("add",), strengths=(1e38, 0.5), horizons=(3,)
    )
    by_strength = result.table.groupby("strength").recovery
    assert by_strength.apply(lambda values: values.isna().all()).to_dict() == {
        0.5: False,
        1e38: True,
    }
    assert result.best["strength"] == 0.5
    with pytest.raises(SteeringError, match="no setting gives logits that are numbers"):
        causal_recovery(
            tiny_model, pairs, vector, operations=("add",), strengths=(1e38,), horizons=(3,)
        )


def test_one_name_may_stand_for_a_list_of_one(tiny_model, tiny):
    pairs, vector, _ = tiny
    table = causal_recovery(
        tiny_model, pairs, vector, operations="add", scopes="all", horizons=(1,)
    ).table
    assert set(table.operation) == {"add"} and set(table.scope) == {"all"}
    assert "placebo" not in table


@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        ({"layers": ()}, SteeringError, "got 0 settings"),
        ({"strengths": ()}, SteeringError, "got 0 settings"),
        ({"horizons": ()}, SteeringError, "at least 1"),
        ({"horizons": (0, 4)}, SteeringError, "at least 1"),
        ({"seed": -1}, SteeringError, "seed -1"),
        ({"layers": (7,)}, SteeringError, "layer 7 is out of range"),
        ({"operations": ("push",)}, UnknownNameError, "push"),
        ({"scopes": ("promt",)}, UnknownNameError, "promt"),
        ({"placebo": random_vector(30, 16)}, SteeringError, "30 layers"),
    ],
)
def test_what_cannot_be_measured_is_refused(tiny_model, tiny, wrong, error, sentence):
    pairs, vector, _ = tiny
    with pytest.raises(error, match=sentence):
        causal_recovery(tiny_model, pairs, vector, **wrong)


def test_pairs_without_an_effect_have_nothing_to_recover(tiny_model, tiny):
    same = ContrastSet.from_prompts(["ab", "cd"], ["ab", "cd"])
    with pytest.raises(SteeringError, match=r"first 3 response tokens .* no effect to recover"):
        causal_recovery(tiny_model, same, tiny[1], horizons=(1, 3))


def test_pairs_of_one_base_query_have_no_interval(tiny_model, tiny):
    same = ContrastSet.from_prompts(["ab!", "ab!!"], ["ab", "ab"])
    with pytest.raises(SteerlensError, match="one base query"):
        causal_recovery(tiny_model, same, tiny[1])


# --- the first token alone ---


@pytest.fixture(scope="module")
def titles():
    return contrast_pairs("detectable_format:title", n=6, seed=0, split="select")


def test_first_token_recovery_equals_a_plain_hugging_face_computation(
    model, hf_model, fitted, titles
):
    vector, _ = fitted
    u, z = vector.directions[24], vector.targets[24]
    rule = Change(24, lambda x: x + (z - x @ u)[:, None] * u)
    remaining = whole = 0.0
    for pair in titles:
        instructed, uninstructed = (
            chat_tokens(model.tokenizer, text) for text in (pair.instructed, pair.uninstructed)
        )
        target, plain, steered = (
            one_pass(hf_model, ids, changes).logprobs[-1]
            for ids, changes in ((instructed, ()), (uninstructed, ()), (uninstructed, [rule]))
        )
        whole += float(kl(target, plain))
        remaining += float(kl(target, steered))
    curve = first_token_recovery(model, titles, vector, layers=[24], batch_size=4)
    assert curve.table.recovery[0] == pytest.approx(1 - remaining / whole, abs=1e-3)


def test_on_the_first_token_strength_zero_recovers_nothing(model, fitted, titles):
    curve = first_token_recovery(model, titles, fitted[0], layers=[5, 24], strength=0.0)
    assert curve.table.recovery.abs().max() < 1e-5


def test_first_tokens_of_titles_are_recovered_late_and_not_early_nor_by_the_placebo(
    model, fitted, titles
):
    vector, placebo = fitted
    table = first_token_recovery(
        model, titles, vector, layers=[6, 24], placebo=placebo
    ).table.set_index("layer")
    assert table.recovery[24] > 0.5
    assert table.recovery[6] < 0.3
    assert table.placebo.max() < 0.3
    assert table.low[24] <= table.recovery[24] <= table.high[24]


def test_scope_response_is_refused_because_it_cannot_act(model, fitted, titles):
    with pytest.raises(SteeringError, match="cannot change the first response token"):
        first_token_recovery(model, titles, fitted[0], scope="response")


def test_pairs_that_start_alike_have_nothing_to_recover(model, fitted):
    same = ContrastSet.from_prompts(["Hi.", "Why?"], ["Hi.", "Why?"])
    with pytest.raises(SteeringError, match="no effect to recover"):
        first_token_recovery(model, same, fitted[0], layers=[24])


@pytest.mark.parametrize("wrong", [{"layers": []}, {"batch_size": 0}])
def test_numbers_out_of_range_are_refused(model, fitted, titles, wrong):
    with pytest.raises(SteeringError, match="at least"):
        first_token_recovery(model, titles, fitted[0], **wrong)


def test_a_placebo_for_another_model_is_refused(model, fitted, titles):
    with pytest.raises(SteeringError, match="d_model 16"):
        first_token_recovery(model, titles, fitted[0], placebo=random_vector(30, 16))
