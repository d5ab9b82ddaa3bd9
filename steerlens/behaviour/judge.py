r"""The judge: how fluent an independent language model finds a response.

The perplexity of a response of tokens :math:`t_1 … t_n` is

.. math:: \exp\Bigl(-\frac1n \sum_{i=1}^{n} \log p(t_i \mid \mathrm{BOS}, t_1 … t_{i-1})\Bigr)

under the judge, given its beginning-of-text token and nothing else: no prompt, no chat template. It
says how ordinary the text is, not whether it answers. A model without such a token (GPT-2's kind)
is given its end-of-text token, which stands between texts in its training data.

The judge should be another model than the one that wrote the response, and a base model, which has
seen text of every kind: Gemma-3-270M (Team Gemma, *Gemma 3 Technical Report*, 2025) by default.

Logits of a whole batch are never held: Gemma's 262,144 words for 16 responses of 256 tokens would
be 4.3 GB. The blocks run once over the batch; the unembedding runs over chunks of positions, each
reduced to one log-probability per position, in float32 whatever the model's dtype. With Gemma in
bfloat16 the perplexities of 24 responses were within 2 % of those in float32.

Caveat: perplexity rewards loops; read it beside `steerlens.tasks.fluency`. It also rises with
short texts and unusual form (all capitals, JSON), so compare conditions over the same instruction,
never across instructions.

>>> judge = load_judge()                                                     # doctest: +SKIP
>>> judge.perplexities(["The sea is wide and deep.", "Sea the deep wide is."])    # doctest: +SKIP
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine.batches import length_batches, right_padded
from steerlens.engine.forward import PassRow, run_rows
from steerlens.engine.modules import (
    device_of,
    fast_modules,
    fused_attention,
    has_plain_stack,
    unembed,
)
from steerlens.engine.outside import outside_change
from steerlens.engine.paths import alone_with
from steerlens.engine.remembered import naming_key
from steerlens.errors import ModelError, SteerlensError, UnknownNameError
from steerlens.models.control_tokens import literal_ids
from steerlens.models.identity import digest_of_rows
from steerlens.models.loading import ModelInfo, load_model, model_info
from steerlens.runs import piece_name

__all__ = ["DEFAULT_JUDGE", "Judge", "JudgePiece", "load_judge"]

DEFAULT_JUDGE = "gemma-3-270m"
"""The model that judges fluency where no other is named."""
# Logits held at once: 2^25 float32 are 134 MB, 128 positions of Gemma's vocabulary.
_LOGITS = 2**25
# Nats a token by which the same sums, taken in other shapes, may differ in half precision.
_ROUNDING = 0.05


@dataclass(frozen=True, eq=False)
class Judge:
    """A language model that scores text.

    Attributes:
        model: The hooked model; hooks that are on it act on the scores.
    """

    model: TransformerBridge

    @property
    def info(self) -> ModelInfo:
        """What to record about the judge."""
        return model_info(self.model)

    def perplexities(
        self,
        responses: Sequence[str],
        batch_size: int = 16,
        max_tokens: int = 512,
        show_progress: bool | None = None,
    ) -> list[float | None]:
        """Perplexity of each response.

        Args:
            responses: Texts, in any order.
            batch_size: Responses per forward pass.
            max_tokens: Only so many of a response's first tokens are scored (and at most the
                judge's context).
            show_progress: Show a progress bar; by default only in a terminal.

        Returns:
            One number per response, at least 1; None for a blank one.

        Raises:
            SteerlensError: `batch_size` or `max_tokens` below 1, or one string instead of several.
            ModelError: The judge has neither a beginning-of-text nor an end-of-text token.
        """
        if isinstance(responses, str):
            raise SteerlensError("responses is one string; give a list of strings")
        if batch_size < 1 or max_tokens < 1:
            raise SteerlensError(
                f"batch_size and max_tokens must be at least 1; got {batch_size} and {max_tokens}"
            )
        start = self._start_token()
        limit = min(max_tokens, self.info.context_length - 1)
        # Conditions often give the same text; it is scored once.
        texts = [text for text in dict.fromkeys(responses) if text.strip()]
        rows = [[start, *ids[:limit]] for ids in self._tokenize(texts)]
        perplexity: dict[str, float] = {}
        disable = None if show_progress is None else not show_progress
        with (
            alone_with(self.model),
            tqdm(total=len(rows), desc="judging", unit="response", disable=disable) as bar,
        ):
            by_chunks = bool(rows) and _has_chunks(self.model)
            for batch in length_batches([len(row) for row in rows], batch_size):
                # Characters that a tokenizer drops may leave nothing to score.
                some = [i for i in batch if len(rows[i]) > 1]
                logprobs = _logprobs_of(self.model, [rows[i] for i in some], by_chunks)
                for i, values in zip(some, logprobs, strict=True):
                    perplexity[texts[i]] = math.exp(-values.cpu().double().mean().item())
                bar.update(len(batch))
        return [perplexity.get(text) for text in responses]

    def pieces(self, parts: Sequence[Sequence[str]], max_tokens: int) -> "list[JudgePiece]":
        """Reading these lists of responses, as units of work that are named by what they are."""
        if not parts:
            return []
        key, start = naming_key(self.model), self._start_token()
        pieces = []
        for responses in parts:
            content = {
                **key,
                "read": digest_of_rows([[start, *ids] for ids in self._tokenize(responses)]),
                "tokens": max_tokens,
                "texts": list(responses),
            }
            pieces.append(JudgePiece(piece_name(content), tuple(responses), max_tokens))
        return pieces

    def _start_token(self) -> int:
        tokenizer: Any = self.model.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return int(token)
        raise ModelError(
            f"{self.info.reference} has neither a beginning-of-text nor an end-of-text token, so "
            "it cannot judge; choose another judge"
        )

    def _tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        tokenizer: Any = self.model.tokenizer
        # Half a character (an unpaired surrogate, read from a file) cannot be tokenised.
        proper = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
        # A response that spells out "<eos>" wrote five characters, not the end of a text.
        return literal_ids(tokenizer, proper, [f"response {i}" for i in range(len(proper))])


@dataclass(frozen=True)
class JudgePiece:
    """Responses read together: the unit that is named, and computed anywhere.

    Attributes:
        name: See `steerlens.runs.piece_name`.
        texts: The responses.
        max_tokens: As for `Judge.perplexities`.
    """

    name: str
    texts: tuple[str, ...]
    max_tokens: int

    def __len__(self) -> int:
        return len(self.texts)

    def compute(self, judge: Judge) -> list[float | None]:
        """The perplexities, wherever they are computed."""
        return judge.perplexities(self.texts, max_tokens=self.max_tokens, show_progress=False)


def load_judge(
    reference: str = DEFAULT_JUDGE, dtype: str = "auto", device: str | None = None
) -> Judge:
    """Load a judge.

    Args:
        reference: Any reference `steerlens.models.loading.load_model` takes.
        dtype: As there; "auto" is bfloat16 where that is fast.
        device: As there.

    Raises:
        ModelError: "the judge … cannot be loaded: …", with how to get it, or how to do without.
        UnknownNameError: "unknown model …".
    """
    try:
        return Judge(load_model(reference, dtype=dtype, device=device))
    except UnknownNameError:
        raise
    except ModelError as error:
        raise ModelError(
            f"the judge {reference} cannot be loaded: {error}; or go without perplexities "
            "(--judge none)"
        ) from error


def _logprobs_of(
    model: TransformerBridge, rows: Sequence[Sequence[int]], by_chunks: bool
) -> list[Float[Tensor, "token"]]:
    """Log-probability of each token of each row but its first, given those before it; nats."""
    if not rows:
        return []
    with torch.inference_mode():
        if by_chunks:
            return _logprobs_by_chunks(model, rows)
        # Without an unembedding of its own, one row's logits are held at a time.
        return [_logprobs_through_bridge(model, row) for row in rows]


def _has_chunks(model: TransformerBridge) -> bool:
    """Whether blocks and unembedding can be run apart: tried on a few tokens.

    The engine's own check (`steerlens.engine.verification`) compares with the bridge's eager
    attention, from which Gemma in bfloat16 differs by rounding; here both sides are the same fused
    model.
    """
    if outside_change(model) or not has_plain_stack(model) or not fused_attention(model):
        return False
    row = list(range(5, 15))
    with torch.inference_mode():
        try:
            with fast_modules(model):
                root: Any = model.original_model
                tokens = torch.tensor([row], device=device_of(model))
                logits: Tensor = root(input_ids=tokens, use_cache=False).logits
            ours = _logprobs_by_chunks(model, [row])[0]
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            # An architecture whose parts are called in another way; the bridge knows it.
            return False
    whole = _of_targets(logits[0, :-1], tokens[0, 1:]).cpu()
    return bool((ours - whole).abs().mean() < _ROUNDING)


def _logprobs_by_chunks(
    model: TransformerBridge, rows: Sequence[Sequence[int]]
) -> list[Float[Tensor, "token"]]:
    device = device_of(model)
    tokens = right_padded(rows, device)
    with fast_modules(model):
        resid = run_rows(model, [PassRow(tokens=row) for row in rows]).resid
        lengths = torch.tensor([len(row) for row in rows], device=device)
        predicts = torch.arange(tokens.shape[1], device=device) < (lengths - 1)[:, None]
        flat = resid[predicts]
        targets = tokens.roll(-1, dims=1)[predicts]
        size = max(1, _LOGITS // int(model.cfg.d_vocab))
        logprobs = [
            _of_targets(unembed(model, some), wanted)
            for some, wanted in zip(
                torch.split(flat, size), torch.split(targets, size), strict=True
            )
        ]
    together: Tensor = torch.cat(logprobs).cpu()
    return list(torch.split(together, [len(row) - 1 for row in rows]))


def _logprobs_through_bridge(
    model: TransformerBridge, row: Sequence[int]
) -> Float[Tensor, "token"]:
    tokens = torch.tensor([list(row)], device=device_of(model))
    logits: Tensor = model(tokens, return_type="logits", use_cache=False)
    return _of_targets(logits[0, :-1], tokens[0, 1:]).cpu()


def _of_targets(logits: Float[Tensor, "token vocab"], targets: Tensor) -> Float[Tensor, "token"]:
    # In one fused pass: on Gemma's vocabulary it takes under half the time of logsumexp.
    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
