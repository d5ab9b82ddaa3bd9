"""Remembered results: none outlives the model, the template or the hook it was made with."""

import datetime
import json
import shutil
from pathlib import Path

import pytest
import torch
from hf_reference import chat_tokens, load_plain, residuals
from stored_pieces import stored_pieces
from tiny_models import CHAT_TEMPLATE
from transformers.utils import chat_template_utils

import steerlens as sl
from steerlens.activations.pieces import residual_pieces
from steerlens.activations.shards import ShardedResiduals, shard_residuals
from steerlens.behaviour.answers import Answerer, Question
from steerlens.behaviour.evaluation.prompts import EvaluationPrompt
from steerlens.behaviour.evaluation.run import EvaluationSettings, evaluate
from steerlens.behaviour.judge import Judge
from steerlens.engine.remembered import naming_key
from steerlens.errors import SteerlensError
from steerlens.models.chat import tokenize_prompts
from steerlens.models.loading import load_model
from steerlens.runs import Run, read_manifest
from steerlens.tasks.pairs import ContrastSet
from steerlens.workers import WorkerSettings
from steerlens.workers.pool import worker_pool

PAIRS = ContrastSet.from_prompts([f"{i}: yes" for i in range(6)], [f"{i}:" for i in range(6)])
DATED = "{{ strftime_now('%d %B') }}\n" + CHAT_TEMPLATE
SHORT = CHAT_TEMPLATE.replace("assistant", "a")
SETTINGS = EvaluationSettings(max_new_tokens=6, batch_size=8, piece_rows=8)


def prompts(n: int = 4) -> list[EvaluationPrompt]:
    return [
        EvaluationPrompt(
            key=i,
            prompt=f"Name {i}. No commas.",
            prompt_without_instruction=f"Name {i}.",
            instruction_ids=("punctuation:no_comma",),
            kwargs=({},),
        )
        for i in range(n)
    ]


@pytest.fixture
def own(tiny_folder):
    """A model of the test's own, to be changed."""
    return load_model(tiny_folder, device="cpu")


@pytest.fixture
def on(monkeypatch):
    """A function that makes it another day for chat templates."""

    def day(number: int) -> None:
        class Today(datetime.datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(2026, 3, number)

        monkeypatch.setattr(chat_template_utils, "datetime", Today)

    return day


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]


def evaluated(model, folder, resume=False):
    return evaluate(model, prompts(), folder, None, SETTINGS, resume, show_progress=False)


def cached(model, folder):
    return shard_residuals(model, PAIRS, folder, pairs_per_shard=3, show_progress=False)


def plain_residuals(root, model, layer: int) -> torch.Tensor:
    """Residuals of the instructed prompts by plain `transformers`."""
    prompts = [chat_tokens(model.tokenizer, pair.instructed) for pair in PAIRS]
    return torch.stack([residuals(root, tokens)[layer] for tokens in prompts])


def test_an_edited_chat_template_refuses_to_resume_and_says_what_changed(own, tmp_path):
    evaluated(own, tmp_path / "run")
    own.tokenizer.chat_template = SHORT
    with pytest.raises(SteerlensError, match=r"other settings \(model\.chat_template_hash: was"):
        evaluated(own, tmp_path / "run", resume=True)
    own.tokenizer.chat_template = CHAT_TEMPLATE
    evaluated(own, tmp_path / "run", resume=True)


def test_an_edited_weight_and_another_tokenizer_refuse_to_resume(own, tmp_path):
    evaluated(own, tmp_path / "run")
    weight = own.original_model.model.layers[0].mlp.down_proj.weight.data
    kept = weight.clone()
    weight.mul_(1.1)
    with pytest.raises(SteerlensError, match=r'model\.weights_hash: was "sha256:.*now "edited:'):
        evaluated(own, tmp_path / "run", resume=True)
    weight.copy_(kept)
    own.tokenizer.add_tokens(["Name"])
    with pytest.raises(SteerlensError, match=r"model\.tokenizer_hash: was"):
        evaluated(own, tmp_path / "run", resume=True)


def test_a_date_in_the_template_lets_a_run_resume_computes_anew_and_is_recorded(own, on, tmp_path):
    own.tokenizer.chat_template = DATED
    on(1)
    evaluated(own, tmp_path / "run")
    first = rows(tmp_path / "run")
    on(2)
    evaluated(own, tmp_path / "run", resume=True)
    # The responses are those of a run begun that day,
    evaluated(own, tmp_path / "other")
    assert rows(tmp_path / "run") == rows(tmp_path / "other") != first
    # and the manifest says how prompts were read on both days.
    noted = read_manifest(tmp_path / "run").noted
    assert [entry["rendered"].splitlines()[0] for entry in noted] == ["01 March", "02 March"]
    # On the same day nothing is computed twice, and nothing new is noted.
    pieces = stored_pieces(tmp_path / "run")
    evaluated(own, tmp_path / "run", resume=True)
    assert stored_pieces(tmp_path / "run") == pieces
    assert read_manifest(tmp_path / "run").noted == noted


def test_a_piece_is_computed_from_the_tokens_it_is_named_by_whatever_the_day(own, on):
    own.tokenizer.chat_template = DATED
    on(1)
    expected = sl.generate(own, ["Name one."], max_new_tokens=8).texts
    answerer = Answerer(own)
    [piece] = answerer._pieces([Question("Name one.")], 8)
    on(2)
    assert [one["text"] for one in answerer._generate(piece)] == list(expected)
    # Pieces of residuals are refused rather than mixed.
    [piece] = residual_pieces(own, [PAIRS], "last_prompt", (0,), 4)
    on(3)
    with pytest.raises(SteerlensError, match="read as other tokens than when it was named"):
        piece.compute(own)


def test_a_run_that_names_no_template_is_resumed_and_names_it_from_then_on(own, tmp_path):
    # Given the folder of a version that did not name what it depends on,
    evaluated(own, tmp_path / "run")
    expected = rows(tmp_path / "run")
    file = tmp_path / "run" / "manifest.json"
    manifest = json.loads(file.read_text())
    for name in ("configuration_hash", "tokenizer_hash", "chat_template_hash", "switched"):
        del manifest["settings"]["model"][name]
    del manifest["noted"]
    file.write_text(json.dumps(manifest))
    # when it is resumed, then it gives the same answers and names the template;
    evaluated(own, tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == expected
    assert "chat_template_hash" in read_manifest(tmp_path / "run").settings["model"]
    # an edited one is refused from then on.
    own.tokenizer.chat_template = SHORT
    with pytest.raises(SteerlensError, match="chat_template_hash"):
        evaluated(own, tmp_path / "run", resume=True)


def test_shards_are_computed_anew_after_an_edit_in_place(own, tiny_folder, tmp_path):
    first = cached(own, tmp_path)
    own.original_model.model.layers[0].mlp.down_proj.weight.data.mul_(1.3)
    second = cached(own, tmp_path)
    root = load_plain(tiny_folder)
    root.model.layers[0].mlp.down_proj.weight.data.mul_(1.3)
    expected = plain_residuals(root, own, layer=1)
    torch.testing.assert_close(second.layer(1).instructed[:, 0], expected, rtol=1e-4, atol=1e-4)
    assert second.metadata["weights_hash"] != first.metadata["weights_hash"]
    with pytest.raises(SteerlensError, match="was written again since the index"):
        first.runs(1)


def test_shards_are_computed_anew_after_another_chat_template(own, tiny_folder, tmp_path):
    cached(own, tmp_path)
    own.tokenizer.chat_template = SHORT
    second = cached(own, tmp_path)
    root = load_plain(tiny_folder)
    torch.testing.assert_close(
        second.layer(0).instructed[:, 0], plain_residuals(root, own, layer=0), rtol=1e-4, atol=1e-4
    )


def test_shards_are_computed_anew_after_another_base_of_the_positions(own, tiny_folder, tmp_path):
    first = cached(own, tmp_path / "shards")
    turned = tmp_path / "turned"
    shutil.copytree(tiny_folder, turned)
    config = json.loads((turned / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 200.0
    (turned / "config.json").write_text(json.dumps(config))
    model = load_model(turned, device="cpu")
    second = cached(model, tmp_path / "shards")
    assert second.metadata["weights_hash"] == first.metadata["weights_hash"]
    assert second.metadata["configuration_hash"] != first.metadata["configuration_hash"]
    root = load_plain(turned)
    torch.testing.assert_close(
        second.layer(1).instructed[:, 0], plain_residuals(root, own, layer=1), rtol=1e-4, atol=1e-4
    )


def test_shards_are_computed_anew_in_compatibility_mode(gpt2_folder, tmp_path):
    model = load_model(gpt2_folder, device="cpu")
    first = cached(model, tmp_path).layer(1).instructed
    model.enable_compatibility_mode()
    second = cached(model, tmp_path).layer(1).instructed[:, 0]
    ids = tokenize_prompts(model, [PAIRS[0].instructed])
    _, by_bridge = model.run_with_cache(torch.tensor(ids))
    torch.testing.assert_close(second[0], by_bridge["blocks.1.hook_resid_post"][0, -1])
    assert (second - first[:, 0]).norm() / first.norm() > 0.05


def test_what_is_computed_with_a_hook_is_never_taken_for_the_models_own(own, tmp_path):
    first = cached(own, tmp_path).layer(1).instructed
    block = own.original_model.model.layers[0]
    handle = block.register_forward_hook(lambda _module, _args, out: out * 1.5)
    assert naming_key(own) != naming_key(own)
    hooked = cached(own, tmp_path).layer(1).instructed
    handle.remove()
    assert not torch.allclose(first, hooked)
    torch.testing.assert_close(cached(own, tmp_path).layer(1).instructed, first)


def test_a_judges_numbers_are_kept_for_that_judge_only(own, tmp_path):
    judge, texts = Judge(own), ["The sea is wide.", "Yes."]
    with Run.open(tmp_path / "run", kind="evaluate", settings={}) as run:
        first = Answerer(own, run).perplexities(judge, texts, 64)
    own.original_model.model.norm.weight.data.mul_(0.5)
    with Run.open(tmp_path / "run", kind="evaluate", settings={}, resume=True) as run:
        second = Answerer(own, run).perplexities(judge, texts, 64)
    assert second == pytest.approx(judge.perplexities(texts)) != pytest.approx(first)


def test_one_answerer_sees_an_edit_between_two_questions(own):
    answerer = Answerer(own)
    first = answerer.ask([Question("Name one.")], 8)
    own.original_model.model.layers[2].mlp.down_proj.weight.data.mul_(-3)
    second = answerer.ask([Question("Name one.")], 8)
    assert second[0].text == sl.generate(own, ["Name one."], max_new_tokens=8).texts[0]
    assert second != first


def test_workers_are_not_asked_for_weights_that_only_this_process_has(own):
    own.original_model.model.norm.weight.data.mul_(0.5)
    words = "have been changed here since .* save the changed"
    with pytest.raises(SteerlensError, match=words), worker_pool(own, WorkerSettings(workers=1)):
        pass


def test_shards_made_before_are_opened_as_before(own, tmp_path):
    cached(own, tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    del index["contents"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert ShardedResiduals.open(tmp_path).runs(0).shape == (2, 6, 16)
