from .bars import projection_histogram as projection_histogram
from .bars import ranked_tokens as ranked_tokens
from .bars import response_lengths as response_lengths
from .layers import evidence_curves as evidence_curves
from .layers import layer_curves as layer_curves
from .layers import norm_curves as norm_curves
from .layers import recovery_curve as recovery_curve
from .layers import survival_curve as survival_curve
from .layers import vector_curves as vector_curves
from .maps import cosine_matrix as cosine_matrix
from .maps import instruction_layer_heatmap as instruction_layer_heatmap
from .maps import layer_token_map as layer_token_map
from .picture import Picture as Picture
from .rates import condition_rates as condition_rates
from .result import Result as Result
from .saving import save as save
from .summaries import excerpt as excerpt
from .summaries import summary as summary
from .sweeps import kl_over_response as kl_over_response
from .sweeps import length_over_strength as length_over_strength
from .sweeps import strength_sweep as strength_sweep
from .text_figure import Section as Section
from .text_figure import prompt_and_response as prompt_and_response
from .text_figure import text_figure as text_figure
from .theme import DARK as DARK
from .theme import LIGHT as LIGHT
from .theme import TEMPLATE as TEMPLATE
from .tokens import strip_excerpt as strip_excerpt
from .tokens import token_strip as token_strip

__all__ = [
    "DARK",
    "LIGHT",
    "TEMPLATE",
    "Picture",
    "Result",
    "Section",
    "condition_rates",
    "cosine_matrix",
    "evidence_curves",
    "excerpt",
    "instruction_layer_heatmap",
    "kl_over_response",
    "layer_curves",
    "layer_token_map",
    "length_over_strength",
    "norm_curves",
    "projection_histogram",
    "prompt_and_response",
    "ranked_tokens",
    "recovery_curve",
    "response_lengths",
    "save",
    "strength_sweep",
    "strip_excerpt",
    "summary",
    "survival_curve",
    "text_figure",
    "token_strip",
    "vector_curves",
]
