"""What a model is asked: a text, a conversation, or token ids.

A **conversation** is a list of messages, ``{"role": "user", "content": "Hi."}``, with the roles
``system`` (first, if at all), ``user`` and ``assistant``. The model answers its last message; where
that is an assistant's, the model goes on with it, and the response is what it adds. A text is a
conversation of one message. Token ids are read as they are, without a template.

>>> prompts_of("Hi."), prompts_of([5, 7]), len(prompts_of(["Hi.", [5, 7]]))
(('Hi.',), ((5, 7),), 2)
>>> shown([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi."}])
'system: Be brief.\\nuser: Hi.'
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any

from steerlens.errors import ModelError

__all__ = [
    "ROLES",
    "Conversation",
    "Message",
    "Prompt",
    "asked_text",
    "continued",
    "conversation_before",
    "conversation_of",
    "messages_of",
    "prompt_of",
    "prompts_of",
    "read_conversation",
    "shown",
    "token_ids_of",
    "users_text",
    "with_asked_text",
]

Conversation = Sequence[Mapping[str, str]]
Prompt = str | Conversation | Sequence[int]
ROLES = ("system", "user", "assistant")


class Message(dict[str, str]):
    """A message of a checked conversation: a mapping that can be a key, so nothing changes it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash((self["role"], self["content"]))


def prompts_of(prompts: Any) -> tuple[Prompt, ...]:
    """The prompts of one prompt or many, each checked.

    Raises:
        ModelError: "prompts is a value of type int; …", "entry 3 of prompts is …", or as in
            `conversation_of`.
    """
    from steerlens.errors import arguments as checked  # slow to import

    if isinstance(prompts, str):
        return (checked.text("prompts", prompts, ModelError),)
    if isinstance(prompts, Mapping | bytes) or not isinstance(prompts, Iterable):
        checked.texts("prompts", prompts, ModelError)
    entries = list(prompts)
    if entries and (all(map(_is_mapping, entries)) or all(map(_is_number, entries))):
        return (prompt_of(entries, "prompts"),)
    return tuple(prompt_of(entry, f"entry {i} of prompts") for i, entry in enumerate(entries))


def prompt_of(prompt: Any, name: str = "prompt") -> Prompt:
    """One prompt, checked; raises as `prompts_of`."""
    from steerlens.errors import arguments as checked  # slow to import

    is_list = isinstance(prompt, Iterable) and not isinstance(prompt, str | bytes | Mapping)
    if not is_list or getattr(prompt, "ndim", 1) == 0:
        return checked.text(name, prompt, ModelError)
    parts = list(prompt)
    if parts and all(map(_is_number, parts)):
        what = f"every token id of {name}"
        return tuple(checked.whole_number(what, i, 0, ModelError) for i in parts)
    if all(map(_is_mapping, parts)):
        return conversation_of(parts, name)
    return checked.text(name, prompt, ModelError)


def conversation_of(messages: Iterable[Any], name: str, to_answer: bool = True) -> Conversation:
    """Messages, checked.

    Args:
        messages: Mappings with a role and a content.
        name: What they are called in sentences.
        to_answer: Whether the model answers next, so that the last message is not a system's.

    Raises:
        ModelError: "message 2 of … has the role 'bot'; choose one of …", a message that is empty or
            is none, a system message that is not the first, no message, or a system's as the last.
    """
    conversation = tuple(messages)
    if not conversation:
        raise ModelError(f"{name} holds no message and no token id")
    for i, message in enumerate(conversation):
        where = f"message {i} of {name}"
        if not _is_mapping(message) or set(message) != {"role", "content"}:
            raise ModelError(f'{where} is not of the form {{"role": "user", "content": "…"}}')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ModelError(f"{where} has the role {role!r}; choose one of {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ModelError(f"{where} has no text; give its content some")
        if role == "system" and i:
            raise ModelError(f"{where} is a system message, which can only be the first")
    if to_answer and conversation[-1]["role"] == "system":
        raise ModelError(
            f"the last message of {name} has the role 'system'; end with one of role 'user', which "
            "the model answers, or 'assistant', with which it goes on"
        )
    return tuple(Message(role=m["role"], content=str(m["content"])) for m in conversation)


def conversation_before(messages: Iterable[Any]) -> Conversation:
    """Messages, checked, that come before a user's; none is none. Raises as `conversation_of`."""
    before = tuple(messages)
    return conversation_of(before, "conversation", to_answer=False) if before else ()


def continued(before: Conversation, prompt: Prompt) -> Prompt:
    """The conversation that goes on with a user's message, or with others; `prompt` if it is empty.

    Raises:
        ModelError: The prompt is token ids, which no message can come before, or begins with a
            system message.
    """
    if not before:
        return prompt
    if token_ids_of(prompt):
        raise ModelError(
            "token ids are read as they are, so no message can come before them; leave out the "
            "conversation (--messages)"
        )
    return conversation_of((*before, *messages_of(prompt)), "the conversation with its prompt")


def asked_text(prompt: Prompt) -> str:
    """The text of the last user's message; empty for token ids."""
    texts = [m["content"] for m in messages_of(prompt) if m["role"] == "user"]
    return texts[-1] if texts else ""


def with_asked_text(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text in place of `asked_text`; one without a user's has no place."""
    if isinstance(prompt, str):
        return text
    messages = messages_of(prompt)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    messages[last] = Message(role="user", content=text)
    return tuple(messages)


def read_conversation(path: Path) -> Conversation:
    """Messages from a JSON file that holds a list of them.

    Raises:
        ModelError: A file without such a list, or as in `conversation_of`.
    """
    from steerlens.files.records import read_text  # slow to import

    try:
        messages = json.loads(read_text(path, "messages", ModelError))
    except ValueError as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    if not isinstance(messages, list):
        raise ModelError(f'{path} holds no list [{{"role": "user", "content": "…"}}, …]')
    return conversation_of(messages, str(path), to_answer=False)


def token_ids_of(prompt: Prompt) -> list[int]:
    """The token ids of a checked prompt that is some; none for a text or a conversation."""
    return [] if isinstance(prompt, str) else [i for i in prompt if isinstance(i, int)]


def messages_of(prompt: Prompt) -> list[Mapping[str, str]]:
    """The messages of a checked prompt that is a text or a conversation."""
    if isinstance(prompt, str):
        return [Message(role="user", content=prompt)]
    return [message for message in prompt if isinstance(message, Mapping)]


def shown(prompt: Prompt) -> str:
    """A prompt as one text, for tables and pages."""
    if isinstance(prompt, str):
        return prompt
    if ids := token_ids_of(prompt):
        return "token ids " + " ".join(map(str, ids))
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages_of(prompt))


def users_text(prompt: Prompt) -> str:
    """All that the user says, by which base queries are compared; for token ids as `shown`.

    What a system message or an answer repeats in every conversation makes no query like another.
    """
    texts = [m["content"] for m in messages_of(prompt) if m["role"] == "user"]
    return "\n".join(texts) or shown(prompt)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_number(value: Any) -> bool:
    """Whether a value may be a token id; tensors and arrays hold theirs as scalars."""
    is_text = isinstance(value, str | bytes)  # numpy's have dimensions as well
    return isinstance(value, Number) or (not is_text and getattr(value, "ndim", 1) == 0)
