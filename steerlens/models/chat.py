"""Chat rendering: a user's message becomes the text, and the tokens, that a model reads.

An instruction-tuned model reads its own chat template, generation marker included; a base model (no
template) reads the plain format ``"Q: {text}\\nA:"``. Positions count from the rendered text, so
everything that reads or writes activations renders with `render_prompt` or `tokenize_prompts`.

What a user typed is text: the ``<|im_end|>`` of a question about chat templates does not end the
turn, unless ``control_tokens="keep"`` asks for it (`steerlens.models.control_tokens`).

>>> render_prompt(model, "Tell me about Rome.")[-14:]                        # doctest: +SKIP
'm_start|>assistant\\n'
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jinja2
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError, first_line, unknown_name
from steerlens.errors import arguments as checked
from steerlens.models.control_tokens import escaped_ids
from steerlens.models.identity import attached_tokenizer, model_info

__all__ = ["end_token_ids", "render_prompt", "tokenize_prompts"]

PLAIN_FORMAT = "Q: {text}\nA:"
CHAT_FORMATS = ("auto", "template", "plain")


def render_prompt(
    model: TransformerBridge, text: str, chat_format: str = "auto", system: str | None = None
) -> str:
    """The text that the model reads for a user's message, up to where its answer begins.

    Args:
        model: The model whose format is used.
        text: The user's message.
        chat_format: "template" (the model's chat template), "plain" (``"Q: {text}\\nA:"``), or
            "auto": the template if the model has one.
        system: A system message; in the plain format it comes first, then a blank line.

    Raises:
        ModelError: "the prompt is empty …", "… has no chat template …", or "the chat template of
            … refuses this conversation: …".
        UnknownNameError: "unknown chat_format …".
    """
    contents = [checked.text("the prompt", text, ModelError)]
    if system is not None:
        contents.append(checked.text("the system message", system, ModelError))
    if not text.strip():
        raise ModelError("the prompt is empty; give at least one character that is not a space")
    return _rendered(model, contents, _chosen_format(model, chat_format))


def _rendered(
    model: TransformerBridge, contents: Sequence[str], chosen: Literal["template", "plain"]
) -> str:
    text, *system = contents
    if chosen == "plain":
        return "\n\n".join([*system, PLAIN_FORMAT.format(text=text)])
    messages = [{"role": "system", "content": message} for message in system]
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
    model: TransformerBridge,
    prompts: Iterable[str],
    chat_format: str = "auto",
    control_tokens: str = "escape",
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of each prompt as the model reads it, rendered, unpadded.

    A template writes its own special tokens, so none are added; in the plain format a BOS token
    comes first if the model's tokenizer puts one.

    Args:
        model: The model whose tokenizer and format are used.
        prompts: Users' messages, in any iterable of strings.
        chat_format: As in `render_prompt`.
        control_tokens: "escape" reads a control token that a prompt spells ("<|im_end|>") as
            text; "keep" lets it act.
        system: As in `render_prompt`.

    Raises:
        ModelError: "prompts is one string …", "entry 3 of prompts is …", "prompt 3 is empty …",
            "prompt 3 has 9000 tokens …", "prompt 3 is not valid Unicode …", "prompt 3 spells a
            control token …", or as in `render_prompt`.
        UnknownNameError: "unknown chat_format …", "unknown control_tokens …".
    """
    texts = checked.texts("prompts", prompts, ModelError)
    more = [] if system is None else [checked.text("the system message", system, ModelError)]
    for index, text in enumerate(texts):
        if re.search("[\ud800-\udfff]", text):
            raise ModelError(f"prompt {index} is not valid Unicode text; give it in UTF-8")
        if not text.strip():
            raise ModelError(f"prompt {index} is empty; every prompt needs some text")
    chosen = _chosen_format(model, chat_format)
    tokens = escaped_ids(
        attached_tokenizer(model),
        [[text, *more] for text in texts],
        lambda contents: _rendered(model, contents, chosen),
        [f"prompt {index}" for index in range(len(texts))],
        control_tokens,
    )
    info = model_info(model)
    if chosen == "plain" and info.prepends_bos:
        tokens = [[int(attached_tokenizer(model).bos_token_id), *ids] for ids in tokens]
    for index, ids in enumerate(tokens):
        if len(ids) > info.context_length:
            raise ModelError(
                f"prompt {index} has {len(ids)} tokens once rendered, and {info.reference} reads "
                f"at most {info.context_length}; shorten it"
            )
    return tokens


def end_token_ids(model: TransformerBridge) -> frozenset[int]:
    """Ids of the tokens that end an answer.

    They are the end-of-text tokens of the tokenizer and of the generation and model configurations,
    and the special token that the chat template puts after an answer.
    """
    tokenizer = attached_tokenizer(model)
    hf_model: Any = model.original_model
    end: set[int] = set()
    for holder in (tokenizer, getattr(hf_model, "generation_config", None), hf_model.config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None:
            end.update([ids] if isinstance(ids, int) else ids)
    if tokenizer.chat_template:
        end |= _turn_end(tokenizer)
    return frozenset(int(token) for token in end)


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
    """The special token right after an answer in the chat template; empty if there is none."""
    answer = "steerlens"
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    try:
        rendered = str(tokenizer.apply_chat_template(conversation, tokenize=False))
    except jinja2.TemplateError:  # a template for single questions ends nothing
        return set()
    after = rendered.rpartition(answer)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"]
    return set(ids[:1]) & set(tokenizer.all_special_ids)
