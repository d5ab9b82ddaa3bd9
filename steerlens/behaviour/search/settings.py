"""How much a search tries, stage by stage."""

from dataclasses import astuple, dataclass, field
from typing import Any

from steerlens.behaviour.plans.fitting import FitRecipe
from steerlens.engine.sampling import GREEDY, Decoding
from steerlens.errors import SteerlensError
from steerlens.models.conversations import Conversation, conversation_before

__all__ = ["SearchSettings", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One round of full or shortened generations.

    Attributes:
        n_prompts: Prompts of the ``select`` split that a candidate answers.
        n_tokens: Longest response, in tokens.
        n_kept: Candidates that go on to the next stage.
    """

    n_prompts: int
    n_tokens: int
    n_kept: int


@dataclass(frozen=True)
class SearchSettings:
    """Everything the result of a search depends on, besides model, tasks and code.

    Sizes were set so that one task takes about two minutes on two CPU cores in bfloat16.

    Attributes:
        broad: First look at every candidate: few prompts, short responses.
        narrow: The better ones and their neighbours.
        final: The finalists and combinations, in full; rates are reported from here.
        n_evidence: Pairs for first-token causal recovery.
        horizon: For tasks without a check: tokens of the instructed response that recovery is
            summed over.
        degenerate_price: How many passes one more degenerate response costs.
        most_perplexity: A candidate is dropped when its median judge perplexity exceeds this many
            times that of no steering.
        judge: Reference of the judge; ``None`` for none.
        judge_tokens: Tokens of a response that the judge reads.
        batch_size: Rows decoded together; fixed, so that a resumed run rounds as it did.
        piece_rows: Rows per piece: what is computed by one worker, and lost with it.
        recipe: How vectors are fitted; answers to fit on are greedy.
        seed: Draws prompts and resamples.
        decoding: How candidates answer; with several samples per prompt shares of them count.
        conversation: Messages that come before every prompt: a system message, earlier turns.
    """

    broad: Stage = Stage(6, 64, 8)
    narrow: Stage = Stage(12, 128, 4)
    final: Stage = Stage(24, 192, 1)
    n_evidence: int = 12
    horizon: int = 32
    degenerate_price: float = 1.0
    most_perplexity: float = 1.5
    judge: str | None = None
    judge_tokens: int = 64
    batch_size: int = 96
    piece_rows: int = 192
    recipe: FitRecipe = field(default_factory=FitRecipe)
    seed: int = 0
    decoding: Decoding = GREEDY
    conversation: Conversation = ()

    def __post_init__(self) -> None:
        before = conversation_before(self.conversation)
        object.__setattr__(self, "conversation", before)
        for name in ("broad", "narrow", "final"):
            stage: Stage = getattr(self, name)
            if min(astuple(stage)) < 1:
                raise SteerlensError(f"every number of stage {name!r} must be at least 1: {stage}")
        if self.horizon < 1:
            raise SteerlensError(f"the horizon must be at least 1 token; got {self.horizon}")
        if self.final.n_prompts < self.narrow.n_prompts or self.n_evidence < 2:
            raise SteerlensError(
                "the final stage needs at least the narrow stage's prompts, and causal recovery at "
                f"least 2 pairs; got {self.final.n_prompts}, {self.narrow.n_prompts}, "
                f"{self.n_evidence}"
            )

    @classmethod
    def quick(cls, **settings: Any) -> "SearchSettings":
        """Fewer prompts and shorter answers, for a first look; other settings as named.

        >>> SearchSettings.quick(seed=1).final
        Stage(n_prompts=12, n_tokens=96, n_kept=1)
        """
        sizes: dict[str, Any] = {
            "broad": Stage(4, 32, 5),
            "narrow": Stage(6, 48, 3),
            "final": Stage(12, 96, 1),
            "n_evidence": 8,
            "recipe": FitRecipe(n_pairs=48, n_responses=16, n_wording=8, response_tokens=64,
                                ending_tokens=128, least_own=4),
        }  # fmt: skip
        return cls(**{**sizes, **settings})
