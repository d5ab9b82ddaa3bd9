"""steerlens: where to steer a language model, how hard, and what it did to every token.

Activation steering for instruction following (Stolfo et al., ICLR 2025, arXiv 2410.12877) on
hooked models from TransformerLens::

    import steerlens as sl

    model = sl.load_model("smollm2-135m-instruct")
    pairs = sl.contrast_pairs("detectable_format:title", n=64)
    cache = sl.cache_residuals(model, pairs)
    ranking = sl.rank_layers(cache)
    vector = sl.difference_of_means(cache)
    steering = vector.at(layer=24, strength=2.0, scope="prompt")
    run = sl.steer(model, "Tell me about Rome.", steering)
    run.effects.table

Names are imported on first use, so ``import steerlens`` and the command line start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerlens.activations.cache import ResidualCache, cache_residuals
    from steerlens.activations.shards import ShardedResiduals, shard_residuals, write_shards
    from steerlens.attribution import (
        ComponentReading,
        ComponentWriting,
        Evidence,
        LayerRanking,
        PatchingMap,
        RecoveryCurve,
        ResponseRecovery,
        VocabularyReadout,
        activation_patching,
        causal_recovery,
        first_token_recovery,
        gather_evidence,
        instruction_geometry,
        layer_geometry,
        rank_layers,
        reading_components,
        vocabulary_readout,
        writing_components,
    )
    from steerlens.behaviour.calibration import (
        Calibration,
        RateCalibration,
        calibrate,
        calibrate_rate,
        calibrated,
    )
    from steerlens.behaviour.evaluation import catalogue_prompts, read_prompts
    from steerlens.behaviour.evaluation.run import Evaluation, EvaluationSettings, evaluate
    from steerlens.behaviour.plans import Plan
    from steerlens.behaviour.search import SearchSettings, search
    from steerlens.effects import (
        SteeredRun,
        TokenContributions,
        TokenEffects,
        steer,
        token_contributions,
        token_effects,
    )
    from steerlens.effects.divergence import response_kl
    from steerlens.engine.generation import Generations, generate
    from steerlens.errors import SteerlensError, SteerlensWarning
    from steerlens.explorer import explore
    from steerlens.models.loading import available_models, load_model, model_info
    from steerlens.steering.interventions import Steering
    from steerlens.steering.operations import Intervention
    from steerlens.tasks import BaseQuery, Instruction, base_queries, catalogue
    from steerlens.tasks.pairs import ContrastPair, ContrastSet, contrast_pairs
    from steerlens.vectors import (
        SteeringVector,
        difference_of_means,
        linear_discriminant,
        linear_probe,
        mean_centred,
        pca_of_differences,
        random_direction,
    )
    from steerlens.vectors.composition import compose_report, joint_projection
    from steerlens.vectors.conditional import Condition, fit_condition
    from steerlens.vectors.formats import load_vector
    from steerlens.vectors.library import load_library, save_library
    from steerlens.vectors.transfer import LayerMaps, Transfer, fit_maps, map_texts, transfer_vector

__version__ = "0.1.0"

_HOMES = {
    "steerlens.activations.cache": (
        "ResidualCache",
        "cache_residuals",
    ),
    "steerlens.attribution": (
        "ComponentReading",
        "ComponentWriting",
        "Evidence",
        "LayerRanking",
        "PatchingMap",
        "RecoveryCurve",
        "ResponseRecovery",
        "VocabularyReadout",
        "activation_patching",
        "causal_recovery",
        "first_token_recovery",
        "gather_evidence",
        "instruction_geometry",
        "layer_geometry",
        "rank_layers",
        "reading_components",
        "vocabulary_readout",
        "writing_components",
    ),
    "steerlens.behaviour.calibration": (
        "Calibration",
        "RateCalibration",
        "calibrate",
        "calibrate_rate",
        "calibrated",
    ),
    "steerlens.vectors.composition": (
        "compose_report",
        "joint_projection",
    ),
    "steerlens.vectors.conditional": (
        "Condition",
        "fit_condition",
    ),
    "steerlens.effects.divergence": ("response_kl",),
    "steerlens.effects": (
        "SteeredRun",
        "TokenContributions",
        "TokenEffects",
        "steer",
        "token_contributions",
        "token_effects",
    ),
    "steerlens.errors": (
        "SteerlensError",
        "SteerlensWarning",
    ),
    "steerlens.behaviour.evaluation": (
        "catalogue_prompts",
        "read_prompts",
    ),
    "steerlens.behaviour.evaluation.run": (
        "Evaluation",
        "EvaluationSettings",
        "evaluate",
    ),
    "steerlens.explorer": ("explore",),
    "steerlens.engine.generation": (
        "Generations",
        "generate",
    ),
    "steerlens.tasks": (
        "BaseQuery",
        "Instruction",
        "base_queries",
        "catalogue",
    ),
    "steerlens.vectors.formats": ("load_vector",),
    "steerlens.vectors.library": (
        "load_library",
        "save_library",
    ),
    "steerlens.models.loading": (
        "available_models",
        "load_model",
        "model_info",
    ),
    "steerlens.tasks.pairs": (
        "ContrastPair",
        "ContrastSet",
        "contrast_pairs",
    ),
    "steerlens.behaviour.plans": ("Plan",),
    "steerlens.behaviour.search": (
        "SearchSettings",
        "search",
    ),
    "steerlens.steering.interventions": ("Steering",),
    "steerlens.steering.operations": ("Intervention",),
    "steerlens.activations.shards": (
        "ShardedResiduals",
        "shard_residuals",
        "write_shards",
    ),
    "steerlens.vectors.transfer": (
        "LayerMaps",
        "Transfer",
        "fit_maps",
        "map_texts",
        "transfer_vector",
    ),
    "steerlens.vectors": (
        "SteeringVector",
        "difference_of_means",
        "linear_discriminant",
        "linear_probe",
        "mean_centred",
        "pca_of_differences",
        "random_direction",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BaseQuery",
    "Calibration",
    "ComponentReading",
    "ComponentWriting",
    "Condition",
    "ContrastPair",
    "ContrastSet",
    "Evaluation",
    "EvaluationSettings",
    "Evidence",
    "Generations",
    "Instruction",
    "Intervention",
    "LayerMaps",
    "LayerRanking",
    "PatchingMap",
    "Plan",
    "RateCalibration",
    "RecoveryCurve",
    "ResidualCache",
    "ResponseRecovery",
    "SearchSettings",
    "ShardedResiduals",
    "SteeredRun",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "SteerlensWarning",
    "TokenContributions",
    "TokenEffects",
    "Transfer",
    "VocabularyReadout",
    "activation_patching",
    "available_models",
    "base_queries",
    "cache_residuals",
    "calibrate",
    "calibrate_rate",
    "calibrated",
    "catalogue",
    "catalogue_prompts",
    "causal_recovery",
    "compose_report",
    "contrast_pairs",
    "difference_of_means",
    "evaluate",
    "explore",
    "first_token_recovery",
    "fit_condition",
    "fit_maps",
    "gather_evidence",
    "generate",
    "instruction_geometry",
    "joint_projection",
    "layer_geometry",
    "linear_discriminant",
    "linear_probe",
    "load_library",
    "load_model",
    "load_vector",
    "map_texts",
    "mean_centred",
    "model_info",
    "pca_of_differences",
    "random_direction",
    "rank_layers",
    "read_prompts",
    "reading_components",
    "response_kl",
    "save_library",
    "search",
    "shard_residuals",
    "steer",
    "token_contributions",
    "token_effects",
    "transfer_vector",
    "vocabulary_readout",
    "write_shards",
    "writing_components",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'steerlens' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
