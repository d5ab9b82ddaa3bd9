"""Claims about batched, steered generation, against plain Hugging Face generation."""

from functools import partial

import numpy as np
import pytest
import torch
from hf_reference import chat_tokens, greedy
from hypothesis import given, settings
from hypothesis import strategies as st
from steering_examples import n_hooks, random_vector

from steerlens.engine.generation import generate
from steerlens.engine.rows import Row, choose_tokens
from steerlens.engine.sampling import Decoding, Rule
from steerlens.errors import ModelError, SteeringError, SteerlensError

PROMPTS = [
    "Tell me about Rome.",
    "Hi",
    "Why is the sky blue at noon and red at dusk?",
    "Write a short note to my landlord asking for a new key, and be polite about it.",
    "Name three fruits.",
    "What is a prime number? Explain it to a child of six with an example from the kitchen.",
    "List the planets.",
    "Who wrote Hamlet, and when was it first performed on a stage?",
]
END = frozenset({2})


def test_a_batch_of_eight_lengths_gives_the_tokens_of_plain_generation(model, hf_model):
    together = generate(model, PROMPTS, max_new_tokens=16, batch_size=8)
    for prompt, tokens in zip(PROMPTS, together.tokens, strict=True):
        expected = greedy(hf_model, chat_tokens(model.tokenizer, prompt), (), 16, END)
        assert list(tokens) == expected, prompt


def test_a_steered_batch_gives_the_tokens_of_one_prompt_at_a_time(roomy_model):
    model, vector = roomy_model, random_vector(3, 16)
    steerings = [
        vector.at(i % 3, operation, strength, scope)
        for i, (operation, strength, scope) in enumerate(
            [
                ("add", 4.0, "all"),
                ("set_projection", 1.0, "prompt"),
                ("ablate", 1.0, "response"),
                ("add", -3.0, "response"),
                ("set_projection", 2.0, "all"),
                ("add", 0.0, "all"),
            ]
        )
    ]
    steerings += [None, steerings[0] + steerings[2]]
    together = generate(model, PROMPTS, steering=steerings, max_new_tokens=12, batch_size=8)
    alone = [
        generate(model, [prompt], steering=steering, max_new_tokens=12).tokens[0]
        for prompt, steering in zip(PROMPTS, steerings, strict=True)
    ]
    assert list(together.tokens) == alone


def test_a_response_ends_at_the_end_of_turn(model):
    result = generate(model, "Answer with one word: what is the capital of France?")
    assert result.finish_reasons == ("stop",)
    assert 2 not in result.tokens[0]
    assert "<|im_end|>" not in result.texts[0]


def test_sampling_depends_on_the_seed_and_not_on_the_batch(tiny_model):
    prompts = ["ab", "cd ef", "gh"]
    arguments = {"max_new_tokens": 8, "temperature": 1.0, "seed": 3, "chat_format": "plain"}
    one = generate(tiny_model, prompts, batch_size=3, **arguments)
    two = generate(tiny_model, prompts, batch_size=1, **arguments)
    assert one.tokens == two.tokens
    assert one.tokens != generate(tiny_model, prompts, **{**arguments, "seed": 4}).tokens


def test_no_hook_outlives_a_failed_generation(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    before = n_hooks(tiny_model)

    def fail(resid, hook):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        tiny_model.hooks(fwd_hooks=[("blocks.1.hook_out", fail)]),
    ):
        generate(tiny_model, ["ab"], steering=vector.at(0), chat_format="plain")
    assert n_hooks(tiny_model) == before


def test_bad_requests_are_refused_in_one_sentence(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    with pytest.raises(SteeringError, match="got 1 for 2 prompts"):
        generate(tiny_model, ["a", "b"], steering=[vector.at(0)], chat_format="plain")
    with pytest.raises(ModelError, match="empty"):
        generate(tiny_model, ["a", ""], chat_format="plain")
    with pytest.raises(SteerlensError, match="max_new_tokens"):
        generate(tiny_model, ["a"], max_new_tokens=0, chat_format="plain")
    for temperature in (-1.0, float("nan"), float("inf")):
        with pytest.raises(SteerlensError, match="temperature"):
            generate(tiny_model, ["a"], temperature=temperature, chat_format="plain")
    with pytest.raises(SteeringError, match=r"got SteeringVector; .* vector.at\(layer=…\)"):
        generate(tiny_model, ["a"], steering=vector, chat_format="plain")


def test_any_seed_samples(tiny_model):
    texts = generate(tiny_model, ["a"], temperature=1.0, seed=2**62, max_new_tokens=4)
    assert len(texts) == 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-12])
def test_a_temperature_near_zero_is_the_greedy_limit(temperature, tiny_model):
    prompts = ["ab", "cd ef", "gh"]
    greedy = generate(tiny_model, prompts, max_new_tokens=8)
    sampled = generate(tiny_model, prompts, max_new_tokens=8, temperature=temperature)
    assert sampled.tokens == greedy.tokens
    assert sampled.finish_reasons == greedy.finish_reasons


@given(
    logits=st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=5),
    temperature=st.floats(1e-3, 1e3),
)
@settings(deadline=None, max_examples=40)
def test_draws_follow_the_softmax_at_any_temperature(logits, temperature):
    n = 400
    rule = Rule(Decoding(temperature), tokenizer=None)
    rows = [Row(i, (0,), None, 1, rule, seed=i) for i in range(n)]
    drawn = choose_tokens(torch.tensor(logits, dtype=torch.float32).expand(n, -1), rows)
    scaled = np.array(logits) / temperature
    expected = np.exp(scaled - scaled.max()) / np.exp(scaled - scaled.max()).sum()
    shares = np.bincount(drawn.numpy(), minlength=len(logits)) / n
    # Six standard errors, and the tail beyond them.
    assert np.all(np.abs(shares - expected) <= 6 * np.sqrt(expected * (1 - expected) / n) + 6 / n)


def test_after_a_lack_of_memory_sampled_texts_are_the_same(tiny_model, monkeypatch):
    from steerlens.engine import decoding

    ask = partial(generate, tiny_model, ["a", "b", "c"], max_new_tokens=6, temperature=1.0, seed=4)
    expected = ask().tokens
    take, n_calls = decoding._Flow._take, []

    def fails_once(self, rows, logits):
        n_calls.append(1)
        if len(n_calls) == 3:
            raise MemoryError
        take(self, rows, logits)

    monkeypatch.setattr(decoding._Flow, "_take", fails_once)
    assert ask().tokens == expected
