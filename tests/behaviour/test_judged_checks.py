"""A judge's score is the probability of yes among yes and no, as a plain model gives it."""

import pytest
from hf_reference import logits_along
from transformers import LlamaForCausalLM

from steerlens.behaviour.judged_checks import yes_probability
from steerlens.tasks.written_checks import check_from

QUESTION = "Is it kind?"


@pytest.mark.parametrize("response", ["Thank you!", "Go away."])
def test_the_score_equals_a_plain_hugging_face_computation(tiny_folder, tiny_model, response):
    plain = LlamaForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()
    text = (
        f'<|im_start|>user\n{QUESTION} Answer with Yes or No.\n\n"{response}"<|im_end|>\n'
        "<|im_start|>assistant\n"
    )
    encode = tiny_model.tokenizer
    ids = encode(text, add_special_tokens=False)["input_ids"]
    yes, no = (encode(word, add_special_tokens=False)["input_ids"][0] for word in ("Yes", "No"))
    p = logits_along(plain, ids, [])[-1].double().softmax(-1)
    expected = float(p[yes] / (p[yes] + p[no]))

    assert yes_probability(tiny_model, QUESTION, response) == pytest.approx(expected, abs=1e-5)
    check = check_from({"judge": {"model": str(tiny_folder), "question": QUESTION}})
    assert check(response) == pytest.approx(expected, abs=1e-5)
    negated = check_from({"not": {"judge": {"model": str(tiny_folder), "question": QUESTION}}})
    assert negated(response) == pytest.approx(1 - expected, abs=1e-5)
