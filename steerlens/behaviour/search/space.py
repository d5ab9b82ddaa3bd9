"""The candidates: which settings a search starts from, their neighbours and combinations.

Where cheap evidence exists it chooses the layers: for ``last_prompt`` vectors those with the
highest first-token causal recovery, some layers apart. Response vectors act on what the model
writes and have no such evidence; they are tried at evenly spaced layers. The last layer is left
out: nothing follows that could carry the instruction on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from steerlens.behaviour.plans.settings import Candidate, Setting

__all__ = ["combinations", "first_candidates", "instructed_candidates", "neighbours", "spaced_best"]

_APART = 2
_TARGETS = (1.0, 1.5)
_FINER = 2**0.5
_DEPTHS = (0.47, 0.6, 0.67, 0.74, 0.84, 0.9)
# For response vectors meeting the compliant mean keeps the stream where the model knows it; adding
# to every token leads it away ("lowercase", 12 prompts, layer 20–22: 10 to 11 pass either way, and
# 2 to 3 responses are degenerate instead of 4 to 12). Beyond the mean, only tokens below it are
# moved, or those that comply by themselves are pulled back ("highlighted sections", 24 prompts,
# layer 25, 1.5 times: 19 pass instead of 11).
_RESPONSE = ((1.0, False), (1.5, True))
# One vector for all lengths: added, answers end sooner; taken away, later.
_ENDING = (2.0, 1.0, 0.5, 0.25, -1.0)
# Words to be avoided: how often the vector of using them is taken away.
_SUBTRACTED = (-1.0, -2.0)


def spaced_best(scores: Mapping[int, float], n: int) -> list[int]:
    """The `n` layers with the highest scores, each some layers from a better one.

    >>> spaced_best({20: 0.5, 22: 0.7, 23: 0.9, 10: 0.1}, 2)
    [23, 20]
    """
    chosen: list[int] = []
    for layer in sorted(scores, key=lambda one: (-scores[one], one)):
        if len(chosen) < n and all(abs(layer - other) > _APART for other in chosen):
            chosen.append(layer)
    return chosen


def depths(n_layers: int) -> list[int]:
    """Evenly spaced layers for vectors without cheap evidence."""
    return sorted({min(round(share * n_layers), max(n_layers - 2, 0)) for share in _DEPTHS})


def first_candidates(
    estimators: Sequence[str], n_layers: int, recovery: Mapping[int, float] | None
) -> list[Candidate]:
    """Where the search starts.

    Args:
        estimators: Those that have a vector.
        n_layers: Depth of the model.
        recovery: First-token causal recovery of ``last_prompt`` by layer, where it was measured.
    """
    spread = depths(n_layers)
    settings: list[Setting] = []
    if "last_prompt" in estimators:
        layers = spaced_best(recovery, 3) if recovery else spread[-3:]
        for layer in layers:
            for strength in _TARGETS:
                for scope in ("prompt", "all"):
                    settings.append(
                        Setting("last_prompt", layer, "set_projection", strength, scope)
                    )
        settings += [Setting("last_prompt", layers[0], "add", s, "all") for s in (1.0, 2.0)]
    for estimator in ("response_rewrite", "response_own"):
        if estimator in estimators:
            settings += [
                Setting(estimator, layer, "set_projection", strength, "all", only_below)
                for strength, only_below in _RESPONSE
                for layer in spread
            ]
    if "response_end" in estimators:
        settings += [
            Setting("response_end", layer, "add", strength, "response")
            for layer in spread[:-1]
            for strength in _ENDING
        ]
    if "include" in estimators:
        settings += [
            Setting("include", layer, "add", strength, "all")
            for layer in spread[1:]
            for strength in _SUBTRACTED
        ]
    return [(setting,) for setting in settings]


def neighbours(candidate: Candidate, n_layers: int) -> list[Candidate]:
    """The settings next to a single one: layers beside it, stronger, weaker, other tokens."""
    if len(candidate) != 1:
        return []
    [one] = candidate
    near = [
        replace(one, layer=one.layer + step)
        for step in (-_APART, _APART)
        if 0 <= one.layer + step < n_layers - 1
    ]
    near += [
        replace(one, strength=round(one.strength * factor, 3)) for factor in (_FINER, 1 / _FINER)
    ]
    if one.estimator.startswith("response"):
        near.append(replace(one, scope="response" if one.scope == "all" else "all"))
        if one.operation == "set_projection":
            near.append(replace(one, only_below=not one.only_below))
    return [(setting,) for setting in near]


def combinations(ranked: Sequence[Candidate]) -> list[Candidate]:
    """The best prompt setting with the best response setting, the second also at half strength.

    A ``last_prompt`` vector says how to begin, a response vector how to go on.
    """
    singles = [candidate[0] for candidate in ranked if len(candidate) == 1]
    prompts = [one for one in singles if one.estimator == "last_prompt"]
    others = [one for one in singles if one.estimator.startswith("response")]
    if not prompts or not others:
        return []
    weaker = replace(others[0], strength=round(others[0].strength / 2, 3))
    return [(prompts[0], others[0]), (prompts[0], weaker)]


def instructed_candidates(ranked: Sequence[Candidate]) -> list[Candidate]:
    """For prompts that state the instruction: the best without it, each also at half strength."""
    trying = [one for candidate in ranked for one in (candidate, _halved(candidate))]
    return list(dict.fromkeys(trying))


def _halved(candidate: Candidate) -> Candidate:
    return tuple(replace(one, strength=round(one.strength / 2, 3)) for one in candidate)
