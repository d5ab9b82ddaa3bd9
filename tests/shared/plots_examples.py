"""Effects made up for pictures: any length, any text, no model."""

from collections.abc import Sequence

import torch

from steerlens.effects import FreeEffects, Propagation, ScoredText, SteeredRun, TokenEffects, align
from steerlens.effects.lens import LensReadout
from steerlens.steering.interventions import Steering
from steerlens.steering.operations import Intervention

WORDS = (" the", " city", " of", " Rome", ",", " was", " built", ".", "\n", " roads")


def made_up_effects(
    n_tokens: int,
    n_layers: int = 30,
    words: Sequence[str] = WORDS,
    n_prompt: int | None = None,
    n_ranked: int = 5,
) -> TokenEffects:
    """Effects over a text of so many tokens and layers, the same for the same sizes."""
    draw = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    tokens = tuple(words[i % len(words)] for i in range(n_tokens))
    ids = tuple(range(n_tokens))
    n_prompt = n_tokens // 4 if n_prompt is None else n_prompt
    ranked = tuple((words[i % len(words)], 1.0 + i) for i in range(n_ranked))
    fallen = tuple((words[i % len(words)], -1.0 - i) for i in range(n_ranked))
    layers = tuple(range(n_layers))
    one = Intervention(0, torch.eye(4)[0], 1.0, 1.0, "add", 1.0, "all", "made up")
    change = numbers(1, n_layers, n_tokens)
    return TokenEffects(
        tokens=tokens,
        token_ids=ids,
        n_prompt=n_prompt,
        kl=numbers(n_tokens).square(),
        logprob_baseline=-numbers(n_tokens).abs(),
        logprob_steered=-numbers(n_tokens).abs(),
        entropy_baseline=numbers(n_tokens).abs(),
        entropy_steered=numbers(n_tokens).abs(),
        projection_baseline=numbers(1, n_tokens),
        projection_before=numbers(1, n_tokens),
        projection_after=numbers(1, n_tokens),
        steered=torch.ones(1, n_tokens, dtype=torch.bool),
        read=torch.arange(n_tokens) == n_prompt - 1,
        promoted=(ranked,) * n_tokens,
        suppressed=(fallen,) * n_tokens,
        mean_promoted=tuple((text, 0.1 / (1 + i)) for i, (text, _) in enumerate(ranked)),
        mean_suppressed=tuple((text, -0.1 / (1 + i)) for i, (text, _) in enumerate(fallen)),
        propagation=Propagation(
            layers=layers,
            starts=(0,),
            projection_change=change,
            shift=change[0].abs() + 1,
            norm_baseline=numbers(n_layers, n_tokens).abs() + 1,
            norm_steered=numbers(n_layers, n_tokens).abs() + 1,
            survival=change / change[:, :1],
        ),
        lens=LensReadout(
            tokens=tokens,
            n_prompt=n_prompt,
            layers=layers,
            kl=numbers(n_layers, n_tokens).square(),
            logprob_baseline=-numbers(n_layers, n_tokens).abs(),
            logprob_steered=-numbers(n_layers, n_tokens).abs(),
            entropy_baseline=numbers(n_layers, n_tokens).abs(),
            entropy_steered=numbers(n_layers, n_tokens).abs(),
            top_baseline=torch.zeros(n_layers, n_tokens, 5, dtype=torch.long),
            top_steered=torch.ones(n_layers, n_tokens, 5, dtype=torch.long),
            vocabulary={0: words[0], 1: words[1 % len(words)]},
        ),
        interventions=(one.describe(),),
        steering=Steering((one,)),
    )


def made_up_run(
    baseline: Sequence[str], steered: Sequence[str], prompt: Sequence[str] = ("Hi", "!")
) -> SteeredRun:
    """A run whose responses have these tokens; equal words have equal ids."""
    known = {word: i for i, word in enumerate(dict.fromkeys([*prompt, *baseline, *steered]))}
    effects = made_up_effects(
        len(prompt) + len(steered), 4, words=[*prompt, *steered], n_prompt=len(prompt)
    )

    def own(words: Sequence[str], is_steered: bool) -> ScoredText:
        whole = (*prompt, *words)
        values = torch.arange(len(whole), dtype=torch.float32)
        return ScoredText(
            tokens=whole,
            token_ids=tuple(known[word] for word in whole),
            n_prompt=len(prompt),
            logprob=-values,
            entropy=values,
            projection=values[None] - 1,
            steered=torch.full((1, len(whole)), is_steered),
        )

    alignment = align([known[word] for word in baseline], [known[word] for word in steered], 2)
    return SteeredRun(
        prompt="".join(prompt),
        baseline="".join(baseline),
        steered="".join(steered),
        effects=effects,
        free=FreeEffects(own(baseline, False), own(steered, True), alignment, ("made up",)),
    )
