"""Conversations and token ids as prompts of evaluations, and as base queries and pairs of tasks."""

import json

import numpy as np
import pytest
import torch
from small_search import SMALL
from transformers import AutoModelForCausalLM

import steerlens as sl
from steerlens.behaviour.answers import Answerer
from steerlens.behaviour.evaluation import EvaluationPrompt, catalogue_prompts, read_prompts
from steerlens.behaviour.evaluation.run import EvaluationSettings
from steerlens.behaviour.unchecked import measured
from steerlens.cli.main import main
from steerlens.errors import FileFormatError, ModelError, PairsError, SteerlensError
from steerlens.reports.evaluation import render_evaluation
from steerlens.reports.settings import ReportSettings
from steerlens.tasks import Task
from steerlens.tasks.pairs import ContrastSet

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes?"}]
BEGUN = {"role": "assistant", "content": "It <is> "}
WORDS = ("tea", "rain", "snow", "bread", "light", "glass", "moss", "chalk", "iron", "wool", "ice")
SHORT = EvaluationSettings(max_new_tokens=5)
ASKED = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def user(text):
    return {"role": "user", "content": text}


def ids_of(model, messages):
    """Token ids by transformers' own chat template."""
    goes_on = messages[-1]["role"] == "assistant"
    text = model.tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=not goes_on,
        continue_final_message=goes_on,
    )
    return model.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_an_evaluation_file_may_hold_conversations_and_token_ids(tiny_model, tmp_path):
    # given rows of every kind
    prompts = [
        "Go, <b>now</b>!",
        [SYSTEM, *TURNS, user("Go! No commas.")],
        [user("Go! No commas."), BEGUN],
        [7, 20, 9],
    ]
    bare = ["Go!", [SYSTEM, *TURNS, user("Go!")], None, [7, 20]]
    rows = [
        {"key": i, "prompt": prompt, "prompt_without_instruction": without, **ASKED}
        for i, (prompt, without) in enumerate(zip(prompts, bare, strict=True))
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # when they are evaluated
    result = sl.evaluate(tiny_model, read_prompts(file), tmp_path / "out", None, SHORT)
    # then answers are those to the token ids of transformers' template
    lines = (tmp_path / "out" / "responses.jsonl").read_text()
    written = [json.loads(line) for line in lines.splitlines()]
    assert len(written) == 7
    for row in written:
        given = rows[row["key"]]
        name = "prompt" if row["condition"] == "instructed" else "prompt_without_instruction"
        assert row["prompt"] == given[name]
        messages = [user(row["prompt"])] if isinstance(row["prompt"], str) else row["prompt"]
        ids = messages if isinstance(messages[0], int) else ids_of(tiny_model, messages)
        expected = sl.generate(tiny_model, ids, max_new_tokens=5, show_progress=False)
        assert row["response"] == expected.texts[0]
        assert row["strict"] == (bool(row["response"].strip()) and "," not in row["response"])
    # and the page shows them as text
    page = render_evaluation(result.summary, result.responses)
    assert "system: Be brief." in page and "token ids 7 20 9" in page
    assert "<b>now" not in page and "It <is>" not in page


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        ([], "field 'prompt': prompt holds no message and no token id"),
        ([user(" ")], "field 'prompt': message 0 of prompt has no text"),
        ([{"role": "bot", "content": "a"}], "field 'prompt': message 0 of prompt has the role"),
        ([SYSTEM], "field 'prompt': the last message of prompt has the role 'system'"),
        ([1, -2], "field 'prompt': every token id of prompt must be a whole number of at least 0"),
        ([user("half \ud800")], "field 'prompt': holds half a character"),
        ({"role": "user"}, "field 'prompt': must be a text that is not blank, a list of messages"),
    ],
)
def test_a_prompt_that_is_none_is_named_by_line_and_field(tmp_path, prompt, sentence):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"key": 1, "prompt": prompt, **ASKED}))
    with pytest.raises(FileFormatError, match=sentence):
        read_prompts(file)


def test_what_a_conversation_cannot_come_before_is_refused_before_anything_is_written(
    tiny_model, tmp_path
):
    settings = EvaluationSettings(max_new_tokens=2, conversation=(SYSTEM,))
    for prompt, sentence in (
        ([3, 4], "token ids are read as they are, so no message can come before them"),
        ([SYSTEM, user("Go!")], "message 1 of the conversation with its prompt is a system mess"),
    ):
        row = EvaluationPrompt(1, prompt, None, ("punctuation:no_comma",), ({},))
        with pytest.raises(SteerlensError, match=f"row '1': {sentence}"):
            sl.evaluate(tiny_model, [row], tmp_path / "out", None, settings)
    assert not (tmp_path / "out").exists()


def test_a_phrasing_follows_the_last_users_message(tiny_model):
    queries = [[SYSTEM, *TURNS, user(f"What is {word}?")] for word in WORDS[:8]]
    queries += [[user(f"Why {word}?"), BEGUN] for word in WORDS[8:]]
    task = Task("song", ["Sing!", "La.", "Hum."], queries, check=lambda text: True)
    for split in ("fit", "select", "report"):
        for query in task.queries(split):
            assert list(query.text) in queries
    for pair in sl.contrast_pairs(task, n=5):
        plus, minus = list(pair.instructed), list(pair.uninstructed)
        last = max(i for i, message in enumerate(minus) if message["role"] == "user")
        text = f"{minus[last]['content']} {pair.phrasing}"
        assert plus == [*minus[:last], user(text), *minus[last + 1 :]]
        assert "What is" in pair.base_query or "Why" in pair.base_query
    neutral = sl.contrast_pairs(task, n=4, contrast="neutral")
    assert all(len(pair.instructed) == len(pair.uninstructed) for pair in neutral)
    assert all(pair.uninstructed[-1] != pair.instructed[-1] or len(pair.instructed) == 2
               for pair in neutral)  # fmt: skip
    assert json.loads(json.dumps(task.definition))["queries"]["fit"]


@pytest.fixture(scope="module")
def songs(tiny_model):
    """The same pairs three times: as conversations, as token ids, and as their last messages."""
    sides = {
        "instructed": [[SYSTEM, *TURNS, user(f"Sing: {word}!")] for word in WORDS],
        "uninstructed": [[SYSTEM, *TURNS, user(f"What is {word}?")] for word in WORDS],
    }
    kinds = {
        "conversations": lambda messages: messages,
        "token ids": lambda messages: ids_of(tiny_model, messages),
        "last messages": lambda messages: messages[-1]["content"],
    }
    return {
        kind: ContrastSet.from_prompts(
            *([make(messages) for messages in side] for side in sides.values()), WORDS
        )
        for kind, make in kinds.items()
    }


def test_recovery_on_conversations_is_that_on_their_token_ids(tiny_model, songs, tmp_path):
    # given vectors of pairs of conversations, and of the same as token ids
    vectors, effects = {}, {}
    before = {"last messages": (SYSTEM, *TURNS)}
    for kind, pairs in songs.items():
        task = Task.from_pairs(pairs, id="songs")
        fit, report = (sl.contrast_pairs(task, split=split) for split in ("fit", "report"))
        if kind != "last messages":
            vectors[kind] = sl.difference_of_means(sl.cache_residuals(tiny_model, fit))
        steering = vectors["conversations"].at(1, "set_projection")
        # when recovery is measured, or on last messages with the others before them
        effects[kind] = measured(
            *(
                Answerer(tiny_model),
                task,
                list(report),
                lambda _, steering=steering: [({}, steering)],
            ),
            *(4, before.get(kind, ())),
        )
    # then all are the same runs, up to the order of sums
    torch.testing.assert_close(
        vectors["conversations"].directions, vectors["token ids"].directions, atol=1e-6, rtol=0
    )
    for kind in ("token ids", "last messages"):
        np.testing.assert_allclose(
            effects[kind].steered, effects["conversations"].steered, atol=1e-5
        )


@pytest.mark.parametrize("kind", ["conversations", "token ids"])
def test_a_search_and_an_evaluation_take_them_with_a_check_and_without(
    tiny_model, songs, tmp_path, kind
):
    for check in (None, lambda text: len(text) % 2 == 0):
        task = Task.from_pairs(songs[kind], check, id="songs")
        out = tmp_path / ("checked" if check else "unchecked")
        plan = sl.search(tiny_model, [task], out / "plan", SMALL, show_progress=False)
        assert plan.data["instructions"]["songs"]["task_hash"] == task.hash
        prompts = catalogue_prompts([task], 2)
        result = sl.evaluate(tiny_model, prompts, out / "evaluation", plan, SHORT)
        asked = {json.dumps(row["prompt"]) for row in result.responses}
        assert asked <= {json.dumps(side) for pair in songs[kind]
                         for side in (pair.instructed, pair.uninstructed)}  # fmt: skip


def test_log_odds_after_a_conversation_are_those_of_plain_hugging_face(tiny_model, tiny_folder):
    task = Task.from_choices(
        [{"question": f"Do you like {word}?", "answer_matching_behavior": "Yes",
          "answer_not_matching_behavior": "No"} for word in WORDS], id="likes",
    )  # fmt: skip
    pairs = list(sl.contrast_pairs(task, split="report"))
    before = (SYSTEM, *TURNS)
    effects = measured(Answerer(tiny_model), task, pairs, lambda _: [({}, None)], 1, before)
    plain = AutoModelForCausalLM.from_pretrained(tiny_folder)
    first = [tiny_model.tokenizer(text)["input_ids"][0] for text in ("Yes", "No")]
    for pair, log_odds in zip(pairs, effects.unsteered, strict=True):
        ids = ids_of(tiny_model, [*before, user(pair.uninstructed)])
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0, -1]
        assert log_odds == pytest.approx(float(logits[first[0]] - logits[first[1]]), abs=1e-4)


@pytest.mark.parametrize(
    ("queries", "sentence"),
    [
        ([[1, 2, 3], [4, 5]], r"query 1 has no user's message .* give pairs with and without"),
        ([user("a"), user("b")], "query 1 must be a text or a conversation, but is {'role'"),
        (["a", [{"role": "bot", "content": "b"}]], "message 0 of query 2 has the role 'bot'"),
        ([[user("a")], [user("a")]], "the query 'user: a' was given twice"),
    ],
)
def test_queries_that_no_phrasing_can_follow_are_refused(queries, sentence):
    with pytest.raises(SteerlensError, match=sentence):
        Task("song", ["Sing!"], queries)


def test_a_pair_whose_prompt_is_none_is_refused(tiny_model):
    with pytest.raises(PairsError, match="message 0 of the field 'instructed' has the role 'bot'"):
        ContrastSet.from_prompts([[{"role": "bot", "content": "a"}]] * 2, ["a", "b"])
    pairs = ContrastSet.from_prompts([[999_999, 1], [2]], [[1], [3]])
    with pytest.raises(ModelError, match="prompt 0 has the token id 999999"):
        sl.cache_residuals(tiny_model, pairs)


def test_a_task_file_may_list_conversations_and_a_report_shows_them(tiny_model, tmp_path, capsys):
    # given a task file whose queries are conversations
    file = tmp_path / "even.yaml"
    queries = [[SYSTEM, *TURNS, user(f"What is <i>{word}</i>?")] for word in WORDS]
    fields = {"phrasings": ["Even!", "In pairs.", "By two."], "queries": queries}
    file.write_text(json.dumps({**fields, "check": {"regex": "^(..)*$"}}))
    # when it is looked at, and reported on
    assert main(["tasks", "--check", str(file)]) == 0
    assert "system: Be brief." in capsys.readouterr().out
    settings = ReportSettings(n_samples=1, max_new_tokens=3, recovery_every=1)
    sl.report(tiny_model, [file], tmp_path / "report", settings=settings, show_progress=False)
    # then the samples are conversations, as text
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "user: What is &lt;i&gt;" in page and "<i>tea" not in page
