"""Rewrites: turning any response into one that complies, keeping what it says.

Averaging activations over compliant and non-compliant versions of the same answer gives steering
vectors where asking the model does not (a small model asked for lowercase seldom writes it). So a
rewrite changes the form and leaves the words alone as far as it can: sentences are re-grouped,
letters re-cased, markers inserted. Only where a response is too short to hold what is demanded
(five bullets from "Yes.") is neutral text added. `Task.rewrite` checks the result.

There is no rewrite where content would have to be invented: another language, a minimum length.

>>> REWRITERS["punctuation:no_comma"]("Well, 1,000 apples, or so.", {})
'Well 1000 apples or so.'
"""

import itertools
import json
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from steerlens.errors import SteerlensError
from steerlens.tasks import ifeval
from steerlens.tasks.ifeval import count_words, sentence_spans

__all__ = ["REWRITERS", "Rewriter"]

Rewriter = Callable[[str, Mapping[str, Any]], str]

# Neutral text for responses too short to be divided or marked as often as asked.
FILLER = "that is the whole answer"

# IFEval's check asks a language detector for English, which errs on a few words such as "yes." Of
# twenty openings tried, these let 24 of 24 fragments ("No", "42", "$5") pass in both cases.
ENGLISH_FRAMES = (
    "I think that the answer is this: ",
    "That is what I think, and this is what I would say to you: ",
)

# Bullet, number or heading marks at the start of a line.
LINE_MARK = re.compile(r"^[ \t]*(?:[-*•+]+[ \t]+|\d+[.)][ \t]+|#+[ \t]+)", re.MULTILINE)


def _recase(text: str, upper: bool) -> str:
    """The text in one case; framed where it is too short or odd to be detected as English."""
    check_id = f"change_case:english_{'capital' if upper else 'lowercase'}"
    candidates = (_one_case(frame + text, upper) for frame in ("", *ENGLISH_FRAMES))
    return next((c for c in candidates if ifeval.check(check_id, c, {})), text)


def _one_case(text: str, upper: bool) -> str:
    convert = str.upper if upper else str.lower

    def wrong(char: str) -> bool:
        other_case = char.islower() if upper else char.isupper()
        return other_case or unicodedata.category(char) == "Lt"

    converted = convert(text)
    if any(map(wrong, converted)):
        # Letters such as mathematical capitals change case only as their plain equivalents; what
        # still does not (the letter ĸ) has no counterpart and is left out.
        converted = convert(unicodedata.normalize("NFKC", converted))
    return "".join(char for char in converted if not wrong(char))


def _capital_words(response: str, kwargs: Mapping[str, Any]) -> str:
    frequency = int(kwargs["capital_frequency"])
    if kwargs["capital_relation"] == "less than":
        return re.sub(
            r"\w+", lambda word: word[0].lower() if word[0].isupper() else word[0], response
        )
    # Two more than asked: a word may be split by the check's tokenizer ("wanna").
    return _mark_words(response, frequency + 2, str.upper, FILLER.upper())


def _no_comma(response: str, kwargs: Mapping[str, Any]) -> str:
    without_thousands = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", response)
    return re.sub(r",(?=\S)", " ", without_thousands).replace(",", "")


def _title(response: str, kwargs: Mapping[str, Any]) -> str:
    first_line = response.strip().split("\n")[0]
    words = re.findall(r"[\w'\u2019-]+", first_line)[:6]
    return f"<<{string.capwords(' '.join(words)) or 'Answer'}>>\n\n{response.strip()}"


def _sections(response: str, kwargs: Mapping[str, Any]) -> str:
    parts = _divide(response, int(kwargs["num_sections"]))
    marker = kwargs["section_spliter"]
    return "\n\n".join(f"{marker} {i}\n{part}" for i, part in enumerate(parts, start=1))


def _highlights(response: str, kwargs: Mapping[str, Any]) -> str:
    # Asterisks already there (list marks, bold) would pair up with the new ones.
    plain = re.sub(r"^([ \t]*)\*(?=[ \t])", r"\1-", response, flags=re.MULTILINE).replace("*", "")
    n = int(kwargs["num_highlights"])
    return _mark_words(plain, n, lambda word: f"*{word}*", f"*{FILLER}*")


def _placeholders(response: str, kwargs: Mapping[str, Any]) -> str:
    plain = response.replace("[", "(").replace("]", ")")
    n = int(kwargs["num_placeholders"])
    return _mark_words(plain, n, lambda word: f"[{word}]", "[detail]")


def _constrained(response: str, kwargs: Mapping[str, Any]) -> str:
    first = re.match(r"\W*(yes|no)\b", response, flags=re.IGNORECASE)
    option = first[1].lower() if first else "maybe"
    return f"My answer is {option}. {response.strip()}"


def _postscript(response: str, kwargs: Mapping[str, Any]) -> str:
    text = response.strip()
    start = _item_spans(text)[-1][0]
    if start == 0:
        return f"{text}\n\n{kwargs['postscript_marker']} {FILLER.capitalize()}."
    last = LINE_MARK.sub("", text[start:].lstrip())
    return f"{text[:start].rstrip()}\n\n{kwargs['postscript_marker']} {last}"


def _two_responses(response: str, kwargs: Mapping[str, Any]) -> str:
    # Runs of six asterisks in the response would count as separators.
    text = re.sub(r"\*{6,}", "***", response.strip())
    spans = _item_spans(text)
    middle = spans[len(spans) // 2][0] if len(spans) > 1 else 0
    first, second = text[:middle].strip() or text, text[middle:].strip()
    # A model that repeats itself gives two equal halves, and equal responses do not count as two.
    return f"{first}\n\n******\n\n{'In other words: ' * (first == second)}{second}"


def _truncate_sentences(response: str, kwargs: Mapping[str, Any]) -> str:
    limit = int(kwargs["num_sentences"]) - 1
    text = response.strip()
    spans = sentence_spans(text)
    if limit < 1:
        raise SteerlensError("a response cannot be cut to fewer than one sentence")
    return text[: spans[limit - 1][1]]


def _first_words(response: str, limit: int) -> str:
    """At most `limit` words: the whole sentences that fit, or the start of the first one."""
    if limit < 1:
        raise SteerlensError("a response cannot be cut to fewer than one word")
    text = response.strip()
    ends = [end for _, end in sentence_spans(text) if count_words(text[:end]) <= limit]
    if ends and count_words(text[: ends[-1]]) > 0:
        return text[: ends[-1]]
    words = list(re.finditer(r"\w+", text))[:limit]
    return f"{text[: words[-1].end()]}." if words else text


def _include_keywords(response: str, kwargs: Mapping[str, Any]) -> str:
    missing = [w for w in kwargs["keywords"] if not re.search(w, response, flags=re.IGNORECASE)]
    return f"{response.rstrip()} This also has to do with {' and '.join(missing)}."


def _forbid_words(response: str, kwargs: Mapping[str, Any]) -> str:
    forbidden = list(kwargs["forbidden_words"])
    substitute = _substitute(forbidden)
    for word in forbidden:
        response = re.sub(rf"\b{word}\b", substitute, response, flags=re.IGNORECASE)
    return response


def _keyword_frequency(response: str, kwargs: Mapping[str, Any]) -> str:
    keyword, frequency = kwargs["keyword"].strip(), int(kwargs["frequency"])
    present = len(re.findall(keyword, response, flags=re.IGNORECASE))
    if kwargs["relation"] == "less than":
        keep = iter(range(frequency - 1))
        substitute = _substitute([keyword])
        return re.sub(
            keyword,
            lambda match: substitute if next(keep, None) is None else match[0],
            response,
            flags=re.IGNORECASE,
        )
    return f"{response.rstrip()} In a word: {', '.join([keyword] * (frequency - present))}."


def _substitute(avoid: list[str]) -> str:
    lowered = {word.lower() for word in avoid}
    return next(word for word in ("this", "it", "that", "one", "such", "") if word not in lowered)


def _mark_words(text: str, n_marks: int, mark: Callable[[str], str], filler: str) -> str:
    """Mark the `n_marks` longest words of letters, in place; append fillers if there are fewer."""
    words = [m for m in re.finditer(r"\b[^\W\d_]{2,}\b", text) if mark(m[0]) != m[0]]
    chosen = sorted(sorted(words, key=lambda m: -len(m[0]))[:n_marks], key=lambda m: m.start())
    for match in reversed(chosen):
        text = f"{text[: match.start()]}{mark(match[0])}{text[match.end() :]}"
    return " ".join([text.rstrip(), *[filler] * (n_marks - len(chosen))])


def _item_spans(text: str) -> list[tuple[int, int]]:
    """Sentences as spans, where a list's number ("2.") belongs to the sentence behind it."""
    spans: list[tuple[int, int]] = []
    number_start: int | None = None
    for start, end in sentence_spans(text):
        first = start if number_start is None else number_start
        number = re.search(r"(?:^|\n)[ \t]*\d+[.)]$", text[first:end])
        number_start = first + number.start() if number else None
        if first < (last := end if number_start is None else number_start):
            spans.append((first, last))
    if number_start is not None:
        spans.append((number_start, len(text)))
    return spans


def _divide(response: str, n_parts: int) -> list[str]:
    """Exactly `n_parts` one-line texts: whole sentences if there are enough, else groups of words.

    Marks of lists and headings at the start of lines are dropped; the new form takes their place.
    """
    text = LINE_MARK.sub("", response.strip())
    units = [" ".join(text[a:b].split()) for a, b in _item_spans(text)]
    units = [unit for unit in (u.lstrip("-*• ") for u in units) if unit]
    if len(units) < n_parts:
        units = " ".join(units).split()
    if len(units) < n_parts:
        units += [FILLER] * (n_parts - len(units))
    bounds = [round(i * len(units) / n_parts) for i in range(n_parts + 1)]
    groups = [" ".join(units[a:b]) for a, b in itertools.pairwise(bounds)]
    return [group.lstrip("-*• ") or FILLER for group in groups]


REWRITERS: Mapping[str, Rewriter] = {
    "change_case:english_lowercase": lambda text, _: _recase(text, upper=False),
    "change_case:english_capital": lambda text, _: _recase(text, upper=True),
    "change_case:capital_word_frequency": _capital_words,
    "punctuation:no_comma": _no_comma,
    "detectable_format:json_format": lambda text, _: json.dumps(
        {"response": text.strip()}, ensure_ascii=False, indent=2
    ),
    "detectable_format:title": _title,
    "startend:quotation": lambda text, _: '"' + text.strip().replace('"', "'") + '"',
    "detectable_format:number_bullet_lists": lambda text, kwargs: "\n".join(
        f"* {part}" for part in _divide(text, int(kwargs["num_bullets"]))
    ),
    "detectable_format:number_highlighted_sections": _highlights,
    "detectable_format:multiple_sections": _sections,
    "detectable_format:constrained_response": _constrained,
    "startend:end_checker": lambda text, kwargs: f"{text.strip()}\n\n{kwargs['end_phrase']}",
    "detectable_content:postscript": _postscript,
    "detectable_content:number_placeholders": _placeholders,
    "combination:two_responses": _two_responses,
    "length_constraints:number_sentences_at_most": _truncate_sentences,
    "length_constraints:number_words_at_most": lambda text, kwargs: _first_words(
        text, int(kwargs["num_words"]) - 1
    ),
    "length:extremely_brief": lambda text, _: _first_words(text, 15),
    "keywords:existence": _include_keywords,
    "keywords:forbidden_words": _forbid_words,
    "keywords:frequency": _keyword_frequency,
}
