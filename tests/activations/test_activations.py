"""Claims about cached residuals, against plain Hugging Face hooks and a peer package."""

import pytest
import torch
from hf_reference import chat_tokens, residuals

from steerlens.activations.cache import ResidualCache, cache_residuals, check_layers
from steerlens.errors import ActivationError, PairsError, UnknownNameError
from steerlens.models.loading import render_prompt
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastPair, ContrastSet

LAYERS = tuple(range(30))


@pytest.fixture(scope="module")
def pairs():
    return contrast_pairs("detectable_format:title", n=6, seed=1)


@pytest.fixture(scope="module")
def reference(hf_model, model, pairs):
    """Block outputs at the last token from plain Hugging Face hooks, one prompt at a time."""

    def last_token(text):
        return residuals(hf_model, chat_tokens(model.tokenizer, text))

    plus = torch.stack([last_token(pair.instructed) for pair in pairs])
    minus = torch.stack([last_token(pair.uninstructed) for pair in pairs])
    return plus, minus


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_residuals_equal_plain_hugging_face_hooks_whatever_the_batch_size(
    model, pairs, reference, batch_size
):
    cache = cache_residuals(model, pairs, batch_size=batch_size)
    for ours, theirs in zip((cache.instructed, cache.uninstructed), reference, strict=True):
        error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)
        assert error.max() < 1e-4


def test_asking_for_few_layers_gives_the_same_rows_as_asking_for_all(model, pairs):
    few = cache_residuals(model, pairs, layers=[20, 3])
    assert few.layers == (3, 20)
    every = cache_residuals(model, pairs)
    torch.testing.assert_close(few.instructed, every.instructed[:, [3, 20]], rtol=1e-4, atol=1e-3)


def test_index_and_last_prompt_agree_on_the_last_token(model, pairs):
    by_index = cache_residuals(model, pairs, position=-1, layers=[5])
    by_name = cache_residuals(model, pairs, position="last_prompt", layers=[5])
    assert torch.equal(by_index.instructed, by_name.instructed)


def test_response_mean_averages_the_teacher_forced_response(model, hf_model):
    set_ = ContrastSet(
        tuple(
            ContrastPair(
                instructed=f"{query} Use lowercase.",
                uninstructed=query,
                base_query=query,
                instructed_response=" yes, it is so.",
                uninstructed_response=" No, never.",
            )
            for query in ("Is it late?", "Is the sea salty?")
        )
    )
    cache = cache_residuals(model, set_, position="response_mean", layers=[9])
    prompt = model.tokenizer(render_prompt(model, "Is it late?"), add_special_tokens=False)
    answer = model.tokenizer(" No, never.", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([prompt["input_ids"] + answer])
    with torch.inference_mode():
        states = hf_model(ids, output_hidden_states=True).hidden_states[10][0]
    expected = states[-len(answer) :].mean(0)
    assert (cache.uninstructed[0, 0] - expected).norm() / expected.norm() < 1e-4
    last = cache_residuals(model, set_, position="last_response", layers=[9])
    assert (last.uninstructed[0, 0] - states[-1]).norm() / states[-1].norm() < 1e-4


def test_identical_prompts_run_once(model):
    cache = cache_residuals(
        model,
        ContrastSet.from_prompts(["Hi! Be brief.", "Hi! Be kind."], ["Hi!", "Hi!"]),
        layers=[0],
    )
    assert cache.metadata["n_prompts_run"] == 3
    assert torch.equal(cache.uninstructed[0], cache.uninstructed[1])


def test_pairs_of_one_base_query_share_a_group(model):
    set_ = ContrastSet.from_prompts(["a x", "b x", "a y"], ["a", "b", "a"], ["a", "b", "a"])
    assert cache_residuals(model, set_, layers=[0]).groups == (0, 1, 0)


def test_save_and_load_give_the_same_cache(tmp_path):
    sides = torch.randn(2, 4, 3, 5)
    cache = ResidualCache.from_tensors(sides[0], sides[1], layers=[1, 2, 4], groups=[0, 0, 1, 2])
    loaded = ResidualCache.load(cache.save(tmp_path / "c.safetensors"))
    assert torch.equal(cache.instructed, loaded.instructed)
    assert (loaded.layers, loaded.groups) == ((1, 2, 4), (0, 0, 1, 2))


def test_difference_of_means_equals_the_peer_package_at_every_layer(model, hf_model, pairs):
    peer = pytest.importorskip("steering_vectors")
    from steerlens.vectors import difference_of_means

    samples = [
        peer.SteeringVectorTrainingSample(
            render_prompt(model, pair.instructed), render_prompt(model, pair.uninstructed)
        )
        for pair in pairs
    ]
    theirs = peer.train_steering_vector(hf_model, model.tokenizer, samples, read_token_index=-1)
    ours = difference_of_means(cache_residuals(model, pairs))
    for layer in LAYERS:
        other = theirs.layer_activations[layer].float()
        cosine = torch.cosine_similarity(ours.directions[layer], other, dim=0)
        assert cosine > 0.99999
        assert abs(float(other.norm() / ours.gaps[layer]) - 1) < 1e-3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a, b[:1]), "shape"),
        (lambda a, b: (a[:1], b[:1]), "at least 2 pairs"),
        (lambda a, b: (a[:0], b[:0]), "at least 2 pairs"),
        (lambda a, b: (a.index_fill(1, torch.tensor([1]), torch.nan), b), "pair 0, layer 1"),
        (lambda a, b: (a, b.index_fill(0, torch.tensor([2]), torch.inf)), "pair 2, layer 0"),
    ],
)
def test_unusable_activations_are_refused_in_one_sentence(change, words):
    instructed, uninstructed = change(torch.ones(3, 2, 4), torch.zeros(3, 2, 4))
    with pytest.raises(ActivationError, match=words):
        ResidualCache.from_tensors(instructed, uninstructed)


def test_bad_requests_are_refused_before_the_model_runs(tiny_model):
    set_ = ContrastSet.from_prompts(["ab c", "de f"], ["ab", "de"])
    with pytest.raises(UnknownNameError, match="last_prompt"):
        cache_residuals(tiny_model, set_, position="last_promt")
    with pytest.raises(ActivationError, match="position 400 is out of range"):
        cache_residuals(tiny_model, set_, position=400)
    with pytest.raises(PairsError, match="pair 0 has no instructed_response"):
        cache_residuals(tiny_model, set_, position="response_mean")
    with pytest.raises(PairsError, match="must be a ContrastSet; got list"):
        cache_residuals(tiny_model, list(set_))
    with pytest.raises(ActivationError, match="layer 40 is out of range"):
        cache_residuals(tiny_model, set_, layers=[40])


def test_negative_layers_count_from_the_last(tiny_model):
    assert check_layers(tiny_model, [-1]) == (tiny_model.cfg.n_layers - 1,)
