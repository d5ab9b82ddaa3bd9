"""Claims about adaptive strength, against plain Hugging Face, one prompt at a time."""

import pytest
import torch
from beside_hugging_face import as_steering
from hf_reference import Push, load_plain, logits_along
from steering_examples import n_hooks, random_vector

import steerlens as sl
from steerlens.behaviour.plans.candidates import InterventionSpec, candidate_from_json, to_json
from steerlens.effects.contributions import token_contributions
from steerlens.engine import steps
from steerlens.engine.decoding import decode_rows
from steerlens.engine.plain import decode_rows_plainly
from steerlens.engine.rows import Row, choose_tokens
from steerlens.engine.scoring import ForcedRow, score_rows
from steerlens.errors import SteeringError, SteerlensError
from steerlens.steering.interventions import Steering

N_NEW = 7
PROMPTS = [tuple(range(3 + i, 6 + 2 * i)) for i in range(12)]
ALPHAS = (0.05, 0.0, 0.4, 0.15, 1.0)
SCOPES = ("all", "prompt", "first:3", "response")


def pushes(i):
    """One push of row `i`, or two; row 6 has none."""
    vector = random_vector(3, 16, i)
    u, gap, target = vector.directions[i % 3], float(vector.gaps[i % 3]), float(vector.targets[0])
    kind = ("add", "set_projection")[i % 2]
    some = [Push(i % 3, u, gap, target, kind, 4.0, SCOPES[i % 4])]
    if i % 5 == 3:
        some.append(Push((i + 1) % 3, -u, gap, target, "add", 2.0, "all"))
    return [] if i == 6 else some


def steering(i):
    made = as_steering(pushes(i))
    alpha = ALPHAS[i % 5]
    if made is None or not alpha:
        return made
    parts = [dict(vars(part)) for part in made.interventions]
    kinds = type(made.interventions[0])
    return Steering(tuple(kinds(**{**part, "adaptive": alpha}) for part in parts))


def in_plain_hugging_face(hf_model, i):
    """Tokens and shares of row `i` by the equation, every text read anew under both models."""
    alpha, tokens, produced, shares = ALPHAS[i % 5], PROMPTS[i], [], []
    while len(produced) < N_NEW:
        s = logits_along(hf_model, tokens, produced, pushes(i))[-1]
        u = logits_along(hf_model, tokens, produced)[-1]
        p = u.softmax(-1)
        for share in (1.0, 0.5, 0.25, 0.0):
            token = int(((1 - share) * u + share * s).argmax())
            if p[token] >= alpha * p.max():
                break
        produced.append(token)
        shares.append(share)
    return produced, shares if alpha and pushes(i) else []


@pytest.fixture(scope="module")
def expected(tiny_folder):
    hf_model = load_plain(tiny_folder)
    return [in_plain_hugging_face(hf_model, i) for i in range(len(PROMPTS))]


def decoded(decode, model, n_slots):
    rows = [Row(i, tokens, steering(i), N_NEW) for i, tokens in enumerate(PROMPTS)]
    decode(model, rows, n_slots, frozenset(), choose_tokens, lambda row: None)
    return [(row.produced, row.shares) for row in rows]


@pytest.mark.parametrize("n_slots", [1, 4, 12])
def test_adaptive_and_fixed_rows_of_one_stream_equal_plain_hugging_face(
    tiny_model, expected, n_slots
):
    # given rows of five thresholds at every layer and scope, decoded as slots become free
    assert {share for _, shares in expected for share in shares} == {1.0, 0.5, 0.25, 0.0}
    assert decoded(decode_rows, tiny_model, n_slots) == expected


def test_so_do_they_on_the_bridges_own_path(tiny_model, expected):
    assert decoded(decode_rows_plainly, tiny_model, 5) == expected


def test_so_does_a_generation_under_hooks(tiny_model, expected):
    before, root = n_hooks(tiny_model), tiny_model.original_model
    n_forward = len(root._forward_hooks)
    for i in (0, 2, 4, 7):
        tokens = torch.tensor([PROMPTS[i]])
        with steering(i).applied(tiny_model), torch.inference_mode():
            out = root.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=N_NEW,
                do_sample=False,
                eos_token_id=-1,
            )
        assert out[0, tokens.shape[1] :].tolist() == expected[i][0], i
    assert (n_hooks(tiny_model), len(root._forward_hooks)) == (before, n_forward)


def test_companions_run_above_the_lowest_steered_layer_only(tiny_model, monkeypatch):
    first_blocks, run = [], steps.run_blocks

    def noted(model, first, stop, **options):
        first_blocks.append(first)
        return run(model, first, stop, **options)

    monkeypatch.setattr(steps, "run_blocks", noted)
    vector = random_vector(3, 16)
    for alpha, expected in ((0.5, [0, 2]), (0.0, [0])):
        first_blocks.clear()
        rows = [Row(0, PROMPTS[3], vector.at(1, "add", adaptive=alpha), 2)]
        decode_rows(tiny_model, rows, 1, frozenset(), choose_tokens, lambda row: None)
        assert first_blocks == expected


def test_the_ends_of_the_threshold_are_plain_steering_and_none(tiny_model):
    vector, prompts = random_vector(3, 16), ["ab", "hello", "q"]
    options = {"max_new_tokens": 8}
    plain = sl.generate(tiny_model, prompts, **options)
    fixed = sl.generate(tiny_model, prompts, vector.at(1, "add", 4.0), **options)
    none, all_ = (
        sl.generate(tiny_model, prompts, vector.at(1, "add", 4.0, adaptive=a), **options)
        for a in (0, 1)
    )
    assert none.tokens == fixed.tokens != plain.tokens == all_.tokens
    assert none.shares == ((), (), ())
    assert [len(row) for row in all_.shares] == [len(row) for row in all_.tokens]


def test_drawn_answers_do_not_depend_on_the_batch(tiny_model):
    steering = random_vector(3, 16).at(1, "add", 4.0, adaptive=0.3)
    options = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3}
    one, two = (
        sl.generate(tiny_model, ["ab", "cd ef", "g"], steering, batch_size=n, **options)
        for n in (1, 3)
    )
    assert (one.tokens, one.shares) == (two.tokens, two.shares)


def test_logits_that_are_no_numbers_still_end_a_row(tiny_model):
    steering = random_vector(3, 16).at(1, "add", 1e38, adaptive=0.5)
    assert sl.generate(tiny_model, ["ab"], steering).finish_reasons == ("non-finite",)


def test_effects_report_the_share_and_the_distribution_that_was_chosen_from(tiny_model):
    steering = random_vector(3, 16).at(1, "add", 4.0, adaptive=0.3)
    run = sl.steer(tiny_model, "ab", steering, max_new_tokens=8)
    made = sl.generate(tiny_model, ["ab"], steering, max_new_tokens=8)
    n_prompt, n = run.effects.n_prompt, len(made.tokens[0])
    table = run.effects.table
    assert table["share"][n_prompt - 1 : n_prompt - 1 + n].tolist() == list(made.shares[0])
    assert min(made.shares[0]) < 1
    # at share 0 the two distributions are one
    assert (table.kl[table.share == 0] == 0).all()
    assert "share" not in sl.steer(tiny_model, "ab", steering_of(0.0), max_new_tokens=2).table
    with pytest.raises(SteerlensError, match="fixed strength only"):
        token_contributions(tiny_model, run.effects, n_prompt + 1)


def steering_of(adaptive):
    return random_vector(3, 16).at(1, "add", adaptive=adaptive)


def test_the_threshold_is_kept_in_files_and_plans_and_by_composition(tmp_path):
    both = steering_of(0.3) + steering_of(0.0)
    assert both.adaptive == both.scaled(2.0).adaptive == 0.3
    assert Steering.load(both.save(tmp_path / "s.safetensors")).adaptive == 0.3
    assert both.interventions[0].describe().endswith("on all, adaptive 0.3")
    spec = InterventionSpec("last_prompt", 2, "add", 1.0, "first:8", adaptive=0.3)
    fixed = InterventionSpec("last_prompt", 2, "add", 1.0, "all")
    assert candidate_from_json(to_json((spec, fixed))) == (spec, fixed)
    assert "adaptive" not in to_json((fixed,))[0]


def test_bad_thresholds_and_uses_are_refused_in_one_sentence(tiny_model):
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(SteeringError, match="adaptive must be"):
            steering_of(bad)
    with pytest.raises(SteeringError, match=r"0 \(a fixed strength\) to 1; got 2"):
        InterventionSpec("last_prompt", 2, "add", 1.0, "all", adaptive=2)
    row = ForcedRow(0, (3, 4), (5,), steering_of(0.5))
    with pytest.raises(SteeringError, match="an adaptive strength is for decoding"):
        score_rows(tiny_model, [row], lambda *_: None)
    with torch.inference_mode():
        cache = tiny_model.original_model(torch.tensor([[3, 4]]), use_cache=True).past_key_values
    with (
        pytest.raises(SteeringError, match="its beginning was read elsewhere"),
        steering_of(0.5).applied(tiny_model),
    ):
        tiny_model.original_model(torch.tensor([[5]]), past_key_values=cache)
