"""How the next token is chosen: transformers' own processors, warpers and stopping criteria.

A `Decoding` says how a prompt is answered. Logits become scores, in the order of transformers'
``generate``: repetition penalty (Keskar et al., arXiv 1909.05858, §4.1; the prompt's tokens count),
temperature, top k, top p (Holtzman et al., arXiv 1904.09751), min p (Nguyen et al., arXiv
2407.01082). At temperature 0 the highest score is taken, after the penalty alone; above 0 a token
is drawn from their softmax. Each row draws from a random stream of its own, so a response does not
depend on the rows beside it.

>>> Decoding(temperature=0.7, top_p=0.9, stop="\\n\\n")
Decoding(temperature=0.7, top_p=0.9, top_k=0, min_p=0.0, repetition_penalty=1.0, stop=('\\n\\n',), \
seed=0, samples=1)
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from steerlens.errors import SteerlensError, first_line
from steerlens.errors.arguments import finite_number, texts, whole_number

__all__ = ["GREEDY", "Decoding", "Rule", "one_decoding", "stream_seed"]

# Streams of neighbouring seeds share no prompt's.
_APART = 1_000_003


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded; the default is greedy.

    Attributes:
        temperature: 0 takes the token with the highest score; above 0 draws one.
        top_p: Draw from the smallest set of tokens with this probability.
        top_k: Draw from this many tokens; 0 for all.
        min_p: Draw from tokens with at least this share of the likeliest token's probability.
        repetition_penalty: Divides positive logits, and multiplies negative ones, of tokens that
            the prompt or the answer holds; 1 for none.
        stop: An answer ends where it holds one of these texts, which stays its end.
        seed: Seed of the draws; each prompt, and each of its samples, has a stream of its own.
        samples: Answers per prompt.

    Raises:
        SteerlensError: "top_p must be above 0 and at most 1; got …", and likewise for the others;
            a setting for drawn tokens at temperature 0.
    """

    temperature: float | int = 0.0
    top_p: float | int = 1.0
    top_k: int = 0
    min_p: float | int = 0.0
    repetition_penalty: float | int = 1.0
    stop: str | Sequence[str] = ()
    seed: int = 0
    samples: int = 1

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        checked = {
            "temperature": finite_number("temperature", self.temperature, least=0.0),
            "top_p": finite_number("top_p", self.top_p),
            "top_k": whole_number("top_k", self.top_k, least=0),
            "min_p": finite_number("min_p", self.min_p),
            "repetition_penalty": finite_number("repetition_penalty", self.repetition_penalty),
            "stop": texts("stop", stop),
            "seed": whole_number("seed", self.seed),
            "samples": whole_number("samples", self.samples, least=1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if not 0 < self.top_p <= 1:
            raise SteerlensError(f"top_p must be above 0 and at most 1; got {self.top_p:g}")
        if not 0 <= self.min_p <= 1:
            raise SteerlensError(f"min_p must be 0 to 1; got {self.min_p:g}")
        if self.repetition_penalty <= 0:
            raise SteerlensError(
                f"repetition_penalty must be above 0 (1 for none); got {self.repetition_penalty:g}"
            )
        if not all(self.stop):
            raise SteerlensError("a stop text is empty; every answer would end at once")
        if self.temperature == 0:
            unused = [
                name
                for name in ("top_p", "top_k", "min_p", "samples")
                if getattr(self, name) != _DEFAULTS[name]
            ]
            if unused:
                raise SteerlensError(
                    f"{unused[0]} is for tokens that are drawn, and at temperature 0 none is; "
                    "give a temperature above 0"
                )

    @property
    def is_plain(self) -> bool:
        """Whether an answer is the greatest logit's token, again and again until the model ends."""
        return self.temperature == 0 and self.repetition_penalty == 1 and not self.stop

    def describe(self) -> str:
        """In words, for pages and summaries.

        >>> Decoding(temperature=0.7, repetition_penalty=1.1).describe()
        'temperature 0.7, repetition penalty 1.1, seed 0'
        """
        words = "greedy" if self.temperature == 0 else f"temperature {self.temperature:g}"
        for name in ("top_p", "top_k", "min_p", "repetition_penalty"):
            value = getattr(self, name)
            if value != _DEFAULTS[name]:
                words += f", {name.replace('_', ' ')} {value:g}"
        words += "".join(f", stop at {text!r}" for text in self.stop)
        if self.temperature:
            words += f", seed {self.seed}"
            words += f", {self.samples} samples a prompt" if self.samples > 1 else ""
        return words


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in fields(Decoding)}
GREEDY = Decoding()


def one_decoding(decoding: Any, *parts: Any) -> Decoding:
    """The decoding itself, else the one of its parts, in order.

    Raises:
        SteerlensError: Both are given, or something that is no decoding.
    """
    own = Decoding(*parts)
    if decoding is None:
        return own
    if not isinstance(decoding, Decoding):
        raise SteerlensError(f"decoding must be a Decoding; got {type(decoding).__name__}")
    if own != GREEDY:
        raise SteerlensError(
            "give either decoding or its parts (temperature, top_p, …, samples), not both"
        )
    return decoding


def stream_seed(seed: int, prompt: int, sample: int = 0) -> int:
    """The seed of the random stream of one of a prompt's samples, as for ``torch.manual_seed``.

    Args:
        seed: Of the decoding.
        prompt: The prompt's number in its call.
        sample: The sample's number.
    """
    return ((sample * _APART + seed) * _APART + prompt) % 2**63


@dataclass(frozen=True, eq=False)
class Rule:
    """A decoding on one model: what is done to logits, and where an answer stops.

    Attributes:
        decoding: What was asked for.
        tokenizer: The model's; stop texts are found in its tokens.

    Raises:
        SteerlensError: A stop text that no token of the vocabulary can end.
    """

    decoding: Decoding
    tokenizer: Any

    def __post_init__(self) -> None:
        if self.decoding.stop:
            _ = self._criterion  # a text it cannot find is refused before anything is generated

    @cached_property
    def _penalty(self) -> Any:
        penalty = self.decoding.repetition_penalty
        processors = [] if penalty == 1 else [RepetitionPenaltyLogitsProcessor(penalty)]
        return LogitsProcessorList(processors)

    @cached_property
    def _warpers(self) -> Any:
        own = self.decoding
        warpers: list[Any] = []
        if own.temperature != 1:
            warpers.append(TemperatureLogitsWarper(own.temperature))
        if own.top_k:
            warpers.append(TopKLogitsWarper(own.top_k))
        if own.top_p < 1:
            warpers.append(TopPLogitsWarper(own.top_p))
        if own.min_p:
            warpers.append(MinPLogitsWarper(own.min_p))
        return LogitsProcessorList(warpers)

    @cached_property
    def _criterion(self) -> StopStringCriteria:
        try:
            return StopStringCriteria(self.tokenizer, list(self.decoding.stop))
        except ValueError as error:
            raise SteerlensError(
                f"no token of this model can end one of the stop texts {list(self.decoding.stop)} "
                f"({first_line(error)})"
            ) from error

    def chosen(
        self,
        logits: Float[Tensor, "row vocab"],
        tokens: Sequence[Sequence[int]],
        streams: Sequence[torch.Generator],
    ) -> Int[Tensor, "row"]:
        """The next token of each row, given its tokens so far, prompt included, and its stream."""
        scores = logits.float()
        ids = None
        if self._penalty:
            # A row is filled up with its own first token, which the penalty counts anyway.
            ids = _left_filled(tokens, [row[0] for row in tokens]).to(logits.device)
            scores = self._penalty(ids, scores)
        peak = scores.max(-1).indices
        if self.decoding.temperature == 0:
            return peak
        probabilities = self._warpers(ids, scores).softmax(-1).cpu()
        # NaN among the logits: the engine ends the row. A temperature near 0 whose quotients are
        # infinite: the greedy limit.
        sound = probabilities.isfinite().all(-1).tolist()
        drawn = [
            int(torch.multinomial(row, 1, generator=stream)) if is_sound else int(best)
            for row, stream, is_sound, best in zip(
                probabilities, streams, sound, peak.tolist(), strict=True
            )
        ]
        return torch.tensor(drawn, device=logits.device)

    def stopped(self, tokens: Sequence[Sequence[int]]) -> list[bool]:
        """Whether the last token of each row completes a stop text.

        As in transformers, a text may begin in the prompt.
        """
        if not self.decoding.stop:
            return [False] * len(tokens)
        # A text of n characters is in the last n tokens. The filling is a token that is none.
        last = [row[-self._criterion.maximum_token_len :] for row in tokens]
        ids = _left_filled(last, [torch.iinfo(torch.int32).max] * len(last))
        stopped: list[bool] = self._criterion(ids, None).tolist()
        return stopped


def _left_filled(rows: Sequence[Sequence[int]], filling: Sequence[int]) -> Int[Tensor, "row pos"]:
    width = max(map(len, rows))
    return torch.tensor(
        [[fill] * (width - len(row)) + list(row) for row, fill in zip(rows, filling, strict=True)]
    )
