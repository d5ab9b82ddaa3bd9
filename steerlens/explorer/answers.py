"""Answers to a trial: every prompt without steering and under each setting, decoded together.

The unsteered answers do not depend on the steering, so those of a question are kept: after a move
of a slider only steered rows are decoded.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.run import SteeredRun, record_run
from steerlens.engine.generation import FinishReason, generate_from_tokens
from steerlens.engine.rows import Row, choose_tokens
from steerlens.engine.sampling import stream_seed
from steerlens.errors import SteerlensError
from steerlens.errors.cancellation import check_cancelled
from steerlens.explorer.sources import read_at
from steerlens.explorer.trials import Trial
from steerlens.models.loading import end_token_ids, tokenize_prompts
from steerlens.vectors import SteeringVector

__all__ = ["Answers", "Grid", "answer"]

Place = tuple[int, int, int]
"""Prompt, column (0 for the baseline, then one per setting) and sample."""
Grid = tuple[tuple[tuple[str, ...], ...], ...]
"""Texts by prompt, column and sample."""
# Unsteered answers kept.
_MOST_KEPT = 256


@dataclass(frozen=True, eq=False)
class Answers:
    """All answers to a trial.

    Attributes:
        trial: What was asked.
        vectors: What each of its settings steers with.
        prompt_tokens: Token ids of each rendered prompt.
        texts: By prompt, column and sample; column 0 is unsteered.
        tokens: Response token ids by place.
        reasons: Why each answer ended.
        how: How the rows were run.
    """

    trial: Trial
    vectors: tuple[SteeringVector, ...]
    prompt_tokens: tuple[tuple[int, ...], ...]
    texts: Grid
    tokens: Mapping[Place, tuple[int, ...]]
    reasons: Mapping[Place, FinishReason]
    how: Mapping[str, Any]

    def record(self, model: TransformerBridge, prompt: int = 0, setting: int = 0) -> SteeredRun:
        """What one setting did to each token of its first answer to one prompt."""
        question, column = self.trial.question, setting + 1
        vector = self.vectors[setting]
        steering = self.trial.settings[setting].steering(vector)
        read = self.prompt_tokens[prompt]
        effects, free = record_run(
            model,
            read,
            self.tokens[prompt, 0, 0],
            self.tokens[prompt, column, 0],
            steering,
            read_at=read_at(vector, len(read)),
        )
        baselines, steered = self.texts[prompt][0], self.texts[prompt][column]
        return SteeredRun(
            prompt=question.asked[prompt],
            baseline=baselines[0],
            steered=steered[0],
            effects=effects,
            free=free,
            settings={
                **self.how,
                "steering": [one.describe() for one in steering.interventions],
                "decoding": asdict(question.decoding),
            },
            finish_reasons=(self.reasons[prompt, 0, 0], self.reasons[prompt, column, 0]),
            samples=tuple(zip(baselines, steered, strict=True)),
        )


def answer(
    model: TransformerBridge,
    trial: Trial,
    vectors: Sequence[SteeringVector],
    told: Callable[[Grid], None],
    kept: dict[Any, tuple[tuple[int, ...], FinishReason]],
) -> Answers:
    """Answer a trial.

    Args:
        model: A hooked model.
        trial: What is asked.
        vectors: What each setting steers with.
        told: Called after each step with the texts so far.
        kept: Unsteered answers of earlier trials; new ones are added.

    Raises:
        SteeringError: A setting that does not fit the model.
        ModelError: A prompt that is longer than the model's context.
        SteerlensError: The logits hold NaN or infinity.
    """
    question = trial.question
    steerings = [s.steering(v) for s, v in zip(trial.settings, vectors, strict=True)]
    for steering in steerings:
        steering.check_model(model)
    prompts = [tuple(row) for row in tokenize_prompts(model, list(question.asked))]
    columns = [None, *steerings]
    n_samples = question.decoding.samples
    places = list(product(range(len(prompts)), range(len(columns)), range(n_samples)))
    # Both sides of a prompt draw from the same streams, as in `sl.steer`.
    seeds = {p: stream_seed(question.decoding.seed, p[0], p[2]) for p in places}
    keys = {
        p: (prompts[p[0]], question.decoding, question.max_new_tokens, seeds[p])
        for p in places
        if p[1] == 0
    }
    known = {p: kept[key] for p, key in keys.items() if key in kept}
    running = [p for p in places if p not in known]
    decode = model.tokenizer.decode
    ends = end_token_ids(model)
    texts = {p: decode(tokens, skip_special_tokens=True) for p, (tokens, _) in known.items()}

    def grid() -> Grid:
        return tuple(
            tuple(
                tuple(texts.get((i, j, k), "") for k in range(n_samples))
                for j in range(len(columns))
            )
            for i in range(len(prompts))
        )

    def choose(logits: Float[Tensor, "row vocab"], rows: Sequence[Row]) -> Int[Tensor, "row"]:
        check_cancelled()
        following = choose_tokens(logits, rows)
        for row, token in zip(rows, following.tolist(), strict=True):
            so_far = row.produced if token in ends else [*row.produced, token]
            texts[running[row.index]] = decode(so_far, skip_special_tokens=True)
        told(grid())
        return following

    if known:
        told(grid())
    rows, how = generate_from_tokens(
        model,
        [prompts[p[0]] for p in running],
        [columns[p[1]] for p in running],
        question.max_new_tokens,
        choose=choose,
        show_progress=False,
        decodings=[question.decoding] * len(running),
        seeds=[seeds[p] for p in running],
    )
    check_cancelled()
    if any(row.reason == "non-finite" for row in rows):
        raise SteerlensError("the model's logits hold NaN or infinity; lower the strength")
    written = {running[row.index]: (tuple(row.produced), row.reason or "length") for row in rows}
    texts |= {p: decode(tokens, skip_special_tokens=True) for p, (tokens, _) in written.items()}
    if len(kept) > _MOST_KEPT:
        kept.clear()
    kept |= {keys[p]: written[p] for p in keys if p in written}
    everything = {**known, **written}
    return Answers(
        trial=trial,
        vectors=tuple(vectors),
        prompt_tokens=tuple(prompts),
        texts=grid(),
        tokens={p: tokens for p, (tokens, _) in everything.items()},
        reasons={p: reason for p, (_, reason) in everything.items()},
        how=how,
    )
