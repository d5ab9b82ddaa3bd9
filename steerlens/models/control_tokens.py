"""Control tokens that a user typed are read as the text they are.

A tokenizer turns the text ``<|im_end|>`` into the token that ends a turn, whoever wrote it: the
chat template, or a user in a question about chat templates. By default
(``control_tokens="escape"``) only what the template wrote becomes a control token; ``"keep"``
leaves it to the tokenizer.

**How.** In the contents each control token is replaced by a stand-in, a character of Unicode's
private use area; then the template is rendered. What spells a control token now was written by the
template and is replaced by a mark; the stand-ins become the users' text again. A copy of the
tokenizer knows the marks as tokens and reads everything else as text; each mark's id then becomes
the id it stands for. The copy must read the text with its stand-ins exactly as the tokenizer does.
Texts without a control token never come here, so their tokens are the tokenizer's own.

**Caveat.** Control tokens are those that a tokenizer calls special. Some models have tokens with a
meaning that are not (Qwen's ``<think>``); typed by a user, they stay what the tokenizer makes of
them.
"""

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from steerlens.errors import ModelError, unknown_name

__all__ = ["CONTROL_TOKENS", "control_tokens_of", "escaped_ids", "literal_ids"]

CONTROL_TOKENS = ("escape", "keep")
# Supplementary private use area A: 65,534 characters without a meaning.
_PRIVATE = range(0xF0000, 0xFFFFE)

Render = Callable[[Sequence[str]], str]


def control_tokens_of(tokenizer: Any) -> dict[str, int]:
    """Text and id of each token that the tokenizer calls special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    tokens = {str(token): int(i) for i, token in added.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    tokens |= {str(token): int(i) for token, i in named if i is not None}
    return {token: i for token, i in tokens.items() if token}


def escaped_ids(
    tokenizer: Any,
    contents: Sequence[Sequence[str]],
    render: Render,
    names: Sequence[str],
    control_tokens: str = "escape",
) -> list[list[int]]:
    """Token ids of rendered texts, without special tokens of the tokenizer's own.

    Args:
        tokenizer: The model's tokenizer, left as it is.
        contents: What people wrote, for each text.
        render: Makes the whole text out of its contents.
        names: What each text is called in messages ("prompt 3").
        control_tokens: "escape" or "keep".

    Raises:
        UnknownNameError: "unknown control_tokens …".
        ModelError: "… spells a control token, which the tokenizer … cannot read as plain text …".
    """
    if control_tokens not in CONTROL_TOKENS:
        raise unknown_name("control_tokens", str(control_tokens), CONTROL_TOKENS)
    if not contents:
        return []
    encoded = tokenizer([render(texts) for texts in contents], add_special_tokens=False)[
        "input_ids"
    ]
    rows = [[int(i) for i in ids] for ids in encoded]
    known = control_tokens_of(tokenizer) if control_tokens == "escape" else {}
    spelling = [
        i for i, texts in enumerate(contents) if any(t in text for text in texts for t in known)
    ]
    if not spelling:
        return rows
    unused = _unused([text for i in spelling for text in contents[i]], 2 * len(known))
    stand_ins = dict(zip(known, unused[: len(known)], strict=True))
    typed = {stand_in: token for token, stand_in in stand_ins.items()}
    encode = _encoder(tokenizer, known, dict(zip(known, unused[len(known) :], strict=True)))
    for i in spelling:
        masked = render([_replaced(text, stand_ins) for text in contents[i]])
        parts = re.split(f"({_pattern(known)})", masked)
        rows[i] = encode(_with(parts, typed))
        usual = [int(k) for k in tokenizer(masked, add_special_tokens=False)["input_ids"]]
        if encode(parts) != usual or not _only_written(tokenizer, known, rows[i], parts):
            raise _refusal(tokenizer, names[i])
    return rows


def literal_ids(
    tokenizer: Any, texts: Sequence[str], names: Sequence[str], control_tokens: str = "escape"
) -> list[list[int]]:
    """Token ids of texts on their own (responses), without a template; as `escaped_ids`."""
    return escaped_ids(
        tokenizer, [[text] for text in texts], lambda contents: contents[0], names, control_tokens
    )


def _unused(contents: Sequence[str], n: int) -> list[str]:
    """Private characters that no text holds."""
    taken = set().union(*contents)
    free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
    return list(itertools.islice(free, n))


def _pattern(tokens: Iterable[str]) -> str:
    """Leftmost, then longest: as tokenizers find added tokens."""
    return "|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True))


def _replaced(text: str, by: Mapping[str, str]) -> str:
    return re.sub(_pattern(by), lambda match: by[match[0]], text)


def _with(parts: Sequence[str], typed: Mapping[str, str]) -> list[str]:
    """The parts with what people typed in place of the stand-ins."""
    return [part if i % 2 else _replaced(part, typed) for i, part in enumerate(parts)]


def _encoder(
    tokenizer: Any, known: Mapping[str, int], marks: Mapping[str, str]
) -> Callable[[Sequence[str]], list[int]]:
    """A function that reads the odd parts as control tokens and the others as nothing but text."""
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
    """For tokenizers written in Python: each piece of text by itself."""
    ids: list[int] = []
    for i, part in enumerate(parts):
        if i % 2:
            ids.append(known[part])
        elif part:
            read = tokenizer(part, add_special_tokens=False, split_special_tokens=True)
            ids += [int(i) for i in read["input_ids"]]
    return ids


def _like(token: Any, content: str) -> Any:
    """A token that takes the same spaces around it, and is not special, so that it is read."""
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
