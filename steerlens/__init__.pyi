from .activations.cache import ResidualCache, cache_residuals
from .attribution import (
    LayerRanking,
    Specificity,
    activation_patching,
    causal_recovery,
    first_token_recovery,
    gather_evidence,
    rank_layers,
    specificity,
)
from .attribution.ceiling import Ceiling, ceiling
from .attribution.choices import choice_curve
from .behaviour.calibration import calibrate, calibrate_rate
from .behaviour.evaluation.run import Evaluation, EvaluationSettings, evaluate
from .behaviour.plans import Plan
from .behaviour.search import SearchSettings, search
from .behaviour.side_effects import SideEffects, side_effects
from .effects import SteeredRun, steer, token_effects
from .engine.generation import Generations, generate
from .engine.sampling import Decoding
from .errors import SteerlensError, SteerlensWarning
from .explorer import explore
from .models.loading import available_models, load_model
from .reports import report
from .steering.interventions import Steering
from .steering.operations import Intervention
from .tasks import Task, base_queries, catalogue
from .tasks.drawing import contrast_pairs
from .tasks.task_files import load_task
from .training import train_direction
from .vectors import SteeringVector, difference_of_means, linear_probe, random_direction
from .vectors.formats import load_vector
from .vectors.transfer import transfer_vector

__version__: str
__all__ = [
    "Ceiling",
    "Decoding",
    "Evaluation",
    "EvaluationSettings",
    "Generations",
    "Intervention",
    "LayerRanking",
    "Plan",
    "ResidualCache",
    "SearchSettings",
    "SideEffects",
    "Specificity",
    "SteeredRun",
    "Steering",
    "SteeringVector",
    "SteerlensError",
    "SteerlensWarning",
    "Task",
    "activation_patching",
    "available_models",
    "base_queries",
    "cache_residuals",
    "calibrate",
    "calibrate_rate",
    "catalogue",
    "causal_recovery",
    "ceiling",
    "choice_curve",
    "contrast_pairs",
    "difference_of_means",
    "evaluate",
    "explore",
    "first_token_recovery",
    "gather_evidence",
    "generate",
    "linear_probe",
    "load_model",
    "load_task",
    "load_vector",
    "random_direction",
    "rank_layers",
    "report",
    "search",
    "side_effects",
    "specificity",
    "steer",
    "token_effects",
    "train_direction",
    "transfer_vector",
]
