"""Claims about whether an answer is about its prompt, against plain Hugging Face."""

import numpy as np
import pytest
import torch

import steerlens as sl
from steerlens.behaviour.relevance import relevance
from steerlens.errors import SteerlensError
from steerlens.models.loading import tokenize_prompts

PROMPTS = ["Why is the sky blue?", "Name a fish.", "Who was Ada Lovelace?"]
RESPONSES = ["Light scatters.", "A trout.", "   "]


def test_relevance_is_a_difference_of_log_likelihoods(tiny_model):
    found = relevance(tiny_model, PROMPTS, RESPONSES, n_others=2)
    hf = tiny_model.original_model
    tokens = tokenize_prompts(tiny_model, PROMPTS)

    def mean_logprob(prompt, text):
        ids = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = hf(torch.tensor([[*prompt, *ids]])).logits[0].double().log_softmax(-1)
        steps = range(len(prompt) - 1, len(prompt) + len(ids) - 1)
        return np.mean([float(logits[at, i]) for at, i in zip(steps, ids, strict=True)])

    for i in (0, 1):
        own, *others = [mean_logprob(tokens[j], RESPONSES[i]) for j in (i, 1 - i, 2)]
        row = found.table.iloc[i]
        assert row["own"] == pytest.approx(own, abs=1e-4)
        assert row["relevance"] == pytest.approx(own - np.mean(others), abs=1e-4)
        assert row["on_topic"] == (own > max(others))
    blank = found.table.iloc[2]
    assert blank["n_tokens"] == 0 and np.isnan(blank["relevance"]) and not blank["on_topic"]
    assert "33% by chance" in repr(found)
    assert len(found.plot().data) == 2


def test_the_real_model_tells_answers_from_answers_to_other_questions():
    model = sl.load_model("smollm2-135m-instruct", dtype="float32")
    answers = [
        "The sky is blue because air scatters blue light more than red light.",
        "A trout is a fish that lives in cold rivers.",
        "Ada Lovelace was a mathematician who wrote the first computer program.",
    ]
    assert relevance(model, PROMPTS, answers, n_others=2).on_topic.value == 1.0
    shifted = answers[1:] + answers[:1]
    assert relevance(model, PROMPTS, shifted, n_others=2).on_topic.value == 0.0


@pytest.mark.parametrize(
    ("prompts", "responses", "options", "message"),
    [
        (PROMPTS, RESPONSES[:2], {}, "3 prompts and 2 responses"),
        (PROMPTS, "abc", {}, "3 prompts and 1 responses"),
        (PROMPTS, RESPONSES, {"n_others": 0}, "at least 1"),
        (PROMPTS, RESPONSES, {"n_others": 3}, "3 different prompts in all"),
    ],
)
def test_bad_input(tiny_model, prompts, responses, options, message):
    with pytest.raises(SteerlensError, match=message):
        relevance(tiny_model, prompts, responses, **options)
