"""Chat rendering: prompts as the model's own template has them, and where answers end."""

from pathlib import Path

import pytest
from tiny_models import byte_tokenizer, write_tiny_folder
from tokenizers.processors import TemplateProcessing
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError, UnknownNameError
from steerlens.models.loading import (
    end_token_ids,
    load_model,
    model_info,
    render_prompt,
    tokenize_prompts,
)


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    """A tiny model without chat template whose tokenizer begins every text with BOS."""
    folder = write_tiny_folder(tmp_path_factory.mktemp("models") / "base", chat_template=None)
    tokenizer = byte_tokenizer(chat_template=None)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save_pretrained(folder)
    return load_model(folder, device="cpu")


def test_the_default_model_reads_its_own_chat_template(model: TransformerBridge) -> None:
    rendered = render_prompt(model, "Hi.", system="Be brief.")

    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_base_model_reads_the_plain_format(base_model: TransformerBridge) -> None:
    assert model_info(base_model).chat_format == "plain"
    assert render_prompt(base_model, "Why?") == "Q: Why?\nA:"
    assert render_prompt(base_model, "Why?", system="Be brief.") == "Be brief.\n\nQ: Why?\nA:"


def test_a_chat_model_reads_the_plain_format_when_asked(tiny_model: TransformerBridge) -> None:
    assert render_prompt(tiny_model, "Why?", "plain") == "Q: Why?\nA:"


def test_a_template_asked_of_a_base_model_is_refused(base_model: TransformerBridge) -> None:
    with pytest.raises(ModelError, match="has no chat template"):
        render_prompt(base_model, "Why?", "template")


def test_a_template_that_refuses_a_system_message_is_one_sentence(tmp_path: Path) -> None:
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )
    strict = load_model(write_tiny_folder(tmp_path, chat_template=template), device="cpu")

    with pytest.raises(ModelError, match="refuses this conversation: no system role"):
        render_prompt(strict, "Why?", system="Be brief.")


def test_an_unknown_chat_format_is_refused_with_the_known_ones(
    tiny_model: TransformerBridge,
) -> None:
    with pytest.raises(UnknownNameError, match="unknown chat_format 'templat'; did you mean"):
        render_prompt(tiny_model, "Why?", "templat")


# Tokens


def test_tokens_are_those_of_the_template_without_a_second_bos(model: TransformerBridge) -> None:
    prompts = ["Tell me about Rome.", "Où est Zürich? 你好"]

    tokens = tokenize_prompts(model, prompts)

    expected = [
        model.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=False,
        )
        for prompt in prompts
    ]
    assert tokens == expected


def test_the_plain_format_begins_with_bos_where_the_tokenizer_does(
    base_model: TransformerBridge, tiny_model: TransformerBridge
) -> None:
    base = tokenize_prompts(base_model, ["Why?"])[0]
    chat = tokenize_prompts(tiny_model, ["Why?"], "plain")[0]

    assert base == base_model.tokenizer("Q: Why?\nA:")["input_ids"]
    assert base == [1, *chat]


def test_no_prompts_give_no_tokens(tiny_model: TransformerBridge) -> None:
    assert tokenize_prompts(tiny_model, []) == []


def test_a_prompt_may_fill_the_context_and_not_exceed_it(tiny_model: TransformerBridge) -> None:
    frame = len(tokenize_prompts(tiny_model, ["a"])[0]) - 1
    filling = "a" * (128 - frame)

    assert len(tokenize_prompts(tiny_model, ["b", filling])[1]) == 128
    with pytest.raises(ModelError, match=r"prompt 1 has 129 tokens .* at most 128"):
        tokenize_prompts(tiny_model, ["b", filling + "a"])


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_an_empty_prompt_is_refused_by_its_number(
    empty: str, tiny_model: TransformerBridge
) -> None:
    with pytest.raises(ModelError, match="prompt 1 is empty"):
        tokenize_prompts(tiny_model, ["a", empty])
    with pytest.raises(ModelError, match="the prompt is empty"):
        render_prompt(tiny_model, empty)


def test_one_string_is_not_a_list_of_prompts(tiny_model: TransformerBridge) -> None:
    with pytest.raises(ModelError, match="give a list of strings"):
        tokenize_prompts(tiny_model, "Why?")


def test_end_tokens_come_from_tokenizer_generation_config_and_template(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    loaded = load_model(folder, device="cpu")
    loaded.original_model.config.eos_token_id = 0
    loaded.original_model.generation_config.eos_token_id = [0, 40]

    # 0 from tokenizer and configs, 40 from the list, 2 because the template ends turns with it
    assert end_token_ids(loaded) == {0, 40, 2}


def test_the_default_model_ends_an_answer_with_its_turn_token(model: TransformerBridge) -> None:
    assert end_token_ids(model) == {model.tokenizer.convert_tokens_to_ids("<|im_end|>")}
