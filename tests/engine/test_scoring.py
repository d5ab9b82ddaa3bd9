"""Claims about scoring given continuations, against plain Hugging Face hooks and the bridge."""

import random
from dataclasses import replace

import pytest
import torch
from hf_reference import Push, logits_along
from steering_examples import n_hooks, random_vector
from tiny_models import byte_tokenizer
from transformers import AutoModelForCausalLM, Gemma3TextConfig, Qwen2Config

from steerlens.engine import choose_path, scoring
from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.errors import SteeringError, SteerlensError
from steerlens.models.loading import load_model, tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.tasks import base_queries


def scored(model, rows, batch_size=None):
    """Log-probabilities by row and step; each must come exactly once."""
    found = {}

    def visit(indices, steps, logits):
        assert len(indices) == len(steps) == len(logits)
        for key, own in zip(zip(indices, steps, strict=True), logits, strict=True):
            assert key not in found
            found[key] = own.double().log_softmax(-1)

    score_rows(model, rows, visit, batch_size)
    assert found.keys() == {(r.index, step) for r in rows for step in r.steps}
    return found


def largest_difference(one, other):
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def mixed_rows(model, n_rows, n_prompts, seed=0):
    """Rows of several operations, layers, strengths, scopes, compositions and lengths.

    Every fourth steering comes again for another row, so that there is something to share.
    """
    rng = random.Random(seed)
    n_layers, width = model.cfg.n_layers, model.cfg.d_model
    vectors = [random_vector(n_layers, width, seed) for seed in (1, 2)]
    queries = [query.text for query in base_queries("report")[:n_prompts]]
    if width < 100:  # bytes are tokens for the tiny models
        queries = [text[: 5 + 3 * i] for i, text in enumerate(queries)]
    prompts = tokenize_prompts(model, queries)
    steerings = [None]

    def one():
        return rng.choice(vectors).at(
            layer=rng.randrange(n_layers),
            operation=rng.choice(["add", "set_projection", "ablate"]),
            strength=rng.choice([-1.0, 0.0, 0.5, 1.0]),
            scope=rng.choice(["all", "prompt", "response", "first:2"]),
        )

    rows = []
    for i in range(n_rows):
        steering = (one, lambda: one() + one(), one, lambda: rng.choice(steerings))[i % 4]()
        steerings.append(steering)
        continuation = [rng.randrange(10, 250) for _ in range(rng.choice([1, 2, 7]))]
        first_step = len(continuation) // 2 if i % 3 == 2 else 0
        prompt = tuple(prompts[i % n_prompts])
        rows.append(ForcedRow(i, prompt, tuple(continuation), steering, first_step))
    return rows


def over_scopes(model, prompt, continuation, layer):
    """One vector at one layer under every scope, twice."""
    vectors = [random_vector(model.cfg.n_layers, model.cfg.d_model, seed) for seed in (1, 2)]
    steerings = [v.at(layer, "add", 0.5, s) for v in vectors for s in ("all", "prompt", "response")]
    return [ForcedRow(i, prompt, continuation, s) for i, s in enumerate(steerings)]


def by_hooks(hf_model, row):
    """The same of a plain Hugging Face forward pass with its own hooks, one row alone."""
    parts = row.steering.interventions if row.steering else ()
    names = ("layer", "direction", "gap", "target", "operation", "strength", "scope")
    pushes = [Push(**{name: getattr(part, name) for name in names}) for part in parts]
    logits = logits_along(hf_model, row.prompt, row.continuation, pushes)[:-1]
    return logits.double().log_softmax(-1)


def test_mixed_rows_equal_plain_hugging_face_hooks(model, hf_model):
    rows = mixed_rows(model, 32, n_prompts=5)
    ours = scored(model, rows)
    for row in rows:
        expected = by_hooks(hf_model, row)
        for step in row.steps:
            assert (ours[row.index, step] - expected[step]).abs().max() < 1e-4, row.steering


@pytest.mark.parametrize("n_prompts", [1, 8])
def test_whatever_rows_share_they_equal_the_bridge_one_by_one(tiny_model, n_prompts):
    rows = mixed_rows(tiny_model, 60, n_prompts)
    ours = scored(tiny_model, rows)
    with torch.inference_mode():
        plain = {}
        for row in rows:
            scoring._score_plainly(
                tiny_model,
                [row],
                lambda i, s, z: plain.update(
                    zip(zip(i, s, strict=True), z.double().log_softmax(-1), strict=True)
                ),
            )
    assert largest_difference(ours, plain) < 1e-4


def test_how_rows_are_cut_into_passes_changes_nothing(tiny_model, monkeypatch):
    rows = mixed_rows(tiny_model, 24, 5)
    whole = scored(tiny_model, rows)
    assert largest_difference(whole, scored(tiny_model, rows, batch_size=3)) < 1e-4
    for where, name, value in (
        (scoring, "_MOST_EFFECTS", 2),
        (scoring, "_WORTH_A_PASS", 1),
        (scoring, "MIN_PREAMBLE", 1000),
        (scoring, "PASS_TOKENS", 40),
    ):
        monkeypatch.setattr(where, name, value)
        assert largest_difference(whole, scored(tiny_model, rows)) < 1e-4, name


def test_logits_never_exist_for_more_positions_than_the_bound(tiny_model, monkeypatch):
    rows = mixed_rows(tiny_model, 24, 3)
    monkeypatch.setattr(scoring, "_MOST_LOGITS", 5 * tiny_model.cfg.d_vocab)
    sizes = []
    score_rows(tiny_model, rows, lambda i, s, logits: sizes.append(len(logits)))
    assert max(sizes) == 5
    assert sum(sizes) == sum(len(row.steps) for row in rows)


def tokens_through_last_block(model, rows, monkeypatch):
    """Counted in the class: a hook on the module would send the rows to the bridge's own path."""
    seen = []
    module = model.original_model.model.layers[-1].mlp
    module = getattr(module, "original_component", module)
    forward = type(module).forward

    def counted(self, hidden):
        if self is module:
            seen.append(hidden.shape[0] * hidden.shape[1])
        return forward(self, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(type(module), "forward", counted)
        scored(model, rows)
    return sum(seen)


def test_a_steered_prompt_is_run_once_for_the_scopes_that_steer_it_alike(tiny_model, monkeypatch):
    n_prompt, n_steps = 40, 6
    rows = over_scopes(tiny_model, tuple(range(3, 3 + n_prompt)), (9,) * n_steps, layer=0)
    choose_path(tiny_model)  # its check of the engine is not counted
    # Two vectors: each one steered prompt short of its last token, and three runs of the steps
    # from there; the unsteered prompt and steps, once, are what scope `response` needs.
    expected = 2 * (n_prompt - 1) + 6 * n_steps + (n_prompt + n_steps - 1)
    assert tokens_through_last_block(tiny_model, rows, monkeypatch) == expected


def test_a_steered_preamble_is_run_once_for_all_prompts(tiny_model, monkeypatch):
    preamble, n_prompts, n_own, n_steps = tuple(range(3, 33)), 4, 10, 5
    steering = random_vector(3, 16).at(0, "add", 0.5, "prompt")
    rows = [
        ForcedRow(i, (*preamble, 50 + i, *range(60, 60 + n_own - 1)), (7,) * n_steps, steering)
        for i in range(n_prompts)
    ]
    choose_path(tiny_model)
    expected = len(preamble) + n_prompts * (n_own + n_steps - 1)
    assert tokens_through_last_block(tiny_model, rows, monkeypatch) == expected


def test_steerings_that_differ_in_anything_share_nothing(tiny_model):
    vector = random_vector(3, 16)
    [plain] = vector.at(1, "set_projection", 1.0, "prompt").interventions
    others = [
        plain,
        replace(plain, only_below=True),
        replace(plain, direction=-plain.direction),
        replace(plain, target=plain.target + 1.0),
        replace(plain, layer=0),
        replace(plain, strength=2.0),
    ]
    rows = [ForcedRow(i, (5, 6, 7, 8), (9, 9), Steering((one,))) for i, one in enumerate(others)]
    assert len({row.effect for row in rows}) == len(rows)
    together = scored(tiny_model, rows)
    for row in rows:
        alone = scored(tiny_model, [row])
        assert largest_difference(alone, together) < 1e-5


def test_with_a_hook_on_the_model_the_bridge_scores_the_same_and_the_hook_fires(model):
    rows = mixed_rows(model, 8, 3)
    fast, fired = scored(model, rows), []

    def watch(pattern, hook):
        fired.append(len(pattern))

    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", watch)]):
        assert not choose_path(model).is_fast
        plain = scored(model, rows, batch_size=3)
    assert max(fired) == 3
    assert largest_difference(fast, plain) < 1e-4


SMALL = {"vocab_size": 260, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
BLOCKS = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(
            **SMALL,
            **BLOCKS,
            head_dim=4,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"] * 2,
            query_pre_attn_scalar=4,
        ),
        Qwen2Config(**SMALL, **BLOCKS),
    ],
    ids=["gemma3 with a sliding window", "qwen2"],
)
def test_other_architectures_equal_the_bridge(config, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    rows = mixed_rows(model, 30, 4)
    assert choose_path(model).is_fast
    fast = scored(model, rows)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda pattern, hook: None)]):
        assert largest_difference(fast, scored(model, rows)) < 1e-4


def test_a_row_without_finite_logits_leaves_the_others_alone(tiny_model):
    rows = mixed_rows(tiny_model, 12, 2)
    vector = random_vector(3, 16)
    absurd = ForcedRow(12, rows[0].prompt, (9, 9, 9), vector.at(1, "add", 1e38))
    before, after = scored(tiny_model, rows), scored(tiny_model, [*rows, absurd])
    assert after[12, 1].isnan().all()
    assert largest_difference(before, after) < 1e-5


def test_the_model_is_as_before_when_a_visitor_fails(tiny_model):
    modules = [(name, id(one)) for name, one in tiny_model.original_model.named_modules()]

    def fail(rows, steps, logits):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_rows(tiny_model, mixed_rows(tiny_model, 6, 2), fail)
    assert [(n, id(one)) for n, one in tiny_model.original_model.named_modules()] == modules
    assert n_hooks(tiny_model) == 0


@pytest.mark.parametrize(
    ("prompt", "continuation", "sentence"),
    [
        ((), (1,), "row 7 has 0 prompt and 1 continuation tokens"),
        ((1,), (), "row 7 has 1 prompt and 0 continuation tokens"),
        ((1,) * 120, (1,) * 10, "row 7 have 130 tokens; the model's context is 128"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(tiny_model, prompt, continuation, sentence):
    row = ForcedRow(7, prompt, continuation, None)
    with pytest.raises(SteerlensError, match=sentence):
        score_rows(tiny_model, [row], lambda *_: None)


def test_a_steering_for_another_model_is_refused(tiny_model):
    row = ForcedRow(0, (5, 6), (7,), random_vector(30, 576).at(3))
    with pytest.raises(SteeringError, match="d_model 576"):
        score_rows(tiny_model, [row], lambda *_: None)


def test_the_longest_row_that_fits_is_scored(tiny_model):
    # 128 tokens are read; the 129th is predicted only.
    assert len(scored(tiny_model, [ForcedRow(0, (5,) * 100, (6,) * 29, None)])) == 29
