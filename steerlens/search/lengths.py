"""How long a response must be allowed to get before its length can be judged."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.instructions import Instruction

__all__ = ["tokens_to_tell"]

# English text under the vocabularies of today's models has 1.2 to 1.4 tokens a word.
_TOKENS_A_WORD = 1.5
_WORDS_A_SENTENCE = 20


def tokens_to_tell(task: Instruction, arguments: Sequence[Mapping[str, Any]]) -> int | None:
    """Tokens after which it is plain whether a response has the wanted length.

    Args:
        task: The instruction.
        arguments: Its arguments for every prompt; the greatest length among them counts.

    Returns:
        ``None`` for an instruction that asks for no length.

    >>> from steerlens.instructions import catalogue
    >>> tokens_to_tell(catalogue["length:brief"], [{}])
    75
    """
    if task.group != "length":
        return None
    low, high = task.word_band or (0, None)
    words = max((high or low, *(_words(one) for one in arguments)))
    return math.ceil(_TOKENS_A_WORD * words)


def _words(arguments: Mapping[str, Any]) -> int:
    """The length that arguments in the manner of IFEval ask for."""
    sentences = int(arguments.get("num_sentences") or 0)
    return max(int(arguments.get("num_words") or 0), _WORDS_A_SENTENCE * sentences)
