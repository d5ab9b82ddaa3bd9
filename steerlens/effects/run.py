"""One prompt answered without and with steering, and everything recorded about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.alignment import MIN_SHARED
from steerlens.effects.forced import TokenEffects, check_steering, scored
from steerlens.effects.free import BaselineReader, FreeEffects, free_effects
from steerlens.engine.generation import FinishReason, generate
from steerlens.engine.sampling import one_decoding
from steerlens.errors import SteeringError
from steerlens.models.conversations import Prompt, prompt_of, shown
from steerlens.steering.interventions import Steering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["SteeredRun", "record_run", "steer"]


@dataclass(frozen=True, eq=False, repr=False)
class SteeredRun(Result):
    """One prompt answered without and with steering.

    Attributes:
        prompt: The prompt as given.
        baseline: The unsteered response.
        steered: The steered response.
        effects: Forced mode: both models score prompt and steered response.
        free: Free mode: each response under the model that wrote it.
        settings: What is needed to run it again.
        finish_reasons: Why the two responses ended; see `Generations`.
        samples: Unsteered and steered response of each sample; the effects are the first one's.
    """

    prompt: Prompt
    baseline: str
    steered: str
    effects: TokenEffects
    free: FreeEffects
    settings: Mapping[str, Any] = field(default_factory=dict)
    finish_reasons: tuple[FinishReason, ...] = ()
    samples: tuple[tuple[str, str], ...] = ()

    @property
    def parts_at(self) -> int | None:
        """Index of the first response token where the two differ; ``None`` when they do not."""
        return self.free.alignment.parts_at

    @property
    def meets_at(self) -> tuple[int, int] | None:
        """Where they meet again, in the baseline and in the steered response; often nowhere."""
        return self.free.alignment.meets_at

    @property
    def table(self) -> pd.DataFrame:
        """`TokenEffects.table`: one row per token of the prompt and the steered response."""
        return self.effects.table

    def plot(self, what: str = "surprisal") -> "go.Figure":
        """Both responses, shaded; see `FreeEffects.plot`, and `effects.plot` for forced mode."""
        return self.free.plot(what)

    def _card(self) -> Mapping[str, Any]:
        from steerlens.views import excerpt, strip_excerpt

        steered = self.table[self.table["role"] == "response"]
        body = (
            f"<div>{self.free.alignment.describe()}</div>"
            f"{excerpt(self.baseline, 'baseline')}{excerpt(self.steered, 'steered')}"
            '<div style="margin-top:.5em;font-size:.8em;opacity:.7">steered, shaded by what '
            f"steering changed</div>{strip_excerpt(steered, parts_at=self.parts_at)}"
        )
        facts = {"steering": "; ".join(self.effects.interventions)}
        return {
            "heading": f"Prompt: {shown(self.prompt)}",
            "facts": facts,
            "table": None,
            "body": body,
        }

    def __repr__(self) -> str:
        parts = "the texts are equal" if self.parts_at is None else f"part at {self.parts_at}"
        return f"SteeredRun({shown(self.prompt)[:40]!r}, {parts}, {self.effects!r})"


def steer(
    model: TransformerBridge,
    prompt: Prompt,
    steering: Any,
    max_new_tokens: int = 64,
    temperature: float | int = 0.0,
    seed: int = 0,
    chat_format: str = "auto",
    layers: Sequence[int] | None = None,
    lens_layers: Sequence[int] = (),
    read_at: str | int | None = None,
    control_tokens: str = "escape",
    top_p: float | int = 1.0,
    top_k: int = 0,
    min_p: float | int = 0.0,
    repetition_penalty: float | int = 1.0,
    stop: str | Sequence[str] = (),
    samples: int = 1,
    decoding: Any = None,
) -> SteeredRun:
    """Answer a prompt without and with steering, and record what steering did to each token.

    Args:
        model: A hooked model.
        prompt: The user's message, a conversation or token ids, as for `generate`.
        steering: The `Steering` to apply. Checked here, not by annotation, so that a vector gets a
            sentence.
        max_new_tokens: Longest response, in tokens.
        temperature: 0 decodes greedily. For this and the other parts of a decoding see
            `steerlens.engine.sampling.Decoding`.
        seed: Seed when sampling; both responses draw from the same stream.
        chat_format: See `steerlens.models.loading`.
        layers: See `token_effects`.
        lens_layers: See `token_effects`.
        read_at: See `token_effects`.
        control_tokens: "escape" or "keep"; see `steerlens.models.control_tokens`.
        top_p: See `Decoding`, as for the next four.
        top_k: See `Decoding`.
        min_p: See `Decoding`.
        repetition_penalty: See `Decoding`.
        stop: See `Decoding`.
        samples: Responses without and with steering; effects are recorded for the first.
        decoding: A `Decoding` instead of its parts.

    Raises:
        SteeringError: The steering is none, holds no intervention, does not fit the model, or is
            so strong that the logits become NaN or infinite.
        ModelError: An empty prompt, or one longer than the context.
        ActivationError: A layer the model does not have.
    """
    prompt = prompt_of(prompt)
    check_steering(steering)
    steering.check_model(model)
    own = one_decoding(
        decoding, temperature, top_p, top_k, min_p, repetition_penalty, stop, seed, samples
    )
    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "decoding": own,
        "chat_format": chat_format,
        "control_tokens": control_tokens,
        "show_progress": False,
    }
    if own.temperature == 0:
        # Two rows of one batch take little more time than one.
        both = generate(model, [prompt, prompt], steering=[None, steering], **options)
        texts, tokens, reasons = both.texts, both.tokens, both.finish_reasons
    else:
        # A call each: rows of one call draw from streams of their own.
        both = generate(model, [prompt], **options)
        other = generate(model, [prompt], steering=steering, **options)
        texts, tokens = both.texts + other.texts, both.tokens + other.tokens
        reasons = both.finish_reasons + other.finish_reasons
    n = own.samples
    pairs = tuple(zip(texts[:n], texts[n:], strict=True))
    tokens, reasons = tokens[::n], reasons[::n]
    for name, reason, row in zip(("without", "with"), reasons, tokens, strict=True):
        if reason == "non-finite":
            raise SteeringError(
                f"the model's logits {name} steering hold NaN or infinity after {len(row)} tokens; "
                "lower the strength, or check weights and dtype"
            )
    effects, free = record_run(
        model,
        both.prompt_tokens[0],
        tokens[0],
        tokens[1],
        steering,
        layers=layers,
        lens_layers=lens_layers,
        read_at=read_at,
    )
    return SteeredRun(
        prompt=prompt,
        baseline=pairs[0][0],
        steered=pairs[0][1],
        effects=effects,
        free=free,
        settings={**both.settings, "steering": [i.describe() for i in steering.interventions]},
        finish_reasons=reasons,
        samples=pairs,
    )


def record_run(
    model: TransformerBridge,
    prompt_tokens: Sequence[int],
    baseline_tokens: Sequence[int],
    steered_tokens: Sequence[int],
    steering: Steering,
    layers: Sequence[int] | None = None,
    lens_layers: Sequence[int] = (),
    read_at: str | int | None = None,
    min_shared: int = MIN_SHARED,
) -> tuple[TokenEffects, FreeEffects]:
    """Both modes for two responses that exist already.

    Args:
        model: A hooked model.
        prompt_tokens: Ids of the rendered prompt.
        baseline_tokens: Ids of the unsteered response.
        steered_tokens: Ids of the steered response.
        steering: What the steered response was made with.
        layers: See `token_effects`.
        lens_layers: See `token_effects`.
        read_at: See `token_effects`.
        min_shared: Tokens in common that count as meeting again.

    Raises:
        SteerlensError: As `token_effects`, or `min_shared` is below 1.
    """
    reader = BaselineReader(model, prompt_tokens, baseline_tokens, steered_tokens, steering)
    effects = scored(
        model, prompt_tokens, steered_tokens, steering, layers, lens_layers, read_at, reader
    )
    return effects, free_effects(reader, effects, min_shared)
