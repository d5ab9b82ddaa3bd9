"""Claims about what steering costs on plain text and common questions."""

import numpy as np
import pytest
import torch
from hf_reference import Push, logits_along

import steerlens as sl
from steerlens.behaviour.plain_text import PlainText
from steerlens.behaviour.side_effects import described_cost, random_push
from steerlens.errors import SteeringError, SteerlensError
from steerlens.models.loading import tokenize_prompts
from steerlens.tasks.plain import CommonQuestion, common_questions, plain_passages

LAYER = 14
QUESTIONS = common_questions()[:2]


def direction(width, seed=0):
    noise = torch.randn(width, generator=torch.Generator().manual_seed(seed))
    return noise / noise.norm()


def steering(layer, width, operation="add", strength=1.0, scope="all", target=15.0, **more):
    u = direction(width)
    return sl.Steering(
        (sl.Intervention(layer, u, 20.0, target, operation, strength, scope, **more),)
    )


def test_both_measures_equal_plain_hugging_face(model, hf_model):
    texts, scopes = [text[:200] for text in plain_passages()[:2]], ("all", "prompt", "response")
    steerings = [None, *(steering(LAYER, 576, scope=scope) for scope in scopes)]
    nll, right = PlainText(model, texts, QUESTIONS[:1]).measured(steerings)
    u = direction(576)
    pushes = [[], *([Push(LAYER, u, 20.0, 15.0, "add", 1.0, scope)] for scope in scopes)]
    encode = model.tokenizer.encode

    def logprobs(prompt, response, push):
        rows = logits_along(hf_model, prompt, response, push).log_softmax(-1)
        return rows[:-1].gather(1, torch.tensor(response)[:, None])[:, 0]

    for row, push in enumerate(pushes):
        for i, text in enumerate(texts):
            tokens = encode(text)
            expected = -logprobs(tokens[:32], tokens[32:], push).mean()
            # The engine's fused attention rounds otherwise than eager attention.
            assert nll[row, i] == pytest.approx(float(expected), abs=2e-5)
        for i, question in enumerate(QUESTIONS[:1]):
            asked = encode(f"Question: {question.question}")
            likely = []
            for answer in (question.answer, *question.others):
                end = encode(f" {answer}")
                scored = logprobs(asked, encode("\nAnswer:") + end, push)
                likely.append(float(scored[-len(end) :].sum()))
            assert right[row, i] == (max(likely) == likely[0])


def test_the_default_model_knows_most_answers(model):
    _, right = PlainText(model, plain_passages()[:2], common_questions()).measured([None])
    # 0.82 was seen; a quarter is chance.
    assert right.shape == (1, 40) and right.mean() > 0.7


@pytest.mark.parametrize(
    "case",
    [
        {"operation": "add", "strength": -2.0},
        {"operation": "set_projection"},
        {"operation": "set_projection", "only_below": True},
        {"operation": "set_projection", "only_above": True, "target": 0.0},
        {"operation": "ablate"},
    ],
)
def test_a_placebo_pushes_every_token_as_far(tiny_model, case):
    chosen = steering(1, 16, **case)
    tokens = torch.tensor(tokenize_prompts(tiny_model, ["What is rain?"]))

    def after(applied):
        seen = []
        hook = ("blocks.2.hook_in", lambda x, hook: seen.append(x[0].clone()))
        with applied.applied(tiny_model), tiny_model.hooks(fwd_hooks=[hook]):
            tiny_model(tokens)
        return seen[0]

    bare = after(sl.Steering(()))
    push, placebo = (after(each) - bare for each in (chosen, random_push(chosen, seed=3)))
    # Float32 residuals of some units.
    assert torch.allclose(push.norm(dim=-1), placebo.norm(dim=-1), atol=1e-4)
    moved = push.norm(dim=-1) > 1e-3
    assert moved.any() and not torch.allclose(push[moved], placebo[moved], atol=1e-2)


def test_scopes_touch_the_tokens_they_are_for(tiny_model):
    texts = [text[:60] for text in plain_passages()[:3]]
    named = {name: steering(1, 16, scope=name) for name in ("all", "prompt", "response")}
    effects = sl.side_effects(tiny_model, named, texts=texts, questions=QUESTIONS, seed=1)
    table = effects.table.set_index("setting")
    change = effects.nll[1] - effects.nll[0]
    assert table.loc["all", "cost"] == pytest.approx(np.exp(change.mean()))
    assert list(table.index)[:3] == ["unsteered", "all", "placebo of all"]
    assert table.loc["unsteered", "cost"] == 1
    assert len(set(table["cost"])) == len(table)
    assert "all ×" in repr(effects) and "placebo" in effects._repr_html_()
    assert {trace.name for trace in effects.plot().data} == {"steering", "placebo"}


def test_a_strength_that_leaves_no_numbers_has_no_cost(tiny_model):
    texts = [text[:60] for text in plain_passages()[:3]]
    broken = steering(1, 16, strength=1e38)
    effects = sl.side_effects(tiny_model, broken, texts=texts, questions=QUESTIONS)
    numbers = effects.summary("steered")
    assert numbers["cost"] is None and not effects.right[1].any()
    assert "without numbers" in described_cost(numbers)


def test_an_adaptive_strength_is_measured_at_its_full_value(tiny_model):
    texts = [text[:60] for text in plain_passages()[:3]]
    both = {"fixed": steering(1, 16), "adaptive": steering(1, 16, adaptive=0.5)}
    effects = sl.side_effects(tiny_model, both, texts=texts, questions=QUESTIONS)
    assert effects.cost("fixed") == effects.cost("adaptive")


def test_bad_input_is_named(tiny_model):
    chosen = steering(1, 16)
    with pytest.raises(SteeringError, match=r"must be a Steering; got str; .*vector\.at"):
        sl.side_effects(tiny_model, "title")
    with pytest.raises(SteeringError, match="as its placebo"):
        sl.side_effects(tiny_model, {"a": chosen}, {"b": chosen})
    with pytest.raises(SteerlensError, match=r"text 1 has 4 tokens; .*more than 32"):
        sl.side_effects(tiny_model, chosen, texts=["x" * 60, "four"])
    with pytest.raises(SteerlensError, match="at least 2 texts"):
        sl.side_effects(tiny_model, chosen, texts="x" * 60)
    with pytest.raises(SteerlensError, match="0 questions"):
        sl.side_effects(tiny_model, chosen, questions=())


def test_every_question_has_one_right_answer_among_four():
    for question in common_questions():
        assert isinstance(question, CommonQuestion)
        assert len({question.answer, *question.others}) == 4
