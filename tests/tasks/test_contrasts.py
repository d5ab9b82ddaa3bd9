"""Claims about what the uninstructed side of a pair carries."""

import numpy as np
import pytest

import steerlens as sl
from steerlens.errors import PairsError, SteerlensError, UnknownNameError
from steerlens.models.loading import token_counter
from steerlens.tasks.contrasts import NEUTRAL
from steerlens.tasks.pairs import ContrastSet

TASK = "detectable_format:title"


def test_a_neutral_sentence_stands_where_the_instruction_does_and_is_as_long(tiny_model):
    count = token_counter(tiny_model)
    lengths = []
    for task in ("change_case:english_lowercase", "combination:two_responses", "length:brief"):
        bare = sl.contrast_pairs(task, n=12)
        pairs = sl.contrast_pairs(task, n=12, contrast="neutral", count_tokens=count)
        for pair, before in zip(pairs, bare, strict=True):
            assert pair.instructed == before.instructed
            sentence = pair.uninstructed.removeprefix(before.uninstructed)
            assert sentence.strip() in " ".join(NEUTRAL) or any(s in sentence for s in NEUTRAL)
            instruction = pair.instructed.removeprefix(before.uninstructed)
            assert sentence[0] == instruction[0]
            lengths.append((count(sentence), count(instruction)))
    sentences, instructions = np.array(lengths).T
    # The tokenizer has one token a character.
    assert np.abs(sentences - instructions).max() <= 3


def test_neutral_sentences_ask_for_nothing_and_differ():
    assert len(set(NEUTRAL)) == len(NEUTRAL)
    assert not any("?" in text or '"' in text for text in NEUTRAL)
    assert max(len(text.split()) for text in NEUTRAL) >= 18


def test_every_other_task_takes_its_turn_on_the_uninstructed_side():
    others = ["startend:quotation", "language:response_language_de"]
    pairs = sl.contrast_pairs(TASK, n=8, contrast="others", others=others)
    phrasings = [sl.catalogue[name].phrasings_for("fit") for name in others]
    turns = [
        next(i for i, texts in enumerate(phrasings) if pair.uninstructed.endswith(texts))
        for pair in pairs
    ]
    assert turns in ([0, 1] * 4, [1, 0] * 4)
    assert all(pair.uninstructed.startswith(pair.base_query) for pair in pairs)


def test_pairs_know_their_contrast_and_differ_by_it(tiny_model):
    sets = [sl.contrast_pairs(TASK, n=4, contrast=c) for c in ("none", "neutral", "others")]
    assert len({pairs.data_hash for pairs in sets}) == 3
    assert [pairs[:2].contrast for pairs in sets] == ["none", "neutral", "others"]
    short = ContrastSet(
        tuple(
            sl.contrast_pairs(
                sl.Task("x", ["Go!", "Run!", "Hop!"], queries=[f"Tell {i}" for i in range(12)]),
                n=3,
                contrast="neutral",
            )
        ),
        contrast="neutral",
    )
    assert sl.cache_residuals(tiny_model, short).metadata["contrast"] == "neutral"


def test_contrasts_that_cannot_be_made_are_refused():
    with pytest.raises(UnknownNameError, match="neutral"):
        sl.contrast_pairs(TASK, n=4, contrast="neutrl")
    before = ContrastSet.from_prompts(
        [f"Answer in rhyme. What is {i}?" for i in range(8)], [f"What is {i}?" for i in range(8)]
    )
    with pytest.raises(PairsError, match="in pair 0 the instructed prompt is not the uninstructed"):
        sl.contrast_pairs(sl.Task.from_pairs(before), n=2, contrast="neutral")
    with pytest.raises(SteerlensError, match="only task"):
        sl.contrast_pairs(TASK, n=4, contrast="others", others=[TASK])
