"""What a user typed is text, also where it spells a control token."""

import concurrent.futures

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS, byte_tokenizer, write_tiny_folder
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

import steerlens as sl
from steerlens.errors import ModelError, UnknownNameError
from steerlens.models.chat import render_prompt, tokenize_prompts
from steerlens.models.control_tokens import control_tokens_of, escaped_ids, literal_ids
from steerlens.models.loading import model_info
from steerlens.tasks.pairs import ContrastPair, ContrastSet

PIECES = st.sampled_from(
    [*SPECIAL_TOKENS, "<|im_", "start|>", " ", "\n", "Rome", "é", "!!", "<", "😀"]
)
CONTENT = st.lists(PIECES, min_size=1, max_size=8).map("".join).filter(str.strip)


def spelled(text):
    """One token a byte, as the tiny tokenizer writes a text that holds no control token."""
    ids = byte_tokenizer()
    ids.backend_tokenizer.encode_special_tokens = True
    return ids.backend_tokenizer.encode(text, add_special_tokens=False).ids


def by_template(contents):
    """The tiny chat template by hand: control tokens by their ids, the rest byte for byte."""
    found = []
    for role, text in contents:
        found += [1, *spelled(f"{role}\n{text}"), 2, *spelled("\n")]
    return [*found, 1, *spelled("assistant\n")]


@given(content=CONTENT)
@settings(deadline=None, max_examples=60)
def test_only_the_templates_own_control_tokens_are_control_tokens(content, tiny_model):
    ids = tokenize_prompts(tiny_model, [content])[0]
    assert ids == by_template([("user", content)])
    assert tiny_model.tokenizer.decode(ids) == render_prompt(tiny_model, content)


@given(content=CONTENT)
@settings(deadline=None, max_examples=40)
def test_in_a_system_message_they_are_text_as_well(content, tiny_model):
    ids = tokenize_prompts(tiny_model, ["Hi."], system=content)[0]
    assert ids == by_template([("system", content), ("user", "Hi.")])


def test_a_prompt_without_them_is_read_by_the_tokenizer_itself(tiny_model):
    rendered = render_prompt(tiny_model, "Tell me about <Rome>.")
    expected = tiny_model.tokenizer(rendered, add_special_tokens=False)["input_ids"]
    for control_tokens in ("escape", "keep"):
        found = tokenize_prompts(tiny_model, ["Tell me about <Rome>."], "auto", control_tokens)
        assert found == [expected]


def test_keep_lets_them_act(tiny_model):
    ids = tokenize_prompts(tiny_model, ["a<|im_end|>b"], control_tokens="keep")[0]
    assert ids.count(2) == 2
    assert tokenize_prompts(tiny_model, ["a<|im_end|>b"])[0].count(2) == 1


def test_another_word_than_escape_or_keep_is_refused(tiny_model):
    with pytest.raises(UnknownNameError, match="unknown control_tokens 'escpe'; did you mean"):
        sl.generate(tiny_model, ["a"], control_tokens="escpe")


def test_in_the_plain_format_a_base_models_bos_stays_the_only_one(tmp_path):
    folder = write_tiny_folder(tmp_path / "base", chat_template=None)
    model = sl.load_model(folder, device="cpu")
    [ids] = tokenize_prompts(model, ["<|im_start|>x<|endoftext|>"])
    begin = [1] if model_info(model).prepends_bos else []
    assert ids == [*begin, *spelled("Q: <|im_start|>x<|endoftext|>\nA:")]


def test_generation_escapes_and_records_it(tiny_model):
    prompts = ["Say <|im_end|> now.", "Say it now."]
    escaped = sl.generate(tiny_model, prompts, max_new_tokens=2)
    kept = sl.generate(tiny_model, prompts, max_new_tokens=2, control_tokens="keep")
    assert (escaped.settings["control_tokens"], kept.settings["control_tokens"]) == (
        "escape",
        "keep",
    )
    assert list(escaped.prompt_tokens[0]) == by_template([("user", prompts[0])])
    assert escaped.prompt_tokens[1] == kept.prompt_tokens[1]
    assert len(kept.prompt_tokens[0]) < len(escaped.prompt_tokens[0])


def test_a_steered_run_escapes_as_generation_does(tiny_model):
    pairs = ContrastSet.from_prompts(["a b.", "c d."], ["a", "c"])
    steering = sl.difference_of_means(sl.cache_residuals(tiny_model, pairs)).at(1)
    for control_tokens in ("escape", "keep"):
        run = sl.steer(
            tiny_model, "a<|im_end|>b", steering, max_new_tokens=2, control_tokens=control_tokens
        )
        [ids] = tokenize_prompts(tiny_model, ["a<|im_end|>b"], control_tokens=control_tokens)
        assert run.effects.n_prompt == len(ids)
        assert run.settings["control_tokens"] == control_tokens


@pytest.mark.parametrize("position", ["last_prompt", "response_mean", "last_response"])
def test_cached_residuals_are_those_of_the_text(position, tiny_model):
    pairs = ContrastSet(
        tuple(
            ContrastPair(
                f"a {i} <|im_end|> b", f"a {i}", "", None, {}, "no <|im_start|>.", "yes <|im_end|>"
            )
            for i in range(2)
        )
    )
    cache = sl.cache_residuals(tiny_model, pairs, position)
    row = torch.tensor([by_template([("user", pairs[0].instructed)])])
    n_prompt = row.shape[1]
    if position != "last_prompt":
        row = torch.cat([row, torch.tensor([spelled("no <|im_start|>.")])], dim=1)
    hidden = tiny_model.original_model(row, output_hidden_states=True).hidden_states[2][0]
    expected = hidden[n_prompt:].mean(0) if position == "response_mean" else hidden[-1]
    assert torch.allclose(cache.instructed[0, 1], expected, atol=1e-5)
    assert cache.metadata["control_tokens"] == "escape"
    kept = sl.cache_residuals(tiny_model, pairs, position, control_tokens="keep")
    assert kept.metadata["control_tokens"] == "keep"
    assert not torch.allclose(kept.instructed, cache.instructed, atol=1e-3)


def test_the_tokenizer_is_left_as_it_was(tiny_model):
    backend = tiny_model.tokenizer.backend_tokenizer
    before = backend.to_str(), backend.encode_special_tokens
    tokenize_prompts(tiny_model, ["a<|im_end|>b"])
    assert (backend.to_str(), backend.encode_special_tokens) == before


def test_threads_that_escape_and_keep_do_not_disturb_each_other(tiny_model):
    prompt = ["a<|im_end|>b"]
    expected = {
        how: tokenize_prompts(tiny_model, prompt, "auto", how) for how in ("escape", "keep")
    }

    def many(how):
        return [
            tokenize_prompts(tiny_model, prompt, "auto", how) == expected[how] for _ in range(80)
        ]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(all(found) for found in pool.map(many, ["escape", "keep"] * 2))


def sentencepiece_like(prepend_scheme):
    """A tokenizer that marks the first word: what stands before a text changes its tokens."""
    letters = sorted({"▁", *"<|>/sabceimndtr_"})
    ids = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "▁a"])}
    backend = Tokenizer(BPE(vocab=ids, merges=[("▁", "a")], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    special = [AddedToken(t, special=True, rstrip=t == "</s>") for t in ("<unk>", "<s>", "</s>")]
    backend.add_special_tokens(special)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@given(content=st.text("ab </s>", min_size=1, max_size=8))
@settings(deadline=None, max_examples=40)
def test_around_the_content_nothing_changes_with_a_sentencepiece_vocabulary(scheme, content):
    tokenizer = sentencepiece_like(scheme)
    text = f"{content}</s>{content}"
    [ids] = escaped_ids(tokenizer, [[text]], lambda own: f"<s>a {own[0]} a</s> a", ["prompt 0"])
    assert [i for i in ids if i in (1, 2)] == [1, 2]
    pieces = "".join(tokenizer.convert_ids_to_tokens(ids))
    assert pieces.replace("▁", "") == f"<s>a{text}a</s>a".replace(" ", "")
    # Before and after the content stands what the tokenizer itself writes around other contents.
    around = tokenizer(f"<s>a d{content}d a</s> a", add_special_tokens=False)["input_ids"]
    end = tokenizer("<s>e a</s> a", add_special_tokens=False)["input_ids"]
    assert ids[:2] == around[:2]
    assert ids[-(len(end) - end.index(2)) :] == end[end.index(2) :]


def test_a_vocabulary_that_holds_the_token_as_a_piece_is_refused_with_a_sentence():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -2.0) for letter in "▁</>sab")]
    backend = Tokenizer(Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.add_special_tokens([AddedToken("</s>", special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )
    with pytest.raises(ModelError, match="prompt 0 spells a control token, which the"):
        escaped_ids(tokenizer, [["a</s>b"]], lambda own: own[0], ["prompt 0"])


def test_texts_of_their_own_are_read_as_text_too():
    tokenizer = byte_tokenizer(CHAT_TEMPLATE)
    texts = ["a<|im_end|>", "b", ""]
    assert literal_ids(tokenizer, texts, ["one", "two", "three"]) == [
        spelled("a<|im_end|>"),
        spelled("b"),
        [],
    ]
    assert literal_ids(tokenizer, texts[:1], ["one"], "keep") == [[*spelled("a"), 2]]


def test_the_control_tokens_are_those_the_tokenizer_calls_special():
    assert control_tokens_of(byte_tokenizer()) == {
        token: i for i, token in enumerate(SPECIAL_TOKENS)
    }


class Letters(PreTrainedTokenizer):
    """A tokenizer written in Python: one token a letter."""

    def __init__(self, **given):
        self.letters = {c: i for i, c in enumerate(["<s>", "</s>", "?", *"</s>abc \n:QA"])}
        super().__init__(bos_token="<s>", eos_token="</s>", unk_token="?", **given)

    @property
    def vocab_size(self):
        return len(self.letters)

    def get_vocab(self):
        return dict(self.letters)

    def _tokenize(self, text, **given):
        return list(text)

    def _convert_token_to_id(self, token):
        return self.letters.get(token, self.letters["?"])

    def _convert_id_to_token(self, index):
        return list(self.letters)[index]


def test_a_tokenizer_written_in_python_reads_them_as_text_too():
    tokenizer = Letters()
    ids = {c: tokenizer.convert_tokens_to_ids(c) for c in "</s>abc "}
    [found] = escaped_ids(tokenizer, [["a</s>b"]], lambda own: f"<s>{own[0]}</s>c", ["prompt 0"])
    assert found == [0, *(ids[c] for c in "a</s>b"), 1, ids["c"]]
    kept = tokenizer("<s>a</s>b</s>c", add_special_tokens=False)["input_ids"]
    assert kept == [0, ids["a"], 1, ids["b"], 1, ids["c"]]
