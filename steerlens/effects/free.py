"""Free mode: each model goes on with its own text, and is judged by itself.

A baseline and a steered response are two texts. Each token's log-probability and entropy are those
of the model that wrote it, given its own text so far; projections are those of its own stream. Side
by side they show where the texts part and meet again (`steerlens.effects.alignment`) and how sure
each model was on its own way.

Caveat: after the parting the two models condition on different words, so a difference of their
numbers mixes what steering does with what the words already said do. KL and changes of
log-probability are therefore not given here; they belong to forced mode
(`steerlens.effects.forced`), where both models read the same text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.alignment import MIN_RUN, Alignment, align, parts_at
from steerlens.effects.distributions import own_text
from steerlens.effects.forced import TokenEffects, token_texts
from steerlens.effects.streams import Stream, other_ending
from steerlens.steering.interventions import Steering

__all__ = ["BaselineReader", "FreeEffects", "OwnText", "free_effects"]


@dataclass(frozen=True, eq=False, repr=False)
class OwnText:
    """One response under the model that wrote it.

    Attributes:
        tokens: The tokens as text, prompt then response.
        token_ids: Their ids.
        n_prompt: How many belong to the prompt.
        logprob: Log-probability of each token, nats; NaN for the first.
        entropy: Entropy of the distribution after each token, nats.
        projection: For each intervention, at its layer, on its direction (after the interventions
            of that layer in the steered text).
        steered: For each intervention, whether it touched the token; never in the baseline.
    """

    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    n_prompt: int
    logprob: Float[Tensor, "pos"]
    entropy: Float[Tensor, "pos"]
    projection: Float[Tensor, "intervention pos"]
    steered: Bool[Tensor, "intervention pos"]

    @property
    def table(self) -> pd.DataFrame:
        """One row a token; the projection is that of the first intervention."""
        n_tokens = len(self.tokens)
        return pd.DataFrame(
            {
                "position": range(n_tokens),
                "token": self.tokens,
                "role": ["prompt"] * self.n_prompt + ["response"] * (n_tokens - self.n_prompt),
                "steered": self.steered.any(dim=0).tolist(),
                "logprob": self.logprob.tolist(),
                "surprisal": (-self.logprob).tolist(),
                "entropy": self.entropy.tolist(),
                "projection": self.projection[0].tolist(),
            }
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        mean = float(self.logprob[max(self.n_prompt, 1) :].mean())
        return (
            f"OwnText({self.n_prompt} prompt + {len(self) - self.n_prompt} response tokens, mean "
            f"log-probability {mean:.3g} nats a response token)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class FreeEffects:
    """Two responses, each under its own model (mode ``"free"``).

    Attributes:
        baseline: The unsteered response under the unsteered model.
        steered: The steered response under the steered model.
        alignment: Where their responses part and meet again.
        interventions: A phrase for each intervention.
    """

    baseline: OwnText
    steered: OwnText
    alignment: Alignment
    interventions: tuple[str, ...]

    @property
    def mode(self) -> str:
        """``"free"``: each model scores its own text (see `TokenEffects` for the other)."""
        return "free"

    @property
    def table(self) -> pd.DataFrame:
        """Both texts, a row a token: ``text`` says whose, ``run`` numbers what they have in common.

        ``run`` counts the common runs of the responses from 0, however short; it is missing where a
        token stands in one response only, and in the prompt.
        """
        frames = []
        for name, own in (("baseline", self.baseline), ("steered", self.steered)):
            frame = own.table
            run = pd.Series(pd.NA, index=frame.index, dtype="Int64")
            for number, common in enumerate(self.alignment.runs):
                start = own.n_prompt + getattr(common, name)
                run.iloc[start : start + common.length] = number
            frame.insert(0, "text", name)
            frame["run"] = run
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def plot(self, what: str = "surprisal") -> Any:
        """Both texts, shaded, with marks where they part and meet again.

        Args:
            what: ``"surprisal"`` (minus log-probability), ``"entropy"`` or ``"projection"``.

        Raises:
            UnknownNameError: Another name.
        """
        from steerlens.effects.drawing import picture_of_texts

        return picture_of_texts(self, what)

    def _repr_html_(self) -> str:
        from steerlens.effects.drawing import summary_of_texts

        return summary_of_texts(self)

    def __repr__(self) -> str:
        return f"FreeEffects({self.alignment.describe()})"


class BaselineReader:
    """Reads the baseline's own response while the steered text is being scored.

    Both texts begin with the prompt, and often with some of the response; from there on only the
    baseline's own tokens are run.

    Args:
        model: The model.
        prompt_tokens: Ids of the rendered prompt.
        baseline_tokens: Ids of the unsteered response.
        steered_tokens: Ids of the steered response.
        steering: What was applied.
    """

    def __init__(
        self,
        model: TransformerBridge,
        prompt_tokens: Sequence[int],
        baseline_tokens: Sequence[int],
        steered_tokens: Sequence[int],
        steering: Steering,
    ) -> None:
        self.model, self.steering = model, steering
        self.n_prompt = len(prompt_tokens)
        self.ids = (*prompt_tokens, *baseline_tokens)
        parted = parts_at(baseline_tokens, steered_tokens)
        # The last shared token is run again: the next one is predicted there.
        self.begin = self.n_prompt + (len(baseline_tokens) if parted is None else parted) - 1
        self.tail: tuple[Tensor, Tensor, Tensor] | None = None

    def __call__(self, stream: Stream) -> None:
        """Called with the baseline's stream over the steered text."""
        if self.begin == len(self.ids) - 1:
            return
        ones, begin = self.steering.interventions, max(self.begin, 0)
        layers = sorted({one.layer for one in ones})
        own = other_ending(self.model, stream, begin, self.ids, layers)
        projection = [
            einsum(
                own.resid[one.layer].float(),
                one.unit.float().to(own.resid[one.layer].device),
                "pos d, d -> pos",
            )
            for one in ones
        ]
        self.tail = (*own_text(own, self.ids[begin:]), torch.stack(projection).cpu())

    def own_text(self, effects: TokenEffects) -> OwnText:
        """The baseline's response, its shared beginning taken from the effects."""
        parts = (
            effects.logprob_baseline,
            effects.entropy_baseline,
            effects.projection_baseline,
        )
        if self.tail is not None:
            begin = max(self.begin, 0)
            logprob, entropy, projection = self.tail
            # What the token itself got is known from the position before it.
            shared = slice(0, begin + 1)
            parts = (
                torch.cat([parts[0][shared], logprob[1:]]),
                torch.cat([parts[1][:begin], entropy]),
                torch.cat([parts[2][:, :begin], projection], dim=1),
            )
        n_tokens = len(self.ids)
        logprob, entropy, projection = parts
        return OwnText(
            tokens=token_texts(self.model, self.ids),
            token_ids=self.ids,
            n_prompt=self.n_prompt,
            logprob=logprob[:n_tokens],
            entropy=entropy[:n_tokens],
            projection=projection[:, :n_tokens],
            steered=torch.zeros(len(projection), n_tokens, dtype=torch.bool),
        )


def free_effects(
    reader: BaselineReader, effects: TokenEffects, min_run: int = MIN_RUN
) -> FreeEffects:
    """Both responses side by side, from what forced mode and the reader have found.

    Args:
        reader: Has read the baseline's response.
        effects: Effects over the prompt and the steered response.
        min_run: Tokens in common that count as meeting again.
    """
    n_prompt = effects.n_prompt
    return FreeEffects(
        baseline=reader.own_text(effects),
        steered=OwnText(
            tokens=effects.tokens,
            token_ids=effects.token_ids,
            n_prompt=n_prompt,
            logprob=effects.logprob_steered,
            entropy=effects.entropy_steered,
            projection=effects.projection_after,
            steered=effects.steered,
        ),
        alignment=align(reader.ids[n_prompt:], effects.token_ids[n_prompt:], min_run),
        interventions=effects.interventions,
    )
