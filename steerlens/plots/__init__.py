"""Pictures of results: heat maps, layer curves, and text shaded token by token.

Every function takes plain rows (a DataFrame, or a list of mappings) and returns a
`plotly.graph_objects.Figure`, except `token_strip`, which returns HTML. Nothing here touches a
model: a picture can be drawn again from the numbers in a report. All share one theme
(`steerlens.plots.theme`): transparent, colour-blind-safe, legible on light and dark pages.

| function | shows |
|---|---|
| `instruction_layer_heatmap` | one quantity over instructions × layers |
| `layer_curves` | separability of one instruction over layers, with uncertainty |
| `recovery_curve` | causal recovery over layers, beside its placebo |
| `cosine_matrix` | how alike the instructions' directions are at a layer |
| `token_strip` | what steering did to each token of a text |

>>> rows = [{"instruction": "title", "layer": n, "auroc": 0.5 + n / 10} for n in range(5)]
>>> figure = instruction_layer_heatmap(rows, "auroc", marked={"title": 4})
>>> figure.layout.xaxis.title.text
'layer'
"""

from steerlens.plots.layers import layer_curves, recovery_curve
from steerlens.plots.maps import cosine_matrix, instruction_layer_heatmap
from steerlens.plots.theme import TEMPLATE
from steerlens.plots.tokens import token_strip

__all__ = [
    "TEMPLATE",
    "cosine_matrix",
    "instruction_layer_heatmap",
    "layer_curves",
    "recovery_curve",
    "token_strip",
]
