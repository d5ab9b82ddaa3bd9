"""Chat rendering: a user's message becomes the text, and the tokens, that a model reads.

An instruction-tuned model reads its own chat template, generation marker included; a base model (no
template) reads the plain format ``"Q: {text}\\nA:"``. An assistant's message at the end is left
open, for the model to go on with. Positions count from the rendered text, so everything that reads
or writes activations renders with `render_prompt` or `tokenize_prompts`.

What a user typed is text: the ``<|im_end|>`` of a question about chat templates does not end the
turn, unless ``control_tokens="keep"`` asks for it (`steerlens.models.control_tokens`).

>>> render_prompt(model, "Tell me about Rome.")[-14:]                        # doctest: +SKIP
'm_start|>assistant\\n'
"""

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jinja2
from transformer_lens.model_bridge import TransformerBridge

from steerlens.errors import ModelError, first_line, unknown_name
from steerlens.errors import arguments as checked
from steerlens.models.control_tokens import escaped_ids
from steerlens.models.conversations import Prompt, messages_of, prompt_of, token_ids_of
from steerlens.models.identity import attached_tokenizer, model_info

__all__ = ["end_token_ids", "render_prompt", "tokenize_prompts"]

PLAIN_FORMATS = {"system": "{text}\n\n", "user": "Q: {text}\n", "assistant": "A: {text}\n\n"}
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
    text = checked.text("the prompt", text, ModelError)
    if not text.strip():
        raise ModelError("the prompt is empty; give at least one character that is not a space")
    roles, contents = _messages(text, system)
    return _rendered(model, roles, contents, _chosen_format(model, chat_format))


def _messages(prompt: Prompt, system: str | None) -> tuple[tuple[str, ...], list[str]]:
    """Roles and contents of what is asked."""
    messages = messages_of(prompt)
    if system is not None:
        content = checked.text("the system message", system, ModelError)
        messages.insert(0, {"role": "system", "content": content})
    return tuple(m["role"] for m in messages), [m["content"] for m in messages]


def _rendered(
    model: TransformerBridge,
    roles: Sequence[str],
    contents: Sequence[str],
    chosen: Literal["template", "plain"],
) -> str:
    messages = list(zip(roles, contents, strict=True))
    goes_on = messages[-1][0] == "assistant"
    if chosen == "plain":
        parts = [PLAIN_FORMATS[role].format(text=text) for role, text in messages]
        return "".join(parts).removesuffix("\n\n") if goes_on else "".join([*parts, "A:"])
    try:
        rendered = attached_tokenizer(model).apply_chat_template(
            [{"role": role, "content": text} for role, text in messages],
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
    except (jinja2.TemplateError, ValueError) as error:
        name = model_info(model).reference
        raise ModelError(
            f"the chat template of {name} refuses this conversation: {first_line(error)}"
        ) from error
    return str(rendered)


def tokenize_prompts(
    model: TransformerBridge,
    prompts: Iterable[Prompt],
    chat_format: str = "auto",
    control_tokens: str = "escape",
    system: str | None = None,
) -> list[list[int]]:
    """Token ids of each prompt as the model reads it, rendered, unpadded.

    A template writes its own special tokens, so none are added; in the plain format a BOS token
    comes first if the model's tokenizer puts one. Token ids are read as they are.

    Args:
        model: The model whose tokenizer and format are used.
        prompts: Users' messages, conversations or token ids, in any iterable; see
            `steerlens.models.conversations`.
        chat_format: As in `render_prompt`.
        control_tokens: "escape" reads a control token that a prompt spells ("<|im_end|>") as
            text; "keep" lets it act.
        system: As in `render_prompt`.

    Raises:
        ModelError: "prompts is one string …", "entry 3 of prompts is …", "prompt 3 is empty …",
            "prompt 3 has 9000 tokens …", "prompt 3 is not valid Unicode …", "prompt 3 spells a
            control token …", "prompt 3 has the token id 70000 …", or as in `render_prompt` and
            `steerlens.models.conversations.conversation_of`.
        UnknownNameError: "unknown chat_format …", "unknown control_tokens …".
    """
    if isinstance(prompts, str):
        checked.texts("prompts", prompts, ModelError)
    asked = [prompt_of(prompt, f"entry {i} of prompts") for i, prompt in enumerate(prompts)]
    chosen = _chosen_format(model, chat_format)
    tokens: list[list[int]] = [[] for _ in asked]
    by_roles: dict[tuple[str, ...], list[tuple[int, list[str]]]] = {}
    for index, prompt in enumerate(asked):
        if ids := token_ids_of(prompt):
            tokens[index] = _known_ids(model, ids, index)
            continue
        roles, contents = _messages(prompt, system)
        for text in contents:
            if re.search("[\ud800-\udfff]", text):
                raise ModelError(f"prompt {index} is not valid Unicode text; give it in UTF-8")
            if not text.strip():
                raise ModelError(f"prompt {index} is empty; every prompt needs some text")
        by_roles.setdefault(roles, []).append((index, contents))
    prepended = []
    if chosen == "plain" and model_info(model).prepends_bos:
        prepended = [int(attached_tokenizer(model).bos_token_id)]
    for roles, group in by_roles.items():
        rows = escaped_ids(
            attached_tokenizer(model),
            [contents for _, contents in group],
            functools.partial(_rendered, model, roles, chosen=chosen),
            [f"prompt {index}" for index, _ in group],
            control_tokens,
        )
        for (index, _), row in zip(group, rows, strict=True):
            tokens[index] = [*prepended, *row]
    info = model_info(model)
    for index, ids in enumerate(tokens):
        if len(ids) > info.context_length:
            raise ModelError(
                f"prompt {index} has {len(ids)} tokens once rendered, and {info.reference} reads "
                f"at most {info.context_length}; shorten it"
            )
    return tokens


def _known_ids(model: TransformerBridge, ids: list[int], index: int) -> list[int]:
    n_known = int(model.cfg.d_vocab)
    unknown = next((i for i in ids if not 0 <= i < n_known), None)
    if unknown is not None:
        raise ModelError(
            f"prompt {index} has the token id {unknown}, and {model_info(model).reference} has "
            f"{n_known} tokens, counted from 0"
        )
    return ids


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
