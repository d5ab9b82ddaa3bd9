"""Chat rendering: a user's message becomes the text, and the tokens, that a model reads.

An instruction-tuned model reads its own chat template, generation marker included; a base model (no
template) reads the plain format ``"Q: {text}\\nA:"``. Positions count from this rendered text, so
everything that reads or writes activations renders with `render_prompt` or `tokenize_prompts`.

>>> render_prompt(model, "Tell me about Rome.")[-14:]                        # doctest: +SKIP
'm_start|>assistant\\n'
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

import jinja2
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError, first_line, unknown_name
from steerlens.identity import attached_tokenizer, model_info

__all__ = ["end_token_ids", "render_prompt", "tokenize_prompts"]

PLAIN_FORMAT = "Q: {text}\nA:"
CHAT_FORMATS = ("auto", "template", "plain")


def render_prompt(
    model: TransformerBridge, text: str, chat_format: str = "auto", system: str | None = None
) -> str:
    """The text the model reads for a user's message, up to where its answer begins.

    Args:
        model: The model whose format is used.
        text: The user's message.
        chat_format: "template" (the model's chat template with generation marker), "plain"
            (``"Q: {text}\\nA:"``), or "auto": the template if the model has one.
        system: A system message; in the plain format it stands above, a blank line between.

    Raises:
        ModelError: "the prompt is empty …", "… has no chat template …", or "the chat template of
            … refuses this conversation: …".
        UnknownNameError: "unknown chat_format …".
    """
    if not text.strip():
        raise ModelError("the prompt is empty; give at least one character that is not a space")
    if _chosen_format(model, chat_format) == "plain":
        plain = PLAIN_FORMAT.format(text=text)
        return plain if system is None else f"{system}\n\n{plain}"
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": text})
    try:
        rendered = attached_tokenizer(model).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        name = model_info(model).reference
        raise ModelError(
            f"the chat template of {name} refuses this conversation: {first_line(error)}"
        ) from error
    return str(rendered)


def tokenize_prompts(
    model: TransformerBridge, prompts: Sequence[str], chat_format: str = "auto"
) -> list[list[int]]:
    """Token ids of each prompt as the model reads it, rendered, unpadded.

    A template writes its own special tokens, so none are added; in the plain format a BOS token
    comes first where the model's tokenizer puts one.

    Args:
        model: The model whose tokenizer and format are used.
        prompts: Users' messages.
        chat_format: As in `render_prompt`.

    Returns:
        One list of ids a prompt, in order.

    Raises:
        ModelError: "prompt 3 is empty …", "prompt 3 has 9000 tokens …", "prompt 3 is not valid
            Unicode …", or as in `render_prompt`.
    """
    if isinstance(prompts, str):
        raise ModelError("prompts is one string; give a list of strings")
    for index, prompt in enumerate(prompts):
        if re.search("[\ud800-\udfff]", prompt):
            raise ModelError(f"prompt {index} is not valid Unicode text; give it in UTF-8")
        if not prompt.strip():
            raise ModelError(f"prompt {index} is empty; every prompt needs some text")
    if not prompts:
        return []
    rendered = [render_prompt(model, prompt, chat_format) for prompt in prompts]
    tokenizer = attached_tokenizer(model)
    tokens = [list(ids) for ids in tokenizer(rendered, add_special_tokens=False)["input_ids"]]
    info = model_info(model)
    if _chosen_format(model, chat_format) == "plain" and info.prepends_bos:
        tokens = [[int(tokenizer.bos_token_id), *ids] for ids in tokens]
    for index, ids in enumerate(tokens):
        if len(ids) > info.context_length:
            raise ModelError(
                f"prompt {index} has {len(ids)} tokens once rendered, and {info.reference} reads "
                f"at most {info.context_length}; shorten it"
            )
    return tokens


def end_token_ids(model: TransformerBridge) -> frozenset[int]:
    """Ids of the tokens that end an answer.

    The tokenizer's end-of-text token, those of the generation and model configurations (some
    models list several), and the special token the chat template puts after an answer.
    """
    tokenizer = attached_tokenizer(model)
    hf_model: Any = model.original_model
    found: set[int] = set()
    for holder in (tokenizer, getattr(hf_model, "generation_config", None), hf_model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            found.update([ids] if isinstance(ids, int) else ids)
    if tokenizer.chat_template:
        found |= _turn_end(tokenizer)
    return frozenset(int(token) for token in found)


def _chosen_format(model: TransformerBridge, chat_format: str) -> Literal["template", "plain"]:
    if chat_format not in CHAT_FORMATS:
        raise unknown_name("chat_format", chat_format, CHAT_FORMATS)
    has_template = bool(attached_tokenizer(model).chat_template)
    if chat_format == "template" and not has_template:
        raise ModelError(
            f"{model_info(model).reference} has no chat template (it is a base model); "
            "use chat_format='plain' or 'auto'"
        )
    return "template" if has_template and chat_format != "plain" else "plain"


def _turn_end(tokenizer: Any) -> set[int]:
    """The special token right after an answer in the chat template, if there is one."""
    answer = "steerlens"
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        rendered = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except jinja2.TemplateError:  # a template for single questions ends nothing
        return set()
    after = rendered.rpartition(answer)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return set(ids[:1]) & set(tokenizer.all_special_ids)
