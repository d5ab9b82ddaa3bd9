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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from steerlens.effects.alignment import MIN_SHARED, Alignment, align, parts_at
from steerlens.effects.distributions import score
from steerlens.effects.forced import TokenEffects
from steerlens.effects.streams import Stream, other_ending
from steerlens.effects.texts import token_table, token_texts
from steerlens.errors import unknown_name
from steerlens.steering.interventions import Steering
from steerlens.views import Result

if TYPE_CHECKING:
    import plotly.graph_objects as go

__all__ = ["BaselineReader", "FreeEffects", "ScoredText", "free_effects"]

_SHADED = {
    "surprisal": "surprisal",
    "entropy": "entropy of the next token",
    "projection": "projection on the direction",
}


@dataclass(frozen=True, eq=False, repr=False)
class ScoredText:
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
        """One row per token; the projection is that of the first intervention."""
        return token_table(self.tokens, self.n_prompt).assign(
            steered=self.steered.any(dim=0).tolist(),
            logprob=self.logprob.tolist(),
            surprisal=(-self.logprob).tolist(),
            entropy=self.entropy.tolist(),
            projection=self.projection[0].tolist(),
        )

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        mean = float(self.logprob[max(self.n_prompt, 1) :].mean())
        return (
            f"ScoredText({self.n_prompt} prompt + {len(self) - self.n_prompt} response tokens, "
            f"mean log-probability {mean:.3g} nats per response token)"
        )


@dataclass(frozen=True, eq=False, repr=False)
class FreeEffects(Result):
    """Two responses, each under its own model (mode ``"free"``).

    Attributes:
        baseline: The unsteered response under the unsteered model.
        steered: The steered response under the steered model.
        alignment: Where their responses part and meet again.
        interventions: A phrase for each intervention.
    """

    baseline: ScoredText
    steered: ScoredText
    alignment: Alignment
    interventions: tuple[str, ...]
    mode: ClassVar[str] = "free"

    @property
    def table(self) -> pd.DataFrame:
        """Both texts, one row per token: ``text`` says whose, ``span`` numbers what they share.

        ``span`` counts the spans in common from 0, however short; it is missing where a token
        stands in one response only, and in the prompt.
        """
        tables = []
        for name, scored in self._texts:
            table = scored.table
            span = pd.Series(pd.NA, index=table.index, dtype="Int64")
            for number, shared in enumerate(self.alignment.spans):
                start = scored.n_prompt + getattr(shared, name)
                span.iloc[start : start + shared.length] = number
            table.insert(0, "text", name)
            tables.append(table.assign(span=span))
        return pd.concat(tables, ignore_index=True)

    @property
    def _texts(self) -> tuple[tuple[str, ScoredText], ...]:
        return ("baseline", self.baseline), ("steered", self.steered)

    def plot(self, what: str = "surprisal") -> "go.Figure":
        """Both texts, shaded, with marks where they part and meet again.

        Args:
            what: ``"surprisal"`` (minus log-probability), ``"entropy"`` or ``"projection"``.

        Raises:
            UnknownNameError: Another name.
        """
        from steerlens.views import Section, prompt_and_response, text_figure

        if what not in _SHADED:
            raise unknown_name("picture", what, _SHADED)
        sections = prompt_and_response(self.baseline.table)[:1]
        for name, scored in self._texts:
            ending = f" ({self.alignment.describe()})" if name == "steered" else ""
            sections.append(
                Section(
                    f"{name} response{ending}",
                    scored.table[scored.n_prompt :],
                    parts_at=self.alignment.parts_at,
                    meets_at=tuple(getattr(span, name) for span in self.alignment.meetings),
                )
            )
        title = f"Two responses, each under the model that wrote it: {_SHADED[what]}"
        return text_figure(sections, what, title=title, subtitle="; ".join(self.interventions))

    def _card(self) -> Mapping[str, Any]:
        from steerlens.views import excerpt

        texts = (excerpt("".join(s.tokens[s.n_prompt :]), name) for name, s in self._texts)
        facts = {
            "steering": "; ".join(self.interventions),
            "tokens in common": f"{self.alignment.similarity:.0%}",
        }
        return {"facts": facts, "table": None, "body": "".join(texts)}

    def __repr__(self) -> str:
        return f"FreeEffects({self.alignment.describe()})"


class BaselineReader:
    """Reads the baseline's own response while the steered text is being scored.

    Both texts begin with the prompt, and often with some of the response; from there on only the
    baseline's own tokens are run.
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
        parts, begin = self.steering.interventions, max(self.begin, 0)
        layers = sorted({part.layer for part in parts})
        baseline = other_ending(self.model, stream, begin, self.ids, layers)
        projection = []
        for part in parts:
            resid = baseline.resid[part.layer].float()
            projection.append(resid @ part.unit.float().to(resid.device))
        self.tail = (*score(baseline, self.ids[begin:]), torch.stack(projection).cpu())

    def scored_text(self, effects: TokenEffects) -> ScoredText:
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
        return ScoredText(
            tokens=token_texts(self.model, self.ids),
            token_ids=self.ids,
            n_prompt=self.n_prompt,
            logprob=logprob[:n_tokens],
            entropy=entropy[:n_tokens],
            projection=projection[:, :n_tokens],
            steered=torch.zeros(len(projection), n_tokens, dtype=torch.bool),
        )


def free_effects(
    reader: BaselineReader, effects: TokenEffects, min_shared: int = MIN_SHARED
) -> FreeEffects:
    """Both responses side by side, from what forced mode and the reader have recorded."""
    n_prompt = effects.n_prompt
    return FreeEffects(
        baseline=reader.scored_text(effects),
        steered=ScoredText(
            tokens=effects.tokens,
            token_ids=effects.token_ids,
            n_prompt=n_prompt,
            logprob=effects.logprob_steered,
            entropy=effects.entropy_steered,
            projection=effects.projection_after,
            steered=effects.steered,
        ),
        alignment=align(reader.ids[n_prompt:], effects.token_ids[n_prompt:], min_shared),
        interventions=effects.interventions,
    )
