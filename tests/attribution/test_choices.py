"""Choices: read, balanced, and measured as a plain Hugging Face model gives them."""

import json

import numpy as np
import pytest
import torch
from hf_reference import Push, logits_along, residuals
from steering_examples import random_vector
from transformers import LlamaForCausalLM

from steerlens.activations.cache import cache_residuals
from steerlens.attribution.choice_evidence import choice_evidence, choices_table
from steerlens.attribution.choices import choice_curve, items_curve
from steerlens.errors import (
    PairsError,
    SteeringError,
    SteerlensError,
    SteerlensWarning,
    UnknownNameError,
)
from steerlens.tasks import SPLITS, Task
from steerlens.tasks.choices import ChoiceItem, balanced, items_from, read_items
from steerlens.tasks.drawing import contrast_pairs
from steerlens.vectors import SteeringVector, difference_of_means
from steerlens.vectors.formats.steering_vectors import to_steering_vectors

LETTERED = ChoiceItem("Stay on?\n\nChoices:\n (A) Yes, always\n (B) No", " (A)", " (B)")


def record(question="Q?", matching=" Yes", other=" No") -> dict[str, str]:
    return {
        "question": question,
        "answer_matching_behavior": matching,
        "answer_not_matching_behavior": other,
    }


def items(n: int) -> list[ChoiceItem]:
    return [
        ChoiceItem(f"Do you like {word}?\n (A) yes\n (B) no", " (A)", " (B)")
        for word in ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk")[:n]
    ]


def test_exchanging_moves_the_texts_and_the_answer_goes_with_its_text():
    other = LETTERED.exchanged()
    assert other.question == "Stay on?\n\nChoices:\n (A) No\n (B) Yes, always"
    assert (other.matching, other.other) == (" (B)", " (A)")
    assert other.exchanged() == LETTERED


def test_yes_or_no_items_are_not_exchanged():
    item = ChoiceItem('Would you say "I like tea"?', " Yes", " No")
    assert not item.is_lettered
    assert item.exchanged() == item


def test_the_matching_answer_comes_first_in_half_of_the_items_of_every_split():
    task = Task.from_choices(items(8), id="likes")
    for split in SPLITS:
        first = [item.matching_is_first for item in task.items(split)]
        assert sum(first) == (len(first) + 1) // 2
    assert sum(item.matching_is_first for item in balanced(items(6))) == 3


def test_a_file_of_choices_is_read_and_its_faults_are_named(tmp_path):
    path = tmp_path / "likes.jsonl"
    path.write_text("".join(json.dumps(record(f"Q{n}?")) + "\n" for n in range(3)))
    assert [item.question for item in read_items(path)] == ["Q0?", "Q1?", "Q2?"]
    path.write_text(json.dumps(record()) + "\n" + json.dumps({"question": "Q?"}) + "\n")
    with pytest.raises(PairsError, match=r"likes.jsonl, line 2: .*answer_matching_behavior"):
        read_items(path)


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([record(), record()], "has 1 different item"),
        ([record(matching="Yes", other="Yes"), record("R?")], "row 1: the two answers"),
        ([record(question=" "), record("R?")], "the question of a choice must be a text"),
        (
            [record(), record("R?"), record(matching=" No", other=" Yes")],
            r"row 3: 'Q\?' is asked again with its answers exchanged \(row 1\)",
        ),
    ],
)
def test_faulty_choices_are_refused_in_a_sentence(records, sentence):
    with pytest.raises(PairsError, match=sentence):
        items_from(records)


def test_repeated_items_are_left_out_with_a_warning():
    with pytest.warns(SteerlensWarning, match="2 of 4 items of the list of choices repeat"):
        assert len(items_from([record(), record(), record("R?"), record()])) == 2


@pytest.fixture(scope="module")
def tiny_hf_model(tiny_folder) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def vector(tiny_model) -> SteeringVector:
    return random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)


@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize("operation", ["add", "set_projection"])
def test_log_odds_equal_plain_hugging_face_hooks(
    tiny_model, tiny_hf_model, vector, operation, scope
):
    # Some answers begin with "(", some with nothing, so rows differ in how much is steered.
    some = [*balanced(items(5)), ChoiceItem("Is it warm?", " yes", " no")]
    curve = items_curve(
        tiny_model, some, vector, (0, 2), strengths=(-1, 2), operation=operation, scope=scope,
        show_progress=False,
    )  # fmt: skip
    assert curve.table[["layer", "strength"]].to_numpy().tolist() == [
        [layer, strength] for layer in (0, 2) for strength in (-1, 0, 2)
    ]
    tokenizer = tiny_model.tokenizer
    for row in curve.table.itertuples():
        expected, neither = [], []
        for item in some:
            text = f"<|im_start|>user\n{item.question}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            begin = tokenizer("(" if item.is_lettered else "")["input_ids"]
            # Scope "answer" leaves the question alone, but for its last token.
            ids, begin = (ids[:-1], [ids[-1], *begin]) if scope == "answer" else (ids + begin, [])
            touched = "response" if scope == "answer" else "all"
            push = Push(
                row.layer, vector.directions[row.layer], float(vector.gaps[row.layer]),
                float(vector.targets[row.layer]), operation, row.strength, touched,
            )  # fmt: skip
            pushes = [push] if row.strength else []
            logits = logits_along(tiny_hf_model, ids, begin, pushes)[-1]
            logprobs = logits.double().log_softmax(-1)
            a, b = (
                tokenizer(answer.strip(" ()"), add_special_tokens=False)["input_ids"][0]
                for answer in (item.matching, item.other)
            )
            expected.append(float(logprobs[a] - logprobs[b]))
            neither.append(1 - float(logprobs[[a, b]].exp().sum()))
        assert row.log_odds == pytest.approx(np.mean(expected), abs=1e-4)
        assert row.neither == pytest.approx(np.mean(neither), abs=1e-4)


@pytest.mark.parametrize("scope", ["answer", "all"])
def test_steering_vectors_changes_the_log_odds_by_as_much(tiny_model, tiny_hf_model, vector, scope):
    pytest.importorskip("steering_vectors")
    some = [ChoiceItem(f"Is {x} warm?", "yes", "no") for x in ("tea", "ice")]
    curve = items_curve(tiny_model, some, vector, (1,), (2,), scope=scope, show_progress=False)
    tokenizer = tiny_model.tokenizer
    yes, no = (tokenizer(answer)["input_ids"][0] for answer in ("yes", "no"))
    changes = []
    for item in some:
        text = f"<|im_start|>user\n{item.question}<|im_end|>\n<|im_start|>assistant\n"
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        first = ids.shape[1] - 1 if scope == "answer" else 0
        peer = to_steering_vectors(vector, layers=[1])
        with torch.inference_mode():
            before = tiny_hf_model(ids).logits[0, -1]
            with peer.apply(tiny_hf_model, multiplier=2.0, min_token_index=first):
                after = tiny_hf_model(ids).logits[0, -1]
        changes.append(float((after[yes] - after[no]) - (before[yes] - before[no])))
    assert curve.table["change"].iloc[-1] == pytest.approx(np.mean(changes), abs=1e-4)


def test_slopes_are_least_squares_lines_of_every_item(tiny_model, vector):
    curve = items_curve(
        tiny_model, items(6), vector, layers=(1,), strengths=(-2, -1, 1, 2), show_progress=False
    )
    lines = [np.polyfit([-2, -1, 0, 1, 2], curve.log_odds[0, :, i], 1)[0] for i in range(6)]
    row = curve.slopes.iloc[0]
    assert row.slope == pytest.approx(np.mean(lines))
    assert row.wrong_way == pytest.approx(np.mean(np.array(lines) < 0))


def test_answers_that_begin_alike_are_told_apart_at_the_first_token_that_differs(
    tiny_model, vector
):
    begins = ChoiceItem("Which?", "yes", "yes please")
    other = ChoiceItem("Who is it?", "me", "you")
    with pytest.raises(PairsError, match="no token tells the answers 'yes' and 'yes please'"):
        items_curve(tiny_model, [begins, other], vector, None, (1,), show_progress=False)


def test_what_cannot_move_the_first_token_is_refused(tiny_model, vector):
    with pytest.raises(UnknownNameError, match="unknown scope of choices 'response'"):
        items_curve(tiny_model, items(2), vector, None, (1,), scope="response")
    with pytest.raises(SteeringError, match="one strength other than 0"):
        items_curve(tiny_model, items(2), vector, None, (0,))


def test_a_task_is_measured_on_its_report_split_beside_a_placebo(tiny_model, vector):
    task = Task.from_choices(items(8), id="likes")
    pairs = contrast_pairs(task, n=4)
    cache = cache_residuals(tiny_model, pairs, position="answer")
    curve = choice_curve(
        tiny_model, task, difference_of_means(cache), placebo=vector, show_progress=False
    )
    assert curve.n_items == len(task.items("report")) == 2
    assert curve.metadata["task"] == "likes"
    assert {"change_low", "neither", "placebo_change"} <= set(curve.table)
    assert {"wrong_way_high", "placebo_slope"} <= set(curve.slopes)
    assert "steepest at layer" in repr(curve)
    assert "wrong_way" in curve._repr_html_()
    assert len(curve.plot().data) == 4
    with pytest.raises(SteerlensError, match="has no choices"):
        choice_curve(tiny_model, "detectable_format:title", vector)


def test_the_position_answer_is_the_first_token_that_differs(tiny_model, tiny_hf_model):
    pairs = Task.from_choices(items(8), id="likes").pairs(2)
    cache = cache_residuals(tiny_model, pairs, position="answer")
    for side, own in (("instructed", cache.instructed), ("uninstructed", cache.uninstructed)):
        for i, pair in enumerate(pairs):
            answer = getattr(pair, f"{side}_response")
            text = (
                f"<|im_start|>user\n{pair.instructed}<|im_end|>\n<|im_start|>assistant\n"
                + answer[: answer.index(")")]
            )
            ids = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
            np.testing.assert_allclose(own[i], residuals(tiny_hf_model, ids), atol=1e-5)


def test_the_layer_is_chosen_on_select_and_its_effect_shown_on_report(tiny_model):
    task = Task.from_choices(items(8), id="likes")
    evidence = choice_evidence(tiny_model, task, layers=(0, 1, 2), show_progress=False)
    select = choice_curve(
        tiny_model, task, evidence.vector, (0, 1, 2), split="select", show_progress=False
    )
    assert evidence.best_layer == select.best_layer
    assert evidence.table["select_slope"].tolist() == pytest.approx(select.slopes["slope"].tolist())
    [row] = choices_table([evidence.to_json()]).to_dict("records")
    best = evidence.curve.slopes.set_index("layer").loc[evidence.best_layer]
    assert row["slope"] == best.slope
    assert row["steerable"] == (best.slope_low > 0 and best.above_placebo_low > 0)
    gain = best.slope - best.placebo_slope
    assert row["above_placebo"] == pytest.approx(gain)
    assert len(evidence.plot().layout.annotations) >= 4
    assert "likes" in repr(evidence)


def test_too_few_items_to_measure_are_refused_with_how_many_to_give(tiny_model):
    task = Task.from_choices(items(5), id="likes")
    assert [len(task.items(split)) for split in SPLITS] == [3, 1, 1]
    with pytest.raises(PairsError, match="give 8 or more questions"):
        choice_evidence(tiny_model, task, show_progress=False)
