"""Decoding settings, conversations and token ids, against transformers' own ``generate``."""

from dataclasses import asdict

import pytest
import torch
from steering_examples import random_vector
from tiny_models import write_tiny_folder

from steerlens.effects import steer
from steerlens.engine.generation import generate
from steerlens.engine.sampling import GREEDY, Decoding, stream_seed
from steerlens.errors import ModelError, SteerlensError
from steerlens.models.loading import load_model

SYSTEM = {"role": "system", "content": "You answer in rhymes, and never in more than two lines."}
TURNS = [
    {"role": "user", "content": "Name a city."},
    {"role": "assistant", "content": "Rome."},
    {"role": "user", "content": "And a river that flows through it?"},
]
MIXED = {
    "greedy": ("Tell me about Rome.", GREEDY),
    "penalty": ("List ten planets, one on each line.", Decoding(repetition_penalty=1.1)),
    "strong penalty": ([SYSTEM, *TURNS], Decoding(repetition_penalty=1.5)),
    "stop": ("Count from one to ten in words.", Decoding(stop=("four", "\n3"))),
    "stop and penalty": (TURNS, Decoding(repetition_penalty=1.2, stop="er")),
    "top k": ("Write a line about the sea.", Decoding(temperature=1.3, top_k=7, seed=3)),
    "min p": ("Hi", Decoding(temperature=1.5, min_p=0.1, seed=4)),
    "top p": ([SYSTEM, TURNS[0]], Decoding(temperature=0.8, top_p=0.7, stop=",", seed=2**40)),
    "all": (
        list(range(1000, 1040)),
        Decoding(1.1, top_p=0.9, top_k=40, min_p=0.02, repetition_penalty=1.3, stop=("\n\n",)),
    ),
    "goes on": (
        [SYSTEM, TURNS[0], {"role": "assistant", "content": "Here are two:\n 1. "}],
        GREEDY,
    ),
}
"""Name -> prompt, decoding."""
N_NEW = 14


def ids_by_template(tokenizer, prompt):
    """A prompt's token ids, by transformers' own chat template."""
    if not isinstance(prompt, str) and isinstance(prompt[0], int):
        return list(prompt)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    goes_on = messages[-1]["role"] == "assistant"
    text = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def by_transformers(hf_model, tokenizer, ids, decoding, seed, n_new=N_NEW):
    """The tokens of one prompt by transformers' ``generate``, without the end of turn."""
    torch.manual_seed(seed)
    drawn = {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "min_p": decoding.min_p or None,
    }
    output = hf_model.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        do_sample=decoding.temperature > 0,
        repetition_penalty=decoding.repetition_penalty,
        max_new_tokens=n_new,
        eos_token_id=2,
        pad_token_id=2,
        **({"stop_strings": list(decoding.stop), "tokenizer": tokenizer} if decoding.stop else {}),
        **(drawn if decoding.temperature else {}),
    )
    return [token for token in output[0, len(ids) :].tolist() if token != 2]


@pytest.fixture(scope="module")
def expected(hf_model, model):
    """Token ids of the prompt, and those that transformers answers with, by name."""
    rows = {}
    for i, (name, (prompt, decoding)) in enumerate(MIXED.items()):
        ids = ids_by_template(model.tokenizer, prompt)
        seed = stream_seed(decoding.seed, i)
        rows[name] = ids, by_transformers(hf_model, model.tokenizer, ids, decoding, seed)
    return rows


def test_mixed_rows_give_the_tokens_of_transformers_own_generate(model, expected):
    """With three slots rows join and leave at different times."""
    prompts, decodings = zip(*MIXED.values(), strict=True)
    together = generate(model, prompts, decoding=decodings, max_new_tokens=N_NEW, batch_size=3)
    for i, (name, (ids, tokens)) in enumerate(expected.items()):
        assert list(together.prompt_tokens[i]) == ids, name
        assert list(together.tokens[i]) == tokens, name
    reasons = dict(zip(MIXED, together.finish_reasons, strict=True))
    texts = dict(zip(MIXED, together.texts, strict=True))
    assert (reasons["greedy"], reasons["min p"]) == ("length", "stop")
    for name in ("stop", "stop and penalty", "top p"):
        assert reasons[name] == "stop_text"
        assert any(stop in texts[name] for stop in MIXED[name][1].stop)
    assert together.settings["decoding"] == [asdict(decoding) for decoding in decodings]


def test_the_bridges_own_path_decodes_alike(tiny_model):
    prompts = ["ab", "cd ef", [5, 9, 12], "gh", "i"]
    decodings = [Decoding(0.9, seed=2), None, Decoding(repetition_penalty=1.3), None, None]
    ask = {"decoding": decodings, "max_new_tokens": 12, "chat_format": "plain"}
    fast = generate(tiny_model, prompts, **ask, batch_size=2)
    stop = next(c for c in fast.texts[3] if "!" <= c < "~")
    decodings[3:] = [Decoding(stop=stop), Decoding(1.5, min_p=0.2, stop=["zz", stop])]
    fast = generate(tiny_model, prompts, **ask, batch_size=2)
    hook = ("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
    with tiny_model.hooks(fwd_hooks=[hook]):
        plain = generate(tiny_model, prompts, **ask, batch_size=4)
    assert (fast.settings["attention"], plain.settings["attention"]) == ("sdpa", "eager")
    assert plain.tokens == fast.tokens
    assert plain.finish_reasons == fast.finish_reasons
    assert fast.finish_reasons[3] == "stop_text"


def test_samples_stand_side_by_side_and_the_first_do_not_depend_on_how_many(tiny_model):
    decoding = Decoding(temperature=1.0, seed=5)
    ask = {"max_new_tokens": 8, "batch_size": 3}
    single = generate(tiny_model, ["ab", "cd"], decoding=decoding, **ask)
    three = generate(tiny_model, ["ab", "cd"], temperature=1.0, seed=5, samples=3, **ask)
    assert three.prompts == ("ab",) * 3 + ("cd",) * 3
    assert list(three.table["sample"]) == [0, 1, 2, 0, 1, 2]
    assert three.tokens[::3] == single.tokens
    assert len(set(three.tokens)) == 6


def test_each_row_keeps_its_decoding_when_memory_runs_out(tiny_model, monkeypatch):
    from steerlens.engine import steps as module

    decodings = [Decoding(1.0, seed=i, repetition_penalty=1 + i / 4) for i in range(4)]
    ask = {"decoding": decodings, "max_new_tokens": 6}
    expected = generate(tiny_model, ["ab", "cd", "ef", "gh"], **ask)
    steps, run_blocks = [], module.run_blocks

    def runs_out(*args, **kwargs):
        steps.append(1)
        if len(steps) == 4:
            raise MemoryError
        return run_blocks(*args, **kwargs)

    monkeypatch.setattr(module, "run_blocks", runs_out)
    assert generate(tiny_model, ["ab", "cd", "ef", "gh"], **ask).tokens == expected.tokens


def test_steered_rows_take_a_decoding_too(tiny_model):
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    ask = {"repetition_penalty": 1.4, "max_new_tokens": 8}
    steerings = [None, vector.at(1, "add", 3.0)]
    together = generate(tiny_model, ["ab", "cd"], steerings, **ask)
    for i, prompt in enumerate(["ab", "cd"]):
        alone = generate(tiny_model, [prompt], steerings[i], **ask)
        assert alone.tokens[0] == together.tokens[i]
    assert together.tokens != generate(tiny_model, ["ab", "cd"], steerings, max_new_tokens=8).tokens


def test_a_conversation_without_a_template_is_questions_and_answers(tiny_model):
    turns = generate(tiny_model, [SYSTEM, *TURNS], max_new_tokens=1, chat_format="plain")
    text = f"{SYSTEM['content']}\n\nQ: Name a city.\nA: Rome.\n\nQ: {TURNS[2]['content']}\nA:"
    expected = tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert list(turns.prompt_tokens[0][-len(expected) :]) == expected
    assert turns.prompts == ((SYSTEM, *TURNS),)


def test_an_answer_that_was_begun_is_gone_on_with(tiny_model, tmp_path):
    begun = [*TURNS[:2], {"role": "user", "content": "More?"}, {**TURNS[1], "content": " Yes: "}]
    by_template = tiny_model.tokenizer.apply_chat_template(
        begun, tokenize=False, continue_final_message=True
    )
    expected = tiny_model.tokenizer(by_template, add_special_tokens=False)["input_ids"]
    answer = generate(tiny_model, begun, max_new_tokens=3)
    assert list(answer.prompt_tokens[0]) == expected
    # token ids of the same say the same, steered as well, and the response is what was added
    vector = random_vector(tiny_model.cfg.n_layers, tiny_model.cfg.d_model)
    runs = [
        steer(tiny_model, prompt, vector.at(1, "add"), max_new_tokens=3)
        for prompt in (begun, expected)
    ]
    assert (runs[0].baseline, runs[0].steered) == (runs[1].baseline, runs[1].steered)
    assert runs[0].baseline == answer.texts[0]
    # the plain format leaves the answer open as well
    plain = generate(tiny_model, begun, max_new_tokens=1, chat_format="plain").prompt_tokens[0]
    text = "Q: Name a city.\nA: Rome.\n\nQ: More?\nA:  Yes: "
    assert list(plain) == tiny_model.tokenizer(text, add_special_tokens=False)["input_ids"]
    # and a template that drops it is one sentence
    drops = "{{ messages[0]['content'] }}"
    other = load_model(write_tiny_folder(tmp_path, chat_template=drops), device="cpu")
    with pytest.raises(ModelError, match="refuses this conversation: continue_final_message is"):
        generate(other, begun, max_new_tokens=1)


def test_token_ids_are_read_as_they_are(tiny_model):
    ids = [5, 9, 12, 5]
    for prompts in (ids, [ids], tuple(ids), iter([tuple(ids)])):
        assert generate(tiny_model, prompts, max_new_tokens=1).prompt_tokens == (tuple(ids),)
    assert generate(tiny_model, ids, max_new_tokens=1).table["prompt"][0] == "token ids 5 9 12 5"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"top_k": -1}, "top_k must be a whole number of at least 0; got -1"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p must be 0 to 1; got 1.5"),
        ({"repetition_penalty": 0}, r"repetition_penalty must be above 0 \(1 for none\); got 0"),
        ({"stop": ""}, "a stop text is empty"),
        ({"stop": ["a", ""]}, "a stop text is empty"),
        ({"samples": 0}, "samples must be a whole number of at least 1"),
        ({"samples": 4}, "samples is for tokens that are drawn, and at temperature 0 none is"),
        ({"top_p": 0.5}, "top_p is for tokens that are drawn"),
        ({"decoding": GREEDY, "temperature": 1.0}, "give either decoding or its parts"),
        ({"decoding": [GREEDY, None]}, "got 2 for 1 prompts"),
        ({"decoding": 0.7}, "decoding must be a Decoding; got float"),
        ({"decoding": [0.7]}, "decoding must be a Decoding; got float"),
    ],
)
def test_a_decoding_out_of_range_is_refused(settings, sentence, tiny_model):
    with pytest.raises(SteerlensError, match=sentence):
        generate(tiny_model, ["a"], max_new_tokens=1, **settings)


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([{"role": "bot", "content": "Hi."}], "has the role 'bot'; choose one of system, user, as"),
        ([{"role": "user", "content": " "}], "message 0 of prompts has no text"),
        ([{"role": "user"}], "message 0 of prompts is not of the form"),
        ([*TURNS, SYSTEM], "message 3 of prompts is a system message, which can only be the first"),
        (
            [SYSTEM],
            "the last message of prompts has the role 'system'; end with one of role 'user'",
        ),
        ([[]], "entry 0 of prompts holds no message and no token id"),
        ([5, 99_999], "prompt 0 has the token id 99999, and .* has .* tokens, counted from 0"),
        ([5, -1], "every token id of prompts must be a whole number of at least 0; got -1"),
    ],
)
def test_a_prompt_that_is_none_is_refused(prompt, sentence, tiny_model):
    with pytest.raises(ModelError, match=sentence):
        generate(tiny_model, prompt, max_new_tokens=1)


def test_a_decoding_says_what_it_is_in_words():
    decoding = Decoding(0.7, top_k=5, repetition_penalty=1.1, stop="x", samples=2)
    assert decoding.describe() == (
        "temperature 0.7, top k 5, repetition penalty 1.1, stop at 'x', seed 0, 2 samples a prompt"
    )
    assert GREEDY.describe() == "greedy"
