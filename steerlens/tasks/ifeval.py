"""IFEval's instruction checks, as lm-eval ships them, without the harness and without the network.

IFEval (Zhou et al., *Instruction-Following Evaluation for Large Language Models*, arXiv
2311.07911) decides by program whether a response follows an instruction. The checks used here are
the files `lm_eval/tasks/ifeval/instructions*.py` of the installed lm-eval, unchanged:

    strict(response) = response is not blank, and the check accepts it
    loose(response)  = strict(r) for any r of `loose_variants(response)`: the response, without its
                       first line, last line or both, each with and without asterisks

Importing lm-eval's own package takes seconds and asks the network for NLTK data. So the files are
run as private modules (`steerlens.models.adapter.lm_eval`) with three imports replaced:

* `nltk`: sentences and words are split with the English `punkt_tab` data if they are on this
  machine, else with the same Punkt algorithm and this module's lists;
* `langdetect`: a detector with seed 0, so that a verdict does not change from call to call;
* `random`: a generator with seed 0. lm-eval draws arguments at random when they are missing (which
  `check` refuses) or unusable, such as the letter "#" of some IFEval rows (which it must accept).

Caveat: on 4,236 paragraphs of English software documentation the two splitters counted alike in
95 % (99 % of those without "e.g.", "i.e." and "etc.", after which the trained data end a sentence
and the list here does not).

>>> check("length_constraints:number_words", "One two three", {"relation": "less than",
...       "num_words": 3})
False
>>> count_sentences("Dr. Smith went home. She slept.")
2
"""

import functools
import importlib
import logging
import random
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from steerlens.errors import SteerlensError, unknown_name
from steerlens.models.adapter.lm_eval import ifeval_module

__all__ = [
    "ABBREVIATIONS",
    "check",
    "count_sentences",
    "count_words",
    "known_ifeval_ids",
    "loose_variants",
    "required_kwargs",
    "sentence_spans",
]

# As Punkt stores them: lower-case, without the final period. Words that often end a sentence
# themselves ("no", "sun", "max") are left out, or two sentences would be counted as one.
_ABBREVIATIONS = """
    adj adm adv approx apr apt assn asst attn aug ave b.c b.c.e bldg blvd bros c.e a.d a.m ca capt
    cf cmdr co col comdr corp cpl dept dist dr e.g eds esp esq etc feb fri ft gen gov govt h.m hon
    i.e ibid inc incl jan jr lb lbs lt ltd maj messrs misc mr mrs ms mt mtn natl nos nov oct oz p.m
    p.s ph.d phd pl pp pres prof pvt q.v ret sen sens sept sgt sq sr st ste supt tel thu thurs tue
    tues u.k u.n u.s u.s.a univ v viz vol vols vs yd
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split())

# Words that, capitalised after an abbreviation or an ellipsis, begin a new sentence ("… at 5 p.m.
# The shop …"). Trained Punkt has such a list too.
_SENTENCE_STARTERS = """
    a after all also although an and another any as at because before both but by do don't each even
    every finally first for from he her here his how however i if in instead it it's its let many
    most my next no not now on once one or other our over remember second she since so some such
    that the their then there these they this those though thus to under until use we what when
    where which while who why with yet you your
"""
SENTENCE_STARTERS = frozenset(_SENTENCE_STARTERS.split())


class _OfflineNltk:
    """Stands in for `nltk` inside lm-eval's files; anything not named here is nltk's own."""

    def __init__(self) -> None:
        # lm-eval only asks whether `punkt_tab` is there, in order to download it.
        self.data = SimpleNamespace(find=lambda _resource: True)

    def word_tokenize(self, text: str) -> list[str]:
        nltk = importlib.import_module("nltk")
        sentences = (text[start:end] for start, end in sentence_spans(text))
        # `preserve_line` keeps nltk from looking for sentence data that may not be there.
        return [w for s in sentences for w in nltk.word_tokenize(s, preserve_line=True)]

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module("nltk"), name)


def _seeded_langdetect() -> SimpleNamespace:
    """`langdetect.detect` from a factory of our own, with seed 0; the user's is left alone."""
    langdetect = importlib.import_module("langdetect")
    factory = langdetect.DetectorFactory()
    factory.load_profile(langdetect.PROFILES_DIRECTORY)
    factory.set_seed(0)

    def detect(text: str) -> str:
        detector = factory.create()
        detector.append(text)
        return str(detector.detect())

    return SimpleNamespace(detect=detect, LangDetectException=langdetect.LangDetectException)


@functools.cache
def _checks() -> SimpleNamespace:
    """lm-eval's three files as private modules, each an attribute of the result."""
    package = SimpleNamespace()
    answers: dict[str, Any] = {
        "lm_eval.tasks.ifeval": package,
        "langdetect": _seeded_langdetect(),
        "nltk": _OfflineNltk(),
        "random": random.Random(0),
    }
    for stem in ("instructions_util", "instructions", "instructions_registry"):
        module = ifeval_module(stem, answers)
        setattr(package, stem, module)
        if stem == "instructions_util":
            module.__dict__["count_sentences"] = count_sentences
    package.random = answers["random"]
    # The checks log every text whose language cannot be detected ("42"), in full, as an error.
    logger = logging.getLogger("steerlens.tasks.ifeval")
    logger.addHandler(logging.NullHandler())
    package.instructions.logger = logger
    return package


@functools.cache
def _sentence_tokenizer() -> Any:
    """Trained English Punkt where its data are found, else Punkt with the lists above."""
    punkt = importlib.import_module("nltk.tokenize.punkt")
    try:
        return punkt.PunktTokenizer("english")
    except LookupError:
        parameters = punkt.PunktParameters()
        parameters.abbrev_types = set(ABBREVIATIONS)
        parameters.sent_starters = set(SENTENCE_STARTERS)
        return punkt.PunktSentenceTokenizer(parameters)


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """Start and end (exclusive, in characters) of each sentence of `text`, in order.

    >>> sentence_spans("Stop. Go on!")
    [(0, 5), (6, 12)]
    """
    spans = _sentence_tokenizer().span_tokenize(text)
    # Punkt leaves white space at the start of the text in the first span.
    return [(int(end) - len(text[start:end].lstrip()), int(end)) for start, end in spans]


def count_sentences(text: str) -> int:
    """Number of sentences as the sentence checks count them."""
    return len(sentence_spans(text))


def count_words(text: str) -> int:
    """Number of words as the word checks count them: runs of word characters.

    >>> count_words("don't stop")
    3
    """
    return int(_checks().instructions_util.count_words(text))


def known_ifeval_ids() -> tuple[str, ...]:
    """The ids of every check of the installed lm-eval, such as `"punctuation:no_comma"`."""
    return tuple(_checks().instructions_registry.INSTRUCTION_DICT)


def required_kwargs(ifeval_id: str) -> tuple[str, ...]:
    """Names of the arguments the check needs.

    >>> required_kwargs("length_constraints:number_words")
    ('num_words', 'relation')
    """
    return tuple(_checker(ifeval_id).get_instruction_args_keys())


def loose_variants(response: str) -> tuple[str, ...]:
    """The eight texts of which one must pass for a loose verdict, in lm-eval's order."""
    lines = response.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    without = [text.replace("*", "") for text in (response, *shorter)]
    return (response, without[0], *shorter, *without[1:])


def check(
    ifeval_id: str,
    response: str,
    kwargs: Mapping[str, Any],
    prompt: str | None = None,
    loose: bool = False,
) -> bool:
    """Whether `response` follows the instruction; a blank response never does.

    Args:
        ifeval_id: One of `known_ifeval_ids()`.
        response: The model's answer, without the prompt.
        kwargs: The check's arguments. None and other falsy values count as absent, as in lm-eval
            (IFEval's rows list every argument of every check).
        prompt: The user's prompt, for checks that compare with it.
        loose: Accept any of `loose_variants(response)`.

    Raises:
        UnknownNameError: The id is not known.
        SteerlensError: An argument is missing, not known to this check, or of a wrong kind.
    """
    checker = _checker(ifeval_id)
    arguments = {name: value for name, value in kwargs.items() if value}
    _validate_kwargs(ifeval_id, tuple(checker.get_instruction_args_keys()), arguments)
    _checks().random.seed(0)
    try:
        checker.build_description(**arguments)
        if "prompt" in (checker.get_instruction_args() or ()):
            checker.build_description(prompt=prompt)
        texts = loose_variants(response) if loose else (response,)
        return any(bool(text.strip() and checker.check_following(text)) for text in texts)
    except (TypeError, ValueError, LookupError, AttributeError, re.error) as error:
        raise SteerlensError(
            f"the check {ifeval_id!r} cannot use the arguments {arguments}: {error}"
        ) from error


def _checker(ifeval_id: str) -> Any:
    registry = _checks().instructions_registry.INSTRUCTION_DICT
    if ifeval_id not in registry:
        raise unknown_name("instruction", ifeval_id, registry)
    return registry[ifeval_id](ifeval_id)


def _validate_kwargs(
    ifeval_id: str, required: tuple[str, ...], arguments: Mapping[str, Any]
) -> None:
    """Refuse what lm-eval would fill in at random or fail on with a TypeError."""
    expected = f"it takes {', '.join(map(repr, required))}" if required else "it takes none"
    for name in required:
        if name not in arguments:
            raise SteerlensError(
                f"the check {ifeval_id!r} lacks the argument {name!r} "
                f"(given: {dict(arguments) or 'none'}); {expected}"
            )
    for name in arguments:
        if name not in required:
            raise SteerlensError(
                f"the check {ifeval_id!r} does not know the argument {name!r}; {expected}"
            )
