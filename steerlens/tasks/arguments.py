"""Arguments of instructions: drawing them, and wording them in a phrasing.

Arguments are exactly IFEval's, so a sampled dictionary can go to `steerlens.tasks.ifeval.check` or
into an IFEval-shaped file as it is. Phrasings speak as people do ("at most 50 words") where
IFEval's arguments speak as a program (`relation="less than", num_words=51`); `template_fields`
derives the words from the arguments:

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

__all__ = ["SAMPLERS", "WORDINGS", "Sampler", "fill_template", "template_fields"]

Sampler = Callable[[random.Random, BaseQuery], dict[str, Any]]

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


def _end_checker(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"end_phrase": rng.choice(END_PHRASES)}


def _postscript(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"postscript_marker": rng.choice(("P.S.", "P.P.S"))}


def _placeholders(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_placeholders": rng.randint(2, 5)}


def _bullets(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_bullets": rng.randint(2, 6)}


def _highlights(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_highlights": rng.randint(2, 5)}


def _sections(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {
        "section_spliter": rng.choice(("Section", "SECTION", "Part", "Chapter")),
        "num_sections": rng.randint(2, 5),
    }


def _capital_words(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"capital_frequency": rng.randint(3, 8), "capital_relation": "at least"}


def _sentences_at_most(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_sentences": rng.randint(2, 5) + 1, "relation": "less than"}


def _sentences_at_least(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_sentences": rng.randint(6, 12), "relation": "at least"}


def _words_at_most(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    limit = rng.choice((20, 30, 40, 50, 60, 80, 100))
    return {"num_words": limit + 1, "relation": "less than"}


def _words_at_least(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"num_words": rng.choice((80, 100, 120, 150, 200)), "relation": "at least"}


def _keywords(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"keywords": rng.sample(query.keywords, 2)}


def _forbidden_words(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {"forbidden_words": rng.sample(query.keywords, 2)}


def _keyword_frequency(rng: random.Random, query: BaseQuery) -> dict[str, Any]:
    return {
        "keyword": rng.choice(query.keywords),
        "frequency": rng.randint(2, 4),
        "relation": "at least",
    }


# Arguments that are words of the response; the others are numbers and relations.
WORDINGS = frozenset({"end_phrase", "forbidden_words", "keyword", "keywords", "postscript_marker"})

SAMPLERS: Mapping[str, Sampler] = {
    "startend:end_checker": _end_checker,
    "detectable_content:postscript": _postscript,
    "detectable_content:number_placeholders": _placeholders,
    "detectable_format:number_bullet_lists": _bullets,
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "change_case:capital_word_frequency": _capital_words,
    "length_constraints:number_sentences_at_most": _sentences_at_most,
    "length_constraints:number_sentences_at_least": _sentences_at_least,
    "length_constraints:number_words_at_most": _words_at_most,
    "length_constraints:number_words_at_least": _words_at_least,
    "keywords:existence": _keywords,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _keyword_frequency,
}


def template_fields(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments themselves and the words derived from them (see the table above)."""
    fields = dict(kwargs)
    for threshold in ("num_words", "num_sentences"):
        if kwargs.get("relation") == "less than" and threshold in kwargs:
            fields["limit"] = kwargs[threshold] - 1
    for frequency, relation in (
        ("frequency", "relation"),
        ("capital_frequency", "capital_relation"),
    ):
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
            given = ", ".join(map(repr, fields)) or "none"
            raise SteerlensError(
                f"the phrasing {template!r} needs the value {name!r}, which its arguments do not "
                f"give (given: {given})"
            )
        return str(fields[name])

    return re.sub(r"\{([a-z_]+)\}", value, template)


def _quoted(words: list[str]) -> str:
    """`"a"`, `"a" and "b"`, `"a", "b" and "c"`."""
    quoted = [f'"{word}"' for word in words]
    if len(quoted) < 2:
        return "".join(quoted)
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}"
