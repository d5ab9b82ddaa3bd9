"""Tokens as text, for tables and pictures."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

__all__ = ["decoder", "token_table", "token_texts"]

# A character has at most four bytes, and a token before or after it may share some of them.
_LONGEST = 8


def token_table(tokens: Sequence[str], n_prompt: int) -> pd.DataFrame:
    """One row per token: position, token, role."""
    roles = ["prompt"] * n_prompt + ["response"] * (len(tokens) - n_prompt)
    return pd.DataFrame({"position": range(len(tokens)), "token": tokens, "role": roles})


def decoder(model: TransformerBridge) -> Callable[[int], str]:
    """A function from token ids to their text that decodes each id once."""
    tokenizer: Any = model.tokenizer

    @cache
    def decode(token: int) -> str:
        return str(tokenizer.decode([token]))

    return decode


def token_texts(model: TransformerBridge, tokens: Sequence[int]) -> tuple[str, ...]:
    """Each token's text, so that together they are the text.

    A character that takes several tokens (emoji, many scripts) belongs to the first of them; the
    others have none of their own.
    """
    tokenizer: Any = model.tokenizer
    decode = decoder(model)
    texts: list[str] = []
    while len(texts) < len(tokens):
        start = len(texts)
        text, n_joined = decode(tokens[start]), 1
        if "\ufffd" in text:
            for stop in range(start + 2, min(start + _LONGEST, len(tokens)) + 1):
                joined = str(tokenizer.decode(list(tokens[start:stop])))
                if "\ufffd" not in joined:
                    text, n_joined = joined, stop - start
                    break
        texts += [text, *[""] * (n_joined - 1)]
    return tuple(texts)
