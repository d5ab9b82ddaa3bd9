from .bars import (
    ranked_tokens as ranked_tokens,
)
from .layers import (
    evidence_curves as evidence_curves,
)
from .layers import (
    layer_curves as layer_curves,
)
from .layers import (
    recovery_curve as recovery_curve,
)
from .maps import (
    cosine_matrix as cosine_matrix,
)
from .maps import (
    instruction_layer_heatmap as instruction_layer_heatmap,
)
from .maps import (
    layer_token_map as layer_token_map,
)
from .rates import (
    condition_rates as condition_rates,
)
from .residuals import (
    norm_curves as norm_curves,
)
from .residuals import (
    projection_histogram as projection_histogram,
)
from .residuals import (
    survival_curve as survival_curve,
)
from .residuals import (
    vector_curves as vector_curves,
)
from .responses import (
    kl_over_response as kl_over_response,
)
from .responses import (
    response_lengths as response_lengths,
)
from .result import (
    Result as Result,
)
from .saving import (
    save as save,
)
from .strip import (
    Section as Section,
)
from .strip import (
    text_figure as text_figure,
)
from .summaries import (
    summary as summary,
)
from .sweeps import (
    length_over_strength as length_over_strength,
)
from .sweeps import (
    strength_sweep as strength_sweep,
)
from .theme import (
    DARK as DARK,
)
from .theme import (
    LIGHT as LIGHT,
)
from .theme import (
    TEMPLATE as TEMPLATE,
)
from .theme import (
    Picture as Picture,
)
from .tokens import (
    token_strip as token_strip,
)

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
    "instruction_layer_heatmap",
    "kl_over_response",
    "layer_curves",
    "layer_token_map",
    "length_over_strength",
    "norm_curves",
    "projection_histogram",
    "ranked_tokens",
    "recovery_curve",
    "response_lengths",
    "save",
    "strength_sweep",
    "summary",
    "survival_curve",
    "text_figure",
    "token_strip",
    "vector_curves",
]
