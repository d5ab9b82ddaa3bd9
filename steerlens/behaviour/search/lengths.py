"""How long a response must be allowed to get before its length can be judged.

A response that was cut is longer than it looks: where an instruction sets an upper limit, it does
not count as keeping it, whatever the words so far.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from steerlens.tasks import Instruction

__all__ = ["limits_length", "tokens_to_tell"]

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

    >>> from steerlens.tasks import catalogue
    >>> tokens_to_tell(catalogue["length:brief"], [{}])
    75
    """
    if task.group != "length":
        return None
    low, high = task.word_band or (0, None)
    words = max((high or low, *(_words(one) for one in arguments)))
    return math.ceil(_TOKENS_A_WORD * words)


def limits_length(task: Instruction, arguments: Mapping[str, Any]) -> bool:
    """Whether responses must not get longer than something.

    >>> from steerlens.tasks import catalogue
    >>> limits_length(catalogue["length:brief"], {})
    True
    >>> limits_length(catalogue["length:extremely_verbose"], {})
    False
    """
    if task.group != "length":
        return False
    if task.word_band is not None:
        return task.word_band[1] is not None
    return arguments.get("relation") == "less than"


def _words(arguments: Mapping[str, Any]) -> int:
    """The length that arguments in the manner of IFEval ask for."""
    sentences = int(arguments.get("num_sentences") or 0)
    return max(int(arguments.get("num_words") or 0), _WORDS_A_SENTENCE * sentences)
