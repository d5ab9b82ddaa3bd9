"""Phrasings and base queries as they are given: checked, and quoted in messages."""

from collections.abc import Iterable, Sequence
from typing import Any

from steerlens.errors import ModelError, SteerlensError
from steerlens.models.conversations import Prompt, asked_text, prompt_of, shown

__all__ = ["excerpt", "query_list", "text_list"]


def excerpt(text: str) -> str:
    """The beginning of a text, for messages."""
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def text_list(what: str, texts: object) -> list[str]:
    """Texts of one kind, at least one, none blank or twice.

    Raises:
        SteerlensError: "phrasing 2 must be a text, but is …", "the phrasing … was given twice".
    """
    listed = _listed(what, texts)
    for number, text in enumerate(listed, 1):
        if not isinstance(text, str) or not text.strip():
            raise SteerlensError(f"{what} {number} must be a text, but is {text!r}")
    return _distinct(what, listed)


def query_list(queries: object) -> list[Prompt]:
    """Base queries, each a text or a conversation.

    Raises:
        SteerlensError: As `text_list`, a conversation that is none, or a query without a user's
            message that a phrasing could be added to, such as token ids.
    """
    listed = _listed("query", queries)
    return _distinct("query", [_query(query, number) for number, query in enumerate(listed, 1)])


def _query(query: object, number: int) -> Prompt:
    is_list = isinstance(query, Sequence) and not isinstance(query, str | bytes)
    if not is_list and not (isinstance(query, str) and query.strip()):
        raise SteerlensError(f"query {number} must be a text or a conversation, but is {query!r}")
    try:
        prompt = prompt_of(query, f"query {number}")
    except ModelError as error:
        raise SteerlensError(str(error)) from error
    if not asked_text(prompt):
        raise SteerlensError(
            f"query {number} has no user's message that a phrasing could be added to; give pairs "
            "with and without the instruction (Task.from_pairs)"
        )
    return prompt


def _listed(what: str, texts: object) -> list[Any]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise SteerlensError(f"a list of texts is needed (one {what} each), but got {texts!r}")
    return list(texts)


def _distinct(what: str, listed: list[Any]) -> list[Any]:
    twice = next((text for i, text in enumerate(listed) if text in listed[:i]), None)
    if twice is not None:
        raise SteerlensError(f"the {what} {excerpt(shown(twice))} was given twice; give each once")
    if not listed:
        raise SteerlensError(f"at least one {what} is needed, but none was given")
    return listed
