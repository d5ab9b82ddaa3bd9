from .activations.cache import (
    ResidualCache as ResidualCache,
)
from .activations.cache import (
    cache_residuals as cache_residuals,
)
from .activations.shards import (
    ShardedResiduals as ShardedResiduals,
)
from .activations.shards import (
    shard_residuals as shard_residuals,
)
from .activations.shards import (
    write_shards as write_shards,
)
from .attribution import (
    ComponentReading as ComponentReading,
)
from .attribution import (
    ComponentWriting as ComponentWriting,
)
from .attribution import (
    Evidence as Evidence,
)
from .attribution import (
    LayerRanking as LayerRanking,
)
from .attribution import (
    PatchingMap as PatchingMap,
)
from .attribution import (
    RecoveryCurve as RecoveryCurve,
)
from .attribution import (
    ResponseRecovery as ResponseRecovery,
)
from .attribution import (
    VocabularyReadout as VocabularyReadout,
)
from .attribution import (
    activation_patching as activation_patching,
)
from .attribution import (
    causal_recovery as causal_recovery,
)
from .attribution import (
    first_token_recovery as first_token_recovery,
)
from .attribution import (
    gather_evidence as gather_evidence,
)
from .attribution import (
    instruction_geometry as instruction_geometry,
)
from .attribution import (
    layer_geometry as layer_geometry,
)
from .attribution import (
    rank_layers as rank_layers,
)
from .attribution import (
    reading_components as reading_components,
)
from .attribution import (
    vocabulary_readout as vocabulary_readout,
)
from .attribution import (
    writing_components as writing_components,
)
from .behaviour.calibration import (
    Calibration as Calibration,
)
from .behaviour.calibration import (
    RateCalibration as RateCalibration,
)
from .behaviour.calibration import (
    calibrate as calibrate,
)
from .behaviour.calibration import (
    calibrate_rate as calibrate_rate,
)
from .behaviour.calibration import (
    calibrated as calibrated,
)
from .behaviour.evaluation import (
    catalogue_prompts as catalogue_prompts,
)
from .behaviour.evaluation import (
    read_prompts as read_prompts,
)
from .behaviour.evaluation.run import (
    Evaluation as Evaluation,
)
from .behaviour.evaluation.run import (
    EvaluationSettings as EvaluationSettings,
)
from .behaviour.evaluation.run import (
    evaluate as evaluate,
)
from .behaviour.plans import (
    Plan as Plan,
)
from .behaviour.search import (
    SearchSettings as SearchSettings,
)
from .behaviour.search import (
    search as search,
)
from .effects import (
    SteeredRun as SteeredRun,
)
from .effects import (
    TokenContributions as TokenContributions,
)
from .effects import (
    TokenEffects as TokenEffects,
)
from .effects import (
    steer as steer,
)
from .effects import (
    token_contributions as token_contributions,
)
from .effects import (
    token_effects as token_effects,
)
from .effects.divergence import (
    response_kl as response_kl,
)
from .engine.generation import (
    Generations as Generations,
)
from .engine.generation import (
    generate as generate,
)
from .errors import (
    SteerlensError as SteerlensError,
)
from .errors import (
    SteerlensWarning as SteerlensWarning,
)
from .explorer import (
    explore as explore,
)
from .models.loading import (
    available_models as available_models,
)
from .models.loading import (
    load_model as load_model,
)
from .models.loading import (
    model_info as model_info,
)
from .steering.interventions import (
    Steering as Steering,
)
from .steering.operations import (
    Intervention as Intervention,
)
from .tasks import (
    BaseQuery as BaseQuery,
)
from .tasks import (
    Instruction as Instruction,
)
from .tasks import (
    base_queries as base_queries,
)
from .tasks import (
    catalogue as catalogue,
)
from .tasks.pairs import (
    ContrastPair as ContrastPair,
)
from .tasks.pairs import (
    ContrastSet as ContrastSet,
)
from .tasks.pairs import (
    contrast_pairs as contrast_pairs,
)
from .vectors import (
    SteeringVector as SteeringVector,
)
from .vectors import (
    difference_of_means as difference_of_means,
)
from .vectors import (
    linear_discriminant as linear_discriminant,
)
from .vectors import (
    linear_probe as linear_probe,
)
from .vectors import (
    mean_centred as mean_centred,
)
from .vectors import (
    pca_of_differences as pca_of_differences,
)
from .vectors import (
    random_direction as random_direction,
)
from .vectors.composition import (
    compose_report as compose_report,
)
from .vectors.composition import (
    joint_projection as joint_projection,
)
from .vectors.conditional import (
    Condition as Condition,
)
from .vectors.conditional import (
    fit_condition as fit_condition,
)
from .vectors.formats import (
    load_vector as load_vector,
)
from .vectors.library import (
    load_library as load_library,
)
from .vectors.library import (
    save_library as save_library,
)
from .vectors.transfer import (
    LayerMaps as LayerMaps,
)
from .vectors.transfer import (
    Transfer as Transfer,
)
from .vectors.transfer import (
    fit_maps as fit_maps,
)
from .vectors.transfer import (
    map_texts as map_texts,
)
from .vectors.transfer import (
    transfer_vector as transfer_vector,
)

__version__: str
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
