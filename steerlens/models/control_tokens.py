r"""Control tokens that a user typed are read as the text they are.

A tokenizer turns the text ``<|im_end|>`` into the token that ends a turn, whoever wrote it: the
chat template, or a user in a question about chat templates. By default
(``control_tokens="escape"``) only what the template wrote becomes a control token; typed by a user,
the same ten characters are read as ten characters. ``"keep"`` leaves the matter to the tokenizer.

**How.** In the contents each control token is replaced by a stand-in, one character of Unicode's
private use area; then the template is rendered. What spells a control token now was written by the
template, and is replaced by a mark; the stand-ins become the users' text again. A private copy of
the tokenizer knows the marks as tokens and reads everything else, control tokens included, as text.
At last each mark's id becomes the id it stands for. Before that the copy must read the text with
its stand-ins exactly as the tokenizer itself does.

Texts without a control token never come here, so their tokens are the tokenizer's own.

**Caveat.** Control tokens are those a tokenizer calls special. Some models have tokens with a
meaning that are not (Qwen's ``<think>``); typed by a user they stay what the tokenizer makes of
them.
"""

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from steerlens.errors import ModelError, unknown_name

__all__ = [
    "CONTROL_TOKENS",
    "check_control_tokens",
    "control_tokens_of",
    "holds_control_token",
    "literal_ids",
    "rendered_ids",
]

CONTROL_TOKENS = ("escape", "keep")
# Supplementary private use area A: 65,534 characters without a meaning.
_PRIVATE = range(0xF0000, 0xFFFFE)


def check_control_tokens(control_tokens: str) -> None:
    """Refuse anything but "escape" and "keep".

    Raises:
        UnknownNameError: "unknown control_tokens …".
    """
    if control_tokens not in CONTROL_TOKENS:
        raise unknown_name("control_tokens", str(control_tokens), CONTROL_TOKENS)


def control_tokens_of(tokenizer: Any) -> dict[str, int]:
    """Text and id of every token that the tokenizer calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): int(i) for i, token in added.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    found |= {str(token): int(i) for token, i in named if i is not None}
    return {token: i for token, i in found.items() if token}


def holds_control_token(tokens: Iterable[str], texts: Iterable[str]) -> bool:
    """Whether one of the texts spells a control token."""
    held = list(tokens)
    return any(token in text for text in texts for token in held)


def rendered_ids(
    tokenizer: Any,
    contents: Sequence[Sequence[str]],
    render: Callable[[Sequence[str]], str],
    names: Sequence[str],
) -> list[list[int]]:
    """Token ids of rendered texts whose contents spell control tokens.

    Args:
        tokenizer: The model's tokenizer, left as it is.
        contents: What people wrote, for each text.
        render: Makes the whole text of its contents.
        names: What each text is, for messages ("prompt 3").

    Raises:
        ModelError: "… spells a control token, which the tokenizer … cannot read as plain text …".
    """
    if not contents:
        return []
    known = control_tokens_of(tokenizer)
    unused = _unused([one for own in contents for one in own], 2 * len(known))
    stand_ins = dict(zip(known, unused[: len(known)], strict=True))
    typed = {stand_in: token for token, stand_in in stand_ins.items()}
    encode = _encoder(tokenizer, known, dict(zip(known, unused[len(known) :], strict=True)))
    rows = []
    for own, name in zip(contents, names, strict=True):
        masked = render([_replaced(text, stand_ins) for text in own])
        parts = re.split(f"({_pattern(known)})", masked)
        ids = encode(_with(parts, typed))
        # The way round the tokenizer must arrive, with the stand-ins, where the tokenizer does.
        usual = [int(i) for i in tokenizer(masked, add_special_tokens=False)["input_ids"]]
        if encode(parts) != usual or not _only_written(tokenizer, known, ids, parts):
            raise _refusal(tokenizer, name)
        rows.append(ids)
    return rows


def literal_ids(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], control_tokens: str = "escape"
) -> list[list[int]]:
    """Token ids of texts on their own (responses), without a template and without BOS.

    Args:
        tokenizer: The model's tokenizer, left as it is.
        texts: The texts.
        names: What each text is, for messages ("the instructed response of pair 3").
        control_tokens: "escape" or "keep".

    Raises:
        ModelError: As `rendered_ids`.
    """
    if not texts:
        return []
    check_control_tokens(control_tokens)
    encoded = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    rows = [[int(i) for i in ids] for ids in encoded]
    known = control_tokens_of(tokenizer) if control_tokens == "escape" else {}
    special = [i for i, text in enumerate(texts) if holds_control_token(known, [text])]
    escaped = rendered_ids(
        tokenizer, [[texts[i]] for i in special], lambda own: own[0], [names[i] for i in special]
    )
    for i, ids in zip(special, escaped, strict=True):
        rows[i] = ids
    return rows


def _unused(contents: Sequence[str], n: int) -> list[str]:
    """Private characters that no content holds."""
    taken = set().union(*contents)
    free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
    return [one for one, _ in zip(free, range(n), strict=False)]


def _pattern(tokens: Iterable[str]) -> str:
    """Leftmost, then longest: as tokenizers find added tokens."""
    return "|".join(re.escape(one) for one in sorted(tokens, key=len, reverse=True))


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return re.sub(_pattern(by), lambda found: by[found[0]], text)


def _with(parts: Sequence[str], typed: Mapping[str, str]) -> list[str]:
    """The parts with what people typed in place of its stand-ins."""
    return [part if i % 2 else _replaced(part, typed) for i, part in enumerate(parts)]


def _encoder(
    tokenizer: Any, known: Mapping[str, int], marks: Mapping[str, str]
) -> Callable[[Sequence[str]], list[int]]:
    """Reads parts in turn: the odd ones as control tokens, the others as text and nothing else."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return lambda parts: _encoded_apart(tokenizer, known, parts)
    # A copy, because how a tokenizer reads control tokens is a switch on the tokenizer itself, and
    # another thread may be reading with it.
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    by_id = tokenizer.added_tokens_decoder
    used = [token for token in known if known[token] in by_id]
    backend.add_tokens([_like(by_id[known[token]], marks[token]) for token in used])
    id_of = {backend.token_to_id(marks[token]): known[token] for token in used}

    def encode(parts: Sequence[str]) -> list[int]:
        spelled = "".join(marks[part] if i % 2 else part for i, part in enumerate(parts))
        ids = backend.encode(spelled, add_special_tokens=False).ids
        return [id_of.get(i, i) for i in ids]

    return encode


def _encoded_apart(tokenizer: Any, known: Mapping[str, int], parts: Sequence[str]) -> list[int]:
    """For tokenizers written in Python: each stretch of text by itself."""
    ids: list[int] = []
    for i, part in enumerate(parts):
        if i % 2:
            ids.append(known[part])
        elif part:
            own = tokenizer(part, add_special_tokens=False, split_special_tokens=True)
            ids += [int(one) for one in own["input_ids"]]
    return ids


def _like(token: Any, content: str) -> Any:
    """A token that eats the same spaces around it, and is not special, so that it is still seen."""
    from tokenizers import AddedToken

    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=False,
    )


def _only_written(
    tokenizer: Any, known: Mapping[str, int], ids: Sequence[int], parts: Sequence[str]
) -> bool:
    """Whether the control tokens are those of the template, in its order."""
    # The unknown token may stand for a character that nobody meant as a control token.
    special = set(known.values()) - {tokenizer.unk_token_id}
    written = [known[part] for part in parts[1::2]]
    return [i for i in ids if i in special] == [i for i in written if i in special]


def _refusal(tokenizer: Any, where: str) -> ModelError:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return ModelError(
        f"{where} spells a control token, which the tokenizer of {name} cannot read as plain text; "
        "take it out, or accept that it acts as one with control_tokens='keep'"
    )
