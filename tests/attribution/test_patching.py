"""Claims about activation patching, against plain Hugging Face hooks."""

import numpy as np
import pytest
from hf_reference import Change, chat_tokens, kl, one_pass
from steering_examples import n_hooks

from steerlens.attribution.patching import activation_patching
from steerlens.engine.patching import ending_residuals, patched_logits
from steerlens.errors import ActivationError, SteeringError, SteerlensError
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet

LAYERS, POSITIONS = (3, 14, 22, 29), 7


@pytest.fixture(scope="module")
def pairs():
    return contrast_pairs("detectable_format:title", n=2, seed=0, split="select")


@pytest.fixture(scope="module")
def patching(model, pairs):
    return activation_patching(
        model, pairs, layers=LAYERS, n_positions=POSITIONS, placebo_positions=2
    )


@pytest.fixture(scope="module")
def tiny_pairs():
    queries = ["ab", "cde", "e", "f g"]
    return ContrastSet.from_prompts([f"{query} now!!" for query in queries], queries)


def patch(layer, position, value):
    """The output of a block with another vector at one position."""

    def of(resid):
        resid = resid.clone()
        resid[position] = value
        return resid

    return Change(layer, of)


def test_recovery_equals_plain_hugging_face_patching(model, hf_model, pairs, patching):
    tokens = [
        [chat_tokens(model.tokenizer, text) for text in (pair.instructed, pair.uninstructed)]
        for pair in pairs
    ]
    runs = [[one_pass(hf_model, ids) for ids in sides] for sides in tokens]
    after = [[run.logprobs[-1] for run in sides] for sides in runs]
    whole = sum(float(kl(instructed, plain)) for instructed, plain in after)
    table = patching.table.set_index(["layer", "position"])
    for layer, position in [(3, -7), (14, -1), (14, -6), (22, -1), (22, -3), (29, -1)]:
        for name, source in (("recovery", 0), ("placebo", 1)):
            if name == "placebo" and position < -2:
                continue
            left = 0.0
            for i in range(len(pairs)):
                value = runs[(i + source) % 2][0].resid[layer, position].float()
                patched = one_pass(hf_model, tokens[i][1], [patch(layer, position, value)])
                left += float(kl(after[i][0], patched.logprobs[-1]))
            expected = 1 - left / whole
            assert table.loc[(layer, position), name] == pytest.approx(expected, abs=1e-4)


def test_the_whole_last_residual_recovers_all_and_earlier_tokens_there_nothing(patching):
    last = patching.matrix.loc[29]
    assert last[-1] == pytest.approx(1, abs=1e-5)
    assert last.drop(index=-1).abs().max() < 1e-5


def test_the_map_draws_its_recovery(patching):
    [cells] = patching.plot().data
    assert np.asarray(cells.z, dtype=float) == pytest.approx(patching.matrix.to_numpy(), abs=1e-5)
    assert "<table" in patching._repr_html_()


def test_patching_a_run_with_its_own_residuals_changes_nothing(model, pairs):
    rows = tokenize_prompts(model, [pair.uninstructed for pair in pairs])
    own, plain = ending_residuals(model, rows, LAYERS, 4, batch_size=2)
    differences = []

    def visit(row, position, logits):
        differences.append((logits - plain[row]).abs().max())

    patched_logits(model, rows, own, LAYERS, visit)
    assert len(differences) == 2 * 4
    assert max(differences) < 1e-3


def test_the_chat_template_is_aligned_and_the_texts_before_it_are_not(patching):
    tokens = patching.table[patching.table.layer == 3].set_index("position")
    assert list(tokens.token[-6:]) == ["<|im_end|>", "\n", "<|im_start|>", "ass", "istant", "\n"]
    assert tokens.aligned[-6:].all() and not tokens.aligned[-7]
    assert tokens.token[-7] == ""


def test_the_control_is_missing_where_it_was_not_run(model, pairs, patching):
    assert patching.table[patching.table.position < -2].placebo.isna().all()
    assert patching.table[patching.table.position >= -2].placebo.notna().all()
    bare = activation_patching(model, pairs, layers=[29], n_positions=1, placebo_positions=0)
    assert "placebo" not in bare.table
    assert repr(bare) == (
        "PatchingMap(1 layers × 1 positions, last token: half of the effect at layer 29, 2 pairs)"
    )


def test_the_bridge_gives_the_same_and_nothing_stays_hooked(tiny_model, tiny_pairs):
    before = n_hooks(tiny_model)
    ours = activation_patching(tiny_model, tiny_pairs, n_positions=5, placebo_positions=5)
    with tiny_model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda x, hook: None)]):
        theirs = activation_patching(tiny_model, tiny_pairs, n_positions=5, placebo_positions=5)
    numbers = ["recovery", "low", "high", "placebo", "placebo_low", "placebo_high"]
    assert np.allclose(ours.table[numbers], theirs.table[numbers], atol=1e-4)
    assert n_hooks(tiny_model) == before


def test_layers_may_be_counted_from_the_end(tiny_model, tiny_pairs):
    some = activation_patching(tiny_model, tiny_pairs, layers=[-1, 0], n_positions=2)
    assert list(some.matrix.index) == [0, 2]
    assert list(some.matrix.columns) == [-2, -1]


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"layers": [3]}, ActivationError, "layer 3 is out of range"),
        ({"layers": []}, ActivationError, "no layers were asked for"),
        ({"n_positions": 500}, ActivationError, "reaches the beginning of the shortest prompt"),
        ({"n_positions": 0}, SteeringError, "must be at least 1"),
        ({"batch_size": 0}, SteeringError, "must be at least 1"),
        ({"n_positions": 2, "placebo_positions": 3}, SteeringError, "between 0 and n_positions"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tiny_model, tiny_pairs, change, error, sentence):
    with pytest.raises(error, match=sentence):
        activation_patching(tiny_model, tiny_pairs, **change)


def test_pairs_without_an_effect_or_of_one_base_query_are_refused(tiny_model):
    same = ContrastSet.from_prompts(["ab", "cd"], ["ab", "cd"])
    with pytest.raises(SteeringError, match="no effect to recover"):
        activation_patching(tiny_model, same)
    one_query = ContrastSet.from_prompts(["ab!", "ab?"], ["ab", "ab"], ["ab", "ab"])
    with pytest.raises(SteerlensError, match="one base query"):
        activation_patching(tiny_model, one_query)
