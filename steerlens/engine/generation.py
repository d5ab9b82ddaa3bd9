"""Batched, steered generation.

Prompts (texts, conversations or token ids) are rendered with the model's chat format and decoded by
the engine, many at a time, each with its own steering and its own decoding
(`steerlens.engine.sampling`). When something else on the model is hooked, the bridge's own forward
pass is used instead; `Generations.settings` says which path it was and why. Decoding is greedy by
default. Each prompt draws from its own seeded stream, so the result does not depend on how prompts
are batched. A response ends before the model's end-of-turn token, with a stop text, or after
`max_new_tokens`.

In float32 the greedy tokens of a batch are those of one prompt at a time. In bfloat16 padding can
change a rounding and with it a close argmax.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from tqdm.auto import tqdm
from transformer_lens.model_bridge import TransformerBridge

from steerlens.engine import Choose, FinishReason, Row, decode_rows, running, slots_for
from steerlens.engine.plain import decode_rows_plainly
from steerlens.engine.rows import choose_tokens
from steerlens.engine.sampling import GREEDY, Decoding, Rule, one_decoding, stream_seed
from steerlens.errors import SteeringError, SteerlensError
from steerlens.errors.arguments import whole_number
from steerlens.models.conversations import Prompt, prompts_of, shown
from steerlens.models.identity import attached_tokenizer
from steerlens.models.loading import end_token_ids, model_info, tokenize_prompts
from steerlens.steering.interventions import Steering
from steerlens.views.result import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["FinishReason", "Generations", "generate", "generate_from_tokens"]


@dataclass(frozen=True, eq=False, repr=False)
class Generations(Result):
    """Responses in the order of their prompts; several samples of a prompt stand side by side.

    Attributes:
        prompts: The prompt of each response, as given.
        texts: The responses, without special tokens.
        tokens: Response token ids, without the end-of-turn token.
        prompt_tokens: Token ids of the rendered prompts.
        finish_reasons: ``"stop"`` when the model ended its turn, ``"stop_text"`` when it wrote one
            of the texts to stop at, ``"length"`` when it was cut, ``"non-finite"`` when its logits
            were no numbers (an absurd strength).
        settings: What is needed to generate the same again.
        samples: Which of its prompt's samples each response is, from 0.
        shares: Where the strength is adaptive (`steerlens.steering.adaptive`), the share of it that
            each token was chosen at; empty for a fixed one.
    """

    prompts: tuple[Prompt, ...]
    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    prompt_tokens: tuple[tuple[int, ...], ...]
    finish_reasons: tuple[FinishReason, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[int, ...] = ()
    shares: tuple[tuple[float, ...], ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """One row per response: prompt, sample, text, n_tokens, finish_reason."""
        return pd.DataFrame(
            {
                "prompt": [shown(prompt) for prompt in self.prompts],
                "sample": self.samples or (0,) * len(self),
                "text": self.texts,
                "n_tokens": [len(row) for row in self.tokens],
                "finish_reason": self.finish_reasons,
            }
        )

    def plot(self) -> "go.Figure":
        """How long the responses are, and why they ended."""
        from steerlens.views import response_lengths

        return response_lengths(self.table)

    def __len__(self) -> int:
        return len(self.texts)

    def __repr__(self) -> str:
        n_tokens = sum(len(row) for row in self.tokens)
        return f"Generations({len(self)} responses, {n_tokens} tokens)"


def generate(
    model: TransformerBridge,
    prompts: Prompt | Iterable[Prompt],
    steering: Any = None,
    max_new_tokens: int = 128,
    batch_size: int | None = None,
    temperature: float | int = 0.0,
    top_p: float | int = 1.0,
    seed: int = 0,
    chat_format: str = "auto",
    show_progress: bool | None = None,
    control_tokens: str = "escape",
    top_k: int = 0,
    min_p: float | int = 0.0,
    repetition_penalty: float | int = 1.0,
    stop: str | Sequence[str] = (),
    samples: int = 1,
    decoding: Any = None,
) -> Generations:
    """Generate one response per prompt, or several, steered or not.

    Args:
        model: A hooked model.
        prompts: One prompt or any iterable of them. A prompt is a user's message as plain text, a
            conversation (``[{"role": "user", "content": "Hi."}, …]``), or token ids, which are
            read as they are. A conversation that ends with an assistant's message is gone on with,
            and the response is what is added to it.
        steering: One `Steering` for all prompts, a sequence with one (or ``None``) per prompt, or
            ``None``. Checked here, not by annotation, so that a vector gets a sentence.
        max_new_tokens: Longest response, in tokens.
        batch_size: Most prompts decoded together; by default what memory allows.
        temperature: 0 decodes greedily; above 0 samples. For this and the other parts of a
            decoding see `steerlens.engine.sampling.Decoding`.
        top_p: When sampling, keep the smallest set of tokens with this probability.
        seed: Seed of the sampling; each prompt, and each of its samples, has its own stream.
        chat_format: ``"auto"``, ``"template"`` or ``"plain"``; see `steerlens.models.loading`.
        show_progress: Show a progress bar on standard error; by default only in a terminal.
        control_tokens: ``"escape"`` reads control tokens that a prompt spells as text, ``"keep"``
            lets them act; see `steerlens.models.control_tokens`.
        top_k: When sampling, keep this many tokens; 0 for all.
        min_p: When sampling, keep tokens with this share of the likeliest one's probability.
        repetition_penalty: Makes tokens that the prompt or the answer holds less likely; 1 for
            none, 1.1 is usual.
        stop: A text, or several, at which a response ends; it is the response's end.
        samples: Responses per prompt.
        decoding: Instead of these parts, a `Decoding`, or a sequence with one (or ``None``, for
            greedy) per prompt.

    Raises:
        SteerlensError: "max_new_tokens must be a whole number of at least 1; got …", and likewise
            for the other numbers; another number of decodings than of prompts; a decoding and its
            parts at once.
        SteeringError: A steering that does not fit the model, or another number of steerings than
            of prompts.
        ModelError: A prompt that is none of the above, is empty, holds an unknown role or token id,
            or is longer than the model's context.
    """
    prompts = prompts_of(prompts)
    max_new_tokens, batch_size = _sizes(max_new_tokens, batch_size)
    parts = (temperature, top_p, top_k, min_p, repetition_penalty, stop, seed, samples)
    decodings = _decodings(decoding, parts, len(prompts))
    read = tokenize_prompts(model, prompts, chat_format, control_tokens)
    steerings = _one_per_prompt(model, steering, len(prompts))
    # A row of each prompt and sample.
    rows = [(i, sample) for i, own in enumerate(decodings) for sample in range(own.samples)]
    finished, how = generate_from_tokens(
        model,
        [read[i] for i, _ in rows],
        [steerings[i] for i, _ in rows],
        max_new_tokens,
        batch_size,
        show_progress=show_progress,
        decodings=[decodings[i] for i, _ in rows],
        seeds=[stream_seed(decodings[i].seed, i, sample) for i, sample in rows],
    )
    decode = attached_tokenizer(model).decode
    info = model_info(model)
    return Generations(
        prompts=tuple(prompts[i] for i, _ in rows),
        texts=tuple(decode(row.produced, skip_special_tokens=True) for row in finished),
        tokens=tuple(tuple(row.produced) for row in finished),
        prompt_tokens=tuple(row.tokens for row in finished),
        finish_reasons=tuple(row.reason or "length" for row in finished),
        settings={
            "model": info.reference,
            "weights_hash": info.weights_hash,
            "dtype": info.dtype,
            "dtype_reason": info.dtype_reason,
            **how,
            "chat_format": info.chat_format if chat_format == "auto" else chat_format,
            "control_tokens": control_tokens,
            "steering": _described(steerings),
            "max_new_tokens": max_new_tokens,
            "decoding": asdict(decodings[0])
            if len(set(decodings)) == 1
            else [asdict(own) for own in decodings],
        },
        samples=tuple(sample for _, sample in rows),
        shares=tuple(tuple(row.shares[: len(row.produced)]) for row in finished),
    )


def generate_from_tokens(
    model: TransformerBridge,
    rows: Sequence[Sequence[int]],
    steerings: Sequence[Steering | None],
    max_new_tokens: int,
    batch_size: int | None = None,
    choose: Choose = choose_tokens,
    show_progress: bool | None = None,
    decodings: Sequence[Decoding] | None = None,
    seeds: Sequence[int] | None = None,
) -> tuple[list[Row], dict[str, Any]]:
    """Responses to token rows; arguments as for `generate`, which renders and decodes around this.

    Args:
        model: A hooked model.
        rows: Prompt token ids, without padding.
        steerings: One per row.
        max_new_tokens: Longest response, in tokens.
        batch_size: Most rows decoded together.
        choose: Picks the next tokens of rows from their logits.
        show_progress: Show a progress bar on standard error.
        decodings: One per row, which is answered once whatever its `samples`; greedy by default.
        seeds: Of the streams the rows draw from; by default 0.

    Returns:
        The finished rows in order, and how they were run: ``attention``, ``attention_reason``,
        ``kernels``, ``kernels_reason``, ``batch_size``.
    """
    max_new_tokens, batch_size = _sizes(max_new_tokens, batch_size)
    context = model_info(model).context_length
    rules = _rules(model, decodings or [GREEDY] * len(rows))
    parts = zip(rows, steerings, rules, seeds or [0] * len(rows), strict=True)
    flow = [
        Row(i, tuple(tokens), steering, min(max_new_tokens, context - len(tokens)), rule, seed)
        for i, (tokens, steering, rule, seed) in enumerate(parts)
    ]
    full = next((row for row in flow if row.max_new_tokens < 1), None)
    if full is not None:
        raise SteerlensError(
            f"prompt {full.index} fills the model's context of {context} tokens; nothing can "
            "follow it; shorten it"
        )
    longest = max((len(row.tokens) + row.max_new_tokens for row in flow), default=0)
    disable = None if show_progress is None else not show_progress
    with (
        running(model, longest) as path,
        tqdm(total=len(flow), desc="generating", unit="prompt", disable=disable) as bar,
    ):
        together = slots_for(model, longest, max(len(flow), 1), batch_size)
        options = (together, end_token_ids(model), choose, lambda row: bar.update())
        how = None
        if path.is_fast:
            how = decode_rows(model, flow, *options)
        else:
            decode_rows_plainly(model, flow, *options, path)
    return flow, {
        "attention": path.attention,
        "attention_reason": path.reason,
        "kernels": "the bridge's own" if how is None else str(how),
        "kernels_reason": path.reason if how is None else how.reason,
        "batch_size": together,
    }


def _rules(model: TransformerBridge, decodings: Sequence[Decoding]) -> list[Rule | None]:
    """The rule of each row; rows whose decodings differ in their seed alone share one."""
    tokenizer = attached_tokenizer(model)
    shared = [replace(decoding, seed=0) for decoding in decodings]
    rules = {one: None if one.is_plain else Rule(one, tokenizer) for one in set(shared)}
    return [rules[one] for one in shared]


def _decodings(decoding: Any, parts: tuple[Any, ...], n_prompts: int) -> list[Decoding]:
    """The decoding of each prompt, from one, several, or its parts."""
    if not isinstance(decoding, Sequence) or isinstance(decoding, str):
        return [one_decoding(decoding, *parts)] * n_prompts
    if len(decoding) != n_prompts:
        raise SteerlensError(
            f"one decoding per prompt is needed: got {len(decoding)} for {n_prompts} prompts"
        )
    return [one_decoding(GREEDY if own is None else own, *parts) for own in decoding]


def _sizes(max_new_tokens: Any, batch_size: Any) -> tuple[int, int | None]:
    checked = whole_number("max_new_tokens", max_new_tokens, least=1)
    return checked, None if batch_size is None else whole_number("batch_size", batch_size, least=1)


def _described(steerings: Sequence[Steering | None]) -> list[list[str]]:
    """The interventions of each prompt in words."""
    return [[one.describe() for one in s.interventions] if s is not None else [] for s in steerings]


def _one_per_prompt(
    model: TransformerBridge, steering: Any, n_prompts: int
) -> list[Steering | None]:
    hint = "a vector becomes one with vector.at(layer=…)"
    if steering is None or isinstance(steering, Steering):
        steering = [steering] * n_prompts
    elif not isinstance(steering, Sequence) or isinstance(steering, str):
        raise SteeringError(f"steering must be a Steering; got {type(steering).__name__}; {hint}")
    elif len(steering) != n_prompts:
        raise SteeringError(
            f"one steering per prompt is needed: got {len(steering)} for {n_prompts} prompts"
        )
    for each in {id(s): s for s in steering if s is not None}.values():
        if not isinstance(each, Steering):
            raise SteeringError(
                f"every steering must be a Steering or None; got {type(each).__name__}; {hint}"
            )
        each.check_model(model)
    return list(steering)
