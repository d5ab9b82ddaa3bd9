"""steerlens: where to steer a language model, how hard, and what it did to every token.

Activation steering for instruction following (Stolfo et al., ICLR 2025, arXiv 2410.12877) on
hooked models from TransformerLens::

    import steerlens as sl

    model = sl.load_model("smollm2-135m-instruct")
    pairs = sl.contrast_pairs("detectable_format:title", n=64)
    cache = sl.cache_residuals(model, pairs)
    ranking = sl.rank_layers(cache)
    vector = sl.difference_of_means(cache)
    run = sl.steer(model, "Tell me about Rome.", vector.at(layer=24))
    run.effects.frame

Names are imported on first use, so ``import steerlens`` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerlens.activations import ResidualCache, cache_residuals
    from steerlens.attribution import (
        LayerRanking,
        RecoveryCurve,
        first_token_recovery,
        rank_layers,
    )
    from steerlens.effects import SteeredRun, TokenEffects, steer, token_effects
    from steerlens.errors import SteerlensError
    from steerlens.generation import Generations, generate
    from steerlens.instructions import BaseQuery, Instruction, base_queries, catalogue
    from steerlens.models import available_models, load_model, model_info
    from steerlens.pairs import ContrastPair, ContrastSet, contrast_pairs
    from steerlens.steering import Intervention, Steering
    from steerlens.vectors import SteeringVector, difference_of_means, random_direction

__version__ = "0.1.0"

_HOMES = {
    "steerlens.activations": ("ResidualCache", "cache_residuals"),
    "steerlens.attribution": (
        "LayerRanking",
        "RecoveryCurve",
        "first_token_recovery",
        "rank_layers",
    ),
    "steerlens.effects": ("SteeredRun", "TokenEffects", "steer", "token_effects"),
    "steerlens.errors": ("SteerlensError",),
    "steerlens.generation": ("Generations", "generate"),
    "steerlens.instructions": ("BaseQuery", "Instruction", "base_queries", "catalogue"),
    "steerlens.models": ("available_models", "load_model", "model_info"),
    "steerlens.pairs": ("ContrastPair", "ContrastSet", "contrast_pairs"),
    "steerlens.steering": ("Intervention", "Steering"),
    "steerlens.vectors": ("SteeringVector", "difference_of_means", "random_direction"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BaseQuery",
    "ContrastPair",
    "ContrastSet",
    "Generations",
    "Instruction",
    "Intervention",
    "LayerRanking",
    "RecoveryCurve",
    "ResidualCache",
    "SteeredRun",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "TokenEffects",
    "available_models",
    "base_queries",
    "cache_residuals",
    "catalogue",
    "contrast_pairs",
    "difference_of_means",
    "first_token_recovery",
    "generate",
    "load_model",
    "model_info",
    "random_direction",
    "rank_layers",
    "steer",
    "token_effects",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'steerlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
