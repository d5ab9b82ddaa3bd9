"""Arguments of instructions: drawing them, and wording them in a phrasing.

Arguments are exactly IFEval's. Phrasings speak as people do ("at most 50 words") where IFEval's
arguments speak as a program (`relation="less than", num_words=51`); `template_fields` derives the
words from the arguments:

=========== ===================================== ==========================================
field       derived from                          example
=========== ===================================== ==========================================
{limit}     num_words or num_sentences, minus 1   50
{amount}    a frequency and its relation          at least 3
{words}     keywords or forbidden_words           "sea" and "light"
=========== ===================================== ==========================================

Ranges are chosen so that an instruction is neither met by almost every answer nor out of reach of
a small model within a hundred or two tokens.

>>> template_fields({"relation": "less than", "num_words": 51})["limit"]
50
"""

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.tasks.queries import BaseQuery

__all__ = ["WORDINGS", "draw_arguments", "fill_template", "template_fields"]

Draw = Callable[[random.Random, BaseQuery], Any]

END_PHRASES = (
    "I hope this helps.",
    "That is all for now.",
    "Let me know how it goes.",
    "Thank you for reading.",
    "And that is that.",
    "Take care and good luck.",
    "Do you want to hear more?",
    "That is my final word.",
    "See you next time.",
    "What would you like to know next?",
    "End of the message.",
    "Have a wonderful day!",
)


def _choice(*options: Any) -> Draw:
    return lambda rng, query: rng.choice(options)


def _between(low: int, high: int) -> Draw:
    return lambda rng, query: rng.randint(low, high)


def _two_keywords(rng: random.Random, query: BaseQuery) -> list[str]:
    return rng.sample(query.keywords, 2)


# Arguments that are words of the response; the others are numbers and relations.
WORDINGS = frozenset({"end_phrase", "forbidden_words", "keyword", "keywords", "postscript_marker"})

# Task id -> its arguments in the order in which they are drawn; what is no function is fixed.
DRAWN: Mapping[str, Mapping[str, Draw | str]] = {
    "startend:end_checker": {"end_phrase": _choice(*END_PHRASES)},
    "detectable_content:postscript": {"postscript_marker": _choice("P.S.", "P.P.S")},
    "detectable_content:number_placeholders": {"num_placeholders": _between(2, 5)},
    "detectable_format:number_bullet_lists": {"num_bullets": _between(2, 6)},
    "detectable_format:number_highlighted_sections": {"num_highlights": _between(2, 5)},
    "detectable_format:multiple_sections": {
        "section_spliter": _choice("Section", "SECTION", "Part", "Chapter"),
        "num_sections": _between(2, 5),
    },
    "change_case:capital_word_frequency": {
        "capital_frequency": _between(3, 8),
        "capital_relation": "at least",
    },
    "length_constraints:number_sentences_at_most": {
        "num_sentences": _between(3, 6),
        "relation": "less than",
    },
    "length_constraints:number_sentences_at_least": {
        "num_sentences": _between(6, 12),
        "relation": "at least",
    },
    "length_constraints:number_words_at_most": {
        "num_words": _choice(21, 31, 41, 51, 61, 81, 101),
        "relation": "less than",
    },
    "length_constraints:number_words_at_least": {
        "num_words": _choice(80, 100, 120, 150, 200),
        "relation": "at least",
    },
    "keywords:existence": {"keywords": _two_keywords},
    "keywords:forbidden_words": {"forbidden_words": _two_keywords},
    "keywords:frequency": {
        "keyword": lambda rng, query: rng.choice(query.keywords),
        "frequency": _between(2, 4),
        "relation": "at least",
    },
}


def draw_arguments(task_id: str, rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    """Draw the arguments of a task for one query; empty for a task without any."""
    return {
        name: draw if isinstance(draw, str) else draw(rng, query)
        for name, draw in DRAWN.get(task_id, {}).items()
    }


def template_fields(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments themselves and the words derived from them (see the table above)."""
    fields = dict(kwargs)
    for threshold in ("num_words", "num_sentences"):
        if kwargs.get("relation") == "less than" and threshold in kwargs:
            fields["limit"] = kwargs[threshold] - 1
    for prefix in ("", "capital_"):
        frequency, relation = f"{prefix}frequency", f"{prefix}relation"
        if frequency in kwargs and relation in kwargs:
            wording = "fewer than" if kwargs[relation] == "less than" else kwargs[relation]
            fields["amount"] = f"{wording} {kwargs[frequency]}"
    for words in ("keywords", "forbidden_words"):
        if words in kwargs:
            fields["words"] = _quoted([str(word) for word in kwargs[words]])
    return fields


def fill_template(template: str, fields: Mapping[str, Any]) -> str:
    """Replace each `{name}` of `template` by its field; other braces stay as they are.

    Raises:
        SteerlensError: "the phrasing … needs the value 'limit', which its arguments do not give".

    >>> fill_template("At most {limit} words.", {"limit": 50})
    'At most 50 words.'
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in fields:
            names = ", ".join(map(repr, fields)) or "none"
            raise SteerlensError(
                f"the phrasing {template!r} needs the value {name!r}, which its arguments do not "
                f"give (given: {names})"
            )
        return str(fields[name])

    return re.sub(r"\{([a-z_]+)\}", value, template)


def _quoted(words: list[str]) -> str:
    """`"a"`, `"a" and "b"`, `"a", "b" and "c"`."""
    quoted = [f'"{word}"' for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
