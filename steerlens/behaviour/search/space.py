"""The candidates that a search starts from, their neighbours and combinations.

Where cheap evidence exists it chooses the layers: for ``last_prompt`` vectors those with the
highest first-token causal recovery, some layers apart. Response vectors act on what the model
writes and have no such evidence; they are tried at evenly spaced layers. The last layer is left
out: nothing follows that could carry the instruction on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from steerlens.attribution.log_odds import ANSWER
from steerlens.behaviour.plans.candidates import Candidate, InterventionSpec, scaled
from steerlens.behaviour.plans.trained import TRAINED, trained_layers
from steerlens.steering.operations import GENERAL

__all__ = ["combinations", "first_candidates", "instructed_candidates", "neighbours", "spaced_best"]

_APART = 2
# Choices have no cheaper evidence, and a layer costs one token: every third is tried.
_EVERY = 3
_TARGETS = (1.0, 1.5)
_FINER = 2**0.5
_DEPTHS = (0.47, 0.6, 0.67, 0.74, 0.84, 0.9)
# For response vectors meeting the compliant mean keeps the stream where the model knows it; adding
# to every token leads it away ("lowercase", 12 prompts, layer 20 to 22: 10 to 11 pass either way,
# and 2 to 3 responses are degenerate instead of 4 to 12). Beyond the mean, only tokens below it are
# moved, or those that comply by themselves are pulled back ("highlighted sections", 24 prompts,
# layer 25, 1.5 times: 19 pass instead of 11).
_RESPONSE = ((1.0, False), (1.5, True))
# One vector for all lengths: added, answers end sooner; taken away, later.
_ENDING = (2.0, 1.0, 0.5, 0.25, -1.0)
# For choices a vector is added where the answer is predicted, at the strengths of contrastive
# activation addition.
_CHOICE = (0.5, 1.0, 2.0)
# Words to be avoided: how often the vector of using them is taken away.
_SUBTRACTED = (-1.0, -2.0)
_TRAINED_STRENGTHS = (1.0, 1.4)
_SPECIFIC = ("prompt_neutral", "prompt_others", "prompt_own")


def spaced_best(scores: Mapping[int, float], n: int) -> list[int]:
    """The `n` layers with the highest scores, each some layers from a better one.

    >>> spaced_best({20: 0.5, 22: 0.7, 23: 0.9, 10: 0.1}, 2)
    [23, 20]
    """
    chosen: list[int] = []
    for layer in sorted(scores, key=lambda layer: (-scores[layer], layer)):
        if len(chosen) < n and all(abs(layer - other) > _APART for other in chosen):
            chosen.append(layer)
    return chosen


def first_candidates(
    estimators: Sequence[str],
    n_layers: int,
    recovery: Mapping[int, float] | None,
    by_words: bool = False,
) -> list[Candidate]:
    """Where the search starts.

    Args:
        estimators: Those that have a vector.
        n_layers: The model's depth.
        recovery: First-token causal recovery of ``last_prompt`` by layer, where measured.
        by_words: Whether each wording has vectors of its own.
    """
    spread = sorted({min(round(d * n_layers), max(n_layers - 2, 0)) for d in _DEPTHS})
    layers = spaced_best(recovery, 3) if recovery else spread[-3:]
    specs: dict[str, list[InterventionSpec]] = {
        **{
            name: [
                InterventionSpec(name, layer, "set_projection", strength, "all")
                for layer, strength in product(layers, _TARGETS)
            ]
            for name in _SPECIFIC
        },
        **{
            name: [
                InterventionSpec(name, layer, GENERAL, strength, "all")
                for layer, strength in product(
                    trained_layers(n_layers, by_words), _TRAINED_STRENGTHS
                )
            ]
            for name in TRAINED
        },
        "last_prompt": [
            *(
                InterventionSpec("last_prompt", layer, "set_projection", strength, scope)
                for layer, strength, scope in product(layers, _TARGETS, ("prompt", "all"))
            ),
            *(InterventionSpec("last_prompt", layers[0], "add", s, "all") for s in (1.0, 2.0)),
        ],
        **{
            name: [
                InterventionSpec(name, layer, "set_projection", strength, "all", only_below)
                for (strength, only_below), layer in product(_RESPONSE, spread)
            ]
            for name in ("response_rewrite", "response_own")
        },
        "response_end": [
            InterventionSpec("response_end", layer, "add", strength, "response")
            for layer, strength in product(spread[:-1], _ENDING)
        ],
        "include": [
            InterventionSpec("include", layer, "add", strength, "all")
            for layer, strength in product(spread[1:], _SUBTRACTED)
        ],
        "answer": [
            InterventionSpec("answer", layer, "add", strength, ANSWER)
            for layer, strength in product(range(0, max(n_layers - 1, 1), _EVERY), _CHOICE)
        ],
    }
    return [(spec,) for name in estimators for spec in specs[name]]


def neighbours(candidate: Candidate, n_layers: int) -> list[Candidate]:
    """What is next to a single intervention: layers beside it, stronger, weaker, other tokens."""
    if len(candidate) != 1:
        return []
    [spec] = candidate
    near = [
        replace(spec, layer=spec.layer + step)
        for step in (-_APART, _APART)
        # Directions are trained at some layers only.
        if 0 <= spec.layer + step < n_layers - 1 and spec.estimator not in TRAINED
    ]
    near += [*scaled(candidate, _FINER), *scaled(candidate, 1 / _FINER)]
    if spec.estimator.startswith("response"):
        near.append(replace(spec, scope="response" if spec.scope == "all" else "all"))
        if spec.operation == "set_projection":
            near.append(replace(spec, only_below=not spec.only_below))
    return [(spec,) for spec in near]


def combinations(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best prompt vector with the best response vector, the second also at half strength.

    A ``last_prompt`` vector says how to begin, a response vector how to go on.
    """
    singles = [candidate for candidate in ranked if len(candidate) == 1]
    prompts = [single for single in singles if single[0].estimator in ("last_prompt", *_SPECIFIC)]
    others = [single for single in singles if single[0].estimator.startswith("response")]
    if not prompts or not others:
        return []
    return [prompts[0] + others[0], prompts[0] + scaled(others[0], 0.5)]


def instructed_candidates(ranked: Sequence[Candidate]) -> list[Candidate]:
    """For prompts that state the instruction: the best without it, each also at half strength."""
    both = [half for candidate in ranked for half in (candidate, scaled(candidate, 0.5))]
    return list(dict.fromkeys(both))
