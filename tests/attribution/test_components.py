"""Claims about what components write, against plain Hugging Face hooks and TransformerLens."""

import numpy as np
import pytest
import torch
from hf_reference import modules_at_the_end
from tiny_models import byte_tokenizer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MambaConfig

from steerlens.activations.cache import cache_residuals
from steerlens.attribution.components import writing_components
from steerlens.engine.linear_norms import head_contributions
from steerlens.errors import ModelError, SteeringError, SteerlensError
from steerlens.models.loading import load_model, render_prompt, tokenize_prompts
from steerlens.tasks.drawing import contrast_pairs
from steerlens.tasks.pairs import ContrastSet
from steerlens.vectors import difference_of_means

LAYER = 20
SHAPE = {
    "vocab_size": 260,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
GEMMA3 = Gemma3TextConfig(
    **SHAPE,
    head_dim=4,
    sliding_window=6,
    # In a first block with a window of 6, the last tokens of all prompts would be the same.
    layer_types=["full_attention", "sliding_attention"] * 2,
    query_pre_attn_scalar=4,
)


@pytest.fixture(scope="module")
def pairs():
    return contrast_pairs("detectable_format:title", n=6, seed=0)


@pytest.fixture(scope="module")
def vector(model, pairs):
    return difference_of_means(cache_residuals(model, pairs))


@pytest.fixture(scope="module")
def writing(model, pairs, vector):
    return writing_components(model, pairs, vector, LAYER, batch_size=8)


@pytest.fixture(scope="module")
def tiny_pairs():
    queries = ["ab", "cd", "e", "f g"]
    return ContrastSet.from_prompts([f"{query} now!!" for query in queries], queries)


def small_model(config, folder, seed=0):
    """A model of random weights, biases and norm gains, as a bridge and as its plain original."""
    torch.manual_seed(seed)
    plain = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for name, parameter in plain.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += 0.2 * torch.randn_like(parameter)
    plain.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return load_model(folder, device="cpu"), plain


@torch.no_grad()
def parts_by_hand(plain, ids, u, layer):
    """Every component's projection, in the table's order, from the recorded modules."""
    (_, seen), u = modules_at_the_end(plain, ids), u.double()
    d_head = plain.config.head_dim
    parts = [seen["embed_tokens"][1] @ u]
    for i in range(layer + 1):
        block = plain.model.layers[i]
        post = getattr(block, "post_feedforward_layernorm", None)
        z, raw = seen[f"layers.{i}.self_attn.o_proj"]
        aimed = u
        if post is not None:  # Gemma 3: x (1 + w) / rms(x)
            norm = block.post_attention_layernorm
            aimed = u * (1 + norm.weight.double()) / (raw.square().mean() + norm.eps).sqrt()
        project = block.self_attn.o_proj
        for head in range(plain.config.num_attention_heads):
            own = slice(head * d_head, (head + 1) * d_head)
            parts.append(project.weight[:, own].double() @ z[own] @ aimed)
        if project.bias is not None:
            parts.append(project.bias.double() @ aimed)
        written = "mlp" if post is None else "post_feedforward_layernorm"
        parts.append(seen[f"layers.{i}.{written}"][1] @ u)
    whole = seen[f"layers.{layer}"][1] @ u
    return np.array([float(part) for part in parts]), float(whole)


def test_parts_sum_to_the_projection_on_the_real_model(writing):
    relative = np.abs(writing.contributions.sum(-1) / writing.projections - 1)
    assert relative.max() < 1e-4
    assert writing.metadata["closure"] < 1e-6


def test_every_part_equals_plain_hugging_face_hooks_on_the_real_model(
    model, hf_model, pairs, vector, writing
):
    u = vector.directions[LAYER]
    for i in (0, 3):
        for side, text in enumerate((pairs[i].instructed, pairs[i].uninstructed)):
            ids = model.tokenizer(render_prompt(model, text), add_special_tokens=False)["input_ids"]
            parts, whole = parts_by_hand(hf_model, ids, u, LAYER)
            assert np.abs(writing.contributions[side, i] - parts).max() < 1e-4 * abs(whole)
            assert writing.projections[side, i] == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize(
    "config",
    [GEMMA3, LlamaConfig(**SHAPE, attention_bias=True)],
    ids=["norms after attention and MLP", "biases of the output projections"],
)
@pytest.mark.parametrize("hooked", [False, True], ids=["engine", "bridge"])
def test_every_part_equals_plain_hooks_with(config, hooked, tmp_path, tiny_pairs):
    small, plain = small_model(config, tmp_path)
    u = difference_of_means(cache_residuals(small, tiny_pairs))
    watch = [("blocks.0.attn.hook_pattern", lambda pattern, hook: None)] if hooked else []
    with small.hooks(fwd_hooks=watch):
        writing = writing_components(small, tiny_pairs, u, 3)
    rows = tokenize_prompts(small, [pair.instructed for pair in tiny_pairs])
    for i, ids in enumerate(rows):
        parts, whole = parts_by_hand(plain, ids, u.directions[3], 3)
        assert np.allclose(writing.contributions[0, i], parts, atol=1e-4 * np.abs(parts).max())
        assert writing.projections[0, i] == pytest.approx(whole, rel=1e-4, abs=1e-5)
    assert ("bias" in set(writing.table.kind)) == bool(getattr(config, "attention_bias", False))


def test_heads_and_mlps_equal_transformer_lens_where_no_norm_follows(tiny_model, tiny_pairs):
    vector = difference_of_means(cache_residuals(tiny_model, tiny_pairs))
    u = vector.directions[2]
    writing = writing_components(tiny_model, tiny_pairs, vector, 2)
    ids = torch.tensor(tokenize_prompts(tiny_model, [tiny_pairs[1].uninstructed]))
    _, cache = tiny_model.run_with_cache(ids)
    theirs, labels = cache.get_full_resid_decomposition(
        expand_neurons=False, pos_slice=-1, return_labels=True, project_output_onto=u
    )
    by_label = dict(zip(labels, theirs.flatten().tolist(), strict=True))
    names = {"head": "L{0}H{1}", "mlp": "{0}_mlp_out", "embed": "embed"}
    for row, own in zip(writing.table.itertuples(), writing.contributions[1, 1], strict=True):
        label = names[row.kind].format(row.layer, row.head)
        assert own == pytest.approx(by_label[label], abs=1e-5), label


def test_contributions_are_the_mean_differences_and_sum_to_the_gap(writing, vector):
    difference = writing.contributions[0] - writing.contributions[1]
    assert np.allclose(writing.table.contribution, difference.mean(0))
    assert writing.table.contribution.sum() == pytest.approx(float(vector.gaps[LAYER]), rel=1e-5)
    assert writing.table.share.sum() == pytest.approx(1, abs=1e-5)
    assert (writing.table.low <= writing.table.contribution).all()
    assert writing.table.contribution[0] == 0, "both prompts end with the same token"


def test_the_direction_stands_out_and_random_ones_do_not(writing):
    first = writing.top(3)
    assert (first.contribution > first.placebo_high).all()
    assert abs(writing.table.placebo.sum()) < 0.2 * writing.total


def test_only_the_placebo_depends_on_the_seed(model, pairs, vector, writing):
    again = writing_components(model, pairs[:2], vector, 1, seed=0).table
    other = writing_components(model, pairs[:2], vector, 1, seed=1).table
    own = ["contribution", "low", "high", "share"]
    assert again[own].equals(other[own])
    assert not again.placebo_high.equals(other.placebo_high)
    assert repr(writing).startswith("ComponentWriting(layer 20, 211 components, L")


def test_in_bfloat16_the_sum_is_off_by_rounding_only(tiny_folder, tiny_pairs):
    half = load_model(tiny_folder, dtype="bfloat16", device="cpu")
    vector = difference_of_means(cache_residuals(half, tiny_pairs))
    writing = writing_components(half, tiny_pairs, vector, 2)
    # Three blocks add twice each, and what they add is rounded too: twelve roundings, each of at
    # most half a unit in the last of bfloat16's eight bits, in whatever order kernels add.
    assert 0 < writing.metadata["closure"] < 12 * 2**-9


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"layer": 40}, "layer 40 is out of range for this vector"),
        ({"n_placebos": 1}, "at least 2 n_placebos"),
        ({"batch_size": 0}, "batch_size of at least 1"),
        ({"seed": -1}, "a seed from 0"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(model, pairs, vector, change, sentence):
    with pytest.raises(SteeringError, match=sentence):
        writing_components(model, pairs, vector, **{"layer": LAYER, **change})


def test_pairs_of_one_base_query_and_other_models_are_refused(model, tiny_model, pairs, vector):
    one_query = ContrastSet.from_prompts(["A!", "A!!"], ["A", "A"], ["A", "A"])
    with pytest.raises(SteerlensError, match="all 2 pairs come from one base query"):
        writing_components(model, one_query, vector, LAYER)
    with pytest.raises(SteeringError, match="d_model 576"):
        writing_components(tiny_model, pairs, vector, 1)


def test_a_model_without_attention_has_no_components(tmp_path):
    shape = {k: SHAPE[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = MambaConfig(**shape, hidden_size=16, num_hidden_layers=2)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    mamba = load_model(tmp_path, device="cpu")
    pairs = ContrastSet.from_prompts(["ab!", "cd!"], ["ab", "cd"])
    vector = difference_of_means(cache_residuals(mamba, pairs))
    with pytest.raises(ModelError, match="block 0 of this model is not attention"):
        writing_components(mamba, pairs, vector, 1)


def test_attention_that_is_more_than_scaled_is_refused(tiny_model):
    z = torch.ones(2, 16)
    written = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ModelError, match="does more than scale its attention's output"):
        head_contributions(tiny_model, 0, z, written, torch.ones(1, 16))
